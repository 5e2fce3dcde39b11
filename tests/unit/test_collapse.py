"""Sharp means: from the plain mean to the maximum."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast.errors import InvalidArgument
from holdfast.functional.collapse import collapseness, sharp_mean

D = torch.tensor([0.1, 0.7, 1.3, 0.4], dtype=torch.float64)


def test_the_limits() -> None:
    assert float(sharp_mean(D, 0.0)) == pytest.approx(float(D.mean()), abs=1e-15)
    assert float(sharp_mean(D, math.inf)) == 1.3
    assert float(sharp_mean(D, 1e4)) == pytest.approx(1.3, abs=1e-12)  # no overflow


def test_by_hand() -> None:
    # weights of 0 and ln 3 at sharpness 1 are 1/4 and 3/4
    d = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)
    assert float(sharp_mean(d, 1.0)) == pytest.approx(0.75 * math.log(3.0), abs=1e-15)
    # and 1/10 and 9/10 at sharpness 2
    assert float(sharp_mean(d, 2.0)) == pytest.approx(0.9 * math.log(3.0), abs=1e-15)


def test_a_sharper_mean_is_larger() -> None:
    values = [float(sharp_mean(D, s)) for s in (0.0, 0.5, 2.0, 9.5, 10.0, math.inf)]
    assert values == sorted(values)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("sharpness", [0.0, 2.0, 10.0])
def test_the_weights_carry_gradient(sharpness: float) -> None:
    d = D.clone().requires_grad_()
    (grad,) = torch.autograd.grad(sharp_mean(d, sharpness), d)
    w = (sharpness * D).softmax(0)
    expected = w * (1 + sharpness * (D - (w * D).sum()))  # with constant weights it would be w alone
    torch.testing.assert_close(grad, expected)
    assert torch.autograd.gradcheck(lambda v: sharp_mean(v, sharpness), (d,))


def test_infinite_sharpness_moves_the_farthest_alone() -> None:
    d = D.clone().requires_grad_()
    (grad,) = torch.autograd.grad(sharp_mean(d, math.inf), d)
    assert grad.tolist() == [0, 0, 1, 0]


def test_collapseness_is_positives_less_negatives() -> None:
    assert float(collapseness(D, D + 0.5, 7.0)) == pytest.approx(-0.5, abs=1e-15)
    assert float(collapseness(D, D[:1], 0.0)) == pytest.approx(0.625 - 0.1)
    assert collapseness(D, D).shape == ()
    assert float(collapseness(D, 2 * D)) == float(collapseness(D, 2 * D, 10.0))  # the default


@pytest.mark.parametrize("sharpness", [-1.0, math.nan, -math.inf])
def test_bad_sharpness(sharpness: float) -> None:
    with pytest.raises(InvalidArgument, match="sharpness"):
        sharp_mean(D, sharpness)
