"""Two classes in the plane whose useful direction is short, for certificates of tables."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes

from holdfast.certify import References, certify_neighbours

from . import common


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return 28 points (n, 2) in two long clouds, a few of them on the wrong side, and their classes."""
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1], 14)
    x = np.stack(
        [rng.uniform(0, 2, 28), 0.5 + np.where(y == 0, -0.16, 0.16) + 0.09 * rng.standard_normal(28)], 1
    )
    return x, y


def queries() -> tuple[np.ndarray, np.ndarray]:
    """Return points that are certified."""
    xs = np.linspace(0.2, 1.8, 7)
    return (
        np.concatenate([np.stack([xs, np.full(7, 0.3)], 1), np.stack([xs, np.full(7, 0.7)], 1)]),
        np.repeat([0, 1], 7),
    )


def draw(
    axes: Axes, references: np.ndarray, labels: np.ndarray, matrix: np.ndarray | None, title: str
) -> float:
    """Draw references, and the certified ball around each query; return the mean radius."""
    from matplotlib.patches import Circle

    z, t = queries()
    prepared = References.prepare(
        torch.from_numpy(references),
        torch.from_numpy(labels),
        None if matrix is None else torch.from_numpy(matrix),
    )
    certificate = certify_neighbours(prepared, torch.from_numpy(z), torch.from_numpy(t), k=1, method="exact")
    for code, colour in ((0, common.CLEAN), (1, common.ATTACKED)):
        axes.plot(*references[labels == code].T, "o", color=colour, markersize=4)
        for place, radius in zip(
            z[t == code], certificate.radius[torch.from_numpy(t == code)].tolist(), strict=True
        ):
            axes.plot(*place, "+", color=colour, markersize=6)
            axes.add_patch(Circle(tuple(place), radius, fill=False, color=colour, linewidth=1.3))
    mean = float(certificate.radius.mean())
    axes.set(
        xlim=(0, 2), ylim=(0, 1), aspect="equal", xticks=[], yticks=[], title=f"{title}: mean {mean:.3f}"
    )
    return mean
