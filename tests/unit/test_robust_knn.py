"""The classifier: scikit-learn's contract, votes, certificates in input units, files, and bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from holdfast.errors import CorruptFile, DataError, InvalidArgument
from holdfast.linear import ARML, RobustKNeighborsClassifier

X, Y = load_wine(return_X_y=True)
X = MinMaxScaler().fit_transform(X)
TRAIN, TEST = np.arange(len(X)) % 3 > 0, np.arange(len(X)) % 3 == 0
G = np.random.default_rng(0).normal(size=(4, 13))
M = G.T @ G


def fitted(k: int = 1, **options: Any) -> RobustKNeighborsClassifier:
    return RobustKNeighborsClassifier(k, **options).fit(X[TRAIN], Y[TRAIN])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([RobustKNeighborsClassifier(), RobustKNeighborsClassifier(3, method="bound")])
def test_scikit_learn_contract(estimator: RobustKNeighborsClassifier, check: Any) -> None:
    check(estimator)


# ------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("m", [None, M])
def test_answers_are_those_of_scikit_learn(k: int, m: np.ndarray | None) -> None:
    knn = fitted(k, metric=m)
    factor = np.eye(13) if m is None else G
    other = KNeighborsClassifier(k, algorithm="brute").fit(X[TRAIN] @ factor.T, Y[TRAIN])
    moved = X[TEST] @ factor.T
    np.testing.assert_array_equal(knn.predict(X[TEST]), other.predict(moved))
    np.testing.assert_allclose(knn.predict_proba(X[TEST]), other.predict_proba(moved))
    distances, rows = knn.kneighbors(X[TEST])
    theirs = other.kneighbors(moved)
    np.testing.assert_allclose(distances, theirs[0], atol=1e-7)
    np.testing.assert_array_equal(rows, theirs[1])
    np.testing.assert_array_equal(knn.kneighbors(X[TEST], 9, return_distance=False)[:, :k], rows)
    assert knn.score(X[TEST], Y[TEST]) == other.score(moved, Y[TEST])


def test_equal_votes_go_to_the_smaller_label() -> None:
    knn = RobustKNeighborsClassifier(2).fit([[0.0], [1.0], [5.0]], ["b", "a", "c"])
    assert knn.predict([[0.1]]).tolist() == ["a"]
    assert knn.predict_proba([[0.1]]).tolist() == [[0.5, 0.5, 0.0]]
    assert float(knn.certify([[0.1]]).radius) == 0.0  # a tie is no majority


def test_the_distance_of_a_training_row_to_itself_is_zero() -> None:
    knn = RobustKNeighborsClassifier(metric=M).fit(X[TRAIN] + 1000, Y[TRAIN])
    assert knn.kneighbors(X[TRAIN] + 1000)[0].max() == 0.0


# ----------------------------------------------------------------------------------------------- metrics


def test_a_fitted_learner_is_taken_as_it_is() -> None:
    arml = ARML(epochs=3, random_state=0).fit(X[TRAIN], Y[TRAIN])
    by_object = fitted(3, metric=arml)
    by_matrix = fitted(3, metric=arml.get_mahalanobis_matrix())
    assert by_object.references_.matrix is not None
    torch.testing.assert_close(by_object.references_.matrix, by_matrix.references_.matrix)
    frozen = clone(RobustKNeighborsClassifier(3, metric=FrozenEstimator(arml))).fit(X[TRAIN], Y[TRAIN])
    torch.testing.assert_close(by_object.references_.matrix, frozen.references_.matrix)


def test_an_unfitted_learner_is_fitted_on_the_training_rows() -> None:
    arml = ARML(epochs=3, random_state=0)
    knn = fitted(3, metric=arml)
    expected = clone(arml).fit(X[TRAIN], Y[TRAIN]).get_mahalanobis_matrix()
    np.testing.assert_allclose(knn.references_.matrix, expected, atol=1e-9)
    assert not hasattr(arml, "components_")


def test_a_float32_metric_may_carry_its_own_rounding() -> None:
    rough = M.astype(np.float32)
    rough[0, 1] *= 1 + 3e-7
    found = fitted(metric=rough).certify(X[TEST], Y[TEST], method="bound").radius
    torch.testing.assert_close(
        found, fitted(metric=M).certify(X[TEST], Y[TEST], method="bound").radius, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (np.diag([1.0] * 12 + [-0.1]), "positive semi-definite"),
        (np.full((13, 13), np.nan), "finite"),
        (np.diag([1.0] * 12 + [np.inf]), "finite"),
        (np.eye(12), r"\(13, 13\) matrix"),
        (np.eye(13) + 1j, "real numbers"),
        (np.triu(np.ones((13, 13))), "symmetric"),
        ("euclidean", "real numbers"),
    ],
)
def test_other_metrics_are_refused(metric: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        fitted(metric=metric)


def test_a_metric_is_projected_only_if_asked() -> None:
    indefinite = np.diag([1.0] * 12 + [-0.5])
    knn = fitted(metric=indefinite, project=True)
    np.testing.assert_allclose(knn.references_.matrix, np.diag([1.0] * 12 + [0.0]), atol=1e-12)
    with pytest.raises(InvalidArgument, match="finite"):
        fitted(metric=np.full((13, 13), np.nan), project=True)


# ------------------------------------------------------------------------------------------ certificates


def test_a_certificate_in_input_units() -> None:
    """Between 0 and 10 in raw units, seen from 2: the boundary is 3 away."""
    knn = RobustKNeighborsClassifier().fit([[0.0], [10.0]], [7, -7])
    c = knn.certify([[2.0], [8.0]], [7, 7])
    assert c.radius.tolist() == pytest.approx([3.0, 0.0], abs=1e-8)
    assert c.correct.tolist() == [True, False]
    assert c.answer is not None
    assert knn.classes_[c.answer.numpy()].tolist() == [7, -7]
    assert knn.certify([[8.0]]).radius.tolist() == pytest.approx([3.0], abs=1e-8)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("m", [None, M])
def test_methods_agree_with_each_other_and_with_the_attack(k: int, m: np.ndarray | None) -> None:
    knn, x, y = fitted(k, metric=m), X[TEST][::4], Y[TEST][::4]
    bound, tight = (knn.certify(x, y, method=method) for method in ("bound", "tight"))
    lengths, moves = knn.attack(x, y)
    right = knn.predict(x) == y
    assert bool((bound.radius <= tight.radius + 1e-9).all())
    assert (tight.radius.numpy() <= lengths + 1e-9).all()
    assert (lengths[~right] == 0).all()
    found = right & np.isfinite(lengths)
    assert found.sum() > 5
    np.testing.assert_allclose(np.linalg.norm(moves[found], axis=1), lengths[found], rtol=1e-9)
    assert (knn.predict((x + moves)[found]) != y[found]).all()


@pytest.mark.parametrize("norm", [1, np.inf])
def test_other_norms(norm: float) -> None:
    """|v|_inf <= |v|_2 <= |v|_1: radii are ordered the same way; the answer holds on the signs' corners."""
    knn, x, y = fitted(3, metric=M), X[TEST], Y[TEST]
    other, two = knn.certify(x, y, norm=norm), knn.certify(x, y, method="bound")
    assert other.norm == norm
    smaller, larger = (two, other) if norm == 1 else (other, two)
    assert bool((smaller.radius <= larger.radius + 1e-9).all())
    assert float(other.radius.max()) > 0
    right = other.radius.numpy() > 0
    rng = np.random.default_rng(0)
    for _ in range(50):
        v = rng.normal(size=x.shape) if norm == 1 else np.sign(rng.normal(size=x.shape))
        v *= (0.999 * other.radius.numpy() / np.linalg.norm(v, ord=norm, axis=1))[:, None]
        assert (knn.predict(x + v)[right] == y[right]).all()


