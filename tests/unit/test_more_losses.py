"""Lifted, N-pair, SNR and quadruplet losses on hand-computed numbers, and against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Cosine, Euclidean, SquaredEuclidean
from holdfast.losses import LiftedStructure, NPair, Quadruplet, SignalToNoise
from holdfast.rng import stream
from holdfast.types import Roles

SQUARED = SquaredEuclidean()
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 3, 2])


def sphere(n: int, e: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, e, generator=stream(seed), dtype=torch.float64), dim=1)


def points(*values: float) -> Tensor:
    """Rows on a line."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def close(got: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype))


def lse(values: list[float]) -> float:
    return math.log(sum(math.exp(v) for v in values))


# --- Lifted structure --------------------------------------------------------------------------------------


def test_lifted_by_hand() -> None:
    z, y = points(0, 1, 2, -1), torch.tensor([0, 0, 1, 2])
    got = LiftedStructure(margin=0.5, weight=0.0)(z, y, SQUARED)
    # row 0: positive 1; negatives at 4 and 1. Row 1: positive 1; negatives at 1 and 4. Others: no positive.
    both = 1 + lse([0.5 - 4, 0.5 - 1])
    close(got, [both, both, 0.0, 0.0])


def test_lifted_is_cut_at_zero() -> None:
    z, y = points(0, 1, 9), torch.tensor([0, 0, 1])
    close(LiftedStructure(weight=0.0)(z, y, SQUARED), [0.0, 0.0, 0.0])


def test_lifted_against_the_formula() -> None:
    z, y, n = sphere(12, 3), LABELS, range(12)
    d = torch.cdist(z, z).tolist()
    expected = []
    for i in n:
        positives = [d[i][k] for k in n if k != i and y[k] == y[i]]
        negatives = [0.2 - d[i][k] for k in n if y[k] != y[i]]
        expected.append(max(0.0, lse(positives) + lse(negatives)) if positives else 0.0)
    assert expected[10] == 0.0  # alone in its class
    close(LiftedStructure(weight=0.0)(z, y, Euclidean()), expected)
    close(LiftedStructure()(2 * z, y, Cosine()) - LiftedStructure(weight=0.0)(z, y, Cosine()), [0.01] * 12)


def test_lifted_counts_a_duplicate_but_not_the_row_itself() -> None:
    y = torch.tensor([0, 0, 0, 1])
    got = LiftedStructure(margin=2.0, weight=0.0)(points(0, 0, 1, 1), y, SQUARED)
    close(got[:1], [lse([0.0, 1.0]) + 1.0])  # the twin at 0, the other at 1; the negative at 1


# --- N-pair ------------------------------------------------------------------------------------------------


def test_npair_by_hand() -> None:
    z = torch.tensor([[2.0, 0.0], [1.0, 3.0], [0.5, 0.0], [0.0, 2.0]], dtype=torch.float64)
    got = NPair(weight=0.0)(z, torch.tensor([0, 0, 1, 1]), Euclidean())
    # row 0, unit anchor (1, 0): positive 1, negatives 0.5 and 0; row 2: positive 0, negatives 2 and 1
    close(got[[0, 2]], [math.log1p(math.exp(-0.5) + math.exp(-1)), math.log1p(math.exp(2) + math.e)])


def test_npair_against_the_formula() -> None:
    z, y, n = 3 * sphere(12, 3), LABELS, range(12)
    s = (F.normalize(z, dim=1) @ z.T).tolist()
    value = []
    for i in n:
        positives = [s[i][k] for k in n if k != i and y[k] == y[i]]
        negatives = [s[i][k] for k in n if y[k] != y[i]]
        terms = [math.log1p(sum(math.exp(v - p) for v in negatives)) for p in positives]
        value.append(sum(terms) / len(terms) if terms else 0.0)
    assert value[10] == 0.0
    close(NPair(weight=0.0)(z, y, Euclidean()), value)
    close(NPair(weight=0.1)(z, y, Euclidean()), [v + 0.3 for v in value])


def test_npair_of_even_rows_has_the_mean_of_its_anchors() -> None:
    z, y = sphere(8, 4), torch.tensor([0, 1, 0, 2]).repeat_interleave(2)
    every, even = NPair(weight=0.0)(z, y, Euclidean()), NPair(weight=0.0, anchors="even")(z, y, Euclidean())
    assert float(even.mean()) == pytest.approx(float(every[0::2].mean()))
    close(even[1::2], [0.0] * 4)
    close(even[0::2], (2 * every[0::2]).tolist())
    normed = NPair(weight=0.5, anchors="even")(z, y, Euclidean())
    close(normed - even, [0.5] * 8)


def test_npair_does_not_overflow() -> None:
    z = torch.tensor([[1.0, 0.0], [-1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    got = NPair(weight=0.0)(z, torch.tensor([0, 0, 1]), Euclidean())
    assert float(got[0].detach()) == pytest.approx(2e4)
    got.sum().backward()
    assert bool(torch.isfinite(z.grad).all())


def test_npair_even_rows_need_the_pair_layout() -> None:
    loss = NPair(anchors="even")
    for y in (torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1])):
        with pytest.raises(InvalidArgument, match="pairs of rows"):
            loss(sphere(len(y), 3), y, Euclidean())


# --- Signal to noise ---------------------------------------------------------------------------------------


def test_snr_by_hand() -> None:
    a = torch.tensor([[1.0, -1.0], [2.0, 0.0], [3.0, -3.0]], dtype=torch.float64)  # variances 1, 1, 9
    p = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, -3.0]], dtype=torch.float64)  # noise 1, 0, 0
    n = torch.tensor([[1.0, -2.0], [2.0, 2.0], [3.0, -1.0]], dtype=torch.float64)  # noise .25, 1, 1
    got = SignalToNoise(margin=0.2, weight=0.0)(Roles(a, p, n), Euclidean())
    close(got, [0.95 * 3 / 2, 0.0, (0.2 - 1 / 9) * 3 / 2])  # two of three violate
    assert float(got.mean()) == pytest.approx((0.95 + 0.2 - 1 / 9) / 2)
    close(SignalToNoise(weight=0.5)(Roles(a, p, n), Euclidean()) - got, [0.0, 1.0, 0.0])


