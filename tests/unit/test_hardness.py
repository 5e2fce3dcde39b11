"""Hardness and pseudo-hardness by hand."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Cosine, Euclidean, SquaredEuclidean
from holdfast.functional.hardness import gradual, hardness, mixed_boundary, normalised_loss
from holdfast.types import Roles

A = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
P = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
N = torch.tensor([[0.0, 2.0], [-1.0, 0.0]], dtype=torch.float64)


def test_hardness_is_positive_less_negative_distance() -> None:
    z = Roles(A, P, N)
    expected = torch.tensor([5 - 2, math.sqrt(2) - 2], dtype=torch.float64)
    torch.testing.assert_close(hardness(z, Euclidean()), expected, atol=1e-5, rtol=0)
    assert hardness(z, SquaredEuclidean()).tolist() == [25 - 4, 2 - 4]
    assert float(hardness(z, Cosine())[1]) == pytest.approx(1 - 2)


def test_hardness_of_unit_embeddings_reaches_two() -> None:
    a, p = A[1:], -A[1:]
    assert float(hardness(Roles(a, p, a), Euclidean())) == pytest.approx(2, abs=1e-5)
    assert float(hardness(Roles(a, a, p), Euclidean())) == pytest.approx(-2, abs=1e-5)


@pytest.mark.parametrize(
    ("power", "value"), [(1.0, -0.1), (2.0, -0.05), (0.5, -0.14142135623730953)], ids=["gLGA", "g_2", "g_1/2"]
)
def test_pseudo_hardness_at_half_the_margin(power: float, value: float) -> None:
    assert gradual(0.1, margin=0.2, power=power) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
@pytest.mark.parametrize(("loss", "value"), [(0.0, 0.0), (-3.0, 0.0), (0.2, -0.2), (2.0, -0.2)])
def test_pseudo_hardness_is_clipped(power: float, loss: float, value: float) -> None:
    assert gradual(loss, margin=0.2, power=power) == value


def test_pseudo_hardness_of_another_margin() -> None:
    assert gradual(0.25, margin=1.0) == -0.25
    assert gradual(0.25, margin=1.0, power=2) == -0.0625


def test_mixed_boundary_raises_by_what_the_loss_has_lost() -> None:
    mined = torch.tensor([-0.5, 0.3], dtype=torch.float64)
    got = {loss: mixed_boundary(mined, loss, margin=0.2, xi=0.1).tolist() for loss in (0.0, 0.1, 0.2, 9.0)}
    assert got[0.0] == pytest.approx([-0.4, 0.4])
    assert got[0.1] == pytest.approx([-0.45, 0.35])
    assert got[0.2] == got[9.0] == pytest.approx([-0.5, 0.3])


def test_normalised_loss() -> None:
    assert [normalised_loss(v, 0.5) for v in (-1.0, 0.0, 0.125, 0.5, 3.0)] == [0, 0, 0.25, 1, 1]


def test_bad_constants() -> None:
    with pytest.raises(InvalidArgument, match="upper"):
        normalised_loss(0.1, 0.0)
    with pytest.raises(InvalidArgument, match="power"):
        gradual(0.1, power=0.0)
