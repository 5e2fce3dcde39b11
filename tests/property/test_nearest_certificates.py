"""Radii of k-NN classifiers against independent solvers, enumeration and attacks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from holdfast.certify.bisectors import Bisectors
from holdfast.certify.counterexample import counterexamples
from holdfast.certify.nearest import Effort, smallest
from holdfast.certify.neighbours import certify_neighbours, find_perturbations
from holdfast.certify.programme import solve
from holdfast.certify.references import References, majority
from holdfast.certify.territory import Territory

ENDLESS = Effort(nodes=10**6, sets=10**6)


def least_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Length of the shortest d with a d <= b, by the least-distance programming of Lawson and Hanson."""
    e = np.vstack((-a.T, -b[None, :]))
    f = np.zeros(len(e))
    f[-1] = 1.0
    u, residual = nnls(e, f, maxiter=1000)
    if residual < 1e-10:
        return math.inf
    r = e @ u - f
    return float(np.linalg.norm(r[:-1] / r[-1]))


def half_spaces(x: np.ndarray, m: np.ndarray, z: np.ndarray, guards: list[int], rivals: list[int]) -> tuple:
    def d(i: int) -> float:
        return float((z - x[i]) @ m @ (z - x[i]))

    rows = [2 * m @ (x[i] - x[j]) for i in guards for j in rivals]
    return np.array(rows), np.array([d(i) - d(j) for i in guards for j in rivals])


def enumerated(x: np.ndarray, y: np.ndarray, m: np.ndarray, z: np.ndarray, label: int, k: int) -> float:
    """The smallest move that takes its strict majority from a class, over all critical sets."""
    wrong, spare = majority(k)
    own, others = np.flatnonzero(y == label).tolist(), np.flatnonzero(y != label).tolist()
    best = math.inf
    for rivals in itertools.combinations(others, wrong):
        for spared in itertools.combinations(own, spare):
            a, b = half_spaces(x, m, z, [i for i in own if i not in spared], list(rivals))
            best = min(best, least_distance(a, b) if len(a) else 0.0)
    return best


def problem(seed: int, n: int = 14, width: int = 3, rank: int | None = None) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, width)), np.arange(n) % 2
    g = rng.normal(size=(rank or width, width))
    return x, y, g.T @ g, rng.random((6, width))


def references(x: np.ndarray, y: np.ndarray, m: np.ndarray, **options: object) -> References:
    return References.prepare(torch.tensor(x), torch.tensor(y), torch.tensor(m), **options)


def territory(references: References) -> Territory:
    return Territory.of(Bisectors(references=references), 0)


@pytest.mark.property
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.sampled_from([1, 2, 3]))
def test_one_nearest_neighbour_agrees_with_an_independent_solver(seed: int, rank: int) -> None:
    x, y, m, z = problem(seed, rank=rank)
    r = references(x, y, m)
    points = torch.tensor(z)
    label = r.predict(points, 1)
    c = certify_neighbours(r, points, label)
    assert bool(c.exact.all())
    for row in range(len(z)):
        own = [int(i) for i in np.flatnonzero(y == int(label[row]))]
        expected = min(
            least_distance(*half_spaces(x, m, z[row], own, [int(j)]))
            for j in np.flatnonzero(y != int(label[row]))
        )
        assert float(c.radius[row]) <= expected * (1 + 1e-6) + 1e-9
        assert float(c.radius[row]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.property
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([2, 3, 4, 5]))
def test_more_neighbours_agree_with_enumeration(seed: int, k: int) -> None:
    x, y, m, z = problem(seed, n=9)
    r = references(x, y, m)
    points = torch.tensor(z[:2])
    label = r.predict(points, k)
    c = certify_neighbours(r, points, label, k=k, method="exact")
    tight = certify_neighbours(r, points, label, k=k, method="tight")
    bound = certify_neighbours(r, points, label, k=k, method="bound")
    for row in range(2):
        expected = enumerated(x, y, m, z[row], int(label[row]), k)
        assert float(c.radius[row]) == pytest.approx(expected, rel=1e-6, abs=1e-7)
        assert bool(c.exact[row])
        assert float(bound.radius[row]) <= float(tight.radius[row]) + 1e-7 <= float(c.radius[row]) + 2e-7


@pytest.mark.property
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([1, 3]))
def test_perturbation_flips_and_nothing_shorter_does(seed: int, k: int) -> None:
    x, y, m, z = problem(seed, n=20)
    r = references(x, y, m)
    points = torch.tensor(z)
    label = r.predict(points, k)
    c = certify_neighbours(r, points, label, k=k, method="exact")
    seen = torch.isfinite(c.upper)
    assert bool(seen.any())
    assert c.perturbation is not None
    torch.testing.assert_close(c.perturbation[seen].norm(dim=1), c.upper[seen])
    beyond = r.predict(points + c.perturbation, k)
    assert bool((beyond != label)[seen].all())
    before = 0.999 * c.perturbation * (c.radius / c.upper.clamp_min(1e-12))[:, None]
    assert bool((r.predict(points + before, k) == label)[seen & (c.radius > 1e-6)].all())


