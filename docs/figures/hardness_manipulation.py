"""Targets against the last loss for three powers, and hardness that rises to its target and stops.

Left: the target that the gradual adversary sets, for a margin of 0.2; gLGA is the straight line. Right:
triplets of 100 test digits on an undefended encoder during a search with target -0.1. Each climbs until
it has reached the target, then rests.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from holdfast.adversaries import Fixed, HardnessManipulation
from holdfast.functional.hardness import gradual, hardness
from holdfast.miners import Random
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import Roles, TripletView

from . import common

STEPS, TARGET = 12, -0.1


def paths() -> np.ndarray:
    """Return the hardness of some triplets after each number of steps, (steps + 1, t)."""
    task, ctx = common.task("plain"), common.context()
    order = torch.argsort(task.y, stable=True)
    z, y = task.z[order], task.y[order]
    pairs = [i for i in range(0, len(y) - 1, 2) if y[i] == y[i + 1]][:9]
    rows = torch.tensor([r for i in pairs for r in (i, i + 1)])
    chosen = Random()(z[rows], y[rows], task.distance, torch.Generator().manual_seed(3))
    adversary = HardnessManipulation(destination=Fixed(value=TARGET))
    clean = Roles(*(z[rows][role] for role in chosen))
    x0 = torch.cat([task.x[order][rows][role] for role in chosen])
    target = torch.full((len(chosen.anchor),), TARGET)

    def objective(now: torch.Tensor) -> torch.Tensor:
        return adversary.gain(TripletView(Roles(*now.chunk(3)), clean, target), ctx)

    found = []
    for steps in range(STEPS + 1):
        x = PGD(steps=steps, alpha=0.01)(task.encoder, x0, objective, LinfThreat(eps=0.1))
        with torch.no_grad():
            found.append(hardness(Roles(*task.encoder(x).chunk(3)), task.distance))
    return torch.stack(found).numpy()


def draw(figure: Figure) -> None:
    """Draw targets and paths."""
    left, right = figure.subplots(1, 2)
    losses = np.linspace(0, 0.3, 200)
    for power, label, colour in (
        (0.5, "$g_{1/2}$", common.WARM),
        (1.0, "gLGA", common.CLEAN),
        (2.0, "$g_2$", common.OTHER),
    ):
        left.plot(losses, [gradual(float(v), 0.2, power) for v in losses], color=colour, label=label)
    left.set(xlabel="loss of the step before", ylabel="target hardness", ylim=(-0.21, 0.01))
    left.legend()
    right.plot(paths(), color=common.CLEAN, linewidth=1.2)
    right.axhline(TARGET, color=common.ATTACKED, linestyle="--", linewidth=1.5, label="target")
    right.set(xlabel="steps of the search", ylabel="hardness d(a,p) - d(a,n)")
    right.legend(loc="lower right")
