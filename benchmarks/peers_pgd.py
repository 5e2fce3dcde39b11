"""Plain PGD against foolbox's and the Adversarial Robustness Toolbox's, on one network and one loss.

The loss is cross-entropy of logits that are similarities to ten fixed prototypes; steps, step length, batch,
threat and start (the clean images) are the same, and all are measured in turn, in one run, beside the bare
passes: as many forward and input-gradient passes of the same network. Weights need no gradient, so that all
do the same passes; with ``--trainable`` they do, as in a model that was just built, and the peers compute
that gradient too. Also printed: the share of pixels on which the results agree.
Usage: ``python benchmarks/peers_pgd.py [--trainable] [--rounds N] [--threads N] [--cpu] [--out FILE]``; the
peers come with ``pip install 'holdfast[bench]'``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.bench.cases.search import bare
from holdfast.bench.harness import interleaved, ratio
from holdfast.bench.peers import art_pgd, foolbox_pgd, versions
from holdfast.encoders import C2F2, SmallCNN
from holdfast.rng import stream
from holdfast.runs import machine
from holdfast.search import PGD
from holdfast.threat import LinfThreat

EPS, ALPHA, STEPS, BATCH = 77 / 255, 3 / 255, 16, 128


class Prototypes(nn.Module):
    """Logits: ten times the cosine with each of ten fixed unit vectors."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer(
            "prototypes", F.normalize(torch.randn(10, width, generator=stream(0, "prototypes")))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, 10)."""
        return 10 * self.encoder(x) @ self.get_buffer("prototypes").T


def measure(spec: C2F2 | SmallCNN, rounds: int, trainable: bool, cpu: bool) -> dict[str, object]:
    encoder = spec.build((1, 28, 28), 0)
    model = Prototypes(encoder, encoder.embedding_dim).eval().requires_grad_(trainable)
    x = torch.rand(BATCH, 1, 28, 28, generator=stream(0, "images"))
    y = torch.arange(BATCH) % 10
    search, threat = PGD(steps=STEPS, alpha=ALPHA), LinfThreat(eps=EPS)

    def ours() -> Tensor:
        return search(model, x, lambda z: F.cross_entropy(z, y, reduction="none"), threat)

    works = {
        "holdfast": ours,
        "bare passes": lambda: bare(model, x, STEPS),
        "foolbox": foolbox_pgd(model, x, y, EPS, ALPHA, STEPS),
        "art": art_pgd(model, x, y, EPS, ALPHA, STEPS),
    }
    missing = {name: work for name, work in works.items() if isinstance(work, str)}
    there = {name: work for name, work in works.items() if not isinstance(work, str)}
    times = interleaved(there, rounds, clock=time.process_time if cpu else time.perf_counter)
    found: dict[str, object] = {"encoder": spec.name, "missing": missing}
    for name, work in there.items():
        spent, slower = times[name].spread, ratio(times[name], times["holdfast"])
        result = work()
        same = None
        if isinstance(result, list | tuple):  # foolbox: raw, clipped, success
            result = result[1]
        if result is not None and name != "holdfast":
            same = float(((torch.as_tensor(result) - ours()).abs() < 1e-5).double().mean())
        found[name] = {
            "images_per_second": BATCH * STEPS / spent.median,
            "times_ours": slower._asdict(),
            "same_pixels": same,
        }
        text = f"{slower.median:.2f} ({slower.low:.2f} to {slower.high:.2f})"
        equal = "" if same is None else f", {100 * same:.1f} % of pixels as ours"
        print(
            f"{spec.name:10} {name:12} {BATCH * STEPS / spent.median:8.0f} images/s, {text} x our time{equal}"
        )
    for name, why in missing.items():
        print(f"{spec.name:10} {name:12} {why}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trainable", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds: on a shared machine, one thread")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [measure(spec, args.rounds, args.trainable, args.cpu) for spec in (C2F2(), SmallCNN())]
    if args.out:
        what = {
            "steps": STEPS,
            "batch": BATCH,
            "threads": args.threads,
            "trainable": args.trainable,
            "peers": versions(),
        }
        args.out.write_text(json.dumps({"machine": machine(), **what, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