@pytest.mark.property
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([1, 2, 3, 5]))
def test_nothing_random_or_found_lies_inside_the_radius(seed: int, k: int) -> None:
    x, y, m, z = problem(seed, n=24, width=4)
    r = references(x, y, m)
    points = torch.tensor(z)
    label = r.predict(points, k)
    generator = torch.Generator().manual_seed(seed)
    for method in ("bound", "tight"):
        c = certify_neighbours(r, points, label, k=k, method=method)
        lengths, _ = find_perturbations(r, points, label, k=k)
        assert bool((lengths >= c.radius - 1e-9).all())
        moves = torch.randn(50, *points.shape, generator=generator, dtype=torch.float64)
        moves *= (c.radius.clamp_max(10) * (1 - 1e-9))[:, None] / moves.norm(dim=2, keepdim=True)
        for move in moves:
            assert torch.equal(r.predict(points + move, k), label)


@pytest.mark.property
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([1, 3]), norm=st.sampled_from([1.0, math.inf]))
def test_other_norms_hold_against_random_moves(seed: int, k: int, norm: float) -> None:
    x, y, m, z = problem(seed, n=24, width=4)
    r = references(x, y, m, rotate=False)
    points = torch.tensor(z)
    label = r.predict(points, k)
    c = certify_neighbours(r, points, label, k=k, norm=norm)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(60):
        move = torch.randn(points.shape, generator=generator, dtype=torch.float64)
        if norm == math.inf:
            move = move.sign()
        move *= (c.radius.clamp_max(10) * (1 - 1e-9))[:, None] / move.norm(p=norm, dim=1, keepdim=True)
        assert torch.equal(r.predict(points + move, k), label)


@pytest.mark.parametrize("k", [1, 3])
def test_shift_of_the_data_and_scale_of_the_metric_change_nothing(k: int) -> None:
    x, y, m, z = problem(5, n=30, width=5)
    points = torch.tensor(z)
    plain = references(x, y, m)
    label = plain.predict(points, k)
    kept = certify_neighbours(plain, points, label, k=k, method="exact")
    far = references(x + 1000, y, 1e-4 * m)
    moved = certify_neighbours(far, points + 1000, label, k=k, method="exact")
    torch.testing.assert_close(moved.radius, kept.radius, rtol=1e-6, atol=1e-8)


def test_results_do_not_depend_on_the_batch() -> None:
    x, y, m, z = problem(6, n=40, width=4)
    r, points = references(x, y, m), torch.tensor(z)
    label = r.predict(points, 3)
    whole = certify_neighbours(r, points, label, k=3)
    alone = [certify_neighbours(r, points[i : i + 1], label[i : i + 1], k=3).radius for i in range(len(z))]
    torch.testing.assert_close(torch.cat(alone), whole.radius, rtol=1e-9, atol=1e-12)


@pytest.mark.property
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_box_only_helps_and_is_respected(seed: int) -> None:
    x, y, m, z = problem(seed, n=20)
    points = torch.tensor(z)
    free, boxed = references(x, y, m), references(x, y, m, box=(0.0, 1.0))
    label = free.predict(points, 1)
    a, b = certify_neighbours(free, points, label), certify_neighbours(boxed, points, label)
    assert bool((b.radius >= a.radius - 1e-9).all())
    assert b.perturbation is not None
    inside = points + b.perturbation
    assert float(inside.min()) >= -1e-9
    assert float(inside.max()) <= 1 + 1e-9
    seen = torch.isfinite(b.upper)
    assert bool((boxed.predict(inside.clamp(0, 1), 1) != label)[seen].all())


def _land(x: list[list[float]], y: list[int]) -> Territory:
    return territory(References.prepare(torch.tensor(x), torch.tensor(y)))


def test_hand_numbers() -> None:
    """One neighbour at 0 and one rival at (2, 0): half-way is 1 for z = 0; with a second guard 1.25."""
    land = _land([[0.0, 0.0], [2.0, 0.0]], [0, 1])
    t = land.references.inside(torch.tensor([[0.0, 0.0]]))
    endless = Tensor([math.inf]).double()
    s = solve(land, t, torch.tensor([[1]]), cutoff=endless)
    assert float(s.bound[0]) == pytest.approx(1.0)
    torch.testing.assert_close(s.move, torch.tensor([[1.0, 0.0]]).double())
    land = _land([[0.0, 0.0], [2.0, 1.0], [2.0, 0.0]], [0, 0, 1])  # pass the bisector y = 0.5 from below
    t = land.references.inside(torch.tensor([[0.0, 1.0]]))
    s = solve(land, t, torch.tensor([[2]]), cutoff=endless)
    assert float(s.bound[0]) == pytest.approx(math.hypot(1.0, 0.5))


