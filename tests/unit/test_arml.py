"""ARML, the methods of linear metrics, and the score of certified radii."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_iris, load_wine, make_blobs
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from holdfast.errors import CorruptFile, DataError, InvalidArgument
from holdfast.linear import ARML, MahalanobisMixin, certified_radius_scorer
from holdfast.linear.arml import held_out
from holdfast.linear.arml_plan import MODES, plan
from holdfast.linear.arml_start import STARTS, start
from holdfast.linear.arml_training import triplet_bound, watched_rows
from holdfast.linear.objectives import LOSSES, through_matrix, triplet_margins
from holdfast.linear.triplets import CROWD, RULES, ClassBlocks, nearest_candidates

Table = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def wine() -> Table:
    X, y = load_wine(return_X_y=True)
    return MinMaxScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def fitted(wine: Table) -> ARML:
    return ARML(epochs=30, random_state=0).fit(*wine)


def quick(**changes: Any) -> ARML:
    return ARML(**{"epochs": 5, "random_state": 0, **changes})


@parametrize_with_checks([ARML(epochs=3, random_state=0)])
def test_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


# Margins and losses


def test_margin_by_hand() -> None:
    z, a, c = (torch.tensor(v, dtype=torch.float64) for v in ([0.0, 0.0], [0.0, 1.0], [2.0, 0.0]))
    identity, stretched = torch.eye(2).double(), torch.diag(torch.tensor([1.0, 2.0])).double()
    assert triplet_margins(z, a, c, identity).item() == pytest.approx((4 - 1) / (2 * 5**0.5))
    # M = diag(1, 4): distances 4 and 4, so nothing is left; the other way about it is negative
    assert triplet_margins(z, a, c, stretched).item() == 0
    assert triplet_margins(z, c, a, identity).item() == pytest.approx(-3 / (2 * 5**0.5))


def test_margin_is_the_step_to_a_tie() -> None:
    generator = torch.Generator().manual_seed(0)
    z, a, c = torch.randn((3, 20, 4), generator=generator, dtype=torch.float64)
    g = torch.randn((3, 4), generator=generator, dtype=torch.float64)
    margin = triplet_margins(z, a, c, g)
    direction = through_matrix(a - c, g)
    moved = z - margin[:, None] * direction / direction.norm(dim=1, keepdim=True)
    to = [((moved - p) @ g.T).norm(dim=1) for p in (a, c)]
    torch.testing.assert_close(to[0], to[1])


def test_margin_ignores_scale_but_for_the_floor() -> None:
    z, a, c = torch.rand((3, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(triplet_margins(z, a, c, 0.1 * g), triplet_margins(z, a, c, g))
    small = triplet_margins(z, a, c, 0.01 * g, floor=1e-6)
    assert bool((small.abs() < 0.5 * triplet_margins(z, a, c, g).abs()).all())  # the published fault 6.1.8


def test_margin_of_duplicates_has_a_finite_gradient() -> None:
    g = torch.eye(2, requires_grad=True)
    x = torch.ones(2)
    margin = triplet_margins(torch.zeros(2), x, x, g)
    (gradient,) = torch.autograd.grad(margin, g)
    assert margin.item() == 0
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("rank", [1, 7])
def test_both_orders_of_the_product(rank: int) -> None:
    g = torch.randn((rank, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn((3, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(through_matrix(x, g), x @ (g.T @ g))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("neg", [-2.0, 1.0]),
        ("hinge", [0.0, 1.5]),
        ("exp", [np.exp(-2), np.exp(1)]),
        ("logistic", [np.log1p(np.exp(-2)), np.log1p(np.exp(1))]),
    ],
)
def test_losses(name: str, expected: list[float]) -> None:
    values = LOSSES[name](torch.tensor([2.0, -1.0], dtype=torch.float64), 0.5)
    np.testing.assert_allclose(values, expected)


# Candidates and rules


def reference_candidates(x: np.ndarray, y: np.ndarray, count: int) -> list[tuple[list[int], list[int]]]:
    d = ((x[:, None] - x[None]) ** 2).sum(2)
    out = []
    for i in range(len(x)):
        order = [int(j) for j in np.argsort(d[i], kind="stable") if j != i]
        own = [j for j in order if y[j] == y[i]]
        out.append((own[:count], [j for j in order if y[j] != y[i]][:count]))
    return out


def check_candidates(x: np.ndarray, y: np.ndarray, count: int, before: np.ndarray | None = None) -> None:
    blocks = ClassBlocks.of(torch.from_numpy(x), torch.from_numpy(y))
    anchors = blocks.anchors()
    previous = None
    if before is not None:
        previous = nearest_candidates(blocks, blocks.x @ torch.from_numpy(before), anchors, count)
    near = nearest_candidates(blocks, blocks.x, anchors, count, previous)
    expected = reference_candidates(x, y, count)
    order = blocks.order.numpy()
    assert len(anchors) == sum(len(own) > 0 for own, _ in expected)
    for row, positive, negative, p, n in zip(*(part.numpy() for part in near), strict=True):
        own, others = expected[order[row]]
        assert order[positive[:p]].tolist() == own
        assert order[negative[:n]].tolist() == others


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(2, 5), st.booleans())
def test_candidates_are_the_nearest(seed: int, count: int, classes: int, warm: bool) -> None:
    generator = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), generator.integers(classes, size=40)])
    x = generator.normal(size=(len(y), 3))
    check_candidates(x, y, count, generator.normal(size=(3, 3)) if warm else None)


def test_candidates_in_blocks_and_far_from_the_old_ones() -> None:
    generator = np.random.default_rng(0)
    y = generator.permutation(np.repeat([0, 1, 2], [400, 200, 3]))
    x = generator.normal(size=(len(y), 2))
    count = 4
    assert len(y) > 2 * 256
    check_candidates(x, y, count, np.diag([1.0, 0.9]))  # near enough for the short way
    worst = np.diag([1.0, 1e-6])  # more than CROWD times as many below the old limit
    assert CROWD * count < 200
    check_candidates(x, y, count, worst)


def test_sampled_rule_draws_each_candidate_equally() -> None:
    y = torch.tensor([0, 0, 0, 1])
    blocks = ClassBlocks.of(torch.tensor([[0.0], [1.0], [3.0], [5.0]]), y)
    near = nearest_candidates(blocks, blocks.x, blocks.anchors(), 10)
    draws = [
        RULES["sampled"](near, blocks.x, torch.eye(1), torch.Generator().manual_seed(seed))
        for seed in range(300)
    ]
    first = torch.stack([triplet.positive[0] for triplet in draws])
    assert set(first.tolist()) == {1, 2}
    assert 0.4 < (first == 1).double().mean() < 0.6
    assert {int(v) for triplet in draws for v in triplet.negative} == {3}
    assert all(bool((triplet.positive != triplet.anchor).all()) for triplet in draws)


def test_a_row_draws_the_same_whatever_other_anchors_there_are() -> None:
    x = torch.randn((30, 2), generator=torch.Generator().manual_seed(0))
    blocks = ClassBlocks.of(x, torch.arange(30) % 3)
    near = nearest_candidates(blocks, blocks.x, blocks.anchors(), 5)
    part = torch.arange(0, 30, 4)
    whole, some = (
        RULES["sampled"](c, blocks.x, torch.eye(2), torch.Generator().manual_seed(1))
        for c in (near, near.rows(part))
    )
    for a, b in zip(whole, some, strict=True):
        assert torch.equal(a[part], b)


def test_binding_rule_attains_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (
        torch.randn((24, 3), generator=generator).double(),
        torch.randn((3, 3), generator=generator).double(),
    )
    y = torch.arange(24) % 2
    blocks = ClassBlocks.of(x, y)
    near = nearest_candidates(blocks, blocks.x @ g.T, blocks.anchors(), 24)
    triplets = RULES["binding"](near, blocks.x, g, generator)
    margins = triplet_margins(*(blocks.x[side] for side in triplets), g).clamp_min(0)
    for row, margin in zip(triplets.anchor, margins, strict=True):
        rest = torch.arange(24) != row
        z, t = blocks.x[row][None], blocks.codes[row][None]
        bound = triplet_bound(blocks.x[rest], blocks.codes[rest], z, t, g).radius
        torch.testing.assert_close(margin[None], bound, atol=1e-7, rtol=0)


# Training


def test_training_raises_held_out_radii(wine: Table) -> None:
    X, y = wine
    train = np.arange(len(X)) % 3 != 0
    model = ARML(random_state=0).fit(X[train], y[train])
    rest = torch.from_numpy(X[~train]), torch.from_numpy(y[~train])
    references = torch.from_numpy(X[train]), torch.from_numpy(y[train])
    ours = triplet_bound(*references, *rest, torch.from_numpy(model.components_)).median()
    assert ours > 1.08 * triplet_bound(*references, *rest, torch.eye(13)).median()
    assert model.history_[-1]["loss"] < model.history_[0]["loss"]


def test_translation_and_scale_of_the_data_change_little(wine: Table) -> None:
    X, y = wine
    plain = quick(dtype="float64").fit(X, y).get_mahalanobis_matrix()
    for data, slack in ((X + 1000, 1e-9), (100 * X, 1e-4)):  # Adam's epsilon sees the scale
        moved = quick(dtype="float64").fit(data, y).get_mahalanobis_matrix()
        np.testing.assert_allclose(moved, plain, atol=slack)


def test_same_seed_same_metric_and_another_another(wine: Table) -> None:
    first, again, other = (quick(random_state=seed).fit(*wine).components_ for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_shuffled_rows_of_nearest_triplets_give_the_same_metric(wine: Table) -> None:
    X, y = wine
    p = np.random.default_rng(0).permutation(len(X))
    a, b = (quick(triplets="nearest", dtype="float64").fit(*d).components_ for d in ((X, y), (X[p], y[p])))
    np.testing.assert_allclose(a, b, atol=1e-9)


def test_scale_is_kept(wine: Table) -> None:
    model = quick().fit(*wine)
    assert np.linalg.norm(model.components_) == pytest.approx(13**0.5, rel=1e-5)
    free = quick(normalize_scale=False, lr=0.1).fit(*wine)
    assert abs(np.linalg.norm(free.components_) - 13**0.5) > 0.01


def test_low_rank(wine: Table) -> None:
    model = quick(n_components=2).fit(*wine)
    assert model.components_.shape == (2, 13)
    assert model.transform(wine[0]).shape == (178, 2)
    assert np.linalg.matrix_rank(model.get_mahalanobis_matrix()) == 2
    assert list(model.get_feature_names_out()) == ["arml0", "arml1"]


@pytest.mark.parametrize("init", [*STARTS, "auto", ("identity", "lda")])
def test_starts(wine: Table, init: Any) -> None:
    assert np.isfinite(quick(init=init, epochs=2).fit(*wine).components_).all()


def test_starts_are_what_they_say(wine: Table) -> None:
    X, y = wine
    np.testing.assert_array_equal(start("auto", X, y, 13, 0), np.eye(13))
    basis = start("pca", X, y, 3, 0)
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-12)
    assert np.var(X @ basis[0]) == pytest.approx(np.linalg.eigvalsh(np.cov(X.T, bias=True))[-1])
    one = start("lda", X, y, 1, 0)[0]
    means = np.stack([X[y == k].mean(0) for k in range(3)])

    def ratio(direction: np.ndarray) -> float:
        return float(np.var((means @ direction)[y]) / np.var((X - means[y]) @ direction))

    assert ratio(one) > 2 * max(ratio(axis) for axis in np.eye(13))


def test_an_array_starts_training_and_sets_the_rank(wine: Table) -> None:
    init = np.random.default_rng(0).normal(size=(4, 13))
    near = ARML(init=init, epochs=1, lr=1e-9, normalize_scale=False).fit(*wine)
    np.testing.assert_allclose(near.components_, init, atol=1e-6)


def test_warm_start_goes_on(wine: Table) -> None:
    cold = quick(epochs=40).fit(*wine)
    warm = clone(cold).set_params(warm_start=True, epochs=1, lr=1e-9)
    warm.components_ = cold.components_
    np.testing.assert_allclose(warm.fit(*wine).components_, cold.components_, atol=1e-5)


def test_held_out_rows_choose_the_metric(wine: Table) -> None:
    model = quick(epochs=40, validation_fraction=0.25, refresh=4).fit(*wine)
    radii = [entry["radius"] for entry in model.history_ if "radius" in entry]
    assert len(radii) == 10
    assert model.n_iter_ == 40
    assert len(model.references_) == 178
    X, y = wine
    held = held_out(y, 0.25, int(np.random.RandomState(0).randint(2**31 - 1)))
    found = triplet_bound(
        *(torch.from_numpy(part) for part in (X[~held], y[~held], X[held], y[held])),
        torch.from_numpy(model.components_),
    )
    assert found.median() == pytest.approx(max(radii), abs=1e-5)


def test_held_out_rows_come_from_every_class() -> None:
    y = np.repeat([0, 1, 2], [20, 10, 1])
    held = held_out(y, 0.3, 0)
    assert np.bincount(y[held], minlength=3).tolist() == [6, 3, 0]


def test_patience_and_tol_stop_early(wine: Table) -> None:
    held = quick(epochs=400, lr=1e-7, validation_fraction=0.2, patience=2, refresh=10).fit(*wine)
    assert held.n_iter_ < 400
    assert quick(epochs=400, tol=0.5).fit(*wine).n_iter_ == 20


def test_restarts_keep_the_best(wine: Table) -> None:
    one, three = (quick(restarts=n, validation_fraction=0.3).fit(*wine) for n in (1, 3))
    best = [max(e["radius"] for e in m.history_ if "radius" in e) for m in (one, three)]
    assert best[1] >= best[0]


def test_batches_learn_too(wine: Table) -> None:
    X, y = wine
    whole, batches = (ARML(random_state=0, epochs=60, batch_size=b).fit(X, y) for b in (None, 50))
    data = torch.from_numpy(X), torch.from_numpy(y)
    # radii of the training rows against the others of a half, so that no point is its own reference
    half = np.arange(len(X)) % 2 == 0
    parts = [data[0][half], data[1][half], data[0][~half], data[1][~half]]
    plain = triplet_bound(*parts, torch.eye(13)).radius.mean()
    for model in (whole, batches):
        assert triplet_bound(*parts, torch.from_numpy(model.components_)).radius.mean() > 1.1 * plain


def test_batches_are_the_default_for_many_rows() -> None:
    few, many = plan("default", 8192, {}), plan("default", 60000, {})
    assert (few.batch_size, few.epochs) == (None, MODES["default"].epochs)
    assert many.batch_size == 4096
    assert 300 <= many.epochs * 15 < 400
    assert (few.refresh, many.refresh) == (10, 5)
    assert plan("published", 60000, {}).batch_size is None
    assert watched_rows(6000, 60000, 784) < 200 < watched_rows(6000, 5000, 784)


def test_published_schedule() -> None:
    chosen = plan("published", 100, {"loss": None, "epochs": None})
    assert (chosen.loss, chosen.lr, chosen.epochs, chosen.refresh) == ("neg", 1e-3, 1000, 1)
    assert (chosen.n_candidates, chosen.batch_size, chosen.floor) == (10, None, 1e-6)
    assert chosen.rate(0.0) == chosen.rate(0.99) == 1e-3
    assert not chosen.normalize_scale
    assert plan("default", 100, {}).rate(1.0) == pytest.approx(0)


def test_classes_of_one_and_fewer_rows_than_candidates() -> None:
    X = np.array([[0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [1.1, 0.2], [3.0, 3.0]])
    model = quick(epochs=20).fit(X, ["a", "a", "b", "b", "c"])
    assert np.isfinite(model.components_).all()
    assert model.classes_.tolist() == ["a", "b", "c"]


def test_constant_columns_and_duplicates() -> None:
    X, y = make_blobs(60, 3, random_state=0)
    X = np.hstack([X, np.full((60, 2), 7.0)])
    X[1] = X[0]
    y[0], y[1] = 0, 1
    model = quick(epochs=20).fit(X, y)
    assert np.isfinite(model.components_).all()
    same = quick().fit(np.ones((6, 2)), [0, 0, 0, 1, 1, 1])
    assert np.isfinite(same.components_).all()


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"n_components": 14}, "n_components"), ({"n_components": 0}, "n_components"),
        ({"n_components": 1.5}, "n_components"), ({"mode": "paper"}, "mode"), ({"loss": "mse"}, "loss"),
        ({"calibration": -1.0}, "calibration"), ({"triplets": "all"}, "triplets"),
        ({"n_candidates": 0}, "n_candidates"), ({"refresh": 0}, "refresh"), ({"epochs": 0}, "epochs"),
        ({"epochs": 2.5}, "epochs"), ({"lr": -0.1}, "lr"), ({"lr": np.nan}, "lr"), ({"lr": "x"}, "lr"),
        ({"schedule": "step"}, "schedule"), ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"), ({"init": "random"}, "init"), ({"init": np.eye(3)}, "init"),
        ({"init": np.zeros((13, 13))}, "init"), ({"init": np.full((13, 13), np.nan)}, "init"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"validation_fraction": 0.001}, "validation_fraction"), ({"patience": 3}, "patience"),
        ({"patience": 0, "validation_fraction": 0.2}, "patience"), ({"restarts": 0}, "restarts"),
        ({"tol": -1.0}, "tol"), ({"device": "abacus"}, "device"), ({"dtype": "int8"}, "dtype"),
        ({"lr": 1e30, "normalize_scale": False}, "lr"),
    ],
)  # fmt: skip
def test_parameters_outside_their_range(wine: Table, changes: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{argument}: ") as raised:
        quick(**changes).fit(*wine)
    assert raised.value.argument == argument


@pytest.mark.parametrize(
    ("X", "y", "text"),
    [
        ([[0.0], [np.nan], [1.0]], [0, 1, 1], "NaN"),
        ([[0.0], [np.inf], [1.0]], [0, 1, 1], "infinity"),
        ([[0.0], [1.0], [2.0]], [0, 0, 0], "^y: need at least 2 classes"),
        ([[0.0], [1.0], [2.0]], [0, 1, 2], "^y: need a class with at least 2 members"),
        ([[0.0], [1.0], [2.0]], [0, 1], "inconsistent"),
        ([[0.0], [1.0], [2.0]], [0.1, 1.5, 1.5], "Unknown label type"),
        ([0.0, 1.0, 2.0], [0, 1, 1], "2D"),
    ],
)
def test_data_that_cannot_be_used(X: Any, y: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        quick().fit(X, y)


def test_cuda_is_asked_for_where_there_is_none(wine: Table) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is here")
    with pytest.raises(InvalidArgument, match="device"):
        quick(device="cuda").fit(*wine)
    assert quick(device="auto").fit(*wine).n_iter_ == 5


@pytest.mark.gpu
def test_cuda_agrees(wine: Table) -> None:
    a, b = (quick(device=d, dtype="float64").fit(*wine).components_ for d in ("cpu", "cuda"))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_no_progress_unless_asked(wine: Table, capsys: pytest.CaptureFixture[str]) -> None:
    quick().fit(*wine)
    assert capsys.readouterr() == ("", "")
    quick(verbose=True).fit(*wine)
    assert capsys.readouterr().out == ""


# Methods of a linear metric


def test_distances_agree(fitted: ARML, wine: Table) -> None:
    X = wine[0][:10]
    u, v = X[:5], X[5:]
    pairs = np.stack([u, v], 1)
    m = fitted.get_mahalanobis_matrix()
    expected = np.sqrt(((u - v) @ m * (u - v)).sum(1))
    np.testing.assert_allclose(fitted.pair_distance(pairs), expected)
    np.testing.assert_allclose(fitted.score_pairs(pairs), expected)
    np.testing.assert_allclose(fitted.pair_score(pairs), -expected)
    metric = fitted.get_metric()
    np.testing.assert_allclose([metric(a, b) for a, b in pairs], expected)
    assert metric(u[0], v[0], squared=True) == pytest.approx(expected[0] ** 2)
    moved = fitted.transform(u) - fitted.transform(v)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), expected)
    np.testing.assert_allclose(m, m.T)


@pytest.mark.parametrize(
    "pairs",
    [np.zeros((2, 13)), np.zeros((2, 3, 13)), np.zeros((2, 2, 12)), np.full((1, 2, 13), np.nan), "ab"],
)
def test_pairs_of_a_wrong_shape(fitted: ARML, pairs: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^pairs: "):
        fitted.pair_distance(pairs)


def test_vectors_of_a_wrong_shape(fitted: ARML) -> None:
    with pytest.raises(InvalidArgument, match=r"^u, v: "):
        fitted.get_metric()(np.zeros(13), np.zeros(12))


def test_certify_is_the_bound_of_training(fitted: ARML, wine: Table) -> None:
    X, y = wine
    shifted = X[:20] + 0.01
    certificate = fitted.certify(shifted, y[:20], method="bound")
    data = (torch.from_numpy(part) for part in (X, y, shifted, y[:20]))
    expected = triplet_bound(*data, torch.from_numpy(fitted.components_))
    torch.testing.assert_close(certificate.radius, expected.radius, atol=1e-9, rtol=0)
    assert certificate.radius.max() > 0.1
    three = fitted.certify(shifted, y[:20], n_neighbors=3, norm=1, method="bound")
    assert three.norm == 1


# Files


def test_save_and_load(fitted: ARML, wine: Table, tmp_path: Path) -> None:
    path = tmp_path / "metric.safetensors"
    fitted.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["metric.safetensors"]
    for kind in (ARML, MahalanobisMixin):
        loaded = kind.load(path)
        assert isinstance(loaded, ARML)
        assert loaded.get_params() == fitted.get_params()
        assert (loaded.n_iter_, loaded.history_) == (fitted.n_iter_, fitted.history_)
        np.testing.assert_array_equal(loaded.transform(wine[0]), fitted.transform(wine[0]))
        ours, theirs = (m.certify(wine[0][:5] + 0.01, wine[1][:5]).radius for m in (loaded, fitted))
        assert torch.equal(ours, theirs)


def test_labels_names_and_arrays_survive(tmp_path: Path) -> None:
    flowers = load_iris()
    labels = flowers.target_names[flowers.target]
    model = quick(init=np.eye(2, 4), n_candidates=np.int64(3)).fit(flowers.data, labels)
    model.feature_names_in_ = np.array(flowers.feature_names, dtype=object)  # as from a table of pandas
    model.save(tmp_path / "m")
    loaded = ARML.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.init, np.eye(2, 4))
    assert list(loaded.feature_names_in_) == flowers.feature_names
    np.testing.assert_array_equal(loaded.reference_labels_, labels)
    np.testing.assert_array_equal(loaded.classes_, model.classes_)
    assert loaded.certify(flowers.data[:3], labels[:3]).correct.all()
    loaded.save(tmp_path / "again")


def test_a_file_without_references(fitted: ARML, wine: Table, tmp_path: Path) -> None:
    fitted.save(tmp_path / "m", references=False)
    loaded = ARML.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.transform(wine[0]), fitted.transform(wine[0]))
    with pytest.raises(InvalidArgument, match="references_"):
        loaded.certify(wine[0])


def test_what_cannot_be_saved(fitted: ARML, wine: Table, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="random_state"):
        quick(random_state=np.random.RandomState(0)).fit(*wine).save(tmp_path / "m")

    class Own(ARML):
        pass

    with pytest.raises(InvalidArgument, match="estimator"):
        Own(epochs=1).fit(*wine).save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def rewrite(path: Path, change: Any) -> None:
    """Write a file of one array anew with a changed header and changed tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["holdfast"])
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, metadata={"holdfast": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda h, t: h.update(schema=99), DataError, "schema 99"),
        (lambda h, t: h.update(estimator="os.system"), DataError, "os.system"),
        (lambda h, t: h["parameters"].update(evil=1), CorruptFile, "evil"),
        (lambda h, t: h.pop("learned"), CorruptFile, "learned"),
        (lambda h, t: h["learned"].update(fit=1), CorruptFile, "fit"),
        (lambda h, t: h["learned"].update(__class__=1), CorruptFile, "__class__"),
        (lambda h, t: h["learned"].update(components_={"array": "no"}), CorruptFile, "no"),
        (lambda h, t: h["learned"].update(components_=3), CorruptFile, "components_"),
        (lambda h, t: t["learned.components_"].fill(np.nan), CorruptFile, "finite"),
        (lambda h, t: t.update({"learned.components_": np.eye(3)}), CorruptFile, "components_"),
        (lambda h, t: t.update({"learned.references_": np.eye(3)}), CorruptFile, "references_"),
    ],
)
def test_files_that_do_not_fit(
    fitted: ARML, tmp_path: Path, change: Any, error: type[Exception], text: str
) -> None:
    path = tmp_path / "m"
    fitted.save(path)
    rewrite(path, change)
    with pytest.raises(error, match=text):
        ARML.load(path)


