"""Queries still right against the number of search steps: RANK takes most, ES least.

Recall@1 of the undefended encoder after each number of steps (100 queries, eps 0.1), for four gains.
RANK climbs the decision itself and follows whoever is nearest at the moment; ES wanders off without
knowing where the border is.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from holdfast.attacks import ATTACKS, hits, run
from holdfast.search import PGD
from holdfast.threat import LinfThreat

from . import common

STEPS = (0, 1, 2, 3, 4, 6, 8)


def draw(figure: Figure) -> None:
    """Draw one line for each gain."""
    axes, task = figure.subplots(), common.task("plain")
    colours = (common.ATTACKED, common.WARM, common.OTHER, common.CLEAN)
    for label, colour in zip(("RANK", "TARGET1", "CENTROID", "ES"), colours, strict=True):
        right = []
        for steps in STEPS:
            outcome = run(
                task, ATTACKS[label], PGD(steps=steps, alpha=0.02), LinfThreat(eps=0.08), label=label
            )
            right.append(100 * float(hits(outcome.z, task).mean()))
        axes.plot(STEPS, right, "o-", color=colour, label=label, markersize=4)
    axes.set(xlabel="steps of the search", ylabel="Recall@1, %", ylim=(0, 102))
    axes.legend(ncols=2)