def test_cutoff_leaves_a_sound_bound() -> None:
    x, y, m, z = problem(9, n=40, width=6)
    land = territory(references(x, y, m))
    t = land.references.inside(torch.tensor(z))
    rivals = land.others[:6, None]
    whole = solve(land, t, rivals, cutoff=torch.full((6,), math.inf).double())
    part = solve(land, t, rivals, cutoff=0.5 * whole.bound)
    assert bool((part.bound <= whole.bound + 1e-12).all())
    assert bool((part.bound >= 0.5 * whole.bound - 1e-12)[~part.solved].all())


def test_attack_is_exact_for_one_neighbour_and_near_it_for_three() -> None:
    x, y, m, z = problem(11, n=60, width=5)
    r, points = references(x, y, m), torch.tensor(z)
    for k, most in ((1, 1.00001), (3, 1.001)):
        label = r.predict(points, k)
        lengths, moves = find_perturbations(r, points, label, k=k)
        exact = certify_neighbours(r, points, label, k=k, method="exact").radius
        ratio = (lengths / exact)[exact > 0]
        assert float(ratio.min()) >= 1 - 1e-6
        assert float(ratio.median()) <= most
        torch.testing.assert_close(moves.norm(dim=1), lengths)


def test_too_few_rivals_and_guards() -> None:
    r = References.prepare(torch.tensor([[0.0], [0.1], [0.2], [1.0]]), torch.tensor([0, 0, 0, 1]))
    points = torch.tensor([[0.0]])
    endless = certify_neighbours(r, points, torch.tensor([0]), k=3, method="exact")
    assert math.isinf(float(endless.radius[0]))  # one rival never makes two
    assert math.isinf(float(counterexamples(territory(r), r.inside(points), 3).upper[0]))
    land = territory(r)
    assert math.isinf(float(smallest(land, r.inside(points), 3, ENDLESS).lower[0]))


def test_time_budget_keeps_bounds_sound() -> None:
    x, y, m, z = problem(12, n=60, width=6)
    r, points = references(x, y, m), torch.tensor(z)
    label = r.predict(points, 5)
    hurried = certify_neighbours(r, points, label, k=5, method="exact", time_budget=1e-6)
    exact = certify_neighbours(r, points, label, k=5, method="exact", time_budget=20)
    assert bool((hurried.radius <= exact.radius + 1e-9).all())
    assert bool((hurried.radius <= exact.upper + 1e-9).all())


@pytest.mark.property
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6), gap=st.sampled_from([1e-7, 1e-8, 3e-9, 1e-10, 0.0]), k=st.sampled_from([1, 3])
)
def test_twins_of_another_class_never_raise_a_radius(seed: int, gap: float, k: int) -> None:
    """No radius passes the way to a reference of another class, however near its twin is."""
    rng = np.random.default_rng(seed)
    own, step = rng.random((6, 5)), rng.normal(size=(6, 5))
    twins = own + gap * step / np.linalg.norm(step, axis=1, keepdims=True)
    x = np.concatenate((own, twins, rng.random((6, 5)) + 3))
    y = np.repeat([0, 1, 0], 6)
    r = References.prepare(torch.tensor(x), torch.tensor(y))
    points = torch.tensor(rng.random((20, 5)))
    label = r.predict(points, k)
    c = certify_neighbours(r, points, label, k=k, method="exact", time_budget=5)
    other = (torch.tensor(y)[None, :] != label[:, None]).double()
    d = torch.cdist(points, torch.tensor(x)) / other  # infinite for references of the same class
    wrong = majority(k)[0]
    if k == 1:
        assert bool((c.radius <= d.kthvalue(wrong).values * (1 + 1e-9)).all())
    assert bool((c.radius <= c.upper).all())


@pytest.mark.parametrize("k", [2, 4])
def test_attack_knows_that_a_lower_label_wins_ties(k: int) -> None:
    x, y, m, z = problem(13, n=40, width=3)
    r, points = references(x, y, m), torch.tensor(z)
    label = r.predict(points, k)
    lengths, moves = find_perturbations(r, points, label, k=k)
    exact = certify_neighbours(r, points, label, k=k, method="exact", time_budget=20)
    assert bool(torch.isfinite(lengths).all())
    assert bool((r.predict(points + moves, k) != label).all())
    ties_help = label == 1  # label 0 wins ties, so a tie is enough against 1
    assert bool(ties_help.any())
    ratio = (lengths / exact.radius)[ties_help & (exact.radius > 0)]
    assert float(ratio.median()) <= 1.001
