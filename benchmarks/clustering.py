"""Clustering-based inference: train methods over seeds, attack their clusters, and compare with paired tests.

Usage: ``python benchmarks/clustering.py METHOD... --data fashion-small --data-dir DIR [--seeds 0,1,2]
[--out runs/clustering]``; with ``--table`` the rows are put together from what is there. Every network is
made narrower by ``--width`` alike, and every search of training has ``--steps``. Stopped runs go on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast.cli.options import changed, everywhere
from holdfast.encoders import C2F2
from holdfast.evaluation import compare, read_values
from holdfast.evaluation.cluster_transfer import transfer_matrix
from holdfast.inference import cluster_task
from holdfast.recipes import recipe
from holdfast.results import record
from holdfast.runs import RunFolder, default_search, evaluate_run, train_run
from holdfast.search import PGD
from holdfast.training import Run

SUITE = "clustering-worst"
MEASURES = ("accuracy", "flip", "recall@1", "map@r", "purity", "nmi", "ami", "ari")


def narrowed(run: Run, width: float, embedding_dim: int) -> Run:
    """Return the run with every C2F2 in it narrower."""

    def change(part: Any) -> Any:
        if isinstance(part, C2F2):
            return replace(part, width=part.width * width, embedding_dim=embedding_dim)
        return part

    return replace(run, encoder=everywhere(run.encoder, change))


def settings(args: argparse.Namespace, method: str, seed: int) -> Run:
    run = recipe(method, args.data, args.data_dir)
    epochs = max(1, round(args.epochs * run.epochs / recipe("proxy", args.data).epochs))
    if args.eps is not None:
        run = changed(run, {"eps": args.eps}, [])

    def shorter(part: Any) -> Any:
        if isinstance(part, PGD) and part.steps > 1:  # the one step of fast training stays
            return replace(part, steps=args.steps, alpha=args.reach * run.threat.eps / args.steps)
        return part

    run = replace(run, defense=everywhere(run.defense, shorter))
    run = narrowed(changed(run, {}, args.sets), args.width, args.embedding_dim)
    return replace(run, seed=seed, epochs=epochs, precision="bf16")


def one(args: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """Train and attack one encoder; return its figures."""
    folder = args.out / f"{method}{args.tag}-{seed}"
    run = settings(args, method, seed)
    opened = train_run(run, folder, resume=(folder / "run.json").exists())
    records = evaluate_run(
        opened, suite=SUITE, precision=args.attack_precision, verdict=args.check, queries=args.queries,
        clusters=None, inference=args.inference, seed=0,
    )  # fmt: skip
    found = {f"{r['state']}.{r['metric']}": 100 * r["value"] for r in records if r["metric"] in MEASURES}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "epoch"][-1]
    row = {
        "method": method + args.tag, "seed": seed, **found,
        "train_seconds": last["seconds"], "attack_seconds": records[-1]["seconds"],
        "mean_cosine": last["mean_cosine"], "effective_rank": last["effective_rank"],
        "verdict": records[-1]["verdict"],
    }  # fmt: skip
    if hasattr(opened.encoder(), "widths") and args.transfer:
        row["transfer"] = transfer(opened, args.transfer)
    return row


def transfer(opened: RunFolder, queries: int) -> float:
    """Return the mean transfer between different members, in percent of ``queries`` test images."""
    split, encoder = opened.run.data.load(), opened.encoder()
    closed = split.protocol == "closed"
    references = split.train if closed else split.test
    task = cluster_task(
        encoder, split.test.x, split.test.y, references=references.x, reference_labels=references.y
    )
    part: Any = task.rows(torch.arange(min(queries, len(task))))
    rates = transfer_matrix(part, default_search(opened.run.threat.eps), opened.run.threat)
    off = rates[~torch.eye(len(rates), dtype=torch.bool)]
    return 100 * float(off.mean())


def vectors(folder: Path) -> np.ndarray:
    """Return for every query whether it is named rightly under the worst case, (n,)."""
    records = [r for r in record.read(folder / "records.jsonl") if r["suite"] == SUITE]
    stored = read_values(folder / "evaluations" / records[-1]["fingerprint"])
    values: np.ndarray = stored["WORST"]["attacked"]["accuracy"]
    return values


def table(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print means and spreads, and every method against the one named by ``--against``."""
    shown = ("clean.accuracy", "attacked.accuracy", "attacked.flip", "clean.recall@1", "attacked.recall@1",
             "clean.nmi", "attacked.nmi", "transfer", "train_seconds")  # fmt: skip
    print(f"{'method':24}" + "".join(f"{name.replace('attacked', 'att.'):>17}" for name in shown))
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = []
        for name in shown:
            values = [row[name] for row in mine if name in row]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            cells.append(f"{statistics.mean(values):9.1f} ±{spread:5.1f}" if values else "-")
        print(f"{method:24}" + "".join(f"{cell:>17}" for cell in cells) + f"  ({len(mine)} seeds)")
    if not args.against:
        return
    print(f"\nrobust accuracy, {args.against} minus the method, points; all seeds, query by query")
    seeds = sorted({row["seed"] for row in rows if row["method"] == args.against})
    for method in dict.fromkeys(row["method"] for row in rows):
        both = [s for s in seeds if any(r["method"] == method and r["seed"] == s for r in rows)]
        if method == args.against or not both:
            continue
        a = np.concatenate([vectors(args.out / f"{method}-{s}") for s in both])
        b = np.concatenate([vectors(args.out / f"{args.against}-{s}") for s in both])
        print(f"  {method:24} {compare(a, b).words(method, args.against)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--data", default="fashion-small")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/clustering"))
    parser.add_argument("--epochs", type=int, default=12, help="free training has a quarter")
    parser.add_argument("--steps", type=int, default=5, help="of every search of training")
    parser.add_argument("--reach", type=float, default=1.75, help="of those searches, in units of eps")
    parser.add_argument("--eps", default=None)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--attack-precision", default="fp32")
    parser.add_argument("--inference", default="kmeans")
    parser.add_argument("--check", default="off")
    parser.add_argument("--transfer", type=int, default=200, help="queries of the transfer matrix; 0: none")
    parser.add_argument("--against", default="")
    parser.add_argument("--tag", default="")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--table", action="store_true", help="put together what is there")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows_path: Path = args.out / "rows.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        for seed in map(int, args.seeds.split(",")):
            for method in args.methods:
                row = one(args, method, seed)
                with rows_path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                brief = {k: round(v, 1) for k, v in row.items() if isinstance(v, float)}
                print(method, seed, brief, flush=True)
        return
    rows = [json.loads(line) for line in rows_path.read_text().splitlines()]
    latest = {(row["method"], row["seed"]): row for row in rows}
    table(args, [row for (m, _), row in latest.items() if m in args.methods or "all" in args.methods])


if __name__ == "__main__":
    main()