def test_files_of_something_else(fitted: ARML, tmp_path: Path) -> None:
    path = tmp_path / "m"
    with pytest.raises(FileNotFoundError, match="no such file"):
        ARML.load(path)
    save_file({"a": np.eye(2)}, path)
    with pytest.raises(DataError, match="header"):
        ARML.load(path)
    fitted.save(path)
    data = path.read_bytes()
    for torn in (b"", data[:100], data[: len(data) // 2], b"\x80\x04" + data):
        path.write_bytes(torn)
        with pytest.raises(CorruptFile, match="not safetensors"):
            ARML.load(path)

    class Other(MahalanobisMixin, BaseEstimator):
        pass

    fitted.save(path)
    with pytest.raises(DataError, match="not a Other"):
        Other.load(path)


# The score


def test_grid_search_over_certified_radii(wine: Table) -> None:
    X, y = wine
    pipeline = make_pipeline(MinMaxScaler(), ARML(random_state=0, epochs=1))
    score = certified_radius_scorer(method="bound")
    search = GridSearchCV(pipeline, {"arml__epochs": [1, 60]}, scoring=score, cv=StratifiedKFold(3)).fit(X, y)
    assert search.best_params_ == {"arml__epochs": 60}
    certificate = search.best_estimator_[-1].certify(
        search.best_estimator_[:-1].transform(X), y, method="bound"
    )
    assert score(search.best_estimator_, X, y) == certificate.median()


def test_scores(fitted: ARML, wine: Table) -> None:
    X, y = wine[0] + 0.01, wine[1]
    certificate = fitted.certify(X, y, n_neighbors=3, method="bound")
    options: dict[str, Any] = {"n_neighbors": 3, "method": "bound"}
    assert certified_radius_scorer(0.1, **options)(fitted, X, y) == certificate.accuracy_at(0.1)
    mean = certified_radius_scorer(statistic="mean", **options)(fitted, X, y)
    assert mean == pytest.approx(float(certificate.radius.mean()))
    pipeline = make_pipeline(ARML(epochs=30, random_state=0), KNeighborsClassifier(3)).fit(*wine)
    assert certified_radius_scorer(method="bound")(pipeline, X, y) == certificate.median()


def test_scores_that_cannot_be(wine: Table) -> None:
    weighted = make_pipeline(quick(), KNeighborsClassifier(3, weights="distance")).fit(*wine)
    with pytest.raises(InvalidArgument, match="estimator"):
        certified_radius_scorer()(weighted, *wine)
    with pytest.raises(InvalidArgument, match="radius"):
        certified_radius_scorer(-1.0)
    with pytest.raises(InvalidArgument, match="statistic"):
        certified_radius_scorer(statistic="mode")
