"""The small Fashion-MNIST protocol: train methods over seeds, score them with ers-robrank, keep the records.

Usage: ``python benchmarks/small_protocol.py METHOD... --data-dir DIR [--seeds 0,1,2] [--out runs/small]
[--precision bf16]``. Stopped runs go on where they were; finished ones are not repeated.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from holdfast import config
from holdfast.cli.options import changed
from holdfast.recipes import recipe
from holdfast.runs import evaluate_run, train_run
from holdfast.search import PGD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/small"))
    parser.add_argument("--precision", default="bf16", help="of training; the score is measured in fp32")
    parser.add_argument("--attack-precision", default="fp32")
    parser.add_argument("--suite", default="ers-robrank")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tag", default="")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for seed in map(int, args.seeds.split(",")):
        for method in args.methods:
            run = recipe(method, "fashion-small", args.data_dir)
            run = replace(changed(run, {}, args.sets), seed=seed, precision=args.precision)
            folder = args.out / f"{method}{args.tag}-{seed}"
            opened = train_run(run, folder, resume=(folder / "run.json").exists())
            search = PGD(steps=32, alpha=3 / 255)
            records = evaluate_run(
                opened, suite=args.suite, search=search, precision=args.attack_precision, verdict="off"
            )
            clean = next(r for r in records if r["metric"] == "recall@1" and r["attack"] == "none")
            ers = next(r for r in records if r["metric"] == "ers")
            seconds = sum(config.number(str(r["seconds"])) for r in (clean, ers))
            print(
                f"{folder.name:24} R@1 {100 * clean['value']:5.1f}  ERS {ers['value']:5.2f} "
                f"[{ers['ci'][0]:.1f}, {ers['ci'][1]:.1f}]  attacks {seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