def test_the_method_of_the_estimator_counts_unless_another_is_named() -> None:
    knn = fitted(1, method="bound")
    assert knn.certify(X[TEST], Y[TEST]).method == "triplet bound"
    assert knn.certify(X[TEST], Y[TEST], method="exact").method != "triplet bound"


def test_a_box_makes_radii_larger_but_not_predictions_smaller() -> None:
    rows, labels = [[0.1], [0.9]], [0, 1]
    free = RobustKNeighborsClassifier().fit(rows, labels)
    boxed = RobustKNeighborsClassifier(box=(0.0, 0.4)).fit(rows, labels)
    assert float(free.certify([[0.2]]).radius) == pytest.approx(0.3, abs=1e-8)
    assert float(boxed.certify([[0.2]]).radius) == math.inf  # the boundary at 0.5 is out of reach
    assert boxed.predict([[0.7]]).tolist() == [1]  # outside the box, as test data scaled by training data are
    with pytest.raises(InvalidArgument, match="features inside the box"):
        boxed.certify([[0.7]])


def test_constant_columns_and_small_classes() -> None:
    x = np.c_[X, np.full(len(X), 3.0)]
    wide = RobustKNeighborsClassifier(5).fit(x[TRAIN], Y[TRAIN])
    torch.testing.assert_close(
        wide.certify(x[TEST], Y[TEST], method="bound").radius,
        fitted(5).certify(X[TEST], Y[TEST], method="bound").radius,
        atol=1e-9, rtol=0,
    )  # fmt: skip
    few = RobustKNeighborsClassifier(3).fit([[0.0], [1.0], [1.1], [1.2], [9.0]], [0, 1, 1, 1, 2])
    assert few.certify([[0.0], [1.1]], [0, 1], method="bound").radius.tolist()[0] == 0.0
    assert float(few.certify([[1.1]], [1], method="bound").radius) > 0.1


