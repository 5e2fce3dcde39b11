"""Threats own the geometry: projection, steepest direction, noise, size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from holdfast.errors import InvalidArgument
from holdfast.rng import RowStreams, stream
from holdfast.threat import THREATS, L2Threat, LinfThreat

BOTH = pytest.mark.parametrize("make", [LinfThreat, L2Threat])


@BOTH
@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf, "8/255", None])
def test_bad_radius(make: Any, eps: Any) -> None:
    with pytest.raises(InvalidArgument, match="eps: need a finite number >= 0"):
        make(eps=eps)


@BOTH
@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.5, 0.5), (math.nan, 1.0)])
def test_bad_bounds(make: Any, bounds: tuple[float, float]) -> None:
    with pytest.raises(InvalidArgument, match="bounds"):
        make(eps=0.1, bounds=bounds)


def test_the_table_knows_the_norms() -> None:
    assert {name: threat(eps=0).norm for name, threat in THREATS.items()} == {"linf": "linf", "l2": "l2"}


def test_linf_by_hand() -> None:
    threat = LinfThreat(eps=0.25)
    x0 = torch.tensor([[0.1, 0.5, 0.9]])
    x = torch.tensor([[-0.5, 0.6, 2.0]])
    assert threat.project(x, x0).tolist() == [[0.0, pytest.approx(0.6), 1.0]]
    assert LinfThreat(eps=0.25, bounds=None).project(x, x0)[0].tolist() == pytest.approx([-0.15, 0.6, 1.15])
    assert threat.direction(torch.tensor([[-3.0, 0.0, 1e-9]])).tolist() == [[-1.0, 0.0, 1.0]]
    assert threat.size(x, x0).tolist() == pytest.approx([1.1])


def test_l2_by_hand() -> None:
    threat = L2Threat(eps=0.5)
    x0 = torch.tensor([[0.9, 0.5]])
    x = x0 + torch.tensor([[3.0, 4.0]])
    assert threat.project(x, x0)[0].tolist() == pytest.approx([1.0, 0.9])  # the ball first, then the box
    free = L2Threat(eps=0.5, bounds=None)
    assert free.project(x, x0)[0].tolist() == pytest.approx([1.2, 0.9])
    assert threat.direction(torch.tensor([[3.0, -4.0]]))[0].tolist() == pytest.approx([0.6, -0.8])
    assert threat.direction(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]
    assert float(threat.size(x, x0)) == pytest.approx(5)


@BOTH
def test_size_is_per_image(make: Any) -> None:
    x0, x = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    x[1, 0, 0, 1], x[1, 0, 1, 0] = 0.3, -0.4
    assert make(eps=1.0).size(x, x0).tolist() == pytest.approx([0, 0.4 if make is LinfThreat else 0.5])


@BOTH
def test_noise_fills_the_ball_and_stays_in_it(make: Any) -> None:
    threat = make(eps=0.2, bounds=None)
    x0 = torch.full((4000, 2), 0.5, dtype=torch.float64)
    noise = threat.noise(x0, stream(0)) - x0
    assert float(noise.mean(0).abs().max()) < 0.01
    size = threat.size(x0 + noise, x0)
    assert float(size.max()) <= 0.2 + 1e-12
    # uniform in the area of a disc or a square: (size / eps) ** 2 is uniform
    share = (size / 0.2) ** 2
    for quantile in (0.1, 0.5, 0.9):
        assert float((share < quantile).double().mean()) == pytest.approx(quantile, abs=0.03)


def test_l2_noise_is_uniform_in_many_dimensions_too() -> None:
    x0 = torch.zeros(4000, 1, 3, 2)
    share = (L2Threat(eps=2.0, bounds=None).noise(x0, stream(0)).flatten(1).norm(dim=1) / 2) ** 6
    assert float(share.mean()) == pytest.approx(0.5, abs=0.02)


@BOTH
def test_noise_stays_in_the_box_and_follows_streams(make: Any) -> None:
    threat = make(eps=0.5)
    x0 = torch.rand(6, 1, 2, 2, generator=stream(1)).round()  # corners of the box
    noise = threat.noise(x0, RowStreams(0, "s", index=range(6)))
    assert float(noise.min()) >= 0
    assert float(noise.max()) <= 1
    assert not torch.equal(noise, x0)
    part = threat.noise(x0[[4, 2]], RowStreams(0, "s", index=[4, 2]))
    assert torch.equal(part, noise[[4, 2]])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_radius_no_change(make: Any, dtype: torch.dtype) -> None:
    threat = make(eps=0)
    x0 = torch.rand(5, 3, generator=stream(2), dtype=dtype)
    assert torch.equal(threat.project(x0 + 0.3, x0), x0)
    noise = threat.noise(x0, stream(0))
    assert torch.equal(noise, x0)
    assert noise.dtype == dtype
