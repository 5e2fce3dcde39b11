"""How near the search loop is to its bare cost: forward and input-gradient passes of the same network.

Both are measured in turn, in one run, and the ratio of each pair is reported; absolute times depend on the
machine and on what else it does. A share above 1 means that every gain was saturated and the loop stopped
early. Usage: ``python benchmarks/search.py [--rounds N] [--threads N] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from holdfast.attacks import ATTACKS
from holdfast.encoders import C2F2, SmallCNN
from holdfast.evaluation import retrieval_task
from holdfast.rng import RowStreams
from holdfast.runs import machine
from holdfast.search import PGD
from holdfast.threat import LinfThreat

STEPS = 8


def bare(encoder: torch.nn.Module, x: torch.Tensor) -> None:
    """The least that any search of this many steps must do."""
    for _ in range(STEPS):
        x = x.detach().requires_grad_(True)
        torch.autograd.grad(encoder(x).square().sum(), x)


def seconds(work: object, *args: object) -> float:
    start = time.perf_counter()
    work(*args)  # type: ignore[operator]
    return time.perf_counter() - start


def measure(rounds: int) -> list[dict[str, object]]:
    rows = []
    for name, spec, shape, n in (
        ("small-cnn", SmallCNN(), (1, 8, 8), 128),
        ("c2f2", C2F2(), (1, 28, 28), 64),
    ):
        encoder = spec.build(shape, seed=0).eval()
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(512, *shape, generator=generator)
        task = retrieval_task(encoder, x, torch.arange(512) % 10).rows(slice(0, n))
        for label, attack in ATTACKS.items():
            if not getattr(attack, "differentiable", True):
                continue
            target = attack.target(task, RowStreams(0, label, index=task.index))

            def search(attack: object = attack, target: object = target, task: object = task) -> None:
                PGD(steps=STEPS, alpha=0.01)(
                    task.encoder, task.x, lambda z: attack.gain(z, target, task), LinfThreat(eps=0.1)
                )

            search()  # warm-up
            pairs = [(seconds(search), seconds(bare, encoder, task.x)) for _ in range(rounds)]
            ratios = sorted(b / a for a, b in pairs)
            rows.append(
                {
                    "encoder": name,
                    "attack": label,
                    "images_per_second": n * STEPS / statistics.median(a for a, _ in pairs),
                    "share_of_bare_limit": statistics.median(ratios),
                    "low": ratios[0],
                    "high": ratios[-1],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args.rounds)
    print(f"{'encoder':10} {'attack':6} {'passes/s':>9} {'share of the bare limit (min to max)':>38}")
    for r in rows:
        span = f"{r['share_of_bare_limit']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
        print(f"{r['encoder']:10} {r['attack']:6} {r['images_per_second']:9.0f} {span:>38}")
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
