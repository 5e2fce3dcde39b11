"""Numbers of the published reference code: distances, metrics, training adversaries, attacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.adversaries import Collapse, Gradual, HardnessManipulation, MinMax
from holdfast.attacks import (
    CandidateAttack,
    EmbeddingShift,
    GreedyMismatch,
    GreedyTopTranslocation,
    LearningToMismatch,
    QueryAttack,
    TargetedMismatch,
)
from holdfast.attacks.query import ChosenCandidates
from holdfast.defenses import AdversarialTraining
from holdfast.functional.collapse import collapseness
from holdfast.functional.distance import Euclidean
from holdfast.functional.hardness import hardness
from holdfast.functional.ranking import retrieval_scores
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import Context, Gallery, RetrievalTask, Roles, Triplets

pytestmark = pytest.mark.golden
Golden = dict[str, np.ndarray]


class Given:
    """A miner that returns known triplets."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = Triplets(*rows)

    def __call__(self, *args: Any, **kwargs: Any) -> Triplets:
        return self.rows


def t(golden: Golden, key: str) -> Tensor:
    return torch.from_numpy(golden[key])


def test_distances_and_embeddings(golden: Golden, golden_net: nn.Module) -> None:
    z = golden_net(t(golden, "gallery.x")).detach()
    assert torch.allclose(z, t(golden, "gallery.z"), atol=1e-6)
    off_diagonal = ~torch.eye(len(z), dtype=torch.bool)
    d = Euclidean().matrix(z, z)
    assert torch.allclose(d[off_diagonal], t(golden, "gallery.d")[off_diagonal], atol=1e-6)


def test_benign_metrics(golden: Golden) -> None:
    z, y = t(golden, "gallery.z"), t(golden, "gallery.y")
    scores = retrieval_scores(z, y, z, y, Euclidean(), self_index=torch.arange(len(z)), chunk=33)
    assert torch.equal(scores.recall(1).double(), t(golden, "benign.r1").double())
    assert torch.equal(scores.recall(2).double(), t(golden, "benign.r2").double())
    assert torch.allclose(scores.average_precision.double(), t(golden, "benign.ap"), atol=1e-6)


def context(golden: Golden, golden_net: nn.Module, signal: dict[str, float]) -> Context:
    rows = t(golden, "batch.index")
    return Context(
        encoder=golden_net, bare=golden_net, x=t(golden, "gallery.x")[rows], y=t(golden, "gallery.y")[rows],
        index=rows, distance=Euclidean(), signal=signal,
    )  # fmt: skip


def pixels_agree(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs() <= 1e-6).double().mean())


class Spy:
    """A search that keeps what it returned."""

    def __init__(self, golden: Golden) -> None:
        eps, alpha, steps = golden["train.budget"]
        self.inner, self.threat = PGD(steps=int(steps), alpha=float(alpha)), LinfThreat(eps=float(eps))

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.x = self.inner(*args, **kwargs)
        return self.x


CASES = [
    ("act.pn", Collapse(), {}),
    ("minmax.apn", MinMax(), {}),
    ("hm.lga_prev0.1.apn", HardnessManipulation(destination=Gradual()), {"loss": 0.1}),
    ("hm.lga_prev0.apn", HardnessManipulation(destination=Gradual()), {"loss": 0.0}),
]


