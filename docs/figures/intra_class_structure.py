"""Map of the structure term: zero inside the circle through the positive, rising outside.

The term over the place of the attacked anchor a', for a clean anchor (cross) and its positive p. As long
as a' is nearer to its own clean place than p is, it costs nothing; beyond that it grows with the
distance.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from holdfast.functional.distance import Euclidean
from holdfast.losses import IntraClassStructure
from holdfast.types import Roles, TripletView

from . import common

SIZE = (5.0, 3.2)


def draw(figure: Figure) -> None:
    """Draw the map."""
    axes = figure.subplots()
    side = np.linspace(-1, 1, 121)
    xs, ys = np.meshgrid(1.5 * side, side)
    points = torch.tensor(np.stack([xs.ravel(), ys.ravel()], 1), dtype=torch.float32)
    a, p, n = (
        torch.tensor([place]).expand(len(points), 2) for place in ((0.0, 0.0), (0.45, 0.2), (1.2, -0.6))
    )
    view = TripletView(now=Roles(points, p, n), clean=Roles(a, p, n))
    cost = IntraClassStructure(weight=0.5)(view, Euclidean()).reshape(xs.shape).numpy()
    levels = np.linspace(0, float(cost.max()), 7)
    axes.contour(xs, ys, cost, levels=levels[1:], colors=common.ATTACKED, linewidths=np.linspace(0.8, 2.2, 6))
    axes.contour(xs, ys, cost, levels=[0.004], colors=common.HELD, linewidths=2.2)
    axes.plot(0, 0, "+", color=common.CLEAN, markersize=11, markeredgewidth=2)
    axes.plot(0.45, 0.2, "o", color=common.HELD)
    axes.annotate("p", (0.45, 0.2), textcoords="offset points", xytext=(6, 2), color=common.HELD)
    axes.annotate("a", (0, 0), textcoords="offset points", xytext=(-12, -12), color=common.CLEAN)
    axes.annotate("free", (-0.3, 0.12), color=common.HELD)
    axes.annotate("costs more and more", (0.42, -0.72), color=common.ATTACKED)
    axes.set(aspect="equal", xticks=[], yticks=[])
