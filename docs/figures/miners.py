"""Boxes of the hardness of triplets that six miners choose from the same batches, from random to hardest.

Hardness d(a,p) - d(a,n) of the triplets that each miner takes from the same 40 batches of 24 pairs of
digits, on an undefended encoder. Above -0.2, the margin, a triplet has a loss.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from holdfast.functional.hardness import hardness
from holdfast.miners import MINERS
from holdfast.types import Progress, Roles

from . import common


def draw(figure: Figure) -> None:
    """Draw the boxes."""
    task, generator = common.task("plain"), torch.Generator().manual_seed(0)
    batches = []
    for _ in range(40):
        rows = []
        while len(rows) < 48:
            a = int(torch.randint(len(task), (), generator=generator))
            own = torch.nonzero(task.y == task.y[a]).flatten()
            own = own[own != a]
            if len(own):
                rows += [a, int(own[int(torch.randint(len(own), (), generator=generator))])]
        batches.append(torch.tensor(rows))
    found = []
    for miner in MINERS.values():
        now = miner.at(Progress(epoch=3, epochs=4)) if hasattr(miner, "at") else miner
        values = []
        for rows in batches:
            z = task.z[rows]
            chosen = now(z, task.y[rows], task.distance, torch.Generator().manual_seed(1))
            values.append(hardness(Roles(*(z[role] for role in chosen)), task.distance))
        found.append(torch.cat(values).numpy())
    axes = figure.subplots()
    order = sorted(range(len(found)), key=lambda i: float(found[i].mean()))
    boxes = axes.boxplot([found[i] for i in order], showfliers=False, widths=0.55)
    for part in ("boxes", "whiskers", "caps", "medians"):
        for line in boxes[part]:
            line.set(color=common.ATTACKED if part == "medians" else common.CLEAN, linewidth=1.5)
    axes.axhline(-0.2, color=common.SOFT, linestyle="--", linewidth=1)
    axes.set_xticklabels([list(MINERS)[i] for i in order])
    axes.set_ylabel("hardness")
