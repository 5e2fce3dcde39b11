"""Rays: only the sign of a gain is read, the nearest corner is found, and rows do not see each other."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.errors import InvalidArgument
from holdfast.patch import PatchThreat
from holdfast.rng import RowStreams, seeded, stream
from holdfast.search import Counted, RayS
from holdfast.threat import L2Threat, LinfThreat, RowBall

SHAPES = pytest.mark.parametrize("shape", [(12,), (3, 4), (1, 5, 5), (2, 3, 4)], ids=str)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=stream(seed, "rays"), dtype=torch.float64)


def identity(x: Tensor) -> Tensor:
    return x


with seeded(0, "rays"):
    NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).double().eval()


class Ramp:
    """``way . (x - x0) - level`` for every row: along the best signs it is 0 at ``level / |way|_1``."""

    def __init__(self, x0: Tensor, level: float = 0.2, seed: int = 1) -> None:
        self.x0, self.way = x0, rand(*x0.shape, seed=seed) - 0.3
        self.level = level * self.way.abs().flatten(1).sum(1)

    def value(self, z: Tensor) -> Tensor:
        return (self.way * (z - self.x0)).flatten(1).sum(1) - self.level

    def __call__(self, z: Tensor) -> Tensor:
        """Only the sign: -1 or 0."""
        return (self.value(z) >= 0).to(z) - 1


@SHAPES
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_the_nearest_corner_is_found_up_to_the_search(shape: tuple[int, ...], bounds: Any) -> None:
    """Turning single signs one after another, a linear gain is solved exactly."""
    x0 = 0.4 + 0.2 * rand(4, *shape)
    gain = Ramp(x0)
    threat = LinfThreat(eps=0.2 * 1.02, bounds=bounds)
    x = RayS(queries=700, tolerance=1e-4)(identity, x0, gain, threat)
    assert bool((gain.value(x) >= 0).all())
    assert float(threat.size(x, x0).max()) <= threat.eps + 1e-12
    below = RayS(queries=300)(identity, x0, gain, LinfThreat(eps=0.199, bounds=bounds))
    assert bool((gain.value(below) < 0).all())  # no such point exists
    assert bool((gain.value(below) > gain.value(x0)).all())
    assert float((below - x0).abs().max()) <= 0.199 + 1e-12


@SHAPES
def test_inside_the_threat_and_the_box(shape: tuple[int, ...]) -> None:
    x0 = (2 * rand(4, *shape) - 0.5).clamp(0, 1)
    gain = Ramp(x0, level=0.1)
    for queries in (1, 2, 5, 60):
        before = x0.clone()
        x = RayS(queries=queries)(identity, x0, gain, LinfThreat(eps=0.15))
        assert x.shape == x0.shape
        assert torch.equal(x0, before)
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
        assert float((x - x0).abs().max()) <= 0.15 + 1e-12
        if queries == 1:
            assert torch.equal(x, x0)


def test_more_queries_break_no_less() -> None:
    x0 = 0.3 + 0.4 * rand(30, 16)
    gain, broken = Ramp(x0, level=0.15), []
    for queries in (10, 40, 160, 640):
        x = RayS(queries=queries)(identity, x0, gain, LinfThreat(eps=0.18))
        broken.append(gain.value(x) >= 0)
    assert all(bool((after | ~before).all()) for before, after in pairwise(broken))
    assert int(broken[0].sum()) < int(broken[-1].sum())
    assert int(broken[-1].sum()) == 30


def test_only_the_sign_is_read() -> None:
    x0 = 0.3 + 0.4 * rand(6, 16)
    gain = Ramp(x0, level=0.15)
    for scaled in (gain.value, lambda z: gain.value(z).sign().clamp_max(0) * 1e6):
        x = RayS(queries=200)(identity, x0, scaled, LinfThreat(eps=0.2))
        assert torch.equal(x, RayS(queries=200)(identity, x0, gain, LinfThreat(eps=0.2)))


def test_no_gradient_is_asked_for() -> None:
    seen = []

    def watching(x: Tensor) -> Tensor:
        seen.append(x.requires_grad or torch.is_grad_enabled())
        return x.round()

    x0 = torch.full((2, 4), 0.3)
    x = RayS(queries=20)(watching, x0, lambda z: z.sum(1) - 4, LinfThreat(eps=0.25))
    assert not any(seen)
    assert (x.round().sum(1) == 4).all()


def test_broken_rows_stay_clean_and_cost_one_query() -> None:
    x0 = rand(5, 8)
    asked = Counted(identity)

    def gain(z: Tensor) -> Tensor:
        return torch.tensor([0.0, -1.0, 3.0, -1.0, 0.0]).double()  # nothing helps rows 1 and 3

    x = RayS(queries=30)(asked, x0, gain, LinfThreat(eps=0.2))
    assert torch.equal(x, x0)
    assert asked.calls == [5] + [2] * 29


def test_rows_rest_once_they_are_broken_inside_the_threat() -> None:
    x0 = 0.3 + 0.4 * rand(6, 16)
    asked = Counted(identity)
    RayS(queries=500)(asked, x0, Ramp(x0, level=0.1), LinfThreat(eps=0.2))
    assert asked.calls == sorted(asked.calls, reverse=True)
    assert asked.queries < 6 * 500
    nothing = Counted(identity)
    assert torch.equal(RayS(queries=50)(nothing, x0, Ramp(x0), LinfThreat(eps=0.0)), x0)
    assert nothing.calls == [6]


def test_a_direction_that_suffices_costs_three_queries() -> None:
    """The clean input, the ray's beginning, and the radius of the threat."""
    asked = Counted(identity)
    x0 = torch.full((1, 4), 0.5)
    x = RayS(queries=50)(asked, x0, lambda z: z.sum(1) - 2.5, LinfThreat(eps=0.25))
    assert asked.calls == [1, 1, 1]
    assert torch.equal(x, x0 + 0.25)
    wide = Counted(identity)
    RayS(queries=50)(wide, x0, lambda z: z.sum(1) - 2.5, LinfThreat(eps=2.0))
    assert wide.calls == [1, 1]  # the ray begins at the threat's radius already