@pytest.mark.parametrize(("key", "adversary", "signal"), CASES, ids=[c[0] for c in CASES])
def test_training_adversaries(
    golden: Golden, golden_net: nn.Module, key: str, adversary: Any, signal: dict[str, float]
) -> None:
    from holdfast.losses import IntraClassStructure, Triplet

    spy = Spy(golden)
    extra = (IntraClassStructure(weight=0.5),) if key == "hm.lga_prev0.1.apn" else ()
    defense = AdversarialTraining(
        loss=Triplet(margin=0.2), miner=Given(t(golden, "miner.hard")), adversary=adversary, search=spy,
        threat=spy.threat, extra=extra,
    )  # fmt: skip
    ctx = context(golden, golden_net, dict(signal))
    (step,) = defense.losses(ctx)
    theirs = t(golden, key)
    assert pixels_agree(spy.x, theirs) >= 0.995

    def roles(x: Tensor) -> Roles:
        z = dict(zip(adversary.moves, golden_net(x).detach().chunk(len(adversary.moves)), strict=True))
        a, p, n = (golden_net(ctx.x[row]).detach() for row in t(golden, "miner.hard"))
        return Roles(z.get("a", a), z.get("p", p), z.get("n", n))

    ours_h, theirs_h = (hardness(roles(x), Euclidean()) for x in (spy.x, theirs))
    assert torch.allclose(ours_h, theirs_h, atol=1e-4)
    if extra:
        assert float(ctx.signal["loss"]) == pytest.approx(float(golden["hm.adv_triplet_loss"]), abs=1e-6)
        ics = float(step.loss.detach()) - ctx.signal["loss"]
        assert ics == pytest.approx(float(golden["hm.ics_lambda0.5"]), abs=1e-6)


@pytest.mark.parametrize("sharpness", [2, 10])
def test_collapseness(golden: Golden, sharpness: int) -> None:
    z = t(golden, "gallery.z")[t(golden, "batch.index")]
    a, p, n = (z[row] for row in t(golden, "miner.hard"))
    euclidean = Euclidean()
    ours = collapseness(euclidean.rowwise(a, p), euclidean.rowwise(a, n), float(sharpness))
    assert float(ours) == pytest.approx(float(golden[f"catride.collapseness.lambda{sharpness}"]), abs=1e-6)


def task(golden: Golden, golden_net: nn.Module) -> RetrievalTask:
    x, y, z = t(golden, "gallery.x"), t(golden, "gallery.y"), t(golden, "gallery.z")
    rows = t(golden, "attack.query_index")
    return RetrievalTask(
        encoder=golden_net, x=x[rows], y=y[rows], z=z[rows], gallery=Gallery(z, y, torch.arange(len(x))),
        self_index=rows, index=rows, distance=Euclidean(),
    )  # fmt: skip


def climb(golden: Golden, attack: Any, target: Any, job: RetrievalTask) -> Tensor:
    eps, alpha, steps = golden["attack.budget"]
    search = PGD(steps=int(steps), alpha=float(alpha))
    return search(
        job.encoder, job.x, lambda z: attack.gain(z, target, job), LinfThreat(eps=float(eps))
    ).detach()


@pytest.mark.parametrize(
    ("name", "attack", "benign", "attacked", "loss"),
    [
        ("CA+", CandidateAttack(direction="up"), 0.502125, 0.038875, 0.005682730910505165),
        ("CA-", CandidateAttack(direction="down"), 0.01725, 0.4424999985694885, 0.0925729332398852),
        (
            "CA+w4",
            CandidateAttack(direction="up", w=4),
            0.5229062492847443,
            0.0771250001,
            0.02199947146679391,
        ),
    ],
)
def test_candidate_attacks(
    golden: Golden,
    golden_net: nn.Module,
    name: str,
    attack: CandidateAttack,
    benign: float,
    attacked: float,
    loss: float,
) -> None:
    job = task(golden, golden_net)
    target = attack.aimed(job, t(golden, f"attack.{name}.target"))
    x = climb(golden, attack, target, job)
    theirs = t(golden, f"attack.{name}.x")
    theirs_z = golden_net(theirs).detach()
    assert float(-attack.gain(theirs_z, target, job).mean()) == pytest.approx(loss, abs=1e-6)
    ours_rank, theirs_rank = (attack.measure(z, target, job)["rank"] for z in (golden_net(x), theirs_z))
    assert float(theirs_rank.mean()) == pytest.approx(attacked, abs=1e-6)
    if attack.w == 1:
        assert pixels_agree(x, theirs) >= 0.995
        assert float((ours_rank - theirs_rank).abs().mean()) <= 1e-4
    else:
        # The own clean image is in the list: at the start its hinge is a tie that rounding decides,
        # and with several queries single images take another path from there: 3 or 4 of 40, depending on the
        # processor. All others are the same.
        same = ((x - theirs).abs() <= 1e-6).double().mean((1, 2, 3)) >= 0.995
        assert int(same.sum()) >= 34
        assert torch.allclose(ours_rank[same], theirs_rank[same], atol=1e-4)
    # The clean rank is a tie with oneself, which the reference leaves to rounding: one place in 200.
    clean_rank = attack.measure(job.z, target, job)["rank"].mean()
    assert benign - 1 / 200 <= float(clean_rank) <= benign + 1e-6


