"""Training steps on C2F2 against their bare passes, and that of HM&ICS against recorded time.

Measured in turn, in one run. Bare passes: the clean forward pass of the batch, ``steps`` forward and
input-gradient passes of the images that move, and one forward and backward pass of what the loss reads, with
the update. Destinations are out of reach here, so that no search stops early. Measured are HM&ICS (also in
bfloat16, and as four accumulated batches), HM, ACT, EST and plain training. ``recorded`` is the published
reference code measured on 2 CPU cores (222 to 257 s for 128 steps of 128 pairs, machine otherwise idle).
There the same bare work, an input gradient of C2F2 in float32 on 128 images in PyTorch's default layout, ran
at 2410 images/s; the yardstick measured here scales ``recorded`` to this machine. Use ``--pairs 128`` and two
threads to compare. Usage:
``python benchmarks/training_step.py [--pairs 128] [--steps 8] [--rounds 5] [--threads 2]``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from holdfast import config
from holdfast.adversaries import Fixed
from holdfast.bench.recorded import measure as yardstick
from holdfast.bench.recorded import recorded
from holdfast.recipes import recipe
from holdfast.rng import stream
from holdfast.training import Engine, Run
from holdfast.training.precision import for_training
from holdfast.types import Context, Progress

RECORDED = (222 / 128, 257 / 128)
YARDSTICK = float(recorded()["yardsticks"]["c2f2"]["rate"])
"""Images/s of the bare input gradient where ``RECORDED`` was measured."""


class Images(NamedTuple):
    """Images for each pair: those that a search moves, and those that the loss reads."""

    moved: int
    read: int


ROLES = {
    "hm-ics": Images(3, 5), "hm": Images(3, 3), "act": Images(2, 3), "est": Images(2, 2),
    "plain": Images(0, 2), "hm-ics x 4": Images(3, 5),
}  # fmt: skip
"""The steps that are measured; ``x 4`` accumulates four batches."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    here = yardstick("c2f2")
    print(f"yardstick {here:.0f} images/s, {here / YARDSTICK:.2f} of the machine of the recorded times")
    print(
        f"{'step':14} {'precision':9} {'step s':>8} {'bare s':>8} {'bare / step':>12} {'recorded / step':>16}"
    )
    for name, precision in [(n, "fp32") for n in ROLES] + [("hm-ics", "bf16")]:
        a, b, share = measure(name, precision, args.pairs, args.steps, args.rounds)
        faster = " to ".join(f"{r * YARDSTICK / here / a:.2f}" for r in RECORDED)
        told = faster if name == "hm-ics" else ""
        print(f"{name:14} {precision:9} {a:8.2f} {b:8.2f} {share:12.2f} {told:>16}")


def training(name: str, steps: int) -> Run:
    """Return the run of a step, made so that no search stops early."""
    run = recipe(name.removesuffix(" x 4"), "fashion-small")
    run = replace(run, accumulate=4 if name.endswith("x 4") else 1)
    if name != "plain":
        run = config.replace(run, "defense.search.steps", steps)
    if name.startswith("hm"):
        run = config.replace(run, "defense.adversary.destination", Fixed(value=2.0))
    return run


def measure(name: str, precision: str, pairs: int, steps: int, rounds: int) -> tuple[float, float, float]:
    """Return the median seconds of a step and of its bare passes, and the median of their ratios."""
    run = training(name, steps)
    encoder = run.encoder.build((1, 28, 28), 0)
    seen = for_training(encoder, precision)
    engine = Engine(nn.ModuleDict({"encoder": encoder}), run.optimizer, torch.device("cpu"))
    x = torch.rand(2 * pairs, 1, 28, 28, generator=stream(0, "x"))
    y = torch.arange(2 * pairs) // 2 % 10
    ours, bare = [], []
    for i in range(rounds + 1):
        start = time.perf_counter()
        for place in range(run.accumulate):
            context = Context(
                encoder=seen, bare=seen, x=x, y=y, index=torch.arange(len(x)), distance=run.distance,
                progress=Progress(i, 100), generator=stream(0, "step", i),
            )  # fmt: skip
            for step in run.defense.losses(context):
                engine.step(step.loss, place, run.accumulate)
        middle = time.perf_counter()
        for place in range(run.accumulate):
            passes(engine, seen, x, steps, ROLES[name], place, run.accumulate)
        ours.append(middle - start)
        bare.append(time.perf_counter() - middle)
    share = statistics.median(q / p for p, q in zip(ours[1:], bare[1:], strict=True))  # the first warms up
    return statistics.median(ours[1:]), statistics.median(bare[1:]), share


def passes(
    engine: Engine, encoder: nn.Module, x: Tensor, steps: int, images: Images, place: int, of: int
) -> None:
    """Make the passes of a step: clean batch, input gradients of what moves, and what the loss reads."""
    pairs = len(x) // 2
    if images.moved:
        with torch.no_grad():
            encoder(x)
        moved = torch.cat([x, x])[: images.moved * pairs]
        for _ in range(steps):
            moved = moved.detach().requires_grad_(True)
            torch.autograd.grad(encoder(moved).square().sum(), moved)
    engine.step(encoder(torch.cat([x, x, x])[: images.read * pairs]).square().mean(), place, of)


if __name__ == "__main__":
    main()