def test_where_the_budget_ends_the_best_direction_is_cut_to_the_threat() -> None:
    x0 = torch.full((1, 2), 0.5).double()

    def gain(z: Tensor) -> Tensor:
        return 2 * (z[:, 0] - z[:, 1] >= 0.6).double() - 1

    search = RayS(queries=200, tolerance=1e-6)
    x = search(identity, x0, gain, LinfThreat(eps=0.25))
    assert x.tolist() == [[0.75, 0.25]]  # 0.3 would be needed
    x = search(identity, x0, gain, LinfThreat(eps=0.301))
    assert bool(gain(x) > 0)
    nowhere = search(identity, x0, lambda z: z.sum(1) - 9, LinfThreat(eps=0.25))
    assert torch.equal(nowhere, x0)


def test_directions_change_as_long_as_no_ray_is_broken() -> None:
    """Of the sixteen corners of the box one alone is broken, and no single block turned leads there."""
    x0 = torch.full((1, 4), 0.5).double()
    corner = torch.tensor([[-1.0, -1.0, -1.0, 1.0]]).double()
    x = RayS(queries=40)(identity, x0, lambda z: (corner * (z - 0.5)).sum(1) - 1.1, LinfThreat(eps=0.3))
    assert torch.equal(x, x0 + 0.3 * corner)


def test_every_row_has_its_own_radius() -> None:
    x0 = 0.4 + 0.2 * rand(3, 8)
    gain = Ramp(x0)
    ball = RowBall(threat=LinfThreat(eps=9.0), radii=torch.tensor([0.1, 0.25, 0.4]).double())
    x = RayS(queries=800, tolerance=1e-5)(identity, x0, gain, ball)
    assert (gain.value(x) >= 0).tolist() == [False, True, True]
    assert bool((ball.size(x, x0) <= ball.radii + 1e-12).all())


