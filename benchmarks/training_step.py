"""One training step of HM&ICS on C2F2 against its bare passes, and against recorded time.

Measured in turn, in one run. Bare passes: the clean forward pass of the batch, ``steps`` forward and
input-gradient passes of three images for each triplet, and one forward and backward pass of what the loss
reads. The destination is out of reach here, so that no search stops early. ``recorded`` is the published
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

import torch

from holdfast import config
from holdfast.adversaries import Fixed
from holdfast.encoders import C2F2
from holdfast.recipes import hm_ics
from holdfast.rng import stream
from holdfast.training import Engine
from holdfast.types import Context, Progress

RECORDED = (222 / 128, 257 / 128)
YARDSTICK = 2410.0
"""Images/s of the bare input gradient where ``RECORDED`` was measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = config.replace(hm_ics("fashion-small"), "defense.search.steps", args.steps)
    run = config.replace(run, "defense.adversary.destination", Fixed(value=2.0))
    here = yardstick()
    print(f"yardstick {here:.0f} images/s, {here / YARDSTICK:.2f} of the machine of the recorded times")
    print(f"{'precision':9} {'step s':>8} {'bare s':>8} {'bare / step':>12} {'recorded / step':>16}")
    for precision in ("fp32", "bf16"):
        ours, bare = [], []
        encoder = run.encoder.build((1, 28, 28), 0)
        engine = Engine(
            torch.nn.ModuleDict({"encoder": encoder}), run.optimizer, torch.device("cpu"), precision
        )
        x = torch.rand(2 * args.pairs, 1, 28, 28, generator=stream(0, "x"))
        y = torch.arange(2 * args.pairs) // 2 % 10
        for i in range(args.rounds + 1):
            start = time.perf_counter()
            context = Context(
                encoder=encoder, bare=encoder, x=x, y=y, index=torch.arange(len(x)), distance=run.distance,
                progress=Progress(i, 100), generator=stream(0, "step", i),
            )  # fmt: skip
            with engine.autocast():
                for step in run.defense.losses(context):
                    engine.step(step.loss)
            middle = time.perf_counter()
            passes(engine, encoder, x, args.steps)
            ours.append(middle - start)
            bare.append(time.perf_counter() - middle)
        a, b = statistics.median(ours[1:]), statistics.median(bare[1:])  # the first warms up
        share = statistics.median(q / p for p, q in zip(ours[1:], bare[1:], strict=True))
        faster = " to ".join(f"{r * YARDSTICK / here / a:.2f}" for r in RECORDED)
        print(f"{precision:9} {a:8.2f} {b:8.2f} {share:12.2f} {faster:>16}")


def yardstick(rounds: int = 12) -> float:
    encoder = C2F2().build((1, 28, 28), 0).to(memory_format=torch.contiguous_format).requires_grad_(False)
    x = torch.rand(128, 1, 28, 28, generator=stream(0, "yardstick")).requires_grad_(True)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        torch.autograd.grad(encoder(x).square().sum(), x)
        times.append(time.perf_counter() - start)
    return len(x) / statistics.median(times[2:])


def passes(engine: Engine, encoder: torch.nn.Module, x: torch.Tensor, steps: int) -> None:
    pairs = len(x) // 2
    with engine.autocast():
        with torch.no_grad():
            encoder(x)
        moved = torch.cat([x, x[:pairs]])
        for _ in range(steps):
            moved = moved.detach().requires_grad_(True)
            torch.autograd.grad(encoder(moved).square().sum(), moved)
        loss = encoder(torch.cat([moved.detach(), x])).square().mean()
    engine.step(loss)


if __name__ == "__main__":
    main()
