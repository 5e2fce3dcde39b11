"""Attacks on a gallery of a million rows in bounded memory, exact in float32.

Random unit rows are written to a memory map once; every attack runs in a process of its own, whose peak of
anonymous memory (the map is not counted) above what it held before the attack is printed, with and without a
limit. Usage: ``python benchmarks/large_gallery.py [--rows 1000000] [--queries 32] [--steps 5]
[--memory 1G,256M] [--attacks ES,CA+,QA-,RANK,GTT] [--folder DIR] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.attacks import ATTACKS, run
from holdfast.encoders import SmallCNN
from holdfast.evaluation import retrieval_task
from holdfast.evaluation.vectors import open_vectors, write_vectors
from holdfast.functional.memory import bytes_of
from holdfast.rng import stream
from holdfast.runs import machine
from holdfast.search import PGD
from holdfast.threat import LinfThreat

WIDTH, CLASSES = 512, 10_000


def anonymous() -> int:
    """Return the bytes of this process that are not pages of a file."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("RssAnon")))


class Peak:
    """Watches the anonymous memory in a thread."""

    def __enter__(self) -> Peak:
        self.before = self.most = anonymous()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def parts(rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, rows, 20_000):
        n = min(20_000, rows - start)
        z = F.normalize(torch.randn(n, WIDTH, generator=stream(0, "gallery", start)))
        yield z, (torch.arange(start, start + n) % CLASSES)


def child(folder: str, label: str, queries: int, steps: int, memory: str) -> None:
    torch.set_num_threads(2)
    encoder = SmallCNN(embedding_dim=WIDTH).build((1, 28, 28), seed=0).eval()
    x = torch.rand(queries, 1, 28, 28, generator=stream(0, "queries"))
    vectors = open_vectors(folder)
    task = retrieval_task(encoder, x, torch.arange(queries) % CLASSES, gallery=vectors.z, gallery_y=vectors.y)
    limit = None if memory == "none" else bytes_of(memory)
    search = PGD(steps=steps, alpha=0.01, random_start=label == "ES")
    with Peak() as peak:
        start = time.perf_counter()
        found = run(task, ATTACKS[label], search, LinfThreat(eps=0.1), label=label, memory=limit)
        seconds = time.perf_counter() - start
    values = {name: float(v.mean()) for name, v in found.attacked.items()}
    row = {"seconds": seconds, "peak_bytes": peak.most - peak.before, "values": values}
    print(json.dumps({"attack": label, "memory": memory, **row}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--memory", default="none,1G,256M")
    parser.add_argument("--attacks", default="ES,CA+,QA-,RANK,GTT")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, label, queries, steps, memory = args.child
        return child(folder, label, int(queries), int(steps), memory)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "vectors"
        if not folder.exists():
            write_vectors(folder, parts(args.rows))
        print(f"{args.rows} x {WIDTH}, {args.queries} queries, {args.steps} steps")
        for label in args.attacks.split(","):
            for memory in args.memory.split(","):
                words = [str(folder), label, str(args.queries), str(args.steps), memory]
                ran = subprocess.run(
                    [sys.executable, __file__, "--child", *words], capture_output=True, text=True, check=False
                )
                if ran.returncode:
                    print(f"{label:5} {memory:>5}: {ran.stderr.strip().splitlines()[-1]}")
                    continue
                row = json.loads(ran.stdout.splitlines()[-1])
                rows.append(row)
                print(
                    f"{label:5} {memory:>5}: {row['peak_bytes'] / 2**20:6.0f} MiB, {row['seconds']:6.1f} s, "
                    + ", ".join(f"{name} {value:.6f}" for name, value in row["values"].items())
                )
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
