"""What the online guard and the near-duplicate log notice on digits, and what gets past them.

For every seed: train a plain encoder, calibrate on one random half of the test images, attack the other half.
Usage: ``python benchmarks/guard.py [--seeds 0,1,2] [--epochs 3] [--queries 60] [--attacks ES,LTM,RANK]``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.attacks import ATTACKS
from holdfast.encoders import Encoder
from holdfast.evaluation import embed, wilson
from holdfast.functional.distance import Euclidean
from holdfast.guard import (
    Copies,
    QueryGuard,
    QueryLog,
    evaluate_guard,
    first_is_wrong,
    near_duplicate_radius,
    queries_until_flagged,
)
from holdfast.recipes import recipe
from holdfast.rng import stream
from holdfast.search import NES, PGD, Square
from holdfast.threat import LinfThreat
from holdfast.training import train
from holdfast.types import Gallery, RetrievalTask

GUARD = QueryGuard(copies=Copies(count=8, noise=0.05, shift=0))
RATE = 0.05
LAMS = (0.03, 0.1, 0.3)
LOG_RATE, LOG_LIMIT, LOG_ATTACKS = 0.05, 5, 8
SENT = 400
BLACK_BOX = {
    "NES, sigma 0.01": PGD(steps=19, alpha=0.02, gradient=NES(samples=10, sigma=0.01)),
    "NES, sigma 0.1": PGD(steps=19, alpha=0.02, gradient=NES(samples=10, sigma=0.1)),
    "Square": Square(queries=SENT),
}


def share(flags: Iterable[Tensor]) -> str:
    """Return the pooled share of marked queries in per cent, with its Wilson interval."""
    marked = torch.cat([f.flatten() for f in flags])
    if not len(marked):
        return "-"
    low, high = wilson(int(marked.sum()), len(marked))
    return f"{100 * float(marked.double().mean()):.1f} ({100 * low:.1f}-{100 * high:.1f})"


def tasks(
    encoder: Encoder, x: Tensor, y: Tensor, gallery: Gallery, halves: tuple[Tensor, ...]
) -> list[RetrievalTask]:
    return [
        RetrievalTask(
            encoder=encoder,
            x=x[rows],
            y=y[rows],
            z=embed(encoder, x[rows]),
            gallery=gallery,
            self_index=torch.full((len(rows),), -1),
            index=rows,
            distance=Euclidean(),
        )
        for rows in halves
    ]


def measure(
    seed: int, epochs: int, queries: int, attacks: tuple[str, ...], eps: float
) -> dict[str, dict[str, Tensor]]:
    """Return per-query outcomes of one seed, by attack."""
    run = replace(recipe("plain"), seed=seed, epochs=epochs)
    data = run.data.load()
    encoder = train(run, data).encoder
    stored = embed(encoder, data.train.x)
    gallery = Gallery(stored, data.train.y, torch.arange(len(stored)))
    halves = torch.randperm(len(data.test), generator=stream(seed, "halves")).chunk(2)
    clean, held_out = tasks(encoder, data.test.x, data.test.y, gallery, halves)
    guard = GUARD.calibrate(encoder, clean.x, gallery.z, RATE)
    found = {"clean": {"wrong": first_is_wrong(held_out.z, held_out), "flagged": guard.flags(held_out.x)}}

    threat = LinfThreat(eps=eps)
    some = held_out.rows(torch.arange(queries))
    search = PGD(steps=15, alpha=eps / 5, keep="best")
    for name in attacks:
        report = evaluate_guard(guard, some, ATTACKS[name], search, threat, lams=LAMS, seed=seed)
        blind = evaluate_guard(
            guard, some, ATTACKS[name], search, threat, lams=LAMS, seed=seed, attacker_seed=10**6 + seed
        )
        found[name] = {
            "broken": report.naive.broken,
            "detected": report.naive.flagged[report.naive.broken],
            "escaped": report.naive.broken & ~report.naive.flagged,
            "adaptive broken": report.adaptive.broken,
            "adaptive escaped": report.adaptive.broken & ~report.adaptive.flagged,
            "blind escaped": blind.adaptive.broken & ~blind.adaptive.flagged,
        }

    radius = near_duplicate_radius(clean.z, LOG_RATE)
    log = QueryLog(radius=radius, limit=LOG_LIMIT)
    found["log"] = {"clean": log.flags(log.add(held_out.z))}
    whole = torch.nonzero(~found["clean"]["wrong"]).squeeze(1)[:LOG_ATTACKS]
    for name, black_box in BLACK_BOX.items():
        watched = queries_until_flagged(
            log, held_out.rows(whole), ATTACKS["GTM"], black_box, threat, seed=seed
        )
        found[name] = {"flagged_at": watched.flagged_at, "broken_at": watched.broken_at, "sent": watched.sent}
    return found


def middle(values: Tensor) -> str:
    """Return the median, where infinity means never."""
    value = float(values.sort().values[(len(values) - 1) // 2])
    return "never" if value == float("inf") else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--attacks", default="ES,LTM,RANK")
    parser.add_argument("--eps", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    attacks = tuple(args.attacks.split(","))
    found = [
        measure(seed, args.epochs, args.queries, attacks, args.eps)
        for seed in map(int, args.seeds.split(","))
    ]

    def pooled(part: str, name: str) -> str:
        return share(f[part][name] for f in found)

    print(f"clean: wrong {pooled('clean', 'wrong')}, flagged {pooled('clean', 'flagged')}, asked {RATE:.0%}")
    columns = ("broken", "detected", "escaped", "adaptive broken", "adaptive escaped", "blind escaped")
    print(f"| attack | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name in attacks:
        print(f"| {name} | {' | '.join(pooled(name, column) for column in columns)} |")
    print(f"\nlog: clean queries flagged {pooled('log', 'clean')}")
    columns = ("sent", "flagged at", "broken at", "flagged", "broken", "broken before the flag")
    print(f"| black box | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name in BLACK_BOX:
        sent, flagged, broken = (
            torch.cat([f[name][part] for f in found]) for part in ("sent", "flagged_at", "broken_at")
        )
        shares = (flagged.isfinite(), broken.isfinite(), broken < flagged)
        cells = [middle(sent), middle(flagged), middle(broken), *(share([s]) for s in shares)]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
