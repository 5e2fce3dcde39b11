"""Steps that find their own length, and gradients of encoders that answer differently every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.config import from_plain, to_plain
from holdfast.errors import InvalidArgument
from holdfast.rng import RowStreams, seeded, stream
from holdfast.search import APGD, NES, PGD, Autograd, Averaged, Counted
from holdfast.search.region import Around, around
from holdfast.search.rules import Adaptive, checkpoints
from holdfast.threat import L2Threat, LinfThreat, RowBall

BOTH = pytest.mark.parametrize("threat", [LinfThreat(eps=0.1), L2Threat(eps=0.5)], ids=["linf", "l2"])
FREE = LinfThreat(eps=1.0, bounds=None)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=stream(seed, "adaptive"), dtype=torch.float64)


def identity(x: Tensor) -> Tensor:
    return x


W, G = rand(4, 12, seed=1) - 0.5, rand(7, 4, seed=2) - 0.5


def linear(x: Tensor) -> Tensor:
    return x.flatten(1) @ W.T


def pull(z: Tensor) -> Tensor:
    return (z * G[: len(z)]).sum(1)


with seeded(0, "adaptive"):
    NET = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(72, 8),
    ).double().eval()  # fmt: skip
for part in NET:
    if isinstance(part, nn.Conv2d | nn.Linear):
        part.weight.data *= 3  # far from linear
IMAGES = rand(24, 1, 8, 8)
GALLERY = NET(rand(60, 1, 8, 8, seed=1)).detach()


def margin(z: Tensor) -> Tensor:
    """How much nearer another class is than the own one; every row has the class ``i mod 6``."""
    d = torch.cdist(z, GALLERY)
    same = (torch.arange(60) % 6)[None] == (torch.arange(len(z)) % 6)[:, None]
    return d.masked_fill(~same, torch.inf).amin(1) - d.masked_fill(same, torch.inf).amin(1)


def test_checkpoints_by_hand() -> None:
    """0, .22, .41, .57, .70, .80, .87, .93, .99 of the steps, rounded up."""
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(10)) == [3, 5, 6, 7, 8, 9, 10]
    assert sorted(checkpoints(1000)) == [220, 410, 570, 700, 800, 870, 930, 990]


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0), (0.2, 0.6)])
@pytest.mark.parametrize("search", [APGD(steps=1), APGD(steps=30, random_start=True), APGD(restarts=2)])
def test_linf_optimum_of_a_linear_gain(search: APGD, bounds: Any) -> None:
    x0 = rand(7, 12) if bounds is None else rand(7, 12).clamp(*bounds)
    best = x0 + 0.1 * torch.sign(G @ W)
    best = best if bounds is None else best.clamp(*bounds)
    x = search(linear, x0, pull, LinfThreat(eps=0.1, bounds=bounds), stream(0))
    torch.testing.assert_close(x, best, atol=1e-12, rtol=0)


@pytest.mark.parametrize("search", [APGD(steps=2), APGD(steps=100, random_start=True)])
def test_l2_optimum_of_a_linear_gain(search: APGD) -> None:
    x0, way = rand(7, 12), G @ W
    x = search(linear, x0, pull, L2Threat(eps=0.1, bounds=None), stream(0))
    rise = (pull(linear(x)) - pull(linear(x0))) / (0.1 * way.norm(dim=1))
    assert float(rise.max()) <= 1 + 1e-12
    assert float(rise.min()) > (1 - 1e-12 if not search.random_start else 0.999)


@BOTH
def test_the_first_step_is_twice_the_radius_and_is_halved_at_checkpoints(threat: Any) -> None:
    """Two groups: one always rises, the other never after its first step."""
    rule = Adaptive(steps=10, rho=0.75, momentum=0.75)  # looks back at 3, 5, 6, ...
    x = torch.full((2, 1), 0.5, dtype=torch.float64)
    wide = type(threat)(eps=threat.eps, bounds=None)
    far = type("Far", (), {})()
    far.eps, far.direction, far.project = wide.eps, wide.direction, lambda x, x0: x
    grad = torch.ones_like(x)
    values = [[0.0, 0.0], [1.0, 1.0], [2.0, 0.5], [3.0, 0.5]]
    for step, value in enumerate(values):
        rule.see(x + step, torch.tensor(value, dtype=torch.float64), grad, step)
        if step == 0:
            assert (rule.move(Around(far, x), 0) - x)[:, 0].tolist() == pytest.approx([2 * threat.eps] * 2)
    assert rule.share.tolist() == [1.0, 0.5]
    assert rule.x[:, 0].tolist() == [3.5, 1.5]  # the second goes back to its best point ...
    moved = rule.move(Around(far, x), 3)[:, 0]
    assert moved.tolist() == pytest.approx(
        [3.5 + 0.75 * 2 * threat.eps + 0.25 * 1.0, 1.5 + threat.eps]  # ... and takes a plain half step
    )


def test_a_step_that_was_not_halved_is_halved_when_the_best_stands_still() -> None:
    """Condition 2: the last three of four steps rise, yet nothing beats the first value."""
    rule = Adaptive(steps=19, rho=0.5, momentum=0.75)  # looks back at 5, 8, 11, ...
    one = torch.zeros(1, 1)
    assert sorted(rule.checkpoints)[:3] == [5, 8, 11]
    shares = []
    for step, value in enumerate([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 11.0, 12.0, 0.0, 1.0, 2.0]):
        rule.see(one, torch.tensor([value]), one, step)
        shares.append(float(rule.share))
    assert shares == [1.0] * 5 + [0.5] * 6 + [0.25]
    # at 5: four of five rose, best 9 since 0; at 8 three rises to 12; at 11 two of three rose, best still 12


def test_the_step_length_follows_the_radius_of_every_row() -> None:
    x0 = torch.full((2, 3), 0.5, dtype=torch.float64)
    ball = RowBall(threat=L2Threat(eps=1.0, bounds=None), radii=torch.tensor([0.1, 0.01]))
    target = x0 + torch.tensor([[0.05, 0, 0], [0.005, 0, 0]], dtype=torch.float64)

    def near(z: Tensor) -> Tensor:
        return -(z - target[: len(z)]).norm(dim=1)

    x = APGD(steps=60)(identity, x0, near, ball)
    error = (x - target).norm(dim=1) / torch.tensor([0.1, 0.01])
    assert float(error.max()) < 0.02
    assert float(error[0] / error[1]) == pytest.approx(1.0, rel=1e-3)  # the same run on another scale


def test_an_oscillating_step_is_cured() -> None:
    """A ridge, a hundred times as steep across as along: a long step jumps over it for ever."""
    x0 = torch.tensor([[0.03, 0.0]], dtype=torch.float64)
    threat = L2Threat(eps=1.0, bounds=None)

    def ridge(z: Tensor) -> Tensor:
        return -(100 * z[:, 0].square() + (z[:, 1] - 0.8).square())

    found = [s(identity, x0, ridge, threat) for s in (PGD(steps=60, alpha=0.5, keep="best"), APGD(steps=60))]
    fixed, adaptive = (float(ridge(x)) for x in found)
    assert fixed < -0.3
    assert adaptive > -0.01


@BOTH
def test_not_below_pgd_with_as_many_steps(threat: Any) -> None:
    eps, steps = 2 * threat.eps, 40
    threat = type(threat)(eps=eps)
    best = [
        margin(NET(search(NET, IMAGES, margin, threat))).detach()
        for search in (
            APGD(steps=steps),
            *(PGD(steps=steps, alpha=eps / k, keep="best") for k in (4, 10, 16)),
        )
    ]
    for other in best[1:]:
        assert float(best[0].mean()) > float(other.mean())


@BOTH
def test_inside_the_threat_and_not_worse_than_the_start(threat: Any) -> None:
    x = APGD(steps=12)(NET, IMAGES, margin, threat)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert float(threat.size(x, IMAGES).max()) <= threat.eps * (1 + 1e-12)
    assert bool((margin(NET(x)) >= margin(NET(IMAGES))).all())


@BOTH
def test_rows_attacked_alone_and_together_are_the_same(threat: Any) -> None:
    search = APGD(steps=12, random_start=True, restarts=2)
    clean = NET(IMAGES).detach()
    together = search(NET, IMAGES, lambda z: (z - clean).norm(dim=1), threat, RowStreams(0, index=range(24)))
    for rows in (slice(0, 1), slice(5, 9)):
        alone = search(
            NET, IMAGES[rows], lambda z, rows=rows: (z - clean[rows]).norm(dim=1), threat,
            RowStreams(0, index=range(24)[rows]),
        )  # fmt: skip
        torch.testing.assert_close(alone, together[rows], atol=1e-9, rtol=0)


def test_the_rows_of_a_group_go_back_together() -> None:
    """Two rows to a group: their sum is what rises and falls, and both are taken from one moment."""
    x0 = torch.zeros(4, 1, dtype=torch.float64)
    goals = torch.tensor([0.1, 0.3], dtype=torch.float64)

    def objective(z: Tensor) -> Tensor:
        return -((z[:2, 0] - z[2:, 0]) - goals).square() - 0.1 * z[:2, 0].square()

    seen: list[Tensor] = []

    def recording(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x

    x = APGD(steps=30)(recording, x0, objective, FREE)
    assert float(objective(x).min()) > -1e-2
    for group in (slice(0, 4, 2), slice(1, 4, 2)):
        assert any(torch.equal(x[group], moment[group]) for moment in seen if len(moment) == 4)


def waves(z: Tensor) -> Tensor:
    """Many peaks of growing height."""
    return torch.cos(40 * z[:, 0] + 1) + z[:, 0].abs()


def test_restarts_find_what_one_run_misses() -> None:
    x0 = torch.zeros(20, 1, dtype=torch.float64)
    values = [
        waves(APGD(steps=6, restarts=restarts)(identity, x0, waves, FREE, RowStreams(0, index=range(20))))
        for restarts in (1, 2, 6)
    ]
    assert bool((values[1] >= values[0]).all())
    assert bool((values[2] >= values[1]).all())
    assert float(values[2].mean()) > float(values[1].mean()) > float(values[0].mean())
    assert len(values[2].unique()) > 1  # every row has a start of its own


def test_a_gain_that_is_flat_at_the_clean_input_needs_a_random_start() -> None:
    def away(z: Tensor) -> Tensor:
        return (z - 0.5).square().sum(1)

    x0 = torch.full((3, 2), 0.5, dtype=torch.float64)
    counted = Counted(identity)
    assert torch.equal(APGD(steps=20)(counted, x0, away, LinfThreat(eps=0.1)), x0)
    assert len(counted.calls) == 2  # it rests at once
    x = APGD(steps=20, random_start=True)(identity, x0, away, LinfThreat(eps=0.1), stream(0))
    torch.testing.assert_close((x - x0).abs(), torch.full_like(x0, 0.1))


class Untiring(Autograd):
    """The same gradient, without the promise that a zero stays zero: no group is ever left out."""

    exact = False


@BOTH
def test_groups_that_have_arrived_are_left_out_with_the_same_result(threat: Any) -> None:
    def gain(z: Tensor) -> Tensor:  # two rows to a group; each group wants another level
        first, second = z.chunk(2)
        return -torch.relu(torch.linspace(0.5, 6, 12).double() - (first - second).abs().sum(1))

    results, rows = [], []
    for gradient in (Autograd(), Untiring()):
        encoder = Counted(NET)
        results.append(APGD(steps=60, gradient=gradient)(encoder, IMAGES, gain, threat))
        rows.append(encoder.queries)
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)
    assert rows[0] < 0.8 * rows[1]


def test_momentum_carries_over_a_flat_place() -> None:
    """Without a gradient at 0.5 a group still moves on while its last step was not zero."""

    def steps(z: Tensor) -> Tensor:  # flat between 0.4 and 0.65, then higher
        v = z[:, 0]
        return torch.where(v < 0.4, v, torch.where(v < 0.65, 0.4 + 0 * v, v - 0.25))

    x0 = torch.zeros(1, 1, dtype=torch.float64)
    x = APGD(steps=10)(identity, x0, steps, LinfThreat(eps=0.5, bounds=None), start=x0 + 0.1)
    assert float(x) == 0.5  # the first step is cut at the surface, which is flat
    rule = Adaptive(steps=100, rho=0.75, momentum=0.75)
    rule.see(x0, torch.zeros(1), torch.ones_like(x0), 0)
    rule.see(x0 + 0.4, torch.ones(1), torch.zeros_like(x0), 1)
    assert bool(rule.moving(torch.tensor([False])))
    assert float(rule.move(around(LinfThreat(eps=0.5, bounds=None), x0), 1)) == pytest.approx(
        0.4 + 0.25 * 0.4
    )


def test_cost_is_one_pass_for_each_step_and_one_more() -> None:
    counted = Counted(NET)
    APGD(steps=5, restarts=2)(counted, IMAGES, margin, LinfThreat(eps=0.1), stream(0))
    assert counted.calls == [24] * 12
    assert torch.equal(APGD(steps=0)(NET, IMAGES, margin, LinfThreat(eps=0.1)), IMAGES)


def test_settings_are_data() -> None:
    search = APGD(steps=7, rho=0.5, gradient=Averaged(gradient=NES(samples=3), samples=2))
    types = {t.__name__: t for t in (APGD, Averaged, NES)}
    assert from_plain(to_plain(search), types) == search


class Noisy(nn.Module):
    """Doubles its input, with strong noise on inputs and on its answer from a generator of its own."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = stream(seed, "noisy")

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return 2 * x * (1 + 3 * noise) + noise


