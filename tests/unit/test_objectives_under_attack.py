"""Every loss of the table trains under every kind of adversary that it can be combined with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.adversaries import LossClimb, MinMax, Shift
from holdfast.defenses import AdversarialTraining
from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Euclidean
from holdfast.losses import LOSSES, PML, MultiSimilarity, NPair, ProxyAnchor, Triplet
from holdfast.miners import Random
from holdfast.rng import seeded, stream
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import BatchView, Context, Roles, TripletView

PAIRS, CLASSES, WIDTH, EPS = 8, 4, 6, 0.1
THREAT = LinfThreat(eps=EPS)


def reads(name: str) -> str:
    return LOSSES[name].reads  # type: ignore[union-attr]


class Spy:
    """A search that keeps where it started and ended."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.values: list[float] = []

    def __call__(
        self, encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None
    ) -> Tensor:
        x = PGD(steps=3, alpha=0.05)(encoder, x0, objective, threat, generator)
        self.seen.append((x0, x))
        with torch.no_grad():
            self.values += [float(objective(encoder(part)).sum()) for part in (x0, x)]
        return x


class Tiny(nn.Module):
    """One hidden layer, unit embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = nn.functional.normalize(self.body(x), dim=1)
        return out


def setting(defense: AdversarialTraining) -> Context:
    """A batch in pair layout, two pairs of each class, and whatever the defense wants to learn."""
    x = torch.rand(2 * PAIRS, 1, 4, 4, generator=stream(0, "x"))
    y = torch.arange(PAIRS).remainder(CLASSES).repeat_interleave(2)
    with seeded(0, "tiny"):
        encoder, learnable = Tiny(), defense.setup(nn.Embedding(1, WIDTH), torch.arange(CLASSES))
    return Context(
        encoder=encoder, bare=encoder, x=x, y=y, index=torch.arange(2 * PAIRS), distance=Euclidean(),
        learnable=learnable, generator=stream(0, "step"),
    )  # fmt: skip


def defend(name: str, adversary: Any, search: Any = None) -> AdversarialTraining:
    miner = Random() if reads(name) == "triplets" else None
    return AdversarialTraining(
        loss=LOSSES[name], miner=miner, adversary=adversary, search=search or Spy(), threat=THREAT
    )


def climber(name: str) -> LossClimb:
    return LossClimb(loss=LOSSES[name], moves="apn" if reads(name) == "triplets" else "x")


COMBINATIONS = {
    **{f"shift {name}": (name, Shift()) for name in LOSSES},
    **{f"minmax {name}": (name, MinMax()) for name in LOSSES if reads(name) == "triplets"},
    **{f"loss {name}": (name, climber(name)) for name in LOSSES},
}


@pytest.mark.parametrize("combination", list(COMBINATIONS))
def test_three_steps_of_training(combination: str) -> None:
    name, adversary = COMBINATIONS[combination]
    spy = Spy()
    defense = defend(name, adversary, spy)
    ctx = setting(defense)
    parameters = [*ctx.encoder.parameters(), *ctx.learnable.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    before = [p.detach().clone() for p in ctx.encoder.parameters()]
    for _ in range(3):
        for step in defense.losses(ctx):
            assert all(p.grad is None for p in parameters)  # the search left nothing, proxies included
            assert step.loss.shape == ()
            assert math.isfinite(float(step.loss.detach()))
            step.loss.backward()
            for path, p in ctx.encoder.named_parameters():
                assert p.grad is not None, path
                assert bool(torch.isfinite(p.grad).all() & (p.grad != 0).any()), path
            assert all(p.grad is not None for p in ctx.learnable.parameters())
            optimizer.step()
            optimizer.zero_grad()
    after = list(ctx.encoder.parameters())
    assert all(not torch.equal(p, old) for p, old in zip(after, before, strict=True))
    assert len(spy.seen) == 3
    for x0, x in spy.seen:
        assert 0 < float((x - x0).abs().max()) <= EPS + 1e-6
        assert 0 <= float(x.min()) <= float(x.max()) <= 1


@pytest.mark.parametrize("name", list(LOSSES))
def test_the_climbed_value_is_the_training_loss_and_it_rises(name: str) -> None:
    spy = Spy()
    defense = defend(name, climber(name), spy)
    (step,) = defense.losses(setting(defense))
    start, end = spy.values
    assert end > start
    assert float(step.loss.detach()) == pytest.approx(end, rel=1e-5)  # no dropout, no batch statistics


# --- The loss climber --------------------------------------------------------------------------------------


def view(ctx: Context) -> BatchView:
    z = ctx.bare(ctx.x).detach()
    return BatchView(z, z, ctx.y)


def test_gain_is_one_value_by_hand() -> None:
    z = Roles(*(torch.tensor(v)[:, None] for v in ([0.0, 0.0], [1.0, 1.0], [0.5, 3.0])))  # H = 0.5 and -2
    ctx = setting(defend("triplet", None))
    got = LossClimb(loss=Triplet(margin=0.5), moves="apn").gain(TripletView(z, z), ctx)
    assert got.tolist() == pytest.approx([0.5], abs=1e-5)
    eye = torch.eye(3)
    got = LossClimb(loss=NPair(weight=0.0)).gain(BatchView(eye, eye, torch.tensor([0, 0, 1])), ctx)
    assert got.tolist() == pytest.approx([2 * math.log(2) / 3])


def test_learnt_parts_are_climbed_as_they_stand() -> None:
    defense = defend("proxy-anchor", LossClimb(loss=ProxyAnchor()))
    ctx = setting(defense)
    before = LossClimb(loss=ProxyAnchor()).gain(view(ctx), ctx).detach()
    with torch.no_grad():
        ctx.learnable["loss"].proxies.neg_()  # type: ignore[union-attr, operator]
    after = LossClimb(loss=ProxyAnchor()).gain(view(ctx), ctx).detach()
    value = ctx.learnable["loss"](view(ctx).now, ctx.y, ctx.distance).detach().mean()
    assert float(after) == float(value)
    assert float(after) != float(before)


def test_a_loss_that_training_does_not_learn() -> None:
    ctx = setting(defend("proxy-anchor", None))
    gain = LossClimb(loss=MultiSimilarity()).gain(view(ctx), ctx)  # its own, whatever is learnt
    assert float(gain) == pytest.approx(float(MultiSimilarity()(view(ctx).now, ctx.y, ctx.distance).mean()))
    with pytest.raises(InvalidArgument, match="setup"):
        LossClimb(loss=ProxyAnchor()).gain(view(ctx), setting(defend("triplet", None)))
    with pytest.raises(InvalidArgument, match=r"adversary\.loss"):
        LossClimb(loss=ProxyAnchor()).gain(view(ctx), setting(defend("margin", None)))


@pytest.mark.parametrize("name", list(LOSSES))
def test_impossible_combinations_are_refused_when_they_are_built(name: str) -> None:
    loss: Any = LOSSES[name]
    if reads(name) == "triplets":
        with pytest.raises(InvalidArgument, match="moves: need some of 'apn'"):
            LossClimb(loss=loss)
        with pytest.raises(InvalidArgument, match="miner: need a miner"):
            AdversarialTraining(loss=loss, adversary=Shift(), search=PGD(), threat=THREAT)
        return
    with pytest.raises(InvalidArgument, match="moves: need 'x'"):
        LossClimb(loss=loss, moves="apn")
    for adversary in (MinMax(), LossClimb(loss=Triplet(), moves="apn")):
        with pytest.raises(InvalidArgument, match="moves every row"):
            defend(name, adversary)
    with pytest.raises(InvalidArgument, match="miner: need none"):
        AdversarialTraining(loss=loss, miner=Random())


def test_fields_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="loss: need a loss"):
        LossClimb(loss=torch.nn.functional.mse_loss)
    for moves in ("", "aa", "ax", "b"):
        with pytest.raises(InvalidArgument, match="moves: need some of"):
            LossClimb(loss=Triplet(), moves=moves)


@pytest.mark.parametrize("name", ["SupConLoss", "ProxyAnchorLoss", "TripletMarginLoss"])
def test_a_loss_of_pytorch_metric_learning_under_attack(name: str) -> None:
    pytest.importorskip("pytorch_metric_learning", reason="needs the extra pml (pytorch-metric-learning)")
    loss = PML(loss=name)
    for adversary in (Shift(), LossClimb(loss=loss)):
        spy = Spy()
        defense = AdversarialTraining(loss=loss, adversary=adversary, search=spy, threat=THREAT)
        ctx = setting(defense)
        (step,) = defense.losses(ctx)
        assert all(p.grad is None for p in ctx.learnable.parameters())
        step.loss.backward()
        assert all(bool((p.grad != 0).any()) for p in ctx.encoder.parameters() if p.grad is not None)
        assert all(p.grad is not None for p in (*ctx.encoder.parameters(), *ctx.learnable.parameters()))
        assert 0 < float((spy.seen[0][1] - spy.seen[0][0]).abs().max()) <= EPS + 1e-6
        assert spy.values[1] > spy.values[0]
