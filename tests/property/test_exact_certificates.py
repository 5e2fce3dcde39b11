"""No certificate exceeds the exact value: rationals where they suffice, else sixty decimals with a bound.

Nothing here shares code with what is tested: a float64 is a rational number, so a certified radius can be
compared with the true one without any rounding.
"""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor

from holdfast.certify import Certificate, LipschitzCertifier, certify_neighbours, triplet_bounds
from holdfast.certify.gaussian import (
    halfspace_radius,
    lower_proportion,
    rounded_down,
    staircase_radius,
    vote_radius,
)
from holdfast.certify.lipschitz import certify_pixels
from holdfast.certify.references import References

DIGITS = 60
ERROR = Decimal("1e-40")
"""What the sums below may be wrong by: terms below 1e9, a few hundred of them, sixty digits."""
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
SEEDS = range(6)


def exact(values: Tensor | np.ndarray) -> list[list[Fraction]]:
    return [[Fraction(float(v)) for v in row] for row in np.asarray(values, dtype=np.float64)]


def square(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum(((p - q) ** 2 for p, q in zip(a, b, strict=True)), Fraction(0))


def dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((p * q for p, q in zip(a, b, strict=True)), Fraction(0))


def below(radius: float, truth_squared: Fraction, *, close: float | None = None) -> None:
    """Assert that a radius is at most a root, and not far below it."""
    assert Fraction(radius) ** 2 <= truth_squared, (radius, math.sqrt(truth_squared))
    if close is not None:
        assert radius >= math.sqrt(truth_squared) * (1 - close)


def problem(seed: int, n: int, d: int, gap: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """References, labels and points; with a gap, pairs of references of two classes that nearly coincide."""
    rng = np.random.default_rng(seed)
    x, z = rng.random((n, d)), rng.random((4, d))
    y = np.arange(n) % 2
    if gap:
        x[1::2] = x[: 2 * (n // 2) : 2] + gap * rng.standard_normal((n // 2, d))
    return x, y, z


# --- Phi by its series, with a bound -----------------------------------------------------------------------


def phi(x: Decimal) -> Decimal:
    """Phi to within ERROR for |x| <= 7: 1/2 + sum of (-1)^k x^(2k+1) / (2^k k! (2k+1)) / sqrt(2 pi)."""
    with localcontext() as context:
        context.prec = DIGITS
        assert abs(x) <= 7
        term = total = x
        k = 0
        while abs(term) > Decimal("1e-50"):
            term *= -x * x * (2 * k + 1) / (2 * (k + 1) * (2 * k + 3))
            total += term
            k += 1
        assert 2 * k >= x * x  # alternating and falling from here on: the rest is less than the last term
        return Decimal("0.5") + total / (2 * PI).sqrt()


def phi_inverse(p: Decimal) -> tuple[Decimal, Decimal]:
    """Two numbers around Phi^-1(p), 1e-25 apart."""
    low, high = Decimal(-7), Decimal(7)
    while high - low > Decimal("1e-25"):
        middle = (low + high) / 2
        if phi(middle) + ERROR < p:
            low = middle
        elif phi(middle) - ERROR > p:
            high = middle
        else:
            break
    return low, high


def decimal(value: float | Fraction) -> Decimal:
    return Decimal(float(value)) if isinstance(value, float) else Decimal(value.numerator) / value.denominator


@pytest.fixture(autouse=True)
def _many_digits() -> None:
    getcontext().prec = DIGITS


def test_the_series_is_phi() -> None:
    for x in (-6.5, -1.0, 0.0, 0.3, 2.0, 6.0):
        assert float(phi(Decimal(x))) == pytest.approx(float(ndtr(x)), rel=1e-12, abs=1e-18)
    low, high = phi_inverse(Decimal("0.975"))
    assert low < Decimal("1.959963984540054235524594430520551") < high


# --- Nearest neighbours ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gap", [0.0, 1e-7])
@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_triplet_bounds(seed: int, gap: float, norm: float) -> None:
    """``(d(z, x_j) - d(z, x_i)) / (2 |M (x_i - x_j)|_q)``, all of it rational, for q = 2 its square."""
    x, y, z = problem(seed, 8, 3, gap)
    matrix = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 2.0]])
    r = References.prepare(torch.tensor(x), torch.tensor(y), torch.tensor(matrix))
    rows_i, rows_j = torch.arange(0, 8, 2), torch.arange(1, 8, 2)
    bounds = triplet_bounds(r, r.inside(torch.tensor(z)), rows_i, rows_j, norm)
    xs, zs, m = exact(x), exact(z), exact(matrix)
    for a, b, c in itertools.product(range(4), range(4), range(4)):
        i, j = int(rows_i[b]), int(rows_j[c])
        to_i, to_j = ([p - q for p, q in zip(zs[a], xs[s], strict=True)] for s in (i, j))
        lead = dot(to_j, [dot(row, to_j) for row in m]) - dot(to_i, [dot(row, to_i) for row in m])
        across = [dot(row, [p - q for p, q in zip(xs[i], xs[j], strict=True)]) for row in m]
        lead = max(lead, Fraction(0))
        if norm == 2:
            truth = lead**2 / (4 * sum(v * v for v in across))
        else:
            dual = max(map(abs, across)) if norm == 1 else sum(map(abs, across))
            truth = (lead / (2 * dual)) ** 2
        below(float(bounds[a, b, c]), truth, close=None if gap or truth < 1e-6 else 1e-9)


def shortest(z: list[Fraction], own: list[list[Fraction]], rival: list[Fraction]) -> Fraction | None:
    """Squared length of the shortest move in the plane after which the rival is no farther than any own one.

    The least length under linear constraints has at most two of them active: all such points, tried exactly.
    """
    a = [[2 * (p - q) for p, q in zip(o, rival, strict=True)] for o in own]
    b = [dot(o, o) - dot(rival, rival) - dot(row, z) for row, o in zip(a, own, strict=True)]
    found = []
    for row, bound in zip(a, b, strict=True):
        length = dot(row, row)
        if length:
            found.append([v * bound / length for v in row])
    for (p, s), (q, t) in itertools.combinations(list(zip(a, b, strict=True)), 2):
        volume = p[0] * q[1] - p[1] * q[0]
        if volume:
            found.append([(s * q[1] - t * p[1]) / volume, (p[0] * t - q[0] * s) / volume])
    moves = [v for v in found if all(dot(row, v) <= bound for row, bound in zip(a, b, strict=True))]
    return min((dot(v, v) for v in moves), default=None)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gap", [0.0, 1e-6])
@pytest.mark.parametrize("method", ["exact", "bound"])
def test_one_nearest_neighbour_in_the_plane(seed: int, gap: float, method: str) -> None:
    x, y, z = problem(seed + 10, 10, 2, gap)
    r = References.prepare(torch.tensor(x), torch.tensor(y))
    label = r.predict(torch.tensor(z), 1)
    radius = certify_neighbours(r, torch.tensor(z), label, method=method).radius  # type: ignore[arg-type]
    xs, zs = exact(x), exact(z)
    for row in range(len(z)):
        own = [xs[i] for i in range(len(x)) if y[i] == int(label[row])]
        rivals = [xs[j] for j in range(len(x)) if y[j] != int(label[row])]
        lengths = [shortest(zs[row], own, rival) for rival in rivals]
        truth = min(v for v in lengths if v is not None)
        tight = method == "exact" and not gap
        below(float(radius[row]), truth, close=1e-6 if tight and truth > 1e-8 else None)


# --- Lipschitz encoders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gap", [0.0, 1e-6])
@pytest.mark.parametrize("constant", [1.0, 0.7])
def test_lipschitz_recall(seed: int, gap: float, constant: float) -> None:
    g, gy, z = problem(seed + 20, 9, 4, gap)
    y = np.arange(4) % 2
    slack = 1e-3 if constant != 1 else 0.0
    one = LipschitzCertifier(constant=constant, slack=slack)
    found = one.recall(torch.tensor(z), torch.tensor(y), torch.tensor(g), torch.tensor(gy))
    gs, zs = exact(g), exact(z)
    for row in range(4):
        best = Fraction(0)
        for p in (i for i in range(9) if gy[i] == y[row]):
            heights = []
            for q in (j for j in range(9) if gy[j] != y[row]):
                lead = max(square(zs[row], gs[q]) - square(zs[row], gs[p]), Fraction(0))
                heights.append(lead**2 / (4 * square(gs[p], gs[q])))
            best = max(best, min(heights))
        radius = float(found.radius[row])
        if radius > 0:
            assert (Fraction(radius) * Fraction(constant) + Fraction(slack)) ** 2 <= best
        if not gap:
            assert radius * constant + slack >= math.sqrt(best) * (1 - 1e-9) - 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_lipschitz_sets_and_verification(seed: int) -> None:
    g, _, z = problem(seed + 30, 7, 3)
    gs, zs = exact(g), exact(z)
    one = LipschitzCertifier(constant=1.5)
    found = one.top_k(torch.tensor(z), torch.tensor(g), k=2)
    assert found.answer is not None
    for row in range(4):
        members = set(found.answer[row].tolist())
        truth = min(
            (square(zs[row], gs[q]) - square(zs[row], gs[p])) ** 2 / (4 * square(gs[p], gs[q]))
            for p in members
            for q in set(range(7)) - members
        )
        below(1.5 * float(found.radius[row]) * (1 - 2**-52), truth, close=1e-9)

    threshold = 0.4
    pairs = one.verification(torch.tensor(z), torch.tensor(g[:4]), threshold)
    assert pairs.answer is not None
    for row in range(4):
        reach = Fraction(1.5) * Fraction(float(pairs.radius[row]))
        d = square(zs[row], gs[row])
        if int(pairs.answer[row]):
            assert d <= (Fraction(threshold) - reach) ** 2
        else:
            assert d >= (Fraction(threshold) + reach) ** 2


def test_radii_of_images() -> None:
    rng = np.random.default_rng(0)
    radius = torch.from_numpy(rng.random(200))
    given = Certificate(radius=radius, correct=torch.ones(200, dtype=torch.bool), norm=2.0)
    for constant, slack in ((0.3, 0.0), (1.7, 0.125), (1 / 3, 1e-9)):
        made = certify_pixels(given, constant, slack=slack)
        for r, before in zip(made.radius.tolist(), radius.tolist(), strict=True):
            assert r == 0 or Fraction(r) * Fraction(constant) <= Fraction(before) - Fraction(slack)


# --- Smoothing ---------------------------------------------------------------------------------------------


def tail(k: int, n: int, p: Fraction) -> Fraction:
    """P(Bin(n, p) >= k), exactly."""
    return sum((math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)), Fraction(0))


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
def test_clopper_pearson(alpha: float) -> None:
    for n, counts in ((1, [0, 1]), (9, range(10)), (40, [1, 13, 25, 39, 40]), (1000, [998, 1000])):
        for k, p in zip(counts, lower_proportion(np.array(list(counts)), n, alpha), strict=True):
            low = Fraction(float(p))
            assert k == 0 or tail(k, n, low) <= Fraction(alpha)
            if k:  # and not far below
                assert tail(k, n, low * (1 + Fraction(1, 10**7))) > Fraction(alpha)
            else:
                assert low == 0


