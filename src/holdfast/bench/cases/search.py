"""Attacks against the bare forward and input-gradient passes of the same network on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attacks import ATTACKS
from ...encoders import C2F2, SmallCNN
from ...evaluation import SUITES, retrieval_task, run_suite
from ...rng import RowStreams, stream
from ...search import PGD, Precision
from ...threat import LinfThreat
from ...types import RetrievalTask
from .. import peers
from ..job import Job, Size

STEPS, EPS = 8, 77 / 255
ALPHA = 4 * EPS / STEPS
QUERIES = {"tiny": 4, "quick": 64, "full": 128}
GALLERY = {"tiny": 12, "quick": 512, "full": 512}
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
SHOWN = ("CA+", "QA-", "ES", "LTM", "GTT")
"""Attacks that a quick run times one by one; the suite holds all nine."""


def bare(encoder: nn.Module, x: Tensor, steps: int) -> None:
    """Run the least that a search of so many steps on all images has to do."""
    replay(encoder, x, [(len(x), True)] * steps)


def replay(encoder: nn.Module, x: Tensor, passes: Sequence[tuple[int, bool]]) -> None:
    """Run bare passes: of so many images each, forward and input gradient or forward alone."""
    for count, gradient in passes:
        part = x[:count].detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            z = encoder(part)
        if gradient:
            torch.autograd.grad(z.square().sum(), part)


class Noted(nn.Module):
    """An encoder that notes every pass: its images, and whether their gradient was asked for."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.passes: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, *s) images."""
        self.passes.append((len(x), x.requires_grad))
        z: Tensor = self.encoder(x)
        return z


def images(size: Size, count: int) -> Tensor:
    """Return random images of a shape that suits the size."""
    return torch.rand(count, *((1, 8, 8) if size == "tiny" else (1, 28, 28)), generator=stream(0, "bench"))


def search(size: Size) -> Iterator[Job]:
    """Yield single attacks, the whole suite in both precisions, and plain PGD on a classifier."""
    x, n = images(size, GALLERY[size]), QUERIES[size]
    spec: Any = SmallCNN() if size == "tiny" else C2F2()
    encoder = spec.build(tuple(x.shape[1:]), 0).eval().requires_grad_(False)
    task = retrieval_task(encoder, x, torch.arange(len(x)) % 10).rows(slice(0, n))
    what = f"{spec.name}, {n} queries, {STEPS} steps"
    names = SHOWN if size == "quick" else tuple(e.label for e in SUITES["ers"].entries)
    for label in names[:1] if size == "tiny" else names:
        work = attack(task, label)
        yield against_limit(f"{label}: {what}", work, task, n * STEPS, "reference attack loop")
    yield from whole(task, what)
    yield classifier(x[:n], encoder, what)


def attack(task: RetrievalTask, label: str) -> Callable[[RetrievalTask], Tensor]:
    """Return a function that attacks a task; the targets are chosen before."""
    chosen: Any = ATTACKS[label]
    target = chosen.target(task, RowStreams(0, label, index=task.index))
    used = PGD(steps=STEPS, alpha=ALPHA)

    def work(part: RetrievalTask) -> Tensor:
        def climb(z: Tensor) -> Tensor:
            gain: Tensor = chosen.gain(z, target, part)
            return gain

        return used(part.encoder, part.x, climb, LinfThreat(eps=EPS))

    return work


def against_limit(
    name: str,
    work: Callable[[RetrievalTask], Any],
    task: RetrievalTask,
    units: int,
    reference: str,
    memory: bool = False,
) -> Job:
    """Return a job whose limit are the very passes that the work makes, batch by batch.

    Rows whose gain is flat leave a search: that is no part of this ratio, for the limit leaves them out as
    well; it is part of that with a recorded figure, whose code goes on with them.
    """
    encoder = cast(nn.Module, task.encoder)
    noted = Noted(encoder).eval()
    work(replace(task, encoder=noted))
    share = sum(count for count, gradient in noted.passes if gradient) / units
    return Job(
        name=name,
        ours=lambda: work(task),
        limit=lambda: replay(encoder, task.x, noted.passes),
        limit_is="the same passes in float32: as many images forward, and as many input gradients",
        units=units,
        unit="images",
        memory=memory,
        references=(reference,),
        note=f"{100 * share:.0f} % of images x steps are passed, the others have left with flat gains",
    )


def whole(task: RetrievalTask, what: str) -> Iterator[Job]:
    """Yield the ERS suite in float32 and with bfloat16 searches, both against the float32 limit."""
    suite, used = SUITES["ers"], PGD(steps=STEPS, alpha=ALPHA)
    units = len(task) * STEPS * len(suite.entries)
    for precision in PRECISIONS:

        def work(part: RetrievalTask, precision: Precision = precision) -> Any:
            return run_suite(part, suite, used, LinfThreat(eps=EPS), precision=precision)

        name = f"ERS suite, {precision}: {what}"
        yield against_limit(name, work, task, units, "reference suite", memory=precision == "fp32")


def classifier(x: Tensor, encoder: nn.Module, what: str) -> Job:
    """Return plain PGD on the cross-entropy of a linear head, which other libraries have too.

    Weights need no gradient, so that all do the same passes. A model as it comes has weights that need one:
    foolbox and the toolbox then compute it at every step, and our search does not.
    """
    y = torch.arange(len(x)) % 10
    with torch.no_grad():
        width = encoder(x[:1]).shape[1]
    head = nn.Linear(width, 10)
    with torch.no_grad():
        head.weight.copy_(torch.randn(10, width, generator=stream(0, "head")))
        head.bias.zero_()
    model = nn.Sequential(encoder, head).eval().requires_grad_(False)
    trainable = deepcopy(model).requires_grad_(True)
    used = PGD(steps=STEPS, alpha=ALPHA)

    def ours() -> Tensor:
        return used(model, x, lambda z: F.cross_entropy(z, y, reduction="none"), LinfThreat(eps=EPS))

    there = {
        "foolbox": peers.foolbox_pgd(model, x, y, EPS, ALPHA, STEPS),
        "adversarial-robustness-toolbox": peers.art_pgd(model, x, y, EPS, ALPHA, STEPS),
        "foolbox, trainable weights": peers.foolbox_pgd(trainable, x, y, EPS, ALPHA, STEPS),
    }
    same = []
    for name, other in there.items():
        if not isinstance(other, str):
            apart = (torch.as_tensor(other()).cpu() - ours()).abs()
            same.append(f"{100 * float((apart < 1e-4).double().mean()):.1f} % of pixels as {name}'s")
    return Job(
        name=f"PGD on cross-entropy: {what}",
        ours=ours,
        limit=lambda: bare(model, x, STEPS),
        limit_is="as many forward and input-gradient passes",
        peers=there,
        units=len(x) * STEPS,
        unit="images",
        note="; ".join(
            [*same, "foolbox computes the gradients of weights that are trainable, ours does not"]
        ),
    )
