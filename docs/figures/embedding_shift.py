"""Maps of digits with arrows to their attacked places, long if undefended, shorter if hardened.

First two principal components of 60 test digits; arrows lead to where ES takes them (eps 0.1). Their
mean length in the full space is the number in the title.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from holdfast.attacks import ATTACKS, run
from holdfast.threat import LinfThreat

from . import common

SIZE = (6.4, 3.2)


def draw(figure: Figure) -> None:
    """Draw both maps."""
    for axes, (name, shown) in zip(figure.subplots(1, 2), common.NAMES.items(), strict=True):
        task = common.task(name)
        outcome = run(task, ATTACKS["ES"], common.search(), LinfThreat(eps=common.EPS), label="ES")
        mean = task.z.mean(0)
        _, _, v = torch.linalg.svd(task.z - mean, full_matrices=False)
        flat = v[:2].T * torch.where(v[:2].sum(1) < 0, -1.0, 1.0)
        before, after = ((z - mean) @ flat for z in (task.z[:60], outcome.z[:60]))
        axes.quiver(
            *before.T.numpy(),
            *(after - before).T.numpy(),
            color=common.ATTACKED,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.005,
        )
        axes.plot(*before.T.numpy(), "o", color=common.CLEAN, markersize=3.5)
        axes.set(
            title=f"{shown}: {float(outcome.attacked['shift'].mean()):.2f}",
            xticks=[],
            yticks=[],
            aspect="equal",
        )