@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_radii_of_votes(sigma: float) -> None:
    p = np.array([0.5, 0.5 + 1e-12, 0.5000001, 0.6, 0.9, 0.999, 1 - 1e-7, 1 - 1e-12, 1.0])
    for share, radius in zip(p.tolist(), vote_radius(p, sigma).tolist(), strict=True):
        if radius > 0:
            x = decimal(Fraction(radius) / Fraction(sigma))
            assert phi(x) + ERROR <= Decimal(share)
            if share < 0.99:
                assert phi(x * (1 + Decimal("1e-8"))) > Decimal(share)
        else:
            assert share <= 0.5 + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_radii_of_half_spaces(seed: int) -> None:
    rng = np.random.default_rng(seed)
    s = np.concatenate([rng.uniform(-0.9, 0.99, 6), [0.999999, 1.0, 1 - 1e-9]])
    t = np.concatenate([s[:6] - rng.random(6) * (s[:6] + 0.95), [0.5, 0.999, -0.999999]])
    sigma = 0.3
    for score, threshold, radius in zip(s, t, halfspace_radius(s, t, sigma), strict=True):
        assert radius > 0
        start = phi_inverse(decimal((1 + Fraction(float(threshold))) / 2))[1]
        reached = start + decimal(Fraction(float(radius)) / Fraction(sigma))
        above = (1 + Fraction(float(score))) / 2
        assert phi(reached) + ERROR <= decimal(above)
        if score < 0.99:
            assert phi(reached + Decimal("1e-6")) > decimal(above)