def test_the_mean_of_many_passes() -> None:
    x = rand(3, 4)
    value, grad = Averaged(samples=4000)(Noisy(), x, lambda z: z.sum(1))
    assert float((grad - 2).abs().max()) < 0.5  # the deviation of one sample is 6, of the mean 0.095
    assert float((value - 2 * x.sum(1)).abs().max()) < 1.0
    one = Averaged(samples=1)(Noisy(), x, lambda z: z.sum(1))
    torch.testing.assert_close(one, Autograd()(Noisy(), x, lambda z: z.sum(1)))
    assert Averaged().exact is False


def test_averaged_gradients_beat_single_ones_on_a_noisy_encoder() -> None:
    x0, way = torch.full((20, 10), 0.5, dtype=torch.float64), rand(20, 10, seed=3) - 0.5
    threat = LinfThreat(eps=0.1)
    rises = []
    for gradient in (Autograd(), Averaged(samples=20)):
        search = PGD(steps=10, alpha=0.02, gradient=gradient)
        x = search(Noisy(), x0, lambda z: (z * way).sum(1), threat)
        rises.append(float((2 * (x - x0) * way).sum(1).mean()))  # without noise
    assert rises[1] > 1.3 * rises[0]


def test_the_kept_point_is_chosen_by_mean_values() -> None:
    counted = Counted(Noisy())
    x0 = torch.full((2, 2), 0.5, dtype=torch.float64)
    search = APGD(steps=3, gradient=Averaged(samples=5))
    search(counted, x0, lambda z: z.sum(1), LinfThreat(eps=0.1))
    assert len(counted.calls) == 5 * 4  # the last point is measured as often as the others


@pytest.mark.parametrize(
    ("make", "changes", "argument"),
    [
        (APGD, {"steps": -1}, "steps"),
        (APGD, {"restarts": 0}, "restarts"),
        (APGD, {"rho": 0.0}, "rho"),
        (APGD, {"rho": float("nan")}, "rho"),
        (Averaged, {"samples": 0}, "samples"),
    ],
)
def test_bad_settings(make: Any, changes: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument}: need"):
        make(**changes)


def test_a_broken_encoder_is_named() -> None:
    with pytest.raises(InvalidArgument, match="NaN or infinity at step 0"):
        APGD(steps=2)(lambda x: x * torch.nan, rand(2, 2), lambda z: z.sum(1), FREE)
