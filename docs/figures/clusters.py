"""Cells of four centroids in the plane with arrows of queries under A1, A3 and A4.

Queries in the cells of four centroids, where an embedding is the point itself. A1 goes to the nearest
border, A3 (second nearest centroid) to a chosen one, A4 straight away from the own centroid, wherever
that leads.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from holdfast.attacks import CLUSTER_ATTACKS, run
from holdfast.functional.distance import SquaredEuclidean
from holdfast.search import PGD
from holdfast.threat import L2Threat
from holdfast.types import ClusterTask, Gallery

from . import common

SIZE = (6.6, 2.35)
EPS = 0.16


def task() -> ClusterTask:
    """Return a grid of queries among four centroids."""
    centroids = torch.tensor([[0.25, 0.3], [0.72, 0.22], [0.3, 0.78], [0.8, 0.72]])
    x = torch.tensor(
        [
            [0.36, 0.4],
            [0.16, 0.44],
            [0.6, 0.34],
            [0.86, 0.3],
            [0.42, 0.7],
            [0.2, 0.64],
            [0.66, 0.62],
            [0.9, 0.58],
        ]
    )
    own = torch.cdist(x, centroids).argmin(1)
    numbers = torch.arange(4)
    return ClusterTask(
        encoder=common.plane, x=x, y=own, z=x, gallery=Gallery(centroids, numbers, numbers),
        self_index=torch.full((len(x),), -1), index=torch.arange(len(x)), distance=SquaredEuclidean(),
        cluster_of=own, truth=torch.full((len(x),), -1),
    )  # fmt: skip


def draw(figure: Figure) -> None:
    """Draw three attacks."""
    seen = task()
    xs, ys = np.meshgrid(np.linspace(0, 1, 201), np.linspace(0, 1, 201))
    grid = torch.tensor(np.stack([xs.ravel(), ys.ravel()], 1), dtype=torch.float32)
    cells = torch.cdist(grid, seen.gallery.z).argmin(1).reshape(xs.shape).numpy()
    for axes, label in zip(figure.subplots(1, 3), ("A1", "A3.2", "A4"), strict=True):
        outcome = run(
            seen,
            CLUSTER_ATTACKS[label],
            PGD(steps=40, alpha=0.01),
            L2Threat(eps=EPS, bounds=None),
            label=label,
        )
        for cell in range(4):
            axes.contour(xs, ys, cells == cell, levels=[0.5], colors=common.SOFT, linewidths=0.8)
        axes.plot(*seen.gallery.z.T.numpy(), "X", color=common.HELD, markersize=8)
        flipped = outcome.attacked["flip"] > 0
        for a, b, flip in zip(seen.x, outcome.x, flipped, strict=True):
            colour = common.ATTACKED if flip else common.CLEAN
            axes.plot(*a.tolist(), "o", color=colour, markersize=4)
            axes.annotate(
                "",
                b.tolist(),
                a.tolist(),
                arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.5, "shrinkA": 0, "shrinkB": 0},
            )
        axes.set(
            xlim=(0, 1),
            ylim=(0, 1),
            aspect="equal",
            xticks=[],
            yticks=[],
            title=f"{label}: {int(flipped.sum())} of {len(flipped)} leave",
        )
