"""Whether decoding starves the training loop: loop time with and without look-ahead against pure compute.

Trains plainly on generated JPEGs of 300 x 300 pixels, resized to 256 and cut to 224. Three ways in turn, in
one run: the batches already decoded in memory (``compute``), decoded ahead by the background thread
(``ahead``), and decoded when they are asked for (``asked``). The median over rounds of ``compute / ahead`` is
the share of the loop that computes; what CPU-only machines lose is what decoding takes from the cores.
``--device S`` stands for an accelerator: each step also waits S seconds without using the processor.
Usage: ``python benchmarks/prefetch.py [--images 400] [--pairs 16] [--width 8] [--rounds 3] [--device 0]``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from holdfast.data import ImageFolder, PairSampler
from holdfast.data.prefetch import Batch, prefetch_files
from holdfast.defenses import AdversarialTraining
from holdfast.encoders import SmallCNN
from holdfast.losses import MultiSimilarity
from holdfast.threat import LinfThreat
from holdfast.training import Run, train, trainer
from holdfast.types import PairwiseDistance

CLASSES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--device", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.images)
        run = Run(
            name="prefetch", data=ImageFolder(folder, protocol="closed", test_share=0.2),
            defense=AdversarialTraining(loss=Waiting(seconds=args.device)), threat=LinfThreat(eps=8 / 255),
            encoder=SmallCNN(width=args.width), sampler=PairSampler(args.pairs), epochs=1,
        )  # fmt: skip
        split = run.data.load()
        images: Any = split.train.x
        loop: Any = trainer
        kept = dict[int, Batch]()

        def asked(images: Any, plan: Any, draws: Any, **_: Any) -> Any:
            return nullcontext(decoded(images, plan, draws))

        def decoded(images: Any, plan: Any, draws: Any) -> Iterator[Batch]:
            for step, rows in plan:
                kept[step] = Batch(step, rows, images.augmented(rows, draws(step)))
                yield kept[step]

        def compute(images: Any, plan: Any, draws: Any, **_: Any) -> Any:
            return nullcontext(kept[step] for step, _ in plan)

        ways = {"asked": asked, "ahead": prefetch_files, "compute": compute}
        seconds = {name: list[float]() for name in ways}
        for _ in range(args.rounds + 1):
            for name, way in ways.items():
                loop.prefetch_files = way
                seconds[name].append(train(run, split).seconds)
        start = time.perf_counter()
        images.augmented(torch.arange(min(100, len(images))))
        each = (time.perf_counter() - start) / min(100, len(images))
        print(
            f"{len(images)} training images, {each * 1e3:.1f} ms to decode one with {images.workers} threads"
        )
        for name, found in seconds.items():
            share = statistics.median(c / s for c, s in zip(seconds["compute"][1:], found[1:], strict=True))
            print(f"{name:8} {statistics.median(found[1:]):8.2f} s {share:6.2f} of the loop computes")


@dataclass(frozen=True, kw_only=True)
class Waiting(MultiSimilarity):
    """The multi-similarity loss, some seconds later."""

    seconds: float

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        time.sleep(self.seconds)
        return super().__call__(z, y, distance)


def write(folder: Path, count: int) -> None:
    draws = np.random.default_rng(0)
    for i in range(count):
        place = folder / f"class{i % CLASSES:02}"
        place.mkdir(exist_ok=True)
        coarse = Image.fromarray(draws.integers(0, 256, (30, 30, 3), dtype=np.uint8))
        coarse.resize((300, 300)).save(place / f"{i:04}.jpg", quality=90)


if __name__ == "__main__":
    main()
