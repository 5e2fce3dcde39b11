"""The one loop: what it keeps, where it stops, and that it leaves no trace."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.errors import InvalidArgument
from holdfast.rng import RowStreams, stream
from holdfast.schedules import Cycle, Linear
from holdfast.search import NES, PGD, SPSA, Autograd, frozen
from holdfast.threat import L2Threat, LinfThreat

FREE = LinfThreat(eps=0.25, bounds=None)
BOTH = pytest.mark.parametrize("threat", [LinfThreat(eps=0.1), L2Threat(eps=0.5)], ids=["linf", "l2"])


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=stream(seed, "search"), dtype=torch.float64)


def identity(x: Tensor) -> Tensor:
    return x


def total(z: Tensor) -> Tensor:
    return z.sum(1)


class Net(nn.Module):
    """A training net with one frozen batch-norm and a dropout that is off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(4, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(36, 3),
        ).double()  # fmt: skip
        self.train()
        self.net[5].eval()
        self.net[7].eval()
        self.modes: list[tuple[bool, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(tuple(m.training for m in self.modules()))
        return self.net(x)


class Counting:
    """An encoder that remembers its inputs."""

    def __init__(self, encoder: Any = identity) -> None:
        self.encoder, self.seen = encoder, []

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.encoder(x)


@BOTH
@pytest.mark.parametrize("gradient", [Autograd(), NES(samples=2), SPSA(samples=2)])
def test_a_search_leaves_no_trace(threat: Any, gradient: Any) -> None:
    net, x0 = Net(), rand(6, 1, 8, 8)
    x_before, modes = x0.clone(), [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.get_rng_state()
    search = PGD(steps=3, alpha=0.05, random_start=True, restarts=2, keep="best", gradient=gradient)
    x = search(net, x0, total, threat, stream(0))
    assert not torch.equal(x, x0)
    assert [m.training for m in net.modules()] == modes
    assert True in modes
    assert False in modes
    assert not any(any(seen) for seen in net.modes)  # every pass ran in evaluation mode throughout
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())  # batch statistics too
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x0, x_before)
    assert not x.requires_grad


def test_modes_come_back_after_an_error() -> None:
    net = Net()
    modes = [m.training for m in net.modules()]
    with pytest.raises(InvalidArgument):
        PGD(steps=1)(net, rand(2, 1, 8, 8), lambda z: total(z) * torch.nan, FREE)
    assert [m.training for m in net.modules()] == modes


def test_frozen_passes_plain_callables() -> None:
    with frozen(identity):
        pass


def test_weights_keep_a_gradient_that_was_there() -> None:
    net, x0 = Net(), rand(6, 1, 8, 8)
    net(x0).sum().backward()
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    PGD(steps=2)(net, x0, total, FREE)
    after = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(before) == len(after) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@BOTH
@pytest.mark.parametrize("search", [PGD(steps=0), PGD(steps=0, keep="best", restarts=1)])
def test_no_steps_no_change(threat: Any, search: PGD) -> None:
    x0 = rand(4, 3)
    assert torch.equal(search(identity, x0, total, threat), x0)


@pytest.mark.parametrize("make", [LinfThreat, L2Threat])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_no_radius_no_change(make: Any, keep: Any) -> None:
    x0 = rand(4, 1, 2, 2)
    search = PGD(steps=3, alpha=0.1, random_start=True, restarts=2, keep=keep)
    assert torch.equal(search(lambda x: x.flatten(1), x0, total, make(eps=0), stream(0)), x0)


def test_the_result_is_no_view_of_the_input() -> None:
    x0 = rand(2, 3)
    PGD(steps=0)(identity, x0, total, FREE).zero_()
    assert bool(x0.any())


def test_steps_are_as_long_as_alpha() -> None:
    x0 = torch.full((1, 2), 0.5, dtype=torch.float64)
    x = PGD(steps=3, alpha=0.0625)(identity, x0, lambda z: z[:, 0] - z[:, 1], LinfThreat(eps=0.5))
    assert x.tolist() == [[0.6875, 0.3125]]
    x = PGD(steps=3, alpha=0.125)(identity, x0, lambda z: 3 * z[:, 0] - 4 * z[:, 1], L2Threat(eps=0.5))
    assert x[0].tolist() == pytest.approx([0.5 + 0.375 * 0.6, 0.5 - 0.375 * 0.8])


@pytest.mark.parametrize(
    ("alpha", "lengths"),
    [
        (Linear(start=0.04, stop=0.0), [0.04, 0.03, 0.02, 0.01]),  # the fraction of the steps that are done
        (Cycle(values=(0.01, 0.03)), [0.01, 0.01, 0.03, 0.03]),
        (0.02, [0.02] * 4),
    ],
)
def test_alpha_may_be_a_schedule(alpha: Any, lengths: list[float]) -> None:
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    encoder = Counting()
    PGD(steps=4, alpha=alpha, keep="best")(encoder, x0, total, LinfThreat(eps=1, bounds=None))
    seen = [float(x) for x in encoder.seen]
    assert [b - a for a, b in pairwise(seen)] == pytest.approx(lengths)


def hills(z: Tensor) -> Tensor:
    """Highest at 0.1, one value for each row."""
    return -(z[:, 0] - 0.1).square()


def test_last_and_best() -> None:
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    threat = LinfThreat(eps=1.0, bounds=None)
    # 0 -> 0.35 -> 0 -> 0.35: values -0.01, -0.0625, ...
    assert float(PGD(steps=3, alpha=0.35)(identity, x0, hills, threat)) == pytest.approx(0.35)
    assert float(PGD(steps=3, alpha=0.35, keep="best")(identity, x0, hills, threat)) == 0
    # the very last point counts too: 0 -> 0.08
    assert float(PGD(steps=1, alpha=0.08, keep="best")(identity, x0, hills, threat)) == pytest.approx(0.08)


def test_best_is_kept_for_each_group_with_all_its_rows() -> None:
    """Four rows in two groups (i mod 2): a group's rows are taken from one and the same moment."""
    x0 = torch.tensor([[0.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    goals = torch.tensor([0.1, 0.3], dtype=torch.float64)

    def objective(z: Tensor) -> Tensor:
        first, second = z[:2, 0], z[2:, 0]
        return -(first - goals).square() - 0.1 * (second - goals).square()

    threat = LinfThreat(eps=1.0, bounds=None)
    x = PGD(steps=1, alpha=0.25, keep="best")(identity, x0, objective, threat)
    assert x[:, 0].tolist() == [0.0, 0.25, 0.0, 0.25]  # group 0 stays, group 1 goes
    last = PGD(steps=1, alpha=0.25)(identity, x0, objective, threat)
    assert last[:, 0].tolist() == [0.25] * 4


def test_a_coupled_gain_is_kept_for_the_whole_batch() -> None:
    x0 = torch.zeros(2, 1, dtype=torch.float64)
    goals = torch.tensor([0.1, 0.3], dtype=torch.float64)

    def coupled(z: Tensor) -> Tensor:
        return -(z[:, 0] - goals).square().sum()[None]

    threat = LinfThreat(eps=1.0, bounds=None)
    # values at 0 and at 0.25: -0.1 and -0.025 in sum, though row 0 alone would have stayed
    x = PGD(steps=1, alpha=0.25, keep="best")(identity, x0, coupled, threat)
    assert x[:, 0].tolist() == [0.25, 0.25]
    x = PGD(steps=1, alpha=0.45, keep="best")(identity, x0, coupled, threat)
    assert x[:, 0].tolist() == [0.0, 0.0]


def two_peaks(z: Tensor) -> Tensor:
    """A low peak at -0.2, a high one at 0.7, a valley at 0.1."""
    v = z[:, 0]
    return torch.where(v < 0.1, 0.3 - (v + 0.2).abs(), 0.6 - (v - 0.7).abs())


@pytest.mark.parametrize("keep", ["last", "best"])
def test_restarts_find_what_one_run_misses(keep: Any) -> None:
    x0 = torch.zeros(20, 1, dtype=torch.float64)
    threat = LinfThreat(eps=1.0, bounds=None)
    streams = RowStreams(0, index=range(20))
    once = PGD(steps=40, alpha=0.02, keep=keep)(identity, x0, two_peaks, threat, streams)
    assert float((once + 0.2).abs().max()) < 0.021  # all on the low peak
    more = PGD(steps=40, alpha=0.02, keep=keep, restarts=6)(identity, x0, two_peaks, threat, streams)
    high = (more - 0.7).abs() < 0.021
    assert int(high.sum()) >= 15
    assert bool((high | ((more + 0.2).abs() < 0.021)).all())  # the rest has kept its first run


def test_the_first_run_starts_clean_unless_told_otherwise() -> None:
    x0, streams = rand(3, 4), RowStreams(0, index=range(3))
    for random_start, clean in ((False, True), (True, False)):
        encoder = Counting()
        PGD(steps=1, restarts=2, random_start=random_start)(encoder, x0, total, FREE, streams)
        assert torch.equal(encoder.seen[0], x0) == clean
        assert not torch.equal(encoder.seen[2], x0)


def test_cost_is_one_pass_for_each_step() -> None:
    for search, passes in (
        (PGD(steps=5), 5),
        (PGD(steps=5, keep="best"), 6),
        (PGD(steps=5, restarts=2), 12),
        (PGD(steps=5, gradient=NES(samples=3)), 35),
    ):
        encoder = Counting()
        search(encoder, rand(2, 3), total, FREE, stream(0))
        assert len(encoder.seen) == passes


def relu_gain(z: Tensor) -> Tensor:
    return -torch.relu(0.1 - z[:, 0])


def test_a_saturated_gain_stops_the_loop() -> None:
    """0 -> 0.06 -> 0.12: the gain is flat there, and eighteen passes are saved."""
    x0 = torch.zeros(2, 1, dtype=torch.float64)
    encoder = Counting()
    x = PGD(steps=20, alpha=0.06)(encoder, x0, relu_gain, FREE)
    assert len(encoder.seen) == 3
    assert x[:, 0].tolist() == pytest.approx([0.12, 0.12])


def test_one_live_row_keeps_the_loop_going() -> None:
    x0 = torch.tensor([[0.2], [-0.1]], dtype=torch.float64)
    encoder = Counting()
    x = PGD(steps=10, alpha=0.06)(encoder, x0, relu_gain, FREE)
    assert x[:, 0].tolist() == pytest.approx([0.2, 0.14])
    assert len(encoder.seen) == 5


class Untiring(Autograd):
    """The same gradient, without the promise that a zero stays zero: no group is ever left out."""

    exact = False


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("restarts", [1, 3])
@BOTH
def test_groups_that_have_arrived_are_left_out_with_the_same_result(
    threat: Any, keep: Any, restarts: int
) -> None:
    def gain(z: Tensor) -> Tensor:  # two rows to a group; each group wants another level
        first, second = z.chunk(2)
        return -torch.relu(torch.linspace(0.1, 0.7, 7).double() - (first - second).abs().sum(1))

    net, x0, streams = Net().eval(), rand(14, 1, 8, 8), RowStreams(0, "rest", index=range(7))
    results, rows = [], []
    for gradient in (Autograd(), Untiring()):
        encoder = Counting(net)
        alpha = threat.eps / 5
        search = PGD(steps=12, alpha=alpha, keep=keep, restarts=restarts, gradient=gradient)
        results.append(search(encoder, x0, gain, threat, streams if restarts == 1 else stream(0, "rest")))
        rows.append(sum(len(seen) for seen in encoder.seen))
    assert torch.allclose(*results, atol=1e-12)
    assert rows[0] < 0.9 * rows[1]


def test_a_threat_with_rows_is_cut_to_those_that_move() -> None:
    class Each(LinfThreat):  # a radius for every row
        radii = torch.tensor([[0.05], [0.2], [0.3]], dtype=torch.float64)

        def rows(self, which: Tensor) -> LinfThreat:
            part = Each(eps=self.eps, bounds=None)
            object.__setattr__(part, "radii", self.radii[which])
            return part

        def project(self, x: Tensor, x0: Tensor) -> Tensor:
            return torch.minimum(torch.maximum(x, x0 - self.radii), x0 + self.radii)

    x0 = torch.tensor([[0.0], [0.2], [-0.3]], dtype=torch.float64)
    x = PGD(steps=20, alpha=0.06)(identity, x0, relu_gain, Each(eps=1.0, bounds=None))
    assert x[:, 0].tolist() == pytest.approx([0.05, 0.2, 0.0])


def test_a_search_begins_where_it_is_told_to() -> None:
    x0, begin = torch.zeros(2, 1), torch.tensor([[0.1], [0.9]])
    search = PGD(steps=1, alpha=0.05, random_start=True)
    assert search(identity, x0, total, FREE, start=begin)[:, 0].tolist() == pytest.approx([0.15, 0.25])


def test_sampled_gradients_never_stop_early() -> None:
    encoder = Counting()
    PGD(steps=4, gradient=SPSA(samples=1))(encoder, torch.ones(1, 1), relu_gain, FREE, stream(0))
    assert len(encoder.seen) == 12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("gradient", [Autograd(), NES(samples=1)])
def test_a_broken_encoder_is_named(value: float, gradient: Any) -> None:
    x0 = rand(3, 2)

    def broken(x: Tensor) -> Tensor:
        return x + torch.tensor([[0.0, 0.0], [value, 0.0], [0.0, 0.0]])

    with pytest.raises(
        InvalidArgument, match="finite values from the encoder, got 'NaN or infinity at step 0'"
    ):
        PGD(steps=2, gradient=gradient)(broken, x0, total, FREE, stream(0))


@pytest.mark.parametrize("search", [PGD(steps=1, keep="best"), PGD(steps=1, restarts=2)])
def test_a_value_that_breaks_at_the_very_end_is_named(search: PGD) -> None:
    x0 = torch.full((1, 1), 0.5, dtype=torch.float64)

    def edge(x: Tensor) -> Tensor:
        return torch.where(x > 0.5, torch.nan, 1.0) * x

    with pytest.raises(InvalidArgument, match="at step 1"):
        search(edge, x0, total, FREE, stream(0))


@BOTH
def test_a_broken_gradient_is_named_and_does_not_pass_for_robustness(threat: Any) -> None:
    """sign(NaN) is 0 in PyTorch: the attack would stand still and every query would look robust."""
    x0 = torch.full((2, 2), 0.5, dtype=torch.float64)
    with pytest.raises(InvalidArgument, match="a finite gradient, got 'NaN or infinity at step 0'"):
        PGD(steps=1)(lambda x: (x - 0.5).square().sum(1, keepdim=True).sqrt(), x0, total, threat)


class Detached(nn.Module):
    """Has weights with gradients, but none for the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((8 * x.detach()).round() / 8)


@torch.no_grad()
def without_grad(x: Tensor) -> Tensor:
    return x * 2


@pytest.mark.parametrize(
    "encoder", [Detached(), without_grad, Tensor.detach], ids=["weights", "no_grad", "cut"]
)
def test_an_encoder_without_gradient_needs_a_sampled_one(encoder: Any) -> None:
    x0 = rand(3, 3)
    with pytest.raises(InvalidArgument, match=r"encoder: need a differentiable encoder .*NES or SPSA"):
        PGD(steps=2)(encoder, x0, total, FREE)
    threat = LinfThreat(eps=0.3)
    for gradient in (NES(samples=20, sigma=0.1), SPSA(samples=20, sigma=0.1)):
        x = PGD(steps=10, alpha=0.06, gradient=gradient)(encoder, x0, total, threat, stream(0))
        assert float((total(encoder(x)) - total(encoder(x0))).detach().min()) > 0


def test_searching_works_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        x = PGD(steps=2, alpha=0.1)(identity, rand(2, 2), total, FREE)
    assert not torch.equal(x, rand(2, 2))


@pytest.mark.parametrize("value", [torch.zeros(2, 1), torch.zeros(4), torch.zeros(()), torch.zeros(0)])
def test_groups_must_divide_the_rows(value: Tensor) -> None:
    with pytest.raises(InvalidArgument, match=r"objective: need values .* divides 6 rows"):
        PGD(steps=1)(identity, rand(6, 2), lambda z: value + 0 * z.sum(), FREE)


SMOOTH = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]], dtype=torch.float64)


def smooth(x: Tensor) -> Tensor:
    return torch.sin(x @ SMOOTH.T)


@pytest.mark.parametrize("gradient", [NES(samples=400, sigma=0.01), SPSA(samples=400, sigma=0.01)])
def test_sampled_gradients_point_where_the_exact_one_does(gradient: Any) -> None:
    x = rand(4, 3)
    value, exact = Autograd()(smooth, x, total)
    same_value, sampled = gradient(smooth, x, total, RowStreams(0, index=range(4)))
    torch.testing.assert_close(value, same_value)
    cosine = torch.nn.functional.cosine_similarity(exact, sampled)
    assert float(cosine.min()) > 0.98
    ratio = sampled.norm(dim=1) / exact.norm(dim=1)  # the length is right too, not the direction alone
    assert bool(((ratio > 0.85) & (ratio < 1.15)).all())


@pytest.mark.parametrize("gradient", [NES(samples=200), SPSA(samples=200)])
def test_sampled_gradients_of_groups(gradient: Any) -> None:
    """Rows 0 and 2 make value 0, rows 1 and 3 make value 1."""

    def groups(z: Tensor) -> Tensor:
        return (z[:2] * z[2:]).sum(1)

    x = rand(4, 3)
    _, exact = Autograd()(identity, x, groups)
    torch.testing.assert_close(exact, x[[2, 3, 0, 1]])
    value, sampled = gradient(identity, x, groups, RowStreams(0, index=range(4)))
    assert value.shape == (2,)
    cosine = torch.nn.functional.cosine_similarity(exact, sampled)
    assert float(cosine.min()) > 0.9


@pytest.mark.parametrize("gradient", [NES(samples=25), SPSA(samples=25)])
@BOTH
def test_sampled_gradients_climb(gradient: Any, threat: Any) -> None:
    x0 = rand(5, 3)
    exact = PGD(steps=20, alpha=threat.eps / 8)(smooth, x0, total, threat)
    blind = PGD(steps=20, alpha=threat.eps / 8, gradient=gradient)(smooth, x0, total, threat, stream(0))
    gain_exact, gain_blind = (total(smooth(x)) - total(smooth(x0)) for x in (exact, blind))
    assert bool((gain_blind > 0.5 * gain_exact).all())
    assert float(gain_exact.min()) > 0


@pytest.mark.parametrize(
    ("make", "changes", "argument"),
    [
        (PGD, {"steps": -1}, "steps"),
        (PGD, {"restarts": 0}, "restarts"),
        (PGD, {"alpha": -0.1}, "alpha"),
        (PGD, {"alpha": float("nan")}, "alpha"),
        (PGD, {"alpha": float("inf")}, "alpha"),
        (PGD, {"keep": "first"}, "keep"),
        (NES, {"samples": 0}, "samples"),
        (SPSA, {"sigma": 0.0}, "sigma"),
        (SPSA, {"sigma": float("nan")}, "sigma"),
    ],
)
def test_bad_settings(make: Any, changes: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument}: need"):
        make(**changes)