def test_rows_attacked_alone_and_together_are_the_same() -> None:
    x0 = rand(6, 1, 6, 6)
    clean = NET(x0).detach()

    def away(z: Tensor, part: slice) -> Tensor:
        return (z - clean[part]).norm(dim=1) - 0.03

    search, threat = RayS(queries=40), LinfThreat(eps=0.08)
    together = search(NET, x0, lambda z: away(z, slice(0, 6)), threat, RowStreams(0, index=range(6)))
    assert int((away(NET(together), slice(0, 6)) >= 0).sum()) > 0
    for row in range(6):
        one = slice(row, row + 1)
        alone = search(NET, x0[one], lambda z, one=one: away(z, one), threat)
        torch.testing.assert_close(alone, together[one], atol=1e-12, rtol=0)


def test_the_rows_of_a_group_move_together() -> None:
    """Two rows that have to part: the signs of a group are one long vector."""
    x0 = torch.cat([rand(2, 6), rand(2, 6)]) * 0.2 + 0.4

    def gain(z: Tensor) -> Tensor:
        return (z[:2] - z[2:] - (x0[:2] - x0[2:])).square().sum(1).sqrt() - 0.4

    x = RayS(queries=300)(identity, x0, gain, LinfThreat(eps=0.15))
    assert bool((gain(x) >= 0).all())
    assert float((x - x0).abs().max()) <= 0.15 + 1e-12
    for group in range(2):
        part = slice(group, None, 2)
        alone = RayS(queries=300)(
            identity,
            x0[part],
            lambda z, part=part: (z[:1] - z[1:] - (x0[part][:1] - x0[part][1:])).square().sum(1).sqrt() - 0.4,
            LinfThreat(eps=0.15),
        )
        torch.testing.assert_close(alone, x[part], atol=1e-12, rtol=0)


def test_a_group_shares_its_smallest_radius() -> None:
    x0 = torch.full((2, 1), 0.5).double()
    ball = RowBall(threat=LinfThreat(eps=9.0), radii=torch.tensor([0.1, 0.3]).double())

    def gain(z: Tensor) -> Tensor:
        """Both rows have to rise by the same."""
        return torch.minimum(z.sum() - 1.15, 0.02 - (z[0] - z[1]).abs().sum())[None]

    x = RayS(queries=50)(identity, x0, gain, ball)
    torch.testing.assert_close(x, x0 + 0.1)


def test_the_encoder_is_left_as_it_was() -> None:
    encoder = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5)).double().train()
    x0 = rand(3, 8)
    state = torch.get_rng_state()
    found = [RayS(queries=30)(encoder, x0, lambda z: z.sum(1) - 9, LinfThreat(eps=0.2)) for _ in range(2)]
    assert encoder.training
    assert encoder[1].training
    assert all(p.grad is None for p in encoder.parameters())
    assert torch.equal(*found)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("field", "bad"), [
    ("queries", 0), ("reach", 0.0), ("reach", float("inf")), ("tolerance", 0.0), ("tolerance", float("nan")),
])  # fmt: skip
def test_settings_are_checked(field: str, bad: float) -> None:
    with pytest.raises(InvalidArgument, match=field):
        replace(RayS(), **{field: bad})


def test_other_threats_and_bad_values_are_refused() -> None:
    x0 = rand(2, 1, 4, 4)
    patch = PatchThreat(height=2, width=2, place=(0, 0))
    for threat in (L2Threat(eps=0.1), RowBall(threat=L2Threat(eps=0.1), radii=torch.ones(2)), patch):
        with pytest.raises(InvalidArgument, match="l-inf ball"):
            RayS()(identity, x0, lambda z: z.flatten(1).sum(1), threat)
    with pytest.raises(InvalidArgument, match="finite values"):
        RayS()(identity, x0, lambda z: z.flatten(1).sum(1) * torch.nan, LinfThreat(eps=0.1))
    with pytest.raises(InvalidArgument, match="number divides"):
        RayS()(identity, rand(3, 4), lambda z: z[:2].sum(1), LinfThreat(eps=0.1))
