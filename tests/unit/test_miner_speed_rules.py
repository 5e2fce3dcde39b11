"""No loop over anchors: the number of tensor operations of a step does not grow with its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast import adversaries
from holdfast.adversaries import Fixed, HardnessManipulation, Mined, MixedBoundary
from holdfast.data.augment import Augment
from holdfast.defenses import AdversarialTraining
from holdfast.encoders import SmallCNN
from holdfast.functional.distance import DISTANCES, Euclidean
from holdfast.losses import LOSSES, BisectorMargin, Consistency, HalfBatch, IntraClassStructure, Triplet
from holdfast.miners import MINERS, DistanceWeighted, Softhard
from holdfast.rng import stream
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import BatchView, Context, Progress, Roles, TripletView


class Counted(TorchDispatchMode):
    """Counts tensor operations, backward ones included."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], Any]) -> int:
    with Counted() as counted:
        work()
    return counted.calls


def batch(rows: int, width: int = 16) -> tuple[Tensor, Tensor]:
    """Return unit embeddings near each other, so that every kind of triplet occurs, and labels in pairs."""
    z = torch.nn.functional.normalize(torch.randn(rows, width, generator=stream(0, "rows", rows)) + 1)
    return z.requires_grad_(True), torch.arange(rows) // 2 % 7


def context(z: Tensor, y: Tensor, **changes: Any) -> Context:
    encoder = SmallCNN(width=2, embedding_dim=16).build((1, 8, 8), 0)
    index = torch.arange(len(y))
    whole = Context(encoder=encoder, bare=encoder, x=z, y=y, index=index, distance=Euclidean())
    return replace(whole, progress=Progress(3, 10), generator=stream(0), **changes)


def same_count(work: Callable[[int], Callable[[], Any]], per_row: float = 0.0) -> None:
    few, many = (operations(work(rows)) for rows in (32, 128))
    assert few > 0
    assert many - few <= per_row * 96, f"{few} operations for 32 rows, {many} for 128"


def test_the_counter_sees_a_loop() -> None:
    def looped(rows: int) -> Callable[[], Any]:
        z, _ = batch(rows)
        return lambda: torch.stack([row.sum() for row in z])

    with pytest.raises(AssertionError, match="operations for 32 rows"):
        same_count(looped)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", [*MINERS, "self-positive", "wide"])
def test_miners(name: str, distance: str) -> None:
    others = {"self-positive": Softhard(self_positive=True), "wide": DistanceWeighted(dimension=512)}
    miner = (others | dict(MINERS))[name]

    def work(rows: int) -> Callable[[], Any]:
        z, y = batch(rows)
        return lambda: miner(z, y, DISTANCES[distance], stream(0))

    same_count(work)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_forward_and_backward(name: str) -> None:
    def work(rows: int) -> Callable[[], Any]:
        z, y = batch(rows)
        loss: Any = LOSSES[name]
        loss = loss.setup(16, 7) if hasattr(loss, "setup") else loss
        args = (Roles(*z.chunk(4)[:3]),) if loss.reads == "triplets" else (z, y)
        return lambda: loss(*args, Euclidean()).mean().backward()

    same_count(work)


def test_the_bisector_loss_works_in_blocks_of_64_rows() -> None:
    def work(rows: int) -> Callable[[], Any]:
        z, y = batch(rows)
        return lambda: BisectorMargin()(z, y, Euclidean())

    same_count(work, per_row=20 / 64)


@pytest.mark.parametrize("term", [IntraClassStructure(), HalfBatch(), Consistency()])
def test_extra_terms(term: Any) -> None:
    def work(rows: int) -> Callable[[], Any]:
        z, y = batch(rows)
        roles = Roles(*z.chunk(4)[:3])
        view: Any = BatchView(z, z * 0.9, y) if term.reads == "batch" else TripletView(roles, roles)
        return lambda: term(view, Euclidean()).mean().backward()

    same_count(work)


def triplet_adversaries() -> dict[str, Any]:
    names = (
        "AnchorPerturbation", "AnchoredCollapse", "BodyCollapse", "CandidatePerturbation", "Collapse",
        "HardnessManipulation", "MinMax",
    )  # fmt: skip
    found = {name: getattr(adversaries, name)() for name in names}
    mined = HardnessManipulation(destination=Mined(miner=Softhard()))
    bound = HardnessManipulation(destination=MixedBoundary(miner=Softhard()), objective="kl")
    return found | {"mined": mined, "mixed": bound, "Shift": adversaries.Shift(moves="pn")}


@pytest.mark.parametrize("name", triplet_adversaries())
def test_targets_and_gains(name: str) -> None:
    adversary = triplet_adversaries()[name]

    def work(rows: int) -> Callable[[], Any]:
        z, y = batch(rows)
        ctx = context(z, y)

        def once() -> None:
            triplets = Softhard()(z, y, ctx.distance, ctx.generator)
            clean = Roles(*(z.detach()[role] for role in triplets))
            target = adversary.target(z.detach(), y, triplets, ctx)
            now = Roles(*(z[role] for role in triplets))
            coin = replace(ctx, generator=stream(1))  # the same for both batches
            adversary.gain(TripletView(now, clean, target), coin).sum().backward()

        return once

    same_count(work)


@pytest.mark.parametrize("augment", [Augment(shift=2, flip=0.5), Augment(shift=0, flip=0.5)])
def test_augmentation(augment: Augment) -> None:
    same_count(lambda rows: lambda: augment(torch.rand(rows, 1, 8, 8), stream(0)))


@pytest.mark.parametrize("objective", ["et", "linear", "l2"])
def test_a_whole_step(objective: Any) -> None:
    """Of hardness manipulation with the structure term; its destination is out of reach, so nothing rests."""
    adversary = HardnessManipulation(destination=Fixed(value=2.0), objective=objective)
    defense = AdversarialTraining(
        loss=Triplet(), miner=Softhard(), adversary=adversary, search=PGD(steps=2, alpha=0.01),
        threat=LinfThreat(eps=0.1), extra=(IntraClassStructure(),),
    )  # fmt: skip

    def work(rows: int) -> Callable[[], Any]:
        x, y = torch.rand(rows, 1, 8, 8, generator=stream(0, "x")), torch.arange(rows) // 2 % 7
        ctx = context(x, y)
        return lambda: [step.loss.backward() for step in defense.losses(ctx)]  # type: ignore[no-untyped-call]

    same_count(work)
