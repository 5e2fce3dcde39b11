"""Bars of what is right before and after LTM, GTM and GTT, undefended and hardened.

Share of 100 test digits that are right before (outline) and after (filled) each attack, eps 0.1. Two of
them have a corrected and a published form; these are the corrected ones.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from holdfast.attacks import ATTACKS, run
from holdfast.threat import LinfThreat

from . import common

LABELS = ("LTM", "GTM", "GTT")


def draw(figure: Figure) -> None:
    """Draw the bars."""
    axes = figure.subplots()
    for place, (name, shown) in enumerate(common.NAMES.items()):
        xs = [i + (place - 0.5) * 0.36 for i in range(len(LABELS))]
        before, after = [], []
        for label in LABELS:
            outcome = run(
                common.task(name), ATTACKS[label], common.search(), LinfThreat(eps=common.EPS), label=label
            )
            metric = next(iter(outcome.attacked))
            before.append(100 * float(outcome.clean[metric].mean()))
            after.append(100 * float(outcome.attacked[metric].mean()))
        colour = (common.ATTACKED, common.HELD)[place]
        axes.bar(xs, before, 0.32, fill=False, edgecolor=colour, linewidth=1.2)
        axes.bar(xs, after, 0.32, color=colour, alpha=0.75, label=shown)
    axes.set(xticks=range(len(LABELS)), ylabel="%", ylim=(0, 125))
    axes.set_xticklabels(
        [
            f"{label}: {metric}"
            for label, metric in zip(LABELS, ("recall@1", "recall@1", "retain@4"), strict=True)
        ]
    )
    axes.legend(ncols=2, loc="upper right")