@pytest.mark.parametrize("seed", range(3))
def test_radii_of_staircases(seed: int) -> None:
    """At the radius the lower bound of the mean is still at least 0."""
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.uniform(-0.2, 0.9, (2, 5)), axis=1)
    p = np.sort(rng.uniform(0.5, 0.9999, (2, 5)), axis=1)[:, ::-1].copy()
    floor, sigma = np.array([-1.0, -0.5]), 0.5
    for row, radius in enumerate(staircase_radius(levels, p, floor, sigma).tolist()):
        assert radius >= 0
        steps = np.diff([Fraction(float(v)) for v in (floor[row], *levels[row])])
        shift = decimal(Fraction(radius) / Fraction(sigma))
        mean = decimal(Fraction(float(floor[row])))
        for step, share in zip(steps, p[row], strict=True):
            mean += decimal(step) * (phi(phi_inverse(Decimal(float(share)))[0] - shift) - ERROR)
        assert mean >= 0 or radius == 0
        if radius > 0:
            assert mean < Decimal("1e-6")


def test_rounding_down_of_every_size() -> None:
    r = np.array([1e-300, 1e-30, 1e-9, 0.1, 1.0, 3.5, 1e9])
    assert all(0 <= Fraction(float(a)) < Fraction(float(b)) for a, b in zip(rounded_down(r), r, strict=True))
