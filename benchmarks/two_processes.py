"""Training throughput of two processes with one thread each against one process, on two cores.

Recipe hm, C2F2, Fashion-MNIST, the same batches of pairs. Three ways in turn, several rounds: two processes
(gloo) of one thread; one process of two threads; and one process of one thread, whose rate times two is what
two cores could give at best. Each is started afresh; its first steps are not counted. A busy machine slows
the three alike only on average, so the CPU seconds that an image took are printed too: these of the two
processes over those of one are the price of going apart (gathering, averaging, waiting), whatever else runs.
Usage: ``python benchmarks/two_processes.py --data-dir DIR [--pairs 128] [--steps 20] [--rounds 3]``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from holdfast import config
from holdfast.data import DataSplit
from holdfast.recipes import recipe
from holdfast.runs import allowed_types
from holdfast.training import spread_over, train
from holdfast.training.launch import plan_processes, processes

WARM = 3
"""Steps that are not counted."""
WAYS = {"two processes": (2, 1), "one process, 2 threads": (1, 2), "one process, 1 thread": (1, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="Make one measurement, in this process.")
    args = parser.parse_args()
    if args.threads is not None:
        worker(args)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(args.rounds):
        for way, (count, threads) in WAYS.items():
            found[way].append(started(count, threads))
            rate, spent = found[way][-1]["rate"], found[way][-1]["cpu"]
            line = f"{way:24} {rate:8.0f} images/s, {spent * 1e3:.2f} CPU ms/image"
            print(f"round {number}: {line}", flush=True)
    median = {way: statistics.median(r["rate"] for r in rates) for way, rates in found.items()}
    cpu = {way: statistics.median(r["cpu"] for r in rates) for way, rates in found.items()}
    two, threaded, single = WAYS
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"wall: two / one with 2 threads {median[two] / median[threaded]:.2f}")
    print(f"wall: two / (2 x one with 1 thread) {median[two] / 2 / median[single]:.2f}")
    print(f"CPU seconds per image: one with 2 threads / two {cpu[threaded] / cpu[two]:.2f}")
    print(f"CPU seconds per image: one with 1 thread / two {cpu[single] / cpu[two]:.2f}")


def started(count: int, threads: int) -> dict[str, float]:
    """Measure one way in fresh processes."""
    words = [*sys.argv, "--threads", str(threads)]
    start = [sys.executable]
    if count > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    said = subprocess.run([*start, *words], env=env, capture_output=True, text=True, check=False)
    if said.returncode:
        raise SystemExit(said.stderr)
    result: dict[str, float] = json.loads(said.stdout)
    return result


def worker(args: argparse.Namespace) -> None:
    """Train a few steps; process 0 prints images/s, and CPU seconds of all processes per image."""
    torch.set_num_threads(args.threads)
    run = replace(recipe("hm", "fashion-small", args.data_dir), epochs=1, device="cpu")
    run = config.replace(run, "sampler.batch_pairs", args.pairs, allowed_types())
    split = run.data.load()
    few = split.train.first(args.pairs * (args.steps + WARM))
    data = DataSplit(few, split.test, split.name, split.protocol)
    marks: list[tuple[float, float]] = []

    def seen(line: dict[str, Any]) -> None:
        if line["kind"] == "step":
            marks.append((time.perf_counter(), time.process_time()))

    with processes(plan_processes(None, None, "cpu"), "cpu") as group:
        cpu = time.process_time()
        train(spread_over(run, group.world), data, on_line=seen, group=group)
        spent = sum(group.gather(time.process_time() - cpu))
        if group.rank:
            return
    images = 2 * args.pairs * args.steps
    share = args.steps / (args.steps + WARM)  # the end of the epoch is a small part beside it
    rate = images / (marks[-1][0] - marks[WARM - 1][0])
    sys.stdout.write(json.dumps({"rate": rate, "cpu": spent * share / images}) + "\n")


if __name__ == "__main__":
    main()
