"""The published k-NN bound: hand numbers, all pairs formed one by one, norms, rounding, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.certify import neighbour_bound, triplet, triplet_bounds
from holdfast.certify.references import References, majority
from holdfast.errors import InvalidArgument
from holdfast.rng import stream

NORMS = (1.0, 2.0, math.inf)
DUAL = {1.0: np.inf, 2.0: 2, math.inf: 1}


def line(values: list[float], labels: list[int]) -> References:
    x = torch.tensor(values, dtype=torch.float64)[:, None]
    return References.prepare(x, torch.tensor(labels))


def bound_of(r: References, x: Tensor, label: int, k: int, norm: float = 2.0) -> Tensor:
    return neighbour_bound(r, r.inside(x), torch.full((len(x),), label), k, norm)


def slow_values(
    x: np.ndarray, y: np.ndarray, m: np.ndarray, z: np.ndarray, label: int, k: int, norm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return negatives and their v_j by differences, one pair after the other."""
    stay = majority(k)[1]
    d = np.einsum("nd,de,ne->n", z - x, m, z - x)
    negatives, values = np.flatnonzero(y != label), []
    for j in negatives:
        eps = []
        for i in np.flatnonzero(y == label):
            length = np.linalg.norm(m @ (x[i] - x[j]), ord=DUAL[norm])
            eps.append(max(d[j] - d[i], 0) / (2 * length) if length > 0 else 0.0)
        values.append(sorted(eps)[-(stay + 1)] if len(eps) > stay else 0.0)
    return negatives, np.array(values)


def slow_bound(values: np.ndarray, k: int) -> float:
    s = majority(k)[0]
    return float(np.sort(values)[s - 1]) if len(values) >= s else math.inf