# ----------------------------------------------------------------------------------- pipelines and threads


def test_pipelines_and_searches() -> None:
    pipe = make_pipeline(MinMaxScaler(), RobustKNeighborsClassifier(method="bound"))
    search = GridSearchCV(pipe, {"robustkneighborsclassifier__n_neighbors": [1, 3]}, cv=3).fit(X, Y)
    assert search.best_score_ > 0.9
    learned = RobustKNeighborsClassifier(metric=ARML(epochs=2, random_state=0))
    assert cross_val_score(learned, X, Y, cv=3).min() > 0.8
    assert RobustKNeighborsClassifier(n_neighbors=5).get_params()["n_neighbors"] == 5


def test_threads_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    def broken(*_: Any, **__: Any) -> None:
        seen.append(torch.get_num_threads())
        raise RuntimeError("on purpose")

    monkeypatch.setattr("holdfast.linear.knn.certify_neighbours", broken)
    knn = fitted(1, n_jobs=before + 1)
    with pytest.raises(RuntimeError, match="on purpose"):
        knn.certify(X[TEST], Y[TEST])
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    with pytest.raises(InvalidArgument, match="n_jobs"):
        fitted(1, n_jobs=0)


# ------------------------------------------------------------------------------------------------ bad input


def test_labels_that_training_has_not_seen_are_named() -> None:
    knn = RobustKNeighborsClassifier().fit([[0.0], [1.0]], ["cat", "dog"])
    with pytest.raises(InvalidArgument, match=r"labels that occur in training, got \['cow', 'hen'\]"):
        knn.certify([[0.0], [1.0], [1.0]], ["hen", "dog", "cow"])
    with pytest.raises(InvalidArgument, match="labels that occur in training"):
        knn.attack([[0.0]], ["hen"])
    with pytest.raises(InvalidArgument, match="a label for each of the 2 points"):
        knn.certify([[0.0], [1.0]], ["cat"])


@pytest.mark.parametrize("k", [0, 3, 1.0, True, "1"])
def test_impossible_numbers_of_neighbours(k: Any) -> None:
    with pytest.raises(InvalidArgument, match="n_neighbors: need an integer between 1 and n_samples = 2"):
        RobustKNeighborsClassifier(k).fit([[0.0], [1.0]], [0, 1])


