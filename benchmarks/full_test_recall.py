"""Clean Recall@1 of runs of the small Fashion-MNIST protocol on all test images, each against the others.

    python benchmarks/full_test_recall.py runs/leaderboard/fashion-small --out FILE.json

500 test images leave an interval of 3.6 points; these tell methods of nearly equal Recall@1 apart. Runs are
folders ``METHOD-SEED``; means and standard deviations are over seeds.
"""  # fmt: skip

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import holdfast
from holdfast.files import write_json
from holdfast.runs import open_run


def recall(folder: Path) -> float:
    opened = open_run(folder)
    data: Any = opened.run.data
    test = replace(data, test_images=None).load().test
    card = holdfast.evaluate(opened.encoder(), test.x, test.y, suite="benign", verdict="off")
    return next(r["value"] for r in card.records if r["metric"] == "recall@1")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for folder in sorted(path for path in args.runs.iterdir() if (path / "encoder.safetensors").exists()):
        method, _, seed = folder.name.rpartition("-")
        found.setdefault(method, {})[seed] = recall(folder)
    for method, values in found.items():
        percent = [100 * v for v in values.values()]
        spread = f" ± {statistics.stdev(percent):.2f}" if len(percent) > 1 else ""
        print(f"{method:18} R@1 {statistics.fmean(percent):.2f}{spread}  ({len(percent)} seeds)")
    if args.out is not None:
        write_json(args.out, {"data": "Fashion-MNIST, 10 000 test images", "recall@1": found})


if __name__ == "__main__":
    main()