def problem(
    seed: int, n: int = 40, d: int = 4, classes: int = 3, rank: int | None = None, ties: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return references, labels, M and points; with ties on a coarse grid, so that points coincide."""
    rng = np.random.default_rng(seed)
    x, z = rng.random((n, d)), rng.random((5, d))
    if ties:
        x, z = np.round(2 * x) / 2, np.round(2 * z) / 2
    g = rng.normal(size=(rank or d, d)) if rank != 0 else np.zeros((1, d))
    return x, rng.integers(0, classes, n), g.T @ g, z


def prepared(x: np.ndarray, y: np.ndarray, m: np.ndarray | None, **options: object) -> References:
    matrix = None if m is None else torch.from_numpy(m)
    return References.prepare(torch.from_numpy(x), torch.from_numpy(y), matrix, **options)


# ------------------------------------------------------------------------------------------ hand numbers


def test_half_way_between_two_points() -> None:
    r = line([0.0, 1.0], [0, 1])
    eps = triplet_bounds(
        r, r.inside(torch.tensor([[0.2], [0.9]], dtype=torch.float64)), torch.tensor([0]), torch.tensor([1])
    )
    assert eps.flatten().tolist() == pytest.approx([0.3, 0.0], abs=1e-12)


def test_a_hand_number_under_a_metric_and_in_three_norms() -> None:
    """M = diag(4, 1), x_i = (0, 0), x_j = (1, 2), z = 0: d_j = 8 and M (x_i - x_j) = -(4, 2)."""
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    r = References.prepare(x, torch.tensor([0, 1]), torch.diag(torch.tensor([4.0, 1.0])))
    for norm, length in ((2.0, math.sqrt(20)), (1.0, 4.0), (math.inf, 6.0)):
        eps = triplet_bounds(r, r.inside(x[:1]), torch.tensor([0]), torch.tensor([1]), norm)
        assert float(eps) == pytest.approx(8 / (2 * length), rel=1e-10)
        assert float(eps) < 8 / (2 * length)


def test_three_neighbours_on_a_line() -> None:
    """Positives 0, 0.1, 0.3 and negatives 1, 2 around z = 0: v = ((2nd largest of .5, .55, .65), 1.05)."""
    r = line([0.0, 0.1, 0.3, 1.0, 2.0], [0, 0, 0, 1, 1])
    assert float(bound_of(r, torch.zeros(1, 1), 0, 3)) == pytest.approx(1.05, abs=1e-12)
    assert float(bound_of(r, torch.zeros(1, 1), 0, 1)) == pytest.approx(0.65, abs=1e-12)


def test_an_even_k_counts_a_tie_as_lost() -> None:
    """K = 2, positives 0.1 and 0.2, negative 1: a tie of votes is reached at 0.55, not at 0.6."""
    r = line([0.1, 0.2, 1.0], [1, 1, 0])
    assert float(bound_of(r, torch.zeros(1, 1), 1, 2)) == pytest.approx(0.55, abs=1e-12)


def test_too_few_negatives_can_never_win() -> None:
    r = line([0.0, 0.1, 0.2, 0.3, 9.0], [0, 0, 0, 0, 1])
    assert float(bound_of(r, torch.tensor([[9.0]]), 0, 3)) == math.inf
    assert float(bound_of(r, torch.tensor([[0.0]]), 0, 1)) > 0


def test_too_few_positives_have_no_majority() -> None:
    r = line([0.0, 1.0, 2.0, 3.0], [0, 1, 1, 2])
    x = torch.tensor([[0.0]])
    assert float(bound_of(r, x, 0, 1)) > 0
    assert float(bound_of(r, x, 0, 3)) == 0.0  # a class of one reference
    assert float(bound_of(r, x, 7, 3)) == 0.0  # a class without references


def test_one_class_alone() -> None:
    r = line([0.0, 1.0], [0, 0])
    assert float(bound_of(r, torch.tensor([[5.0]]), 0, 1)) == math.inf


def test_a_metric_that_sees_nothing_certifies_nothing() -> None:
    x, y, _, z = problem(0)
    r = prepared(x, y, np.zeros((4, 4)))
    for norm in NORMS:
        assert bool((bound_of(r, torch.from_numpy(z), 0, 3, norm) == 0).all())


# ------------------------------------------------------------------------------------ all pairs, one by one


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(8, 60), k=st.integers(1, 8), norm=st.sampled_from(NORMS),
    rank=st.sampled_from([1, 2, 4]), ties=st.booleans(), classes=st.integers(2, 5),
)  # fmt: skip
def test_screening_changes_no_value(
    seed: int, n: int, k: int, norm: float, rank: int, ties: bool, classes: int
) -> None:
    x, y, m, z = problem(seed, n, classes=classes, rank=rank, ties=ties)
    r = prepared(x, y, m)
    t = r.inside(torch.from_numpy(z))
    labels = torch.arange(len(z)) % classes
    found = neighbour_bound(r, t, labels, k, norm)
    for row, label in enumerate(labels.tolist()):
        _, values = slow_values(x, y, m, z[row], label, k, norm)
        expected = slow_bound(values, k)
        assert float(found[row]) == pytest.approx(expected, abs=1e-6)  # near ties of x_i and x_j
        assert float(found[row]) <= expected + 1e-15


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("k", [1, 4, 11])
def test_screening_is_exact_on_many_references(norm: float, metric: bool, k: int) -> None:
    """Large enough that all three stages discard; the same values as from all triplets at once."""
    generator = stream(0, "triplet bounds")
    x = torch.rand(600, 8, generator=generator, dtype=torch.float64)
    y = (2 * x[:, 0]).long()
    g = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    z = torch.rand(24, 8, generator=generator, dtype=torch.float64)
    r = References.prepare(x, y, g.T @ g if metric else None)
    t, labels = r.inside(z), (2 * z[:, 0]).long()
    found = neighbour_bound(r, t, labels, k, norm)
    s, stay = majority(k)
    expected = []
    for row, label in enumerate(labels.tolist()):
        own, others = torch.nonzero(y == label)[:, 0], torch.nonzero(y != label)[:, 0]
        eps = triplet_bounds(r, t[row : row + 1], own, others, norm)[0]
        v = eps.topk(stay + 1, dim=0).values[-1]
        expected.append(v.kthvalue(s).values)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-13)
    assert int((found > 0).sum()) > 5


@pytest.mark.parametrize("k", [1, 5])
def test_tables_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    x, y, m, _ = problem(3, n=300)
    z = torch.from_numpy(np.random.default_rng(0).random((30, 4)))
    r = prepared(x, y, m)
    t, labels = r.inside(z), r.predict(z, k)
    found = neighbour_bound(r, t, labels, k)
    monkeypatch.setattr(triplet, "TABLE", 0)
    monkeypatch.setattr(triplet, "BLOCK", 50)
    torch.testing.assert_close(neighbour_bound(r, t, labels, k, chunk=7), found, rtol=0, atol=1e-13)
    one_by_one = [neighbour_bound(r, t[i : i + 1], labels[i : i + 1], k) for i in range(30)]
    torch.testing.assert_close(torch.cat(one_by_one), found, rtol=0, atol=1e-13)


def test_most_references_are_never_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """The point of screening: fewer than 2 % of all pairs of an easy problem are formed."""
    generator = stream(1, "triplet bounds")
    y = torch.arange(4000) % 4
    x = torch.randn(4000, 10, generator=generator, dtype=torch.float64) + 2.5 * y[:, None]
    r = References.prepare(x, y)
    z = x[:8] + 0.1
    formed = 0
    between = triplet.Bisectors.between

    def counted(self: triplet.Bisectors, rows: Tensor, others: Tensor) -> Tensor:
        nonlocal formed
        formed += len(rows) * len(others)
        return between(self, rows, others)

    monkeypatch.setattr(triplet.Bisectors, "between", counted)
    assert bool((neighbour_bound(r, r.inside(z), y[:8], 11) > 0).all())
    assert formed < 0.02 * 8 * 1000 * 3000


# --------------------------------------------------------------------------------------- what it certifies


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 6), norm=st.sampled_from(NORMS), ties=st.booleans())
def test_nothing_shorter_takes_the_majority(seed: int, k: int, norm: float, ties: bool) -> None:
    x, y, m, z = problem(seed, n=24, d=3, ties=ties)
    r = prepared(x, y, m)
    points = torch.from_numpy(z)
    labels = r.predict(points, k)
    radius = neighbour_bound(r, r.inside(points), labels, k, norm).numpy()
    rng = np.random.default_rng(seed + 1)
    for row in np.flatnonzero((radius > 0) & np.isfinite(radius)):
        rivals = x[y != int(labels[row])] - z[row]
        moves = np.concatenate((rng.normal(size=(60, 3)), np.sign(rng.normal(size=(20, 3))), rivals))
        lengths = np.linalg.norm(moves, ord=norm, axis=1, keepdims=True)
        moves = moves[lengths[:, 0] > 0] / lengths[lengths[:, 0] > 0] * radius[row] * (1 - 1e-9)
        for moved in z[row] + moves:
            d = np.einsum("nd,de,ne->n", moved - x, m, moved - x)
            own = np.sort(d[y == int(labels[row])])
            others = np.sort(d[y != int(labels[row])])
            s, stay = majority(k)
            assert others[s - 1] > own[stay], (row, moved)


def test_one_nearest_neighbour_of_two_points_is_tight_in_every_norm() -> None:
    """With one positive and one negative the bound is the distance to the bisector itself."""
    x = np.array([[0.0, 0.0], [1.0, 0.5]])
    r = prepared(x, np.array([0, 1]), None)
    z, normal = np.array([[0.1, 0.05]]), x[1] - x[0]
    step = {1.0: np.array([1.0, 0.0]), 2.0: normal / np.linalg.norm(normal), math.inf: np.array([1.0, 1.0])}
    for norm in NORMS:
        radius = float(bound_of(r, torch.from_numpy(z), 0, 1, norm))
        for share, label in ((1.0001, 1), (0.9999, 0)):
            moved = z + share * radius * step[norm]
            assert r.predict(torch.from_numpy(moved), 1).tolist() == [label]


# ------------------------------------------------------------------------------------ rounding, invariance


def test_duplicates_across_classes_give_zero_and_not_nan() -> None:
    x = np.random.default_rng(0).random((20, 5)) + 100.0
    both = np.concatenate((x, x))
    y = np.repeat([0, 1], 20)
    for m in (None, np.diag([1.0, 2, 3, 4, 5])):
        r = prepared(both, y, m)
        for norm in NORMS:
            same = triplet_bounds(r, r.points[:3], torch.arange(20), torch.arange(20, 40), norm)
            assert bool((same.diagonal(dim1=1, dim2=2) == 0).all())
            assert bool(torch.isfinite(same).all())
            assert float((same - same.diagonal(dim1=1, dim2=2).mean()).abs().max()) > 0.1
            assert bool((neighbour_bound(r, r.points, r.labels, 1, norm) == 0).all())


@pytest.mark.parametrize("gap", [1e-6, 1e-8, 1e-10, 1e-13])
def test_nearly_equal_points_are_rounded_down(gap: float) -> None:
    """The true distance to the bisector of 0.5 and 0.5 + gap from 0.4 is 0.1 + gap / 2."""
    r = line([0.5, 0.5 + gap, 0.9, -3.0], [0, 1, 1, 0])
    eps = float(
        triplet_bounds(
            r, r.inside(torch.tensor([[0.4]], dtype=torch.float64)), torch.tensor([0]), torch.tensor([1])
        )
    )
    assert eps <= 0.1 + gap / 2
    if gap == 1e-6:
        assert eps > 0.095


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.integers(3, 13), norm=st.sampled_from(NORMS), far=st.booleans())
def test_twins_of_another_class_never_raise_a_bound(seed: int, power: int, norm: float, far: bool) -> None:
    """Every positive has a negative beside it; expanded squares lose all digits of what lies between."""
    rng = np.random.default_rng(seed)
    x, z = rng.random((8, 5)), rng.random((6, 5))
    g = rng.normal(size=(5, 5))
    x = np.concatenate((x, x + 10.0**-power * rng.normal(size=x.shape))) + 1000 * far
    z, y, m = z + 1000 * far, np.repeat([0, 1], 8), g.T @ g
    r = prepared(x, y, m)
    points = torch.from_numpy(z)
    labels = r.predict(points, 1)
    found = neighbour_bound(r, r.inside(points), labels, 1, norm)
    wide = [v.astype(np.longdouble) for v in (x, m, z)]
    for row, label in enumerate(labels.tolist()):
        d = ((wide[2][row] - wide[0]) @ wide[1] * (wide[2][row] - wide[0])).sum(1)
        own, others = np.flatnonzero(y == label), np.flatnonzero(y != label)
        normal = np.abs((wide[0][own, None] - wide[0][others]) @ wide[1])  # (i, j, D)
        sizes = {1.0: normal.max(2), 2.0: np.sqrt((normal**2).sum(2)), math.inf: normal.sum(2)}
        eps = (d[others] - d[own, None]).clip(0) / (2 * sizes[norm].clip(1e-300))  # 0 where they coincide
        assert float(found[row]) <= float(eps.max(0).min())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shift", [10.0, 1000.0])
def test_translation_changes_nothing(norm: float, shift: float) -> None:
    x, y, m, z = problem(5)
    r, far = prepared(x, y, m), prepared(x + shift, y, m)
    labels = r.predict(torch.from_numpy(z), 1)
    here = neighbour_bound(r, r.inside(torch.from_numpy(z)), labels, 1, norm)
    there = neighbour_bound(far, far.inside(torch.from_numpy(z + shift)), labels, 1, norm)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-9)
    assert float(here.max()) > 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e3, 1e8])
def test_the_scale_of_the_metric_changes_nothing(norm: float, scale: float) -> None:
    x, y, m, z = problem(6)
    r, scaled = prepared(x, y, m), prepared(x, y, scale * m)
    labels = r.predict(torch.from_numpy(z), 1)
    here = neighbour_bound(r, r.inside(torch.from_numpy(z)), labels, 1, norm)
    there = neighbour_bound(scaled, scaled.inside(torch.from_numpy(z)), labels, 1, norm)
    torch.testing.assert_close(here, there, rtol=1e-9, atol=0)
    assert float(here.max()) > 0


@pytest.mark.parametrize("norm", NORMS)
def test_coordinates_of_the_range_of_the_metric_change_nothing(norm: float) -> None:
    x, y, m, z = problem(7, rank=2)
    turned, plain = prepared(x, y, m), prepared(x, y, m, rotate=False)
    labels = plain.predict(torch.from_numpy(z), 1)
    assert turned.points.shape[1] == 2
    assert plain.points.shape[1] == 4
    found = [neighbour_bound(r, r.inside(torch.from_numpy(z)), labels, 1, norm) for r in (turned, plain)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-10)
    assert float(found[0].max()) > 0


def test_constant_columns_change_nothing_for_l2() -> None:
    x, y, _, z = problem(8)
    wide, point = np.c_[x, np.full(len(x), 7.0)], np.c_[z, np.full(len(z), 7.0)]
    r, r2 = prepared(x, y, None), prepared(wide, y, None)
    labels = r.predict(torch.from_numpy(z), 1)
    a = neighbour_bound(r, r.inside(torch.from_numpy(z)), labels, 1)
    b = neighbour_bound(r2, r2.inside(torch.from_numpy(point)), labels, 1)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert float(a.max()) > 0


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("k", [0, 3])
def test_more_neighbours_than_references_are_refused(k: int) -> None:
    r = line([0.0, 1.0], [0, 1])
    with pytest.raises(InvalidArgument, match="between 1 and the 2 references"):
        bound_of(r, torch.zeros(1, 1), 0, k)


def test_other_norms_and_missing_labels_are_refused() -> None:
    r = line([0.0, 1.0], [0, 1])
    with pytest.raises(InvalidArgument, match="norm"):
        bound_of(r, torch.zeros(1, 1), 0, 1, 3.0)
    with pytest.raises(InvalidArgument, match="a label for each of the 2"):
        neighbour_bound(r, torch.zeros(2, 1), torch.zeros(1, dtype=torch.int64), 1)


def test_no_points_at_all() -> None:
    r = line([0.0, 1.0], [0, 1])
    assert neighbour_bound(r, torch.zeros(0, 1).double(), torch.zeros(0, dtype=torch.int64), 1).shape == (0,)


@pytest.mark.gpu
def test_the_device_changes_nothing() -> None:
    x, y, m, z = problem(9, n=200)
    r = prepared(x, y, m)
    labels = r.predict(torch.from_numpy(z), 3)
    c = References.prepare(*(torch.from_numpy(v).cuda() for v in (x, y, m)))
    here = neighbour_bound(r, r.inside(torch.from_numpy(z)), labels, 3)
    there = neighbour_bound(c, c.inside(torch.from_numpy(z).cuda()), labels.cuda(), 3)
    torch.testing.assert_close(here, there.cpu(), rtol=0, atol=1e-10)