def test_snr_does_not_see_constants_but_for_the_zero_mean_term() -> None:
    z = Roles(sphere(9, 5, 1), sphere(9, 5, 2), sphere(9, 5, 3))
    moved = Roles(z.anchor + 2, z.positive + 1, z.negative - 3)
    loss = SignalToNoise(weight=0.0)
    torch.testing.assert_close(loss(moved, Euclidean()), loss(z, Euclidean()))
    larger = Roles(*(7 * role for role in z))
    torch.testing.assert_close(loss(larger, Euclidean()), loss(z, Euclidean()))


def test_snr_of_an_anchor_without_signal_is_finite() -> None:
    a = torch.ones(1, 4, requires_grad=True)
    loss = SignalToNoise()(Roles(a, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.ones(1, 4)), Euclidean())
    (grad,) = torch.autograd.grad(loss.sum(), a)
    assert bool(torch.isfinite(loss).all() & torch.isfinite(grad).all())
    with pytest.raises(InvalidArgument, match="two coordinates"):
        SignalToNoise()(Roles(*(torch.ones(2, 1),) * 3), Euclidean())


# --- Quadruplet --------------------------------------------------------------------------------------------


def test_quadruplet_by_hand() -> None:
    z, y = points(0, 1, 3, 4, 4.5), torch.tensor([0, 0, 1, 2, 2])
    got = Quadruplet(margin=3.5, second=0.5)(z, y, SQUARED)
    # row 0: p at 1, n = row 2 (9 away), m = row 3 (1 from n); row 1: n = row 2 (4 away), the same m
    # row 2 has no positive; row 3: p at .25, n = row 2 (1 away), m = row 1 (4 from n); row 4: n 2.25 away
    close(got, [0.5, 0.5 + 0.5, 0.0, 2.75, 1.5])


def test_quadruplet_fourth_row_is_of_a_third_class() -> None:
    z, y = points(0, 1, 3, 3.1, 9), torch.tensor([0, 0, 1, 1, 2])
    got = Quadruplet(margin=0.0, second=36.0)(z, y, SQUARED)
    close(
        got[:1], [1 - 36.0 + 36.0]
    )  # row 2 is n; its class mate and the anchor's class are nearer than row 4


def test_quadruplet_against_the_formula() -> None:
    z, y, n = sphere(12, 3), LABELS, range(12)
    d = torch.cdist(z, z).tolist()
    expected = []
    for i in n:
        positives = [d[i][k] for k in n if k != i and y[k] == y[i]]
        _, k = min((d[i][k], k) for k in n if y[k] != y[i])
        third = min(d[k][m] for m in n if y[m] not in (y[i], y[k]))
        near = max(positives, default=math.nan)
        parts = max(0.0, near - d[i][k] + 0.2) + max(0.0, near - third + 0.1)
        expected.append(parts if positives else 0.0)
    assert sum(v > 0.1 for v in expected) > 5
    torch.testing.assert_close(
        Quadruplet()(z, y, Euclidean()), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_quadruplet_without_a_third_class_is_a_triplet_loss() -> None:
    z, y = sphere(6, 3), torch.tensor([0, 0, 0, 1, 1, 1])
    wide = Quadruplet(second=5.0)(z, y, Euclidean())
    assert torch.equal(wide, Quadruplet(second=0.0)(z, y, Euclidean()))
    assert float(wide.max()) > 0
    close(Quadruplet()(z, torch.zeros(6), Euclidean()), [0.0] * 6)
    close(Quadruplet()(z, torch.arange(6), Euclidean()), [0.0] * 6)


@pytest.mark.parametrize("loss", [LiftedStructure(), NPair(), Quadruplet()], ids=str)
@pytest.mark.parametrize("labels", ["one class", "no pairs"])
def test_batches_without_pairs_have_finite_gradients(loss: LiftedStructure, labels: str) -> None:
    z = sphere(5, 3).requires_grad_()
    y = torch.zeros(5).long() if labels == "one class" else torch.arange(5)
    got = loss(z, y, Euclidean())
    (grad,) = torch.autograd.grad(got.sum(), z)
    assert bool(torch.isfinite(got).all() & torch.isfinite(grad).all())


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: LiftedStructure(margin=-0.1), "margin"),
        (lambda: LiftedStructure(weight=math.nan), "weight"),
        (lambda: NPair(weight=-1.0), "weight"),
        (lambda: NPair(anchors="odd"), "anchors"),  # type: ignore[arg-type]
        (lambda: SignalToNoise(margin=math.inf), "margin"),
        (lambda: SignalToNoise(weight=-0.1), "weight"),
        (lambda: Quadruplet(margin=-0.1), "margin"),
        (lambda: Quadruplet(second=math.nan), "second"),
    ],
)
def test_fields_are_checked(make: object, argument: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument}: need"):
        make()  # type: ignore[operator]
