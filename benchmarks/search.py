"""How near the search loop is to its bare cost: forward and input-gradient passes of the same network.

Every entry of the suite ``ers-robrank``, and all of them together, are measured in turn with the bare
float32 passes, in one run. The median of the ratios of each round is reported, as absolute times depend on
the machine and on what else it does. One thread is timed by the processor's clock, several by the wall's.

Two shares of the bare limit are printed. ``steps`` counts a pass of every image for every step: it is above
1 where gains were saturated and images left the loop early. ``passed`` counts the images that were in fact
passed forward with a gradient, so that it tells the cost of the loop and of the gain alone. In bfloat16 both
stay relative to the float32 limit. The encoders are untrained and the images random.

Usage: ``python benchmarks/search.py [--rounds N] [--threads N] [--steps N] [--gallery N] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from holdfast.bench.cases.search import bare
from holdfast.bench.harness import interleaved, spread
from holdfast.encoders import C2F2, SmallCNN
from holdfast.evaluation import SUITES, retrieval_task
from holdfast.rng import RowStreams, stream
from holdfast.runs import machine
from holdfast.search import PGD, Counted, LowPrecision
from holdfast.threat import LinfThreat
from holdfast.types import RetrievalTask

BATCH, THREAT, ALPHA = 128, LinfThreat(eps=77 / 255), 3 / 255
ENCODERS = {"small-cnn": (SmallCNN(), (1, 8, 8)), "c2f2": (C2F2(), (1, 28, 28))}


def one(task: RetrievalTask, entry: Any, steps: int) -> Callable[[Any], Any]:
    """Return the search of an entry as a function of the encoder; targets are chosen before."""
    target = entry.attack.target(task, RowStreams(0, entry.label, index=task.index))
    search = PGD(steps=max(1, steps - entry.fewer_steps), alpha=ALPHA)
    return lambda encoder: search(encoder, task.x, lambda z: entry.attack.gain(z, target, task), THREAT)


def measure(
    name: str, steps: int, gallery: int, rounds: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    spec, shape = ENCODERS[name]
    encoder = spec.build(shape, seed=0).eval()
    x = torch.rand(gallery, *shape, generator=stream(0, "images"))
    task = retrieval_task(encoder, x, torch.arange(gallery) % 10).rows(slice(0, BATCH))
    low, suite, rows = LowPrecision(encoder), SUITES["ers-robrank"], []
    searches = {entry.label: one(task, entry, steps) for entry in suite.entries}
    works: dict[str, Any] = {"bare": lambda: bare(encoder, task.x, steps)}
    for label, work in searches.items():
        works[f"{label} fp32"] = lambda work=work: work(encoder)
        works[f"{label} bf16"] = lambda work=work: work(low)
    times = interleaved(works, rounds, clock=clock)
    total = {}
    for precision, model in (("fp32", encoder), ("bf16", low)):
        wanted, passed, spent = 0.0, 0.0, [0.0] * rounds
        for entry in suite.entries:
            counted = Counted(model)
            searches[entry.label](counted)
            asked, did = max(1, steps - entry.fewer_steps) / steps, counted.queries / (BATCH * steps)
            seconds = times[f"{entry.label} {precision}"].seconds
            wanted, passed = wanted + asked, passed + did
            spent = [a + b for a, b in zip(spent, seconds, strict=True)]
            rows.append(row(name, entry.label, precision, times["bare"].seconds, seconds, asked, did))
        total[precision] = row(name, "all ten", precision, times["bare"].seconds, spent, wanted, passed)
    return rows + list(total.values())


def row(
    encoder: str, entry: str, precision: str, limit: Any, seconds: Any, asked: float, passed: float
) -> dict[str, Any]:
    ratios = [b / s for b, s in zip(limit, seconds, strict=True)]
    return {
        "encoder": encoder,
        "entry": entry,
        "precision": precision,
        "seconds": spread(list(seconds)).median,
        "steps": spread([asked * r for r in ratios])._asdict(),
        "passed": spread([passed * r for r in ratios])._asdict(),
        "images_passed": passed / asked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--gallery", type=int, default=1000)
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    print(f"{'encoder':10} {'entry':8} {'':5} {'share of the limit: steps':>26} {'passed':>20} {'images':>7}")
    rows = []
    for name in args.encoders:
        for r in measure(name, args.steps, args.gallery, args.rounds, clock):
            rows.append(r)
            by_steps, by_images = (
                f"{r[k]['median']:.2f} ({r[k]['low']:.2f} to {r[k]['high']:.2f})" for k in ("steps", "passed")
            )
            share = f"{100 * r['images_passed']:.0f} %"
            print(f"{name:10} {r['entry']:8} {r['precision']:5} {by_steps:>26} {by_images:>20} {share:>7}")
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
