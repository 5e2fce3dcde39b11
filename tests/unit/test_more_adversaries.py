"""Adversaries and defenses beyond the first: by hand-sized numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.adversaries import (
    Alternate,
    AnchoredCollapse,
    AnchorPerturbation,
    BodyCollapse,
    CandidatePerturbation,
    Collapse,
    Fixed,
    HardnessManipulation,
    MinMax,
    Ramp,
    Shift,
    at_moment,
)
from holdfast.adversaries.decoupled import sharpness_of
from holdfast.defenses import AdversarialTraining, FreeTraining, Mixture, Processes
from holdfast.encoders import LinearEncoder
from holdfast.errors import DataError, InvalidArgument
from holdfast.functional.distance import Euclidean, SquaredEuclidean
from holdfast.losses import Consistency, HalfBatch, MultiSimilarity, ProxyAnchor, Triplet
from holdfast.miners import Random
from holdfast.rng import stream
from holdfast.schedules import Linear
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import BatchView, Context, Progress, Roles, TripletView

PLAIN = nn.Identity()


def row(*values: float) -> Tensor:
    return torch.tensor([[v] for v in values])


def ctx(**changes: Any) -> Context:
    empty = torch.zeros(0)
    fields: dict[str, Any] = {"encoder": PLAIN, "bare": PLAIN, "x": empty, "y": empty, "index": empty}
    return Context(**{**fields, "distance": SquaredEuclidean(), **changes})


NOW = Roles(row(0.0, 0.0), row(1.0, 2.0), row(3.0, 1.0))
CLEAN = Roles(row(0.0, 0.5), row(1.0, 1.0), row(2.0, 4.0))
VIEW = TripletView(NOW, CLEAN)


def test_gains_by_hand() -> None:
    # Squared distances: d_ap = 1, 4; d_an = 9, 1; d_pn = 4, 1; clean d_an = 4, 12.25.
    assert BodyCollapse().gain(VIEW, ctx()).tolist() == [-14.0, -6.0]
    assert Collapse(margin=5.0).gain(VIEW, ctx()).tolist() == [-4.0, 4.0]  # the second negative is beyond
    assert Shift(moves="pn").gain(VIEW, ctx()).tolist() == [1.0, 10.0]
    assert Shift(moves="a").gain(VIEW, ctx()).tolist() == [0.0, 0.25]


def test_hardness_objectives_by_hand() -> None:
    # Hardness: 1 - 9 = -8 and 4 - 1 = 3.
    view = VIEW._replace(target=torch.tensor([-6.0, 2.0]))

    def gain(objective: Any) -> list[float]:
        manipulation = HardnessManipulation(destination=Fixed(value=0.0), objective=objective)
        return manipulation.gain(view, ctx()).tolist()

    assert gain("et") == [-4.0, -0.0]
    assert gain("linear") == [-2.0, -0.0]
    assert gain("l2") == [-4.0, -1.0]
    p, q = (6 / 8, 2 / 8), (8 / 11, 3 / 11)
    expected = -sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert gain("kl") == pytest.approx([expected], abs=1e-6)
    with pytest.raises(InvalidArgument, match="objective"):
        HardnessManipulation(objective="ET")  # type: ignore[arg-type]


def test_decoupled_gains_limit_cases() -> None:
    # lambda 0: plain means, D_p = 2.5, D_n = 5; lambda infinite: maxima, 4 and 9.
    assert CandidatePerturbation(sharpness=0.0).gain(VIEW, ctx()).tolist() == [-2.5]
    assert CandidatePerturbation(sharpness=math.inf).gain(VIEW, ctx()).tolist() == [-5.0]
    # ANP: the smaller half of d_an is 1, the mean shift 0.125; the factor is exp(-2.5).
    second = math.exp(-2.5) * (1 - 0.125)
    hardening = AnchorPerturbation(sharpness=0.0).gain(VIEW, ctx()).tolist()
    released = AnchorPerturbation(sharpness=0.0, sign="released").gain(VIEW, ctx()).tolist()
    assert hardening == pytest.approx([-2.5 - second])
    assert released == pytest.approx([-second])


def test_automatic_sharpness_follows_the_spread() -> None:
    d = torch.tensor([0.0, 1.0])
    spread = float(torch.cat([d, d]).std())
    assert sharpness_of(None, d, d) == pytest.approx(2 / spread)
    assert sharpness_of(None, 0 * d, 0 * d) == 20.0
    assert sharpness_of(3.0, d, d) == 3.0


def test_anchored_collapse_tosses_a_coin() -> None:
    seen = [AnchoredCollapse().gain(VIEW, ctx(generator=stream(0, "coin", i))).tolist() for i in range(40)]
    assert {tuple(s) for s in seen} == {(-4.0, -1.0), (-8.0, 3.0)}
    assert 10 <= sum(s == [-4.0, -1.0] for s in seen) <= 30


def test_alternate_and_ramp_depend_on_progress_alone() -> None:
    turns = Alternate(parts=(MinMax(moves="pn"), MinMax(moves="a")))
    assert [at_moment(turns, Progress(step=s)).moves for s in (4, 1, 4, 3)] == ["pn", "a", "pn", "a"]
    ramp = Ramp(part=LinfThreat(eps=0.2), field="eps", schedule=Linear(start=0.5, stop=1.0), by="step")
    assert at_moment(ramp, Progress(step=5, steps=10)).eps == pytest.approx(0.15)
    nested = Alternate(parts=(ramp, ramp))  # type: ignore[arg-type]
    assert at_moment(nested, Progress(step=0, steps=10)).eps == pytest.approx(0.1)
    with pytest.raises(InvalidArgument, match="field"):
        Ramp(part=LinfThreat(eps=0.2), field="radius", schedule=Linear(start=0.0, stop=1.0))
    with pytest.raises(InvalidArgument, match="parts"):
        Alternate(parts=())


def test_half_batch_and_consistency_by_hand() -> None:
    # Smaller halves: d_ap 1, d_an 1.
    assert HalfBatch().__call__(VIEW, SquaredEuclidean()).tolist() == pytest.approx([0.5 * 0.04])
    view = BatchView(row(1.0, 2.0), row(0.0, 0.0), torch.tensor([0, 1]))
    assert Consistency(weight=2.0)(view, SquaredEuclidean()).tolist() == [2.0, 8.0]


# --- Whole defenses ---------------------------------------------------------------------------------------


def batch(pairs: int = 6, **changes: Any) -> Context:
    y = torch.arange(2 * pairs) // 2 % 3
    x = torch.rand(2 * pairs, 1, 4, 4, generator=stream(0, "x"))
    encoder = LinearEncoder(3, normalize=True).build((1, 4, 4), 0)
    return ctx(
        encoder=encoder,
        bare=encoder,
        x=x,
        y=y,
        index=torch.arange(len(x)),
        generator=stream(0, "step"),
        distance=Euclidean(),
        **changes,
    )


def drive(defense: Any, context: Context, lr: float = 0.1) -> list[float]:
    """Do what the trainer does."""
    values = []
    optimizer = torch.optim.SGD(context.encoder.parameters(), lr=lr)
    for step in defense.losses(context):
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        values.append(float(step.loss.detach()))
    return values


def test_ses_trains_on_clean_images_beside_the_shift() -> None:
    shifted = {"adversary": Shift(), "search": PGD(steps=2, alpha=0.05), "threat": LinfThreat(eps=0.1)}
    ses = AdversarialTraining(loss=Triplet(), miner=Random(), on="clean", extra=(Consistency(),), **shifted)
    plain = AdversarialTraining(loss=Triplet(), miner=Random())
    (step,) = ses.losses(batch())
    (clean,) = plain.losses(batch())
    assert step.logs["loss"] == pytest.approx(clean.logs["loss"], abs=1e-6)
    assert step.logs["total"] > step.logs["loss"]
    with pytest.raises(InvalidArgument, match="extra"):
        AdversarialTraining(loss=Triplet(), miner=Random(), extra=(HalfBatch(),), **shifted)


def test_ease_shrinks_the_radius() -> None:
    class Spy:
        def __call__(self, encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any) -> Tensor:
            self.eps = threat.eps
            return x0

    spy = Spy()
    defense = AdversarialTraining(
        loss=Triplet(), miner=Random(), adversary=MinMax(), search=spy, threat=LinfThreat(eps=0.2)
    )
    drive(defense, batch(signal={"ease": 0.25}))
    assert spy.eps == pytest.approx(0.05)
    drive(defense, batch())
    assert spy.eps == 0.2


def test_mixture_draws_by_weight_and_keeps_parts_apart() -> None:
    parts = (
        AdversarialTraining(loss=Triplet(), miner=Random()),
        AdversarialTraining(loss=ProxyAnchor()),
    )
    mixture = Mixture(parts=parts, weights=(0.0, 1.0))
    learnable = mixture.setup(nn.Embedding(1, 3), torch.arange(3))
    (value,) = drive(mixture, batch(learnable=learnable))
    (alone,) = drive(parts[1], batch(learnable=learnable["1"]))
    assert value == alone
    kinds = [
        "hardness" in next(Mixture(parts=parts).losses(batch(learnable=learnable) if i < 0 else replace(
            batch(learnable=learnable), generator=stream(0, "mix", i)
        ))).logs
        for i in range(30)
    ]  # fmt: skip
    assert 5 <= sum(kinds) <= 25
    with pytest.raises(InvalidArgument, match="weights"):
        Mixture(parts=parts, weights=(1.0,))


@pytest.mark.parametrize("loss", [Triplet(), MultiSimilarity()])
def test_free_training_replays_and_its_perturbation_lasts(loss: Any) -> None:
    miner = Random() if isinstance(loss, Triplet) else None
    free = FreeTraining(loss=loss, miner=miner, threat=LinfThreat(eps=0.1), replays=3)
    learnable = free.setup(nn.Embedding(1, 3), torch.arange(3))
    context = batch(learnable=learnable)
    before = context.x.clone()
    assert len(drive(free, context)) == 3
    delta: Any = learnable["perturbation"]
    assert torch.equal(context.x, before)
    assert 0 < float(delta.value.abs().max()) <= 0.1 + 1e-6
    kept = learnable.state_dict()
    other = free.setup(nn.Embedding(1, 3), torch.arange(3))
    other.load_state_dict(kept)
    assert torch.equal(other["perturbation"].value, delta.value)  # type: ignore[arg-type]
    again = drive(free, batch(learnable=learnable))
    fresh = drive(free, batch(learnable=free.setup(nn.Embedding(1, 3), torch.arange(3))))
    assert again[0] != fresh[0]  # the second batch starts from the first one's perturbation


def test_free_training_with_one_replay_and_no_radius_is_plain() -> None:
    free = FreeTraining(loss=Triplet(), miner=Random(), threat=LinfThreat(eps=0.0), replays=1)
    plain = AdversarialTraining(loss=Triplet(), miner=Random())
    assert drive(free, batch(learnable=free.setup(nn.Embedding(1, 3), torch.arange(3)))) == pytest.approx(
        drive(plain, batch())
    )


def test_processes_mine_and_remember_apart() -> None:
    """Two parts give the mean of what each half gives alone, and each keeps its own previous loss."""
    hm = AdversarialTraining(
        loss=Triplet(), miner=Random(), adversary=HardnessManipulation(), search=PGD(steps=2, alpha=0.05),
        threat=LinfThreat(eps=0.1),
    )  # fmt: skip
    whole = batch(pairs=8)
    whole.signal.update({"part0.loss": 0.05, "part1.loss": 0.15})
    (step,) = Processes(defense=hm).losses(whole)
    alone = []
    seed = int(torch.randint(2**62, (1,), generator=stream(0, "step")))  # names a stream for each part
    for number, (rows, loss) in enumerate(((slice(0, 8), 0.05), (slice(8, 16), 0.15))):
        half = replace(
            whole, x=whole.x[rows], y=whole.y[rows], index=whole.index[rows], signal={"loss": loss},
            generator=stream(seed, "part", number),
        )  # fmt: skip
        (one,) = hm.losses(half)
        alone.append((float(one.loss.detach()), half.signal["loss"], one.logs["target"]))
    assert float(step.loss.detach()) == pytest.approx((alone[0][0] + alone[1][0]) / 2)
    assert [whole.signal["part0.loss"], whole.signal["part1.loss"]] == pytest.approx([a[1] for a in alone])
    assert [a[2] for a in alone] == pytest.approx([-0.05, -0.15])
    assert "loss" not in whole.signal
    with pytest.raises(InvalidArgument, match="count"):
        Processes(defense=hm, count=0)
    with pytest.raises(DataError, match="two pairs"):
        next(Processes(defense=hm, count=5).losses(batch(pairs=8)))


def test_one_process_is_the_defense_itself() -> None:
    plain = AdversarialTraining(loss=Triplet(), miner=Random())
    assert drive(Processes(defense=plain, count=1), batch()) == drive(plain, batch())


def test_the_monitor_shows_what_a_single_step_misses() -> None:
    def made(search: PGD, every: int, step: int) -> dict[str, float]:
        defense = AdversarialTraining(
            loss=Triplet(), miner=Random(), adversary=MinMax(), search=search, threat=LinfThreat(eps=0.1),
            monitor=PGD(steps=10, alpha=0.02), monitor_every=every,
        )  # fmt: skip
        return next(defense.losses(batch(progress=Progress(step=step, steps=20)))).logs

    weak = made(PGD(steps=1, alpha=0.001), 10, 0)
    assert weak["monitor_gain"] > weak["gain"] + 0.05
    same = made(PGD(steps=10, alpha=0.02), 10, 10)
    assert same["monitor_gain"] == pytest.approx(same["gain"], abs=1e-6)
    assert "monitor_gain" not in made(PGD(steps=1), 10, 3)
