"""Threats own the geometry: projection, steepest direction, noise, size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from holdfast.errors import InvalidArgument
from holdfast.rng import RowStreams, stream
from holdfast.search import PGD
from holdfast.threat import THREATS, L2Threat, LinfThreat, RowBall

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


@BOTH
def test_a_row_ball_is_a_ball_for_every_row(make: Any) -> None:
    radii = torch.tensor([0.0, 0.05, 0.3, 0.1], dtype=torch.float64)
    ball = RowBall(threat=make(eps=9.0), radii=radii)
    assert (ball.norm, ball.eps) == (make.norm, 0.3)
    x0 = torch.rand(4, 1, 2, 3, generator=stream(3), dtype=torch.float64)
    x = x0 + torch.randn(x0.shape, generator=stream(4), dtype=torch.float64)
    streams = [RowStreams(0, "s", index=range(4)) for _ in range(2)]
    projected, noise = ball.project(x, x0), ball.noise(x0, streams[0])
    for i, radius in enumerate(radii.tolist()):
        row, alone = slice(i, i + 1), make(eps=radius)
        assert torch.equal(projected[row], alone.project(x[row], x0[row]))
        own = streams[1].rows(torch.tensor([i]))
        torch.testing.assert_close(noise[row], alone.noise(x0[row], own), atol=1e-15, rtol=0)
    assert torch.equal(ball.size(x, x0), ball.threat.size(x, x0))
    steps = ball.direction(x - x0)
    torch.testing.assert_close(ball.size(x0 + steps, x0), radii)  # a step of length 1 is the radius
    torch.testing.assert_close(steps[1], make(eps=1).direction(x - x0)[1] * 0.05)


def test_a_row_ball_is_cut_by_numbers_and_masks_and_keeps_the_dtype() -> None:
    ball = RowBall(threat=LinfThreat(eps=1.0), radii=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    assert ball.rows(torch.tensor([2, 0])).radii.tolist() == [0.3, 0.1]
    assert ball.rows(torch.tensor([False, True, True])).radii.tolist() == [0.2, 0.3]
    assert ball.rows(torch.tensor([], dtype=torch.int64)).eps == 0
    x0 = torch.full((3, 2), 0.5)
    assert ball.project(x0 + 1, x0).dtype == ball.direction(x0).dtype == torch.float32


@BOTH
def test_a_search_takes_row_balls_when_rows_come_to_rest(make: Any) -> None:
    """Rows 0 and 2 arrive at the flat part of a hinge at once: the others go on with their own radii."""
    ball = RowBall(threat=make(eps=1, bounds=None), radii=torch.tensor([0.4, 0.1, 0.4, 0.2]))
    x0 = torch.zeros(4, 1)
    limit = torch.tensor([0.05, 9.0, 0.05, 9.0])
    x = PGD(steps=6, alpha=0.25)(lambda x: x, x0, lambda z: -torch.relu(limit - z[:, 0]), ball)
    assert x[:, 0].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.2])


@pytest.mark.parametrize("radii", [[[0.1]], [0.1, -1.0], [math.nan], [math.inf]])
def test_bad_radii(radii: Any) -> None:
    with pytest.raises(InvalidArgument, match="radii"):
        RowBall(threat=LinfThreat(eps=1), radii=torch.tensor(radii))


def test_a_row_ball_refuses_other_rows() -> None:
    ball = RowBall(threat=LinfThreat(eps=1), radii=torch.tensor([0.1, 0.2]))
    for call in (ball.direction, ball.noise, lambda x: ball.project(x, x)):
        with pytest.raises(InvalidArgument, match="radii: need one for each of 4 rows, got 2"):
            call(torch.zeros(4, 3))
