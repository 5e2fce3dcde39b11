"""How near ``holdfast plan`` comes: predict runs, then do them, and print predicted over measured.

Usage: ``python benchmarks/plan_check.py [--only digits] [--threads 1] [--wall] [--out FILE]``.
Seconds are CPU seconds of the process unless ``--wall`` is given, so that other work on the machine does not
count; with one thread that is what a quiet machine needs. The Fashion-MNIST run needs ``--data-dir``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from holdfast.bench.calibrate import calibrate
from holdfast.bench.cost import predict
from holdfast.bench.memory import forget, peak
from holdfast.cli.options import changed, seconds
from holdfast.cli.plan import _choice, _subject
from holdfast.recipes import recipe
from holdfast.runs import STEPS, evaluate_run, machine, train_run

RUNS = (
    ("plain", "digits", 10, "core", None),
    ("hm-ics", "digits", 6, "core", None),
    ("act", "digits", 6, "core", 200),
    ("eat", "digits", 4, "core", 200),
    ("hm-ics", "digits", 20, "core", 100),
    ("hm-ics", "fashion-small", 2, "core", 100),
    ("est", "digits", 4, "core", 200),
    ("ca-tride", "digits", 4, "core", 200),
    ("proxy-at", "digits", 3, "core", 200),
    ("holdfast", "digits", 4, "core", 200),
)
"""Recipe, data, epochs, suite, queries. The model was made on the first six; the last four came after."""


def planned(args: argparse.Namespace, row: tuple[str, str, int, str, int | None]) -> dict[str, float]:
    name, data, epochs, suite, queries = row
    run = changed(recipe(name, data, args.data_dir if data != "digits" else None), {"epochs": epochs}, [])
    subject = _subject(
        run, (None, None, None, None),
        suite=suite, steps=STEPS, queries=queries, check="quick", precision="fp32",
    )  # fmt: skip
    clock = time.perf_counter if args.wall else time.process_time
    start = clock()
    costs = calibrate(replace(subject, clock=clock), seconds(args.calibration))
    found = predict(costs, _choice(subject))
    return {
        "train": found.train, "train_most": found.train_most, "evaluate": found.evaluate,
        "train_bytes": found.train_bytes, "evaluate_bytes": found.evaluate_bytes,
        "calibration": clock() - start,
    }  # fmt: skip


def done(args: argparse.Namespace, row: tuple[str, str, int, str, int | None]) -> dict[str, float]:
    name, data, epochs, suite, queries = row
    run = changed(recipe(name, data, args.data_dir if data != "digits" else None), {"epochs": epochs}, [])
    clock = time.perf_counter if args.wall else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        forget()
        start = clock()
        opened = train_run(run, Path(folder) / "run")
        train, train_bytes = clock() - start, peak()
        forget()
        start = clock()
        evaluate_run(opened, suite=suite, queries=queries)
        return {
            "train": train, "evaluate": clock() - start, "train_bytes": train_bytes, "evaluate_bytes": peak()
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only")
    parser.add_argument("--data-dir")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--calibration", default="20s")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=("planned", "done"), help=argparse.SUPPRESS)
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.part:  # each in a process of its own, as they are in use
        print(json.dumps({"planned": planned, "done": done}[args.part](args, RUNS[args.row])))
        return
    rows = []
    print(f"{'recipe':8} {'data':14} {'train s':>27} {'evaluate s':>16} {'train memory':>14} {'memory':>14}")
    for number, row in enumerate(RUNS):
        if (args.only and args.only not in row) or (row[1] != "digits" and not args.data_dir):
            continue
        parts = {}
        for part in ("planned", "done"):
            command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--row", str(number)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            parts[part] = json.loads(out.splitlines()[-1])
        p, d = parts["planned"], parts["done"]
        rows.append({"row": row, **parts, "ratio": {key: p[key] / d[key] for key in d}})
        words = [f"{p[k]:.0f}/{d[k]:.0f} = {p[k] / d[k]:.2f}" for k in ("train", "evaluate")]
        words[0] += f" (most {p['train_most']:.0f})"
        sizes = [f"{p[k] / d[k]:.2f}" for k in ("train_bytes", "evaluate_bytes")]
        print(
            f"{row[0]:8} {row[1]:14} {words[0]:>27} {words[1]:>16} {sizes[0]:>14} {sizes[1]:>14}", flush=True
        )
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
