"""Ensemble adversarial training: its limits are known methods, its statistics shares, its folds even."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.adversaries import LossClimb
from holdfast.data import DataSplit, ImageSet, PairSampler
from holdfast.defenses import AdversarialTraining
from holdfast.defenses.ensemble import (
    Distilled,
    EnsembleTraining,
    ResidualDiversity,
    TransferStatistics,
    split_weights,
)
from holdfast.encoders import Ensemble, Heads, SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Euclidean
from holdfast.losses import MultiSimilarity, ProxyAnchor
from holdfast.rng import seeded, stream
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.training import Adam, Run, preflight, train
from holdfast.types import Context, Progress

SHAPE, CLASSES = (1, 6, 6), 3
THREAT = LinfThreat(eps=0.1)
SEARCH = PGD(steps=3, alpha=0.05, random_start=True)
SMALL = SmallCNN(width=4, embedding_dim=8)
ALONE: dict[str, Any] = {
    "split": "none", "clean": 0.0, "own": 1.0, "transfer": 0.0, "joint": 0.0, "diverse": 0.0, "ramp": 0.0,
}  # fmt: skip
"""Settings under which members do not know of each other."""


def eat(**more: Any) -> EnsembleTraining:
    return EnsembleTraining(**{"search": SEARCH, "threat": THREAT, "ramp": 0.0, **more})


def batch(encoder: nn.Module, defense: Any, n: int = 12, seed: int = 0, **more: Any) -> Context:
    """Labelled noise, and what the defense wants to learn."""
    x = torch.rand(n, *SHAPE, generator=stream(seed, "x"))
    y = torch.arange(n) % CLASSES
    with seeded(0, "learnable"):
        learnable = defense.setup(encoder, y)
    fields: dict[str, Any] = {
        "encoder": encoder, "bare": encoder, "x": x, "y": y, "index": torch.arange(n),
        "distance": Euclidean(), "learnable": learnable, "generator": stream(0, "step"),
        "progress": Progress(step=1, steps=10), **more,
    }  # fmt: skip
    return Context(**fields)


def loss_of(defense: Any, ctx: Context) -> tuple[Tensor, dict[str, float]]:
    (step,) = defense.losses(ctx)
    return step.loss, step.logs


def toy(images: int = 24, seed: int = 0) -> DataSplit:
    """Three classes of bright corners under noise."""
    y = torch.arange(images) % CLASSES
    x = 0.35 * torch.rand(images, *SHAPE, generator=stream(seed, "toy"))
    for label, corner in enumerate(((0, 0), (0, 3), (3, 0))):
        x[y == label, :, corner[0] : corner[0] + 3, corner[1] : corner[1] + 3] += 0.5
    part = ImageSet(x, y, "toy")
    return DataSplit(part, part, "toy", "closed")


def run_of(defense: Any, encoder: Any, **more: Any) -> Run:
    settings: dict[str, Any] = {
        "name": "toy", "data": None, "threat": THREAT, "sampler": PairSampler(batch_pairs=6), "epochs": 2,
        "device": "cpu", **more,
    }  # fmt: skip
    return Run(defense=defense, encoder=encoder, **settings)


def plain_at() -> AdversarialTraining:
    return AdversarialTraining(
        loss=ProxyAnchor(), adversary=LossClimb(loss=ProxyAnchor()), search=SEARCH, threat=THREAT
    )


# --- T1, T2: limits ---------------------------------------------------------------------------------------


def test_one_member_is_plain_adversarial_training() -> None:
    data = toy()
    one = train(run_of(eat(clean=0.0), Ensemble(members=(SMALL,))), data).encoder
    alone = train(run_of(plain_at(), SMALL), data).encoder
    for a, b in zip(one.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_one_member_ignores_folds_peers_and_diversity() -> None:
    encoder = Ensemble(members=(SMALL,)).build(SHAPE, 0)
    values = {
        float(loss_of(defense, batch(encoder, defense))[0].detach())
        for defense in (
            eat(clean=0.0, own=1.0, transfer=0.0, joint=0.0, diverse=0.0, split="none"),
            eat(clean=0.0, own=0.25, transfer=0.75, joint=3.0, diverse=2.0, distil=1.0, split="fold"),
        )
    }
    assert len(values) == 1


def test_members_that_do_not_know_of_each_other_are_independent_runs() -> None:
    """T2: the gradient of every member is that of its own run, whatever the others are."""
    defense = eat(**ALONE)
    images = torch.rand(12, *SHAPE, generator=stream(0, "x"))
    three = Ensemble(members=(SMALL,) * 3).build(SHAPE, 0).double()
    ctx = batch(three, defense, x=images.double())
    ctx.learnable.double()
    loss, _ = loss_of(defense, ctx)
    loss.backward()
    single = plain_at()
    for m in range(3):
        member: Any = three.member(m)
        want = [p.grad.clone() for p in member.parameters()]
        member.zero_grad()
        alone = batch(member, single, x=images.double())
        alone.learnable.double()
        alone.learnable["loss"].load_state_dict(ctx.learnable["proxies"][m].state_dict())
        own, _ = loss_of(single, alone)
        own.backward()
        for a, p in zip(want, member.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad, atol=1e-7, rtol=1e-5)


# --- T3: statistics ---------------------------------------------------------------------------------------


def test_mixtures_are_shares_of_the_others() -> None:
    statistics = TransferStatistics(torch.ones(4, 5))
    statistics.transfer.copy_(torch.rand(4, 4, generator=stream(0, "t")))
    pi = statistics.mixture(0.1)
    torch.testing.assert_close(pi.sum(1), torch.ones(4))
    assert bool((pi.diagonal() == 0).all())
    assert bool((pi >= 0).all())
    worst = statistics.transfer.clone().fill_diagonal_(-1).argmax(0)  # whose examples fool member m most
    assert torch.equal(pi.argmax(1), worst)
    assert torch.equal(TransferStatistics(torch.ones(1, 5)).mixture(0.1), torch.zeros(1, 1))


def test_statistics_move_by_hand() -> None:
    statistics = TransferStatistics(torch.ones(2, 4))
    statistics.see({(0, 1): torch.tensor([True, True, True, False])}, torch.tensor([True, False]), 0.9)
    assert float(statistics.transfer[0, 1]) == pytest.approx(0.9 * 0.5 + 0.1 * 0.75)
    assert float(statistics.transfer[1, 0]) == 0.5
    assert float(statistics.joint) == pytest.approx(0.5)
    logs = statistics.logs()
    assert logs["transfer"] == pytest.approx((0.525 + 0.5) / 2)
    assert logs["transfer.0.1"] == pytest.approx(0.525)


def test_statistics_stay_shares_in_training() -> None:
    lines: list[dict[str, Any]] = []
    train(run_of(eat(), Ensemble(members=(SMALL,) * 2)), toy(), on_line=lines.append)
    steps = [line for line in lines if line["kind"] == "step"]
    for line in steps:
        rates = [v for k, v in line.items() if k.startswith("transfer") or k == "ensemble_error"]
        assert rates
        assert all(0 <= v <= 1 for v in rates)
    assert steps[-1]["transfer.0.1"] != steps[0]["transfer.0.1"]
    assert {"gradient.0", "gradient.1", "diversity", "loss.0", "loss.1"} <= set(steps[0])
    assert all(0 <= line["disagreement"] <= 1 for line in steps)
    assert steps[0]["disagreement"] > 0  # members begin apart


# --- T4: folds --------------------------------------------------------------------------------------------


def test_full_weight_makes_folds_irrelevant() -> None:
    encoder = Ensemble(members=(SMALL,) * 2).build(SHAPE, 0)
    values = []
    for split in ("fold", "class", "none"):
        defense = eat(split=split, rho=1.0)
        values.append(float(loss_of(defense, batch(encoder, defense))[0].detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[0] == pytest.approx(values[2], rel=1e-6)
    other = eat(split="fold", rho=0.0)
    assert float(loss_of(other, batch(encoder, other))[0].detach()) != pytest.approx(values[0], rel=1e-4)


@pytest.mark.parametrize("members", [2, 3, 5])
def test_folds_are_even_in_every_class(members: int) -> None:
    y = torch.tensor([0] * 11 + [1] * 6 + [2] * 5)[torch.randperm(22, generator=stream(0, "y"))]
    weights = split_weights(y, members, "fold", 0.0, stream(1, "folds"))
    assert torch.equal(weights.sum(0), torch.full((22,), members - 1.0))  # everyone is left out once
    for label in range(3):
        left_out = (weights[:, y == label] == 0).sum(1)
        assert int(left_out.max() - left_out.min()) <= 1
    assert bool(((weights > 0) & (y == 2)).any(1).all())  # every class stays for every member


def test_small_classes_have_weights_and_no_folds() -> None:
    y = torch.tensor([0, 0, 1, 1, 1, 1])
    weights = split_weights(y, 3, "fold", 0.25, stream(0))
    assert torch.equal(weights[:, :2], torch.full((3, 2), (2 + 0.25) / 3))
    assert sorted(set(weights[:, 2:].flatten().tolist())) == [0.25, 1.0]


def test_whole_classes_and_bootstrap() -> None:
    y = torch.arange(8) // 2
    by_class = split_weights(y, 2, "class", 0.0, stream(0))
    assert torch.equal(by_class[:, ::2], by_class[:, 1::2])
    assert by_class.sum().item() == 8
    drawn = split_weights(y, 3, "bootstrap", 0.0, stream(0))
    assert torch.equal(drawn.sum(1), torch.full((3,), 8.0))
    assert not torch.equal(drawn[0], drawn[1])


def test_a_row_without_weight_is_as_if_it_were_absent() -> None:
    with seeded(0, "p"):
        proxies = ProxyAnchor().setup(4, 3)
    z = torch.randn(6, 4, generator=stream(0, "z"))
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    w = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    some = proxies(z, y, Euclidean(), w)
    alone = proxies(z[:4], y[:4], Euclidean())
    assert float(some.detach().sum() / 6) == pytest.approx(float(alone.detach().mean()), rel=1e-5)
    twice = proxies(z, y, Euclidean(), torch.tensor([2.0, 1, 1, 1, 1, 1]))
    repeated = proxies(torch.cat([z, z[:1]]), torch.cat([y, y[:1]]), Euclidean())
    assert float(twice.detach().mean()) == pytest.approx(float(repeated.detach().mean()), rel=1e-5)
    none = proxies(z, y, Euclidean(), torch.zeros(6)).mean()
    assert float(none.detach()) == 0
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(none, list(proxies.parameters())))


# --- T6 and the terms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"distil": 1.0}, {"shared_proxies": True}, {"own": 0.0}])
def test_permuting_members_permutes_the_losses(more: dict[str, Any]) -> None:
    encoder: Any = Ensemble(members=(SMALL,) * 3).build(SHAPE, 0)
    defense = eat(split="none", **more)
    ctx = batch(encoder, defense)
    ctx.learnable["statistics"].transfer.copy_(torch.rand(3, 3, generator=stream(0, "t")))
    before, logs = loss_of(defense, ctx)
    order = [2, 0, 1]
    mixed: Any = Ensemble(members=(SMALL,) * 3).build(SHAPE, 0)
    for new, old in enumerate(order):
        mixed.members[new].load_state_dict(encoder.members[old].state_dict())
    other = batch(mixed, defense)
    if not defense.shared_proxies:
        for new, old in enumerate(order):
            state = ctx.learnable["proxies"][old].state_dict()
            other.learnable["proxies"][new].load_state_dict(state)
    start = batch(encoder, defense).learnable["statistics"].transfer
    start.copy_(torch.rand(3, 3, generator=stream(0, "t")))
    other.learnable["statistics"].transfer.copy_(start[order][:, order])
    after, again = loss_of(defense, other)
    assert float(after.detach()) == pytest.approx(float(before.detach()), rel=1e-5)
    for new, old in enumerate(order):
        assert again[f"loss.{new}"] == pytest.approx(logs[f"loss.{old}"], rel=1e-5)


def test_weights_of_terms_add_up() -> None:
    """The loss is linear in the weights of its terms."""
    encoder = Ensemble(members=(SMALL,) * 2).build(SHAPE, 0)
    nothing = {"clean": 0.0, "own": 0.0, "transfer": 0.0, "joint": 0.0, "diverse": 0.0}

    def value(**weights: float) -> float:
        defense = eat(**{**nothing, **weights})
        return float(loss_of(defense, batch(encoder, defense))[0].detach())

    parts = {"clean": 0.7, "own": 0.3, "transfer": 0.9, "joint": 1.3}
    assert value(**parts) == pytest.approx(sum(w * value(**{k: 1.0}) for k, w in parts.items()), rel=1e-5)
    assert value(**parts, diverse=2.0) >= value(**parts)


def test_the_radius_grows() -> None:
    encoder = Ensemble(members=(SMALL,) * 2).build(SHAPE, 0)
    seen = []
    for step in (0, 1, 2, 5):
        defense = eat(ramp=0.3)
        ctx = batch(encoder, defense, progress=Progress(step=step, steps=10))
        now = defense.at(ctx)
        seen.append((now.threat.eps, now.search.alpha))
    share = [1 / 3, 2 / 3, 1, 1]
    assert [e for e, _ in seen] == pytest.approx([0.1 * s for s in share])
    assert [a for _, a in seen] == pytest.approx([0.05 * s for s in share])
    ctx = batch(encoder, eat(), signal={"ease": 0.5})
    assert eat().at(ctx).threat.eps == pytest.approx(0.05)


def test_few_peers_average_to_all() -> None:
    encoder = Ensemble(members=(SMALL,) * 3).build(SHAPE, 0)
    every = eat(diverse=0.0)
    few = eat(diverse=0.0, peers=1)
    want = float(loss_of(every, batch(encoder, every))[0].detach())
    drawn = []
    for i in range(30):
        # the random start has to be the same: only the draw of peers may differ
        defense = replace(few, search=PGD(steps=3, alpha=0.05))
        drawn.append(loss_of(defense, batch(encoder, defense, generator=stream(i, "peers")))[0].item())
    exact = replace(every, search=PGD(steps=3, alpha=0.05))
    want = float(loss_of(exact, batch(encoder, exact))[0].detach())
    assert sum(drawn) / 30 == pytest.approx(want, rel=0.02)
    assert len(set(drawn)) > 1


def test_other_pools_and_heads_train() -> None:
    data = toy()
    for defense, encoder in (
        (eat(pool=Distilled(search=SEARCH, threat=THREAT)), Ensemble(members=(SMALL,) * 2)),
        (eat(joint_every=2), Heads(part=SMALL, count=3)),
        (
            eat(peers=1, diversity=ResidualDiversity()),
            Ensemble(members=(SMALL, SmallCNN(width=6), SMALL)),
        ),
        (eat(own=0.0, transfer=0.0, diverse=0.0), Ensemble(members=(SMALL,) * 2)),
    ):
        before = encoder.build(SHAPE, 0).state_dict()
        after = train(run_of(defense, encoder, epochs=1), data).encoder.state_dict()
        moved = [k for k in before if not torch.equal(before[k], after[k])]
        assert moved


def test_resume_is_exact(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == 4:
            raise Stop

    data = toy()
    run = run_of(eat(peers=1), Ensemble(members=(SMALL,) * 3))
    whole = train(run, data).encoder
    with pytest.raises(Stop):
        train(run, data, folder=tmp_path, on_line=stop, checkpoint_seconds=0.0)
    again = train(run, data, folder=tmp_path, resume=True).encoder
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_left_on_the_members() -> None:
    encoder: Any = Ensemble(members=(SMALL,) * 2).build(SHAPE, 0).train()
    defense = eat(distil=0.5)
    ctx = batch(encoder, defense)
    before = ctx.x.clone()
    loss, _ = loss_of(defense, ctx)
    assert all(p.grad is None for p in encoder.parameters())
    assert all(module.training for module in encoder.modules())
    assert torch.equal(ctx.x, before)
    grads = torch.autograd.grad(loss, [*encoder.parameters(), *ctx.learnable["proxies"].parameters()])
    assert all(bool(g.isfinite().all()) for g in grads)


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"split": "half"}, "split"),
        ({"rho": 1.5}, "rho"),
        ({"own": -1.0}, "own"),
        ({"transfer": float("nan")}, "transfer"),
        ({"clean": 0.0, "own": 0.0, "transfer": 0.0, "joint": 0.0}, "at least one"),
        ({"temperature": 0.0}, "temperature"),
        ({"momentum": 1.0}, "momentum"),
        ({"ramp": 2.0}, "ramp"),
        ({"peers": 0}, "peers"),
        ({"joint_every": 0}, "joint_every"),
        ({"loss": MultiSimilarity()}, "ProxyAnchor"),
    ],
)
def test_bad_settings_are_refused(more: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        eat(**more)


def test_what_cannot_be_trained_is_refused_before_the_run() -> None:
    data = toy()
    with pytest.raises(InvalidArgument, match="an ensemble"):
        preflight(run_of(eat(), SMALL), data)
    members = (SMALL, SmallCNN(width=4, embedding_dim=12))
    with pytest.raises(InvalidArgument, match="one embedding width"):
        preflight(run_of(eat(shared_proxies=True), Ensemble(members=members)), data)
    preflight(run_of(eat(), Ensemble(members=members)), data)


def test_proxies_may_have_a_rate_of_their_own() -> None:
    data = toy()
    rates = {}
    for factor in (1.0, 10.0):
        run = run_of(eat(**ALONE), Ensemble(members=(SMALL,)), optimizer=Adam(learnable=factor), epochs=1)
        modules = nn.ModuleDict(
            {"encoder": run.encoder.build(SHAPE, 0), "learnable": run.defense.setup(
                run.encoder.build(SHAPE, 0), data.train.y)}
        )  # fmt: skip
        groups = run.optimizer.build(modules).param_groups
        rates[factor] = [group["lr"] for group in groups]
        assert sum(len(g["params"]) for g in groups) == len(list(modules.parameters()))
    assert rates == {1.0: [1e-3, 1e-3], 10.0: [1e-3, 1e-2]}
    with pytest.raises(InvalidArgument, match="learnable"):
        Adam(learnable=0.0)
