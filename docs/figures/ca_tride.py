"""The sharp mean from mean to maximum as lambda grows, and the weights of near and far negatives.

Left: the sharp mean of the distances of one batch of digits, from the plain mean (lambda 0) to the
largest one. Right: the weight that each negative distance gets. With lambda 10, far negatives, which
have not collapsed yet, are attacked first.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from holdfast.functional.collapse import sharp_mean

from . import common


def draw(figure: Figure) -> None:
    """Draw mean and weights."""
    task = common.task("plain")
    distances, other = task.distance.matrix(task.z, task.z), task.y[:, None] != task.y[None, :]
    d = distances[other][:200].sort().values
    left, right = figure.subplots(1, 2)
    lambdas = np.linspace(0, 30, 61)
    left.plot(lambdas, [float(sharp_mean(d, float(v))) for v in lambdas], color=common.CLEAN)
    left.axhline(float(d.max()), color=common.SOFT, linestyle="--", linewidth=1.2)
    left.axhline(float(d.mean()), color=common.SOFT, linestyle=":", linewidth=1.2)
    left.annotate(
        "largest", (20, float(d.max())), textcoords="offset points", xytext=(0, 4), color=common.SOFT
    )
    left.annotate("mean", (20, float(d.mean())), textcoords="offset points", xytext=(0, 4), color=common.SOFT)
    left.set(xlabel="sharpness lambda", ylabel="sharp mean")
    for sharpness, colour in ((0.0, common.SOFT), (2.0, common.WARM), (10.0, common.ATTACKED)):
        weights = (sharpness * d).softmax(0) * len(d)
        right.plot(d.numpy(), weights.numpy(), color=colour, label=f"lambda {sharpness:g}")
    right.set(xlabel="distance of the negative", ylabel="weight (mean 1)", ylim=(0, None))
    right.legend()