@pytest.mark.parametrize("box", [(1.0, 0.0), 3, ("a", "b"), (0.0, 1.0, 2.0)])
def test_impossible_boxes(box: Any) -> None:
    with pytest.raises(InvalidArgument, match="box"):
        fitted(box=box)


def test_unknown_devices_methods_and_norms() -> None:
    with pytest.raises(InvalidArgument, match="device"):
        fitted(device="abacus")
    with pytest.raises(InvalidArgument, match="method"):
        fitted().certify(X[TEST], method="guess")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="norm"):
        fitted().certify(X[TEST], norm=3)
    with pytest.raises(NotFittedError):
        RobustKNeighborsClassifier().certify(X)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(bad: float) -> None:
    x = X[TEST].copy()
    x[0, 0] = bad
    for call in (fitted().predict, fitted().certify, fitted().attack, fitted().kneighbors):
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            call(x)


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("labels", ["numbers", "text"])
@pytest.mark.parametrize("m", [None, M])
def test_a_file_gives_the_same_classifier(tmp_path: Path, m: np.ndarray | None, labels: str) -> None:
    y = Y if labels == "numbers" else np.array(["red", "rosé", "white"])[Y]
    knn = RobustKNeighborsClassifier(3, metric=m, method="bound", box=(-0.5, 2)).fit(X[TRAIN], y[TRAIN])
    knn.save(tmp_path / "knn.safetensors")
    back = RobustKNeighborsClassifier.load(tmp_path / "knn.safetensors")
    np.testing.assert_array_equal(back.predict(X[TEST]), knn.predict(X[TEST]))
    again, before = (c.certify(X[TEST], y[TEST]).radius for c in (back, knn))
    torch.testing.assert_close(again, before, rtol=0, atol=1e-12)  # strides, and so sums, may differ
    assert back.box == (-0.5, 2.0)
    assert back.n_features_in_ == 13
    refitted = clone(back).fit(X[TRAIN], y[TRAIN])
    np.testing.assert_array_equal(refitted.predict(X[TEST]), knn.predict(X[TEST]))


def test_a_low_rank_metric_goes_through_a_file(tmp_path: Path) -> None:
    knn = fitted(metric=M)
    assert knn.references_.points.shape[1] == 4
    knn.save(tmp_path / "knn.safetensors")
    back = RobustKNeighborsClassifier.load(tmp_path / "knn.safetensors")
    again, before = (c.certify(X[TEST], Y[TEST]).radius for c in (back, knn))
    torch.testing.assert_close(again, before, rtol=0, atol=1e-9)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "knn.safetensors"
    with pytest.raises(FileNotFoundError):
        RobustKNeighborsClassifier.load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(CorruptFile, match="safetensors"):
        RobustKNeighborsClassifier.load(path)
    ARML(epochs=1).fit(X, Y).save(path)
    with pytest.raises(DataError, match="holds 'ARML', need a RobustKNeighborsClassifier"):
        RobustKNeighborsClassifier.load(path)
    fitted(metric=M).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CorruptFile):
        RobustKNeighborsClassifier.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"learned.labels_": np.full(118, 9)},
        {"learned.labels_": np.zeros(118)},
        {"learned.points_": np.zeros((117, 4))},
        {"learned.points_": np.full((118, 4), np.nan)},
        {"learned.centre_": np.zeros(12)},
        {"learned.factor_": None},
    ],
)
def test_parts_that_do_not_fit_each_other(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "knn.safetensors"
    fitted(metric=M).save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = {k: v for k, v in {**load_file(path), **change}.items() if v is not None}
    assert set(change) <= set(load_file(path))
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CorruptFile, match="do not fit"):
        RobustKNeighborsClassifier.load(path)


def test_saving_before_fitting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        RobustKNeighborsClassifier().save(tmp_path / "knn.safetensors")
    assert list(tmp_path.iterdir()) == []
