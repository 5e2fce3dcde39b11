"""Train, evaluate and add runs of the repository's own recipes to results/.

    python benchmarks/leaderboard.py plain est act hm hm-ics --seeds 0,1,2 --out runs/board --results results

A run that is there already is used again, so a stopped call goes on. Each run is attacked by the suites ers
(all queries) and worst-case (``--worst-queries`` of them, drawn with seed 0), both checked.
"""  # fmt: skip

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from holdfast import evaluate_run, recipe, train_run
from holdfast.leaderboard import add, boards, markdown, read_entries


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/board"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--worst-queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for seed in map(int, args.seeds.split(",")):
        for name in args.recipes:
            plain = recipe(name)
            folder = args.out / f"{name}-{seed}"
            there = (folder / "run.json").exists()
            opened = train_run(replace(plain, seed=seed), folder, resume=there, defaults=plain)
            evaluate_run(opened, suite="ers", precision="fp32")
            evaluate_run(opened, suite="worst-case", queries=args.worst_queries, precision="fp32")
            print(add(folder, args.results), flush=True)
    print(markdown(boards(read_entries(args.results))))


if __name__ == "__main__":
    main()
