"""R@1, 2, 4, 8 and MAP@R of embeddings against themselves: ours, pytorch-metric-learning, the bare limit.

Every measurement runs in a fresh process, in turn, so that its peak memory above the loaded embeddings is
its own. ``bare`` is a block-wise float32 product and ``topk`` in plain torch: lists without scores. ``whole``
adds the average precision of the whole list. With ``--curve`` the queries, and then the gallery, double, and
the exponents of time ~ size^exponent are fitted; with ``--full`` to 1 000 000 rows. CPU time is given beside
wall time: on a shared machine it is the steadier of the two.

Usage: ``python benchmarks/ranking.py [--rows N] [--classes K ...] [--threads T] [--curve [--full]]``
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

NAMES = ("top", "whole", "peer", "bare")
CUTS = (1, 2, 4, 8)


def embeddings(m: int, width: int, classes: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of length 1 around a random direction of each class; ``noise`` 1 is as long as the direction."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(m) % classes
    centres = torch.randn(classes, width, generator=generator)
    z = torch.empty(m, width)
    for start in range(0, m, 8192):  # never twice in memory
        rows = slice(start, start + 8192)
        part = centres[y[rows]] + noise * torch.randn(len(y[rows]), width, generator=generator)
        z[rows] = torch.nn.functional.normalize(part)
    return z, y


def work(name: str, z: torch.Tensor, y: torch.Tensor, n: int, memory: int | None) -> dict[str, float]:
    own = torch.arange(n)
    if name == "peer":
        import faiss
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        faiss.omp_set_num_threads(torch.get_num_threads())
        include = ("precision_at_1", "mean_average_precision_at_r")
        peer = AccuracyCalculator(include=include, k="max_bin_count", device=torch.device("cpu"))
        found = (
            peer.get_accuracy(z, y)
            if n == len(z)
            else peer.get_accuracy(z[:n], y[:n], z, y, ref_includes_query=True)
        )
        return {"recall@1": found["precision_at_1"], "map@r": found["mean_average_precision_at_r"]}
    if name == "bare":
        k = max(8, int(torch.bincount(y).max()))
        lengths = torch.cat([part.square().sum(1) for part in z.split(4096)])
        for rows in own.split(256):
            d = torch.addmm(lengths, z[rows], z.T, alpha=-2.0)
            d[torch.arange(len(rows)), rows] = torch.inf
            d.topk(min(k, len(z) - 1), dim=1, largest=False)
        return {}
    from holdfast.functional.distance import Euclidean
    from holdfast.functional.ranking import retrieval_scores, top_scores

    rows = (z[:n], y[:n], z, y, Euclidean(), own)
    scores = (
        retrieval_scores(*rows, memory=memory)
        if name == "whole"
        else top_scores(*rows, depth=max(CUTS), memory=memory)
    )
    found = {f"recall@{k}": float(scores.recall(k).double().mean()) for k in CUTS}
    return {**found, "map@r": float(scores.map_at_r.double().mean())}


def child(args: argparse.Namespace) -> None:
    """Measure one piece of work in this process and print it as JSON."""
    torch.set_num_threads(args.threads)
    z, y = embeddings(args.rows, args.width, args.classes[0], args.noise[0])
    work(args.child, *embeddings(512, args.width, 16, args.noise[0]), 256, None)  # imports and first calls
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    scores = work(args.child, z, y, args.queries or args.rows, args.memory)
    print(
        json.dumps(
            {
                "wall_s": time.perf_counter() - wall,
                "cpu_s": time.process_time() - cpu,
                "extra_gib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - loaded) / 2**20,
                **scores,
            }
        )
    )


def fresh(
    name: str, rows: int, queries: int, classes: int, noise: float, args: argparse.Namespace
) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, "--rows", str(rows), "--queries", str(queries)]
    command += ["--classes", str(classes), "--width", str(args.width), "--noise", str(noise)]
    command += ["--threads", str(args.threads)]
    command += ["--memory", str(args.memory)] if args.memory else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # most likely killed for its memory
        print(f"{name}: exit {done.returncode} {done.stderr.strip()[-200:]}", file=sys.stderr)
        return {"wall_s": math.nan, "cpu_s": math.nan, "extra_gib": math.nan}
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compare(args: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for classes, noise in zip(args.classes, args.noise, strict=False):
        runs = [
            {name: fresh(name, args.rows, args.queries, classes, noise, args) for name in args.only}
            for _ in range(args.rounds)
        ]
        for name in args.only:
            mine = [run[name] for run in runs]
            row: dict[str, object] = {"classes": classes, "name": name, **mine[-1]}
            row |= {key: statistics.median(r[key] for r in mine) for key in ("wall_s", "cpu_s", "extra_gib")}
            for peer in set(args.only) & {"peer", "bare"} - {name}:
                row[f"{peer}_over_this"] = statistics.median(
                    r[peer]["wall_s"] / r[name]["wall_s"] for r in runs
                )
            rows.append(row)
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return rows


def exponent(points: list[tuple[int, float]]) -> float:
    """Return b of the least-squares fit time = a * size^b."""
    x, t = ([math.log(p[i]) for p in points] for i in (0, 1))
    slope, _ = statistics.linear_regression(x, t)
    return slope


def curve(args: argparse.Namespace) -> dict[str, object]:
    """Double the queries on one gallery, then the gallery; classes of five rows."""
    rows, queries = (10**5, (500, 1000, 2000, 4000)) if args.full else (20000, (500, 1000, 2000))
    galleries = (62500, 125000, 250000, 500000, 10**6) if args.full else (20000, 40000, 80000)
    sizes = {"queries": [(n, rows) for n in queries], "gallery": [(256, m) for m in galleries]}
    found: dict[str, object] = {}
    for what, pairs in sizes.items():
        for name in ("top", "whole"):
            points = []
            for n, m in pairs:
                run = fresh(name, m, n, max(m // 5, 1), args.noise[0], args)
                points.append((n if what == "queries" else m, run["cpu_s"]))
                print(
                    f"{name:6} {n:8} x {m:8} {run['cpu_s']:9.2f} cpu s {run['extra_gib']:6.2f} GiB",
                    flush=True,
                )
            found[f"{name}_{what}"] = {"points": points, "exponent": exponent(points)}
            print(f"{name:6} time ~ {what}^{exponent(points):.2f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20000, help="gallery; the published figure is 60000")
    parser.add_argument("--queries", type=int, default=0, help="the first of the gallery; 0 is all")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, nargs="+", default=[0, 10], help="0 is one for each 5.5 rows")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[2.1, 3.2], help="one for each of --classes"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=int, help="bytes for ours; about 1 GiB by default")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.classes = [k or max(1, round(args.rows / 5.5)) for k in args.classes]
    if len(args.noise) < len(args.classes):
        parser.error("--noise: need one for each of --classes")
    if args.child:
        child(args)
        return
    from holdfast.runs import machine

    result = {
        "machine": machine(),
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "child")},
        "rows": [] if args.curve else compare(args),
        "curve": curve(args) if args.curve else None,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
