"""Histograms of distances within and between digits, before and after training.

Distances of all pairs of 100 test digits, before training and after a few seconds of the recipe `plain`.
The loss opens a gap of about the margin and nothing more: whoever can move an embedding by half the gap
can change the answer.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from holdfast.encoders import SmallCNN

from . import common


def draw(figure: Figure) -> None:
    """Draw two panels."""
    task = common.task("plain")
    fresh = SmallCNN(width=4, embedding_dim=32).build((1, 8, 8), seed=0).eval()
    with torch.no_grad():
        embeddings = {"before training": fresh(task.x), "after": task.z}
    upper = torch.triu(torch.ones(len(task), len(task)), 1).bool()
    same = (task.y[:, None] == task.y[None, :]) & upper
    for axes, (title, z) in zip(figure.subplots(1, 2), embeddings.items(), strict=True):
        d = task.distance.matrix(z, z)
        top = float(d.max())
        for rows, colour, label in (
            (same, common.HELD, "same digit"),
            (~same & upper, common.ATTACKED, "another"),
        ):
            axes.hist(
                d[rows].numpy(), bins=24, range=(0, top), density=True, alpha=0.65, color=colour, label=label
            )
        axes.set(title=title, xlabel="distance", yticks=[])
    axes.legend()