def test_embedding_shift(golden: Golden, golden_net: nn.Module) -> None:
    job, attack = task(golden, golden_net), EmbeddingShift()
    x = climb(golden, attack, None, job)
    theirs = t(golden, "attack.ES.x")
    assert pixels_agree(x, theirs) >= 0.995
    ours_d, theirs_d = (attack.measure(golden_net(v), None, job) for v in (x, theirs))
    assert torch.allclose(ours_d["shift"], theirs_d["shift"], atol=1e-4)
    assert torch.equal(ours_d["recall@1"], theirs_d["recall@1"])
    assert 100 * float(ours_d["recall@1"].mean()) == pytest.approx(7.5)
    # The published shift is the one of the last image but one: one step less.
    eps, alpha, steps = golden["attack.budget"]
    early = PGD(steps=int(steps) - 1, alpha=float(alpha))(
        golden_net, job.x, lambda z: attack.gain(z, None, job), LinfThreat(eps=float(eps))
    )
    shift = attack.measure(golden_net(early), None, job)["shift"]
    assert float(shift.detach().mean()) == pytest.approx(0.7728377565791246, abs=1e-4)


QUERY = [
    ("QA+", QueryAttack(direction="up"), 0.482125, 0.009375),
    ("QA-", QueryAttack(direction="down"), 0.00775, 0.690125),
    ("QA-m2", QueryAttack(direction="down", m=2), 0.0075, 0.6813125),
    ("TMA", TargetedMismatch(), 0.5798709845790329, 0.94933145249899),
    ("LTM", LearningToMismatch(exclude_self=False), 1.0, 0.05),
    ("GTM", GreedyMismatch(published_index=True), 1.0, 0.075),
    ("GTT", GreedyTopTranslocation(), 1.0, 0.0),
]


@pytest.mark.parametrize(("name", "attack", "benign", "attacked"), QUERY, ids=[q[0] for q in QUERY])
def test_attacks_on_the_query(
    golden: Golden, golden_net: nn.Module, name: str, attack: Any, benign: float, attacked: float
) -> None:
    """The measures of the reference on its own images, its targets, and the images that our search finds."""
    job = task(golden, golden_net)
    chosen = {"TMA": "target", "GTM": "unmatched", "GTT": "matched"}.get(name, "target")
    target: Any = None if name == "LTM" else t(golden, f"attack.{name}.{chosen}")
    if name in ("GTM", "GTT"):
        assert torch.equal(attack.target(job), target)
    if name.startswith("QA"):
        target = ChosenCandidates(target)

    def measure(z: Tensor) -> Tensor:
        (values,) = attack.measure(z.detach(), target, job).values()
        return values

    theirs = t(golden, f"attack.{name}.x")
    assert float(measure(job.z).mean()) == pytest.approx(benign, abs=1e-6)
    assert float(measure(golden_net(theirs)).mean()) == pytest.approx(attacked, abs=1e-6)
    x = climb(golden, attack, target, job)
    same = ((x - theirs).abs() <= 1e-6).double().mean((1, 2, 3)) >= 0.995
    if name in ("QA-m2", "TMA", "LTM", "GTM"):
        assert pixels_agree(x, theirs) >= 0.995
    elif name == "QA+":
        # The query's own clean image is in the list, at distance 0: the gradient of that distance there
        # is rounding, which no other program repeats. The outcome must be as strong.
        assert float(measure(golden_net(x)).mean()) <= attacked + 0.002
    else:
        assert int(same.sum()) >= 39  # of 40: one image takes another path from a tie
    assert torch.allclose(measure(golden_net(x))[same], measure(golden_net(theirs))[same], atol=1e-4)
