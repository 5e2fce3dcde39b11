"""One training step of HM&ICS against its bare passes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch

from ...adversaries import Fixed, HardnessManipulation
from ...defenses import AdversarialTraining
from ...encoders import C2F2, SmallCNN
from ...functional.distance import Euclidean
from ...losses import IntraClassStructure, Triplet
from ...miners import Softhard
from ...rng import stream
from ...search import PGD
from ...threat import LinfThreat
from ...training.precision import for_training
from ...types import Context, Progress
from ..job import Job, Size
from .search import images

STEPS = 8
PAIRS = {"tiny": 4, "quick": 64, "full": 128}
DEFENSE = AdversarialTraining(
    loss=Triplet(margin=0.2),
    miner=Softhard(self_positive=True),
    adversary=HardnessManipulation(destination=Fixed(value=2.0)),
    search=PGD(steps=STEPS, alpha=12 / 255),
    threat=LinfThreat(eps=77 / 255),
    extra=(IntraClassStructure(weight=0.5),),
)
"""HM&ICS with a destination out of reach, so that no search ends early."""


def step(size: Size) -> Iterator[Job]:
    """Yield the step in both precisions.

    Bare passes: the clean forward pass of the batch, forward and input-gradient passes of three images for
    each triplet, one forward and backward pass of what the loss reads, and the optimiser.
    """
    for precision in ("fp32", "bf16"):
        yield _step(size, precision)


def _step(size: Size, precision: str) -> Job:
    pairs = PAIRS[size]
    x = images(size, 2 * pairs)
    y = torch.arange(2 * pairs) // 2 % 10
    spec: Any = SmallCNN() if size == "tiny" else C2F2()
    encoder = spec.build(tuple(x.shape[1:]), 0).train()
    seen = for_training(encoder, precision)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3, weight_decay=1e-7)
    numbers, signal = count(), dict[str, float]()

    def update(loss: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def ours() -> None:
        number = next(numbers)
        context = Context(
            encoder=seen, bare=seen, x=x, y=y, index=torch.arange(len(x)), distance=Euclidean(),
            progress=Progress(number, number + 1), signal=signal, generator=stream(0, "step", number),
        )  # fmt: skip
        for found in DEFENSE.losses(context):
            update(found.loss)

    def bare() -> None:
        with torch.no_grad():
            seen(x)
        moved = torch.cat([x, x[:pairs]])
        encoder.requires_grad_(False)  # an input gradient needs none of the weights
        for _ in range(STEPS):
            moved = moved.detach().requires_grad_(True)
            torch.autograd.grad(seen(moved).square().sum(), moved)
        encoder.requires_grad_(True)
        update(seen(torch.cat([moved.detach(), x])).square().mean())

    return Job(
        name=f"HM&ICS step, {precision}: {spec.name}, {pairs} pairs, {STEPS} search steps",
        ours=ours,
        limit=bare,
        limit_is="the passes of the step and the optimiser, without mining, gains and losses",
        units=pairs,
        unit="pairs",
        memory=precision == "fp32",
        references=("reference HM&ICS step",),
    )
