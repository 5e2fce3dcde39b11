"""Random search by squares: needs values alone, takes plateaus, depends on no batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.errors import InvalidArgument
from holdfast.patch import PatchThreat
from holdfast.rng import RowStreams, seeded, stream
from holdfast.search import Counted, Square
from holdfast.search.windows import L2Windows, SignWindows, _bump, _bumps, _sides
from holdfast.threat import L2Threat, LinfThreat, RowBall

BOTH = pytest.mark.parametrize("threat", [LinfThreat(eps=0.1), L2Threat(eps=0.5)], ids=["linf", "l2"])
SHAPES = pytest.mark.parametrize("shape", [(12,), (3, 4), (1, 6, 6), (3, 5, 7)], ids=str)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=stream(seed, "square"), dtype=torch.float64)


def rows(n: int, first: int = 0) -> RowStreams:
    return RowStreams(0, "square", index=range(first, first + n))


def identity(x: Tensor) -> Tensor:
    return x


def total(z: Tensor) -> Tensor:
    return z.flatten(1).sum(1)


with seeded(0, "square"):
    NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).double().eval()


@pytest.mark.parametrize("shape", [(12,), (1, 6, 6)], ids=str)
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0), (0.2, 0.6)])
def test_linf_optimum_of_a_linear_gain(shape: tuple[int, ...], bounds: Any) -> None:
    x0 = rand(5, *shape) if bounds is None else rand(5, *shape).clamp(*bounds)
    way = rand(5, *shape, seed=1) - 0.5
    best = x0 + 0.1 * way.sign()
    best = best if bounds is None else best.clamp(*bounds)

    def gain(z: Tensor) -> Tensor:
        return (z * way).flatten(1).sum(1)

    threat = LinfThreat(eps=0.1, bounds=bounds)
    x = Square(queries=700)(torch.Tensor.detach, x0, gain, threat, rows(5))
    share = (gain(x) - gain(x0)) / (gain(best) - gain(x0))
    assert float(share.max()) <= 1 + 1e-12
    assert float(share.min()) > 0.99
    few = Square(queries=20)(torch.Tensor.detach, x0, gain, threat, rows(5))
    assert float((gain(few) - gain(x0)).sum()) < 0.98 * float((gain(x) - gain(x0)).sum())


@pytest.mark.parametrize(("shape", "least"), [((12,), 0.65), ((1, 6, 6), 0.6)], ids=str)
def test_l2_comes_near_the_optimum_of_a_linear_gain(shape: tuple[int, ...], least: float) -> None:
    x0, way = rand(5, *shape), rand(5, *shape, seed=1) - 0.5

    def gain(z: Tensor) -> Tensor:
        return (z * way).flatten(1).sum(1)

    x = Square(queries=300)(identity, x0, gain, L2Threat(eps=0.1, bounds=None), rows(5))
    share = (gain(x) - gain(x0)) / (0.1 * way.flatten(1).norm(dim=1))
    assert float(share.min()) > least
    assert float(share.max()) <= 1 + 1e-12


@BOTH
@SHAPES
def test_inside_the_threat_and_never_worse(threat: Any, shape: tuple[int, ...]) -> None:
    x0 = (2 * rand(4, *shape) - 0.5).clamp(0, 1)
    way = rand(4, *shape, seed=1) - 0.5

    def gain(z: Tensor) -> Tensor:
        return -(z * way).square().flatten(1).sum(1)

    values = [gain(x0)]
    for queries in (1, 2, 40):
        before = x0.clone()
        x = Square(queries=queries)(identity, x0, gain, threat, rows(4))
        assert x.shape == x0.shape
        assert torch.equal(x0, before)
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
        assert float(threat.size(x, x0).max()) <= threat.eps * (1 + 1e-12)
        values.append(gain(x))
    assert torch.equal(values[0], values[1])  # one query is the clean input
    assert bool((values[2] >= values[1]).all())
    assert bool((values[3] > values[1]).any())


@BOTH
def test_no_radius_no_change(threat: Any) -> None:
    x0 = rand(3, 1, 6, 6)
    assert torch.equal(Square(queries=20)(identity, x0, total, type(threat)(eps=0), rows(3)), x0)


@BOTH
@pytest.mark.parametrize("stops", [False, True])
def test_rows_attacked_alone_and_together_are_the_same(threat: Any, stops: bool) -> None:
    x0 = rand(6, 1, 6, 6)
    clean = NET(x0).detach()
    search = Square(queries=40)

    def away(z: Tensor, part: slice) -> Tensor:
        return (z - clean[part]).norm(dim=1)

    together = search(NET, x0, lambda z: away(z, slice(0, 6)), threat, rows(6))
    if stops:  # three groups stop, three do not
        search = replace(search, stop_at=float(away(NET(together), slice(0, 6)).detach().median()) + 1e-9)
        together = search(NET, x0, lambda z: away(z, slice(0, 6)), threat, rows(6))
        reached = away(NET(together), slice(0, 6)) >= search.stop_at
        assert 0 < int(reached.sum()) < 6
    for row in range(6):
        one = slice(row, row + 1)
        alone = search(NET, x0[one], lambda z, one=one: away(z, one), threat, rows(1, first=row))
        torch.testing.assert_close(alone, together[one], atol=1e-12, rtol=0)


@BOTH
def test_one_generator_gives_one_result(threat: Any) -> None:
    x0 = rand(3, 1, 6, 6)
    found = [Square(queries=20)(NET, x0, total, threat, stream(seed)) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@BOTH
def test_the_rows_of_a_group_move_together(threat: Any) -> None:
    """Four rows in two groups: a group's rows are taken from one and the same query."""
    x0, seen = rand(4, 6), []

    def recording(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    def gain(z: Tensor) -> Tensor:
        return (z[:2] - z[2:]).square().sum(1)

    x = Square(queries=30)(recording, x0, gain, threat, rows(4))
    assert bool((gain(x) > gain(x0)).all())
    for group in (slice(0, 4, 2), slice(1, 4, 2)):
        assert any(torch.equal(x[group], moment[group]) for moment in seen)


@BOTH
def test_a_plateau_is_no_wall(threat: Any) -> None:
    """The gain is the rise of a linear one in whole fifths of the optimum: flat almost everywhere."""
    x0, way = torch.full((8, 12), 0.5, dtype=torch.float64), rand(8, 12, seed=1) - 0.5
    best = way.abs().sum(1) if threat.norm == "linf" else way.norm(dim=1)

    def stairs(z: Tensor) -> Tensor:
        return torch.floor(5 * ((z - x0) * way).sum(1) / (threat.eps * best) + 1e-9)

    found = [
        stairs(Square(queries=queries)(identity, x0, stairs, threat, rows(8))) for queries in (1, 2, 300)
    ]
    assert bool((found[0] == 0).all())
    assert float(found[1].mean()) < 1.5
    assert float(found[2].min()) >= 3
    assert float(found[2].mean()) >= 3.5


def test_equal_values_are_accepted() -> None:
    x0 = rand(3, 12)
    x = Square(queries=5)(identity, x0, lambda z: 0 * z.sum(1), LinfThreat(eps=0.1), rows(3))
    assert bool((x != x0).any(1).all())


def test_groups_that_are_good_enough_save_queries() -> None:
    x0, goals = torch.full((4, 12), 0.5, dtype=torch.float64), torch.tensor([0.0, 0.5, 0.5, 5.0])

    def rise(z: Tensor) -> Tensor:
        return z.sum(1) - 6 - goals

    counted = Counted(identity)
    x = Square(queries=100, stop_at=0.0)(counted, x0, rise, LinfThreat(eps=0.1), rows(4))
    assert torch.equal(x[0], x0[0])  # had arrived before the search began
    assert bool((rise(x)[:3] >= 0).all())
    assert counted.calls[:2] == [4, 3]
    assert counted.calls[-1] == 1  # the last one never arrives
    assert len(counted.calls) == 100
    full = Counted(identity)
    Square(queries=100)(full, x0, rise, LinfThreat(eps=0.1), rows(4))
    assert full.queries == 400
    easy = Counted(identity)
    Square(queries=100, stop_at=-10.0)(easy, x0, rise, LinfThreat(eps=0.1), rows(4))
    assert easy.calls == [4]


def test_who_stops_does_not_change_what_others_see() -> None:
    """Streams are drawn for all rows: a group goes its way whether its neighbours rest or not."""
    x0 = rand(4, 12)
    limits = torch.tensor([-100.0, 0.0, 0.0, 0.0], dtype=torch.float64)

    def rise(z: Tensor) -> Tensor:
        return z.sum(1) - x0.sum(1) + limits

    found = []
    for stop_at in (None, 1.1):
        found.append(Square(queries=60, stop_at=stop_at)(identity, x0, rise, LinfThreat(eps=0.1), stream(0)))
    assert torch.equal(found[0][0], found[1][0])


def test_share_follows_the_published_schedule() -> None:
    search = Square(queries=10_000)
    seen = [search.share(i) for i in (1, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert seen == [0.8, 0.8, *(0.8 / 2**k for k in range(1, 10))]
    assert Square(queries=100).share(99) == 0.8 / 2**9


def test_sides_of_windows() -> None:
    def sides(share: float, h: int, w: int) -> list[int]:
        return [int(v) for v in _sides(share, torch.tensor([h]), torch.tensor([w]))]

    assert sides(0.8, 10, 10) == [9, 9]
    assert sides(0.25, 10, 10) == [5, 5]
    assert sides(1e-6, 10, 10) == [1, 1]
    assert sides(0.5, 1, 12) == [1, 6]  # a vector
    assert sides(0.5, 4, 100) == [4, 50]
    assert sides(1.0, 3, 3) == [3, 3]


def test_the_start_is_vertical_stripes() -> None:
    x0 = torch.full((2, 3, 5, 7), 0.5, dtype=torch.float64)
    windows = SignWindows(x0, LinfThreat(eps=0.1))
    u = rand(2, windows.start_draws)
    x = windows.start(x0, LinfThreat(eps=0.1), u)
    torch.testing.assert_close((x - x0).abs(), torch.full_like(x0, 0.1))
    assert torch.equal(x, x[:, :, :1].expand_as(x))
    assert len({tuple(v) for v in (x[0, :, 0] > 0.5).tolist()}) > 1


def test_a_window_is_one_square_of_one_sign_for_each_channel() -> None:
    x0 = torch.full((50, 3, 8, 8), 0.5, dtype=torch.float64)
    threat = LinfThreat(eps=0.1)
    windows = SignWindows(x0, threat)
    change = windows.move(x0, x0, threat, rand(50, windows.draws), 0.25, slice(None)) - x0
    assert (change != 0).any(1).flatten(1).sum(1).tolist() == [16] * 50  # 4 x 4
    touched = (change != 0).any(1)
    assert bool((touched.any(1).sum(1) == 4).all())
    assert bool(touched.any(0).all())  # anywhere in the image
    levels = change.flatten(2).abs().amax(2)
    torch.testing.assert_close(levels, torch.full_like(levels, 0.1))
    assert bool(((change.flatten(2).amin(2) < 0) != (change.flatten(2).amax(2) > 0)).all())


def test_no_query_is_spent_on_a_window_that_changes_nothing() -> None:
    x0 = torch.full((40, 6), 0.5, dtype=torch.float64)
    threat = LinfThreat(eps=0.1)
    windows = SignWindows(x0, threat)
    x = windows.start(x0, threat, rand(40, windows.start_draws))
    moved = windows.move(x, x0, threat, rand(40, windows.draws, seed=1), 0.01, slice(None))
    assert (moved != x).sum(1).tolist() == [1] * 40


def test_windows_stay_in_a_patch() -> None:
    threat = PatchThreat(height=3, width=4).for_rows(range(6), 0, (1, 9, 9))
    x0, inside = rand(6, 1, 9, 9), threat.mask
    windows = SignWindows(x0, threat)
    assert windows.height.tolist() == [3] * 6
    assert windows.width.tolist() == [4] * 6
    moved = windows.move(x0, x0, threat, rand(6, windows.draws), 1e-3, slice(None))
    assert (moved != x0).flatten(1).sum(1).tolist() == [1] * 6
    x = Square(queries=200)(identity, x0, total, threat, rows(6))
    assert torch.equal(x[~inside], x0[~inside])
    assert bool((x[inside] == 1).all())


def test_every_row_has_its_own_radius() -> None:
    x0, radii = torch.full((3, 8), 0.5, dtype=torch.float64), torch.tensor([0.0, 0.01, 0.2])
    for kind in (LinfThreat, L2Threat):
        ball = RowBall(threat=kind(eps=1.0), radii=radii)
        x = Square(queries=150, stop_at=5.0)(identity, x0, total, ball, rows(3))
        size = ball.size(x, x0)
        assert bool((size <= radii * (1 + 1e-6)).all())
        rise = total(x) - total(x0)
        assert float(rise[1] / rise[2]) == pytest.approx(0.05, rel=0.35)


def test_bumps_by_hand() -> None:
    """n = 1: the middle has 1/4 + 1, its neighbours 1/4."""
    expected = torch.full((3, 3), 0.25)
    expected[1, 1] = 1.25
    torch.testing.assert_close(_bump(3, 3), expected)
    for a, b, variants in ((4, 4, 2), (5, 3, 2), (1, 6, 1), (6, 1, 1), (1, 1, 1)):
        bumps = _bumps(a, b)
        assert bumps.shape == (variants, a, b)
        torch.testing.assert_close(bumps.flatten(1).norm(dim=1), torch.ones(variants))
    above, beside = _bumps(4, 4)
    torch.testing.assert_close(above.T, beside)
    assert float(above[:2].min()) > 0
    assert float(above[2:].max()) < 0


@SHAPES
def test_l2_windows_use_up_the_radius(shape: tuple[int, ...]) -> None:
    x0, threat = rand(20, *shape), L2Threat(eps=0.3, bounds=None)
    windows = L2Windows(x0, threat)
    x = windows.start(x0, threat, rand(20, windows.start_draws))
    torch.testing.assert_close(threat.size(x, x0), torch.full((20,), 0.3, dtype=torch.float64))
    short = x0 + 0.2 * (x - x0)
    for share in (0.5, 0.01):
        moved = windows.move(short, x0, threat, rand(20, windows.draws, seed=1), share, slice(None))
        size = threat.size(moved, x0)
        torch.testing.assert_close(size, torch.full((20,), 0.3, dtype=torch.float64))
        changed = (moved != short).flatten(1).any(1)
        assert bool(changed.all())


@BOTH
def test_an_encoder_without_gradient_and_in_training_mode(threat: Any) -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.9)
            self.modes: list[bool] = []

        def forward(self, x: Tensor) -> Tensor:
            self.modes.append(self.training)
            return (8 * self.drop(x).detach()).round() / 8

    encoder, x0 = Rounded(), rand(3, 12)
    x = Square(queries=60)(encoder, x0, total, threat, rows(3))
    assert bool((total(x) > total(x0)).all())
    assert not any(encoder.modes)
    assert encoder.training
    assert encoder.drop.training


def test_without_a_generator_the_global_one_is_used() -> None:
    torch.manual_seed(0)
    one = Square(queries=5)(identity, rand(2, 6), total, LinfThreat(eps=0.1))
    torch.manual_seed(0)
    assert torch.equal(Square(queries=5)(identity, rand(2, 6), total, LinfThreat(eps=0.1)), one)


def test_the_objective_keeps_its_values() -> None:
    """A gain may hand out a tensor of its own; the search must not write into it."""
    own = torch.zeros(2, dtype=torch.float64)
    Square(queries=5)(identity, rand(2, 6), lambda z: own, LinfThreat(eps=0.1), rows(2))
    steps = iter([own, torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)])
    Square(queries=3)(identity, rand(2, 6), lambda z: next(steps), LinfThreat(eps=0.1), rows(2))
    assert own.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"queries": 0}, "queries"),
        ({"p": 0.0}, "p"),
        ({"p": 1.5}, "p"),
        ({"p": float("nan")}, "p"),
        ({"stop_at": float("nan")}, "stop_at"),
    ],
)
def test_bad_settings(changes: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument}: need"):
        Square(**changes)


def test_broken_values_are_named() -> None:
    with pytest.raises(InvalidArgument, match="NaN or infinity at step 0"):
        Square(queries=2)(lambda x: x * torch.nan, rand(2, 3), total, LinfThreat(eps=0.1))
    with pytest.raises(InvalidArgument, match="whose number divides 3 rows"):
        Square(queries=2)(identity, rand(3, 3), lambda z: z[:2, 0], LinfThreat(eps=0.1))
