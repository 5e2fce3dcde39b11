"""A matrix of attacks by queries, filled where the query breaks; the last row is their union.

60 queries of the hardened encoder, sorted; a filled square is a broken query (eps 0.1). No attack breaks
all that the others break: the worst case, query by query, is below every single number.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from holdfast.attacks import ATTACKS, hits, run
from holdfast.threat import LinfThreat

from . import common

SIZE = (6.4, 2.7)
LABELS = ("ES", "GTM", "LTM", "TARGET1", "TRIPLET", "RANK")


def draw(figure: Figure) -> None:
    """Draw the matrix."""
    axes, task = figure.subplots(), common.task("hm-ics")
    eps = 1.5 * common.EPS
    broken = []
    for label in LABELS:
        outcome = run(task, ATTACKS[label], common.search(6, eps), LinfThreat(eps=eps), label=label)
        broken.append(hits(outcome.z, task).numpy() == 0)
    rows = np.stack([*broken, np.any(broken, axis=0)])[:, :60]
    rows = rows[:, np.argsort(-rows.sum(0), kind="stable")]
    for place, row in enumerate(rows):
        colour = common.ATTACKED if place == len(LABELS) else common.CLEAN
        axes.scatter(
            np.nonzero(row)[0], np.full(row.sum(), place), marker="s", s=15, color=colour, linewidths=0
        )
        axes.annotate(
            f"{100 * (1 - row.mean()):.0f} % right",
            (61, place),
            va="center",
            color=colour,
            fontsize=9.5,
            annotation_clip=False,
        )
    axes.set(
        xlim=(-1, 74),
        ylim=(len(LABELS) + 0.6, -0.6),
        xlabel="query",
        yticks=range(len(LABELS) + 1),
        xticks=[0, 20, 40, 60],
    )
    axes.set_yticklabels([*LABELS, "worst case"])
