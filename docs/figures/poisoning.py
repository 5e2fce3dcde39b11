"""References of three clusters, the poisoned ones moved, and the centroids before and after.

A tenth of 120 references (rings) may move by 0.12. Each climbs the margin of the clean queries; the
centroids, fitted again, shift (crosses), random noise of the same size moves them less, and a few
queries near a border change cluster.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from holdfast.attacks import poison
from holdfast.functional.clustering import kmeans
from holdfast.inference import ClusterIndex, cluster_task
from holdfast.search import PGD
from holdfast.threat import L2Threat

from . import common

SIZE = (5.0, 3.6)


def flat(x: torch.Tensor) -> torch.Tensor:
    """(n, 1, 1, 2) -> (n, 2): points as images, and as their own embeddings."""
    return x.flatten(1)


def draw(figure: Figure) -> None:
    """Draw references and centroids."""
    generator = torch.Generator().manual_seed(5)
    middles = torch.tensor([[0.3, 0.3], [0.7, 0.32], [0.5, 0.68]])
    y = torch.arange(120) % 3
    references = middles[y] + 0.085 * torch.randn(120, 2, generator=generator)
    queries = middles[y[:60]] + 0.1 * torch.randn(60, 2, generator=generator)
    index = ClusterIndex(3, random_state=0)
    images = references[:, None, None]  # (n, 1, 1, 2)
    task = cluster_task(
        flat, queries[:, None, None], y[:60], references=images, reference_labels=y, index=index
    )
    threat = L2Threat(eps=0.12, bounds=None)
    found = poison(task, PGD(steps=20, alpha=0.02), threat, share=0.1, reference_labels=y, fits=(0,))
    axes = figure.subplots()
    axes.plot(*references.T.numpy(), ".", color=common.SOFT, markersize=4)
    for a, b in zip(references[found.rows], flat(found.x), strict=True):
        axes.plot(*a.tolist(), "o", color=common.ATTACKED, markersize=6, fillstyle="none")
        axes.annotate(
            "",
            b.tolist(),
            a.tolist(),
            arrowprops={"arrowstyle": "-|>", "color": common.ATTACKED, "lw": 1.4, "shrinkA": 0, "shrinkB": 0},
        )
    after, _ = kmeans(references.index_put((found.rows,), flat(found.x)), 3, seed=0)
    axes.plot(*task.gallery.z.T.numpy(), "X", color=common.CLEAN, markersize=10, label="centroids before")
    axes.plot(*after.T.numpy(), "X", color=common.HELD, markersize=10, label="after")
    moved, noise = found.poisoned.mean_sd("shift")[0], found.control.mean_sd("shift")[0]
    axes.set(
        xticks=[], yticks=[], aspect="equal", title=f"centroids move {moved:.3f}; under noise {noise:.3f}"
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
