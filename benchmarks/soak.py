"""Load: thousands of suite chunks and of training steps; memory, open files and threads must stay flat.

    python benchmarks/soak.py [--chunks 10000] [--steps 10000] [--out FILE.json]

Memory is the resident set of this process after a full garbage collection, read 40 times in the last three
quarters of each part; the slope is a least-squares line through these. The first quarter is left out:
allocators and caches fill up there. The chunks of a suite hold two queries each, stored to disk and joined
at the end of each suite.
"""  # fmt: skip

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from holdfast import recipe
from holdfast.config import replace as replace_path
from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.evaluation import SUITES, retrieval_task, run_suite
from holdfast.files import write_json
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.training import train

READINGS = 40


class Watch:
    """Readings of memory (MiB), open files and threads, over a count of work done."""

    def __init__(self, total: int) -> None:
        self.every = max(1, int(0.75 * total / READINGS))
        self.start, self.next = total // 4, total // 4
        self.rows: list[tuple[int, float, int, int]] = []

    def __call__(self, done: int) -> None:
        if done < self.next:
            return
        self.next = done + self.every
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(os.listdir("/proc/self/fd"))
        self.rows.append((done, pages * resource.getpagesize() / 2**20, files, threading.active_count()))

    def told(self) -> dict[str, float | int]:
        done, memory, files, threads = map(np.asarray, zip(*self.rows, strict=True))
        slope = float(np.polyfit(done, memory, 1)[0])
        return {
            "readings": len(done),
            "memory_mib": round(float(memory[-1]), 1),
            "slope_kib_per_1000": round(1024 * 1000 * slope, 2),
            "growth_mib": round(float(memory[-5:].mean() - memory[:5].mean()), 2),
            "open_files": [int(files.min()), int(files.max())],
            "threads": [int(threads.min()), int(threads.max())],
        }


def suite(chunks: int) -> dict[str, float | int]:
    """Attack the same images again and again, two queries in a chunk, a suite of 150 chunks after the other.

    A suite holds the results of its own queries until it ends, so one endless suite would grow by them.
    """
    test = Digits().load().test
    encoder = SmallCNN().build(test.shape, 0).eval()
    task = retrieval_task(encoder, test.x, test.y)
    each = 50
    part, watch, done = task.rows(torch.arange(2 * each)), Watch(chunks), 0
    while done < chunks:
        with tempfile.TemporaryDirectory() as folder:
            run_suite(
                part, SUITES["core"], PGD(steps=1, alpha=0.05), LinfThreat(eps=0.1),
                chunk=2, folder=Path(folder), keep_images=False,
            )  # fmt: skip
        done += each * len(SUITES["core"].entries)
        watch(done)
    return {"chunks": done, **watch.told()}


def training(steps: int) -> dict[str, float | int]:
    """Train hm-ics on digits, 8 pairs and one search step a batch, with a checkpoint every second."""
    run = recipe("hm-ics")
    for path, value in (("defense.search.steps", 1), ("data.train_images", 320), ("sampler.batch_pairs", 8)):
        run = replace_path(run, path, value)
    per_epoch = run.sampler.batches_per_epoch(run.data.load().train.y)
    run, watch, done = replace(run, epochs=-(-steps // per_epoch)), Watch(steps), 0

    def on_line(line: dict[str, object]) -> None:
        nonlocal done
        if line["kind"] == "step":
            done = int(str(line["step"])) + 1
            watch(done)

    with tempfile.TemporaryDirectory() as folder:
        train(run, run.data.load(), folder=Path(folder), on_line=on_line, checkpoint_seconds=1.0)
    return {"steps": done, **watch.told()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], dict[str, float | int]]] = {
        "suite": lambda: suite(args.chunks),
        "training": lambda: training(args.steps),
    }
    found: dict[str, object] = {"python": platform.python_version(), "torch": torch.__version__}
    for name, part in parts.items():
        found[name] = part()
        print(name, json.dumps(found[name]), flush=True)
    if args.out is not None:
        write_json(args.out, found)


if __name__ == "__main__":
    main()
