"""Kendall's tau between the wanted and the actual order of five results, before and after the order attack.

100 queries, five of their nearest results each, a random wanted order (eps 0.1): 0 is chance, 1 the
wanted order. With SPFOA, which keeps the five on top, the order is harder to reach.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from holdfast.attacks import OrderAttack, run
from holdfast.threat import LinfThreat

from . import common


def draw(figure: Figure) -> None:
    """Draw FOA and SPFOA on the undefended encoder."""
    task = common.task("plain")
    kinds = {"FOA": OrderAttack(m=5, top=0.2), "SPFOA, kept on top": OrderAttack(m=5, top=0.2, keep=400.0)}
    for axes, (shown, attack) in zip(figure.subplots(1, 2, sharey=True), kinds.items(), strict=True):
        outcome = run(task, attack, common.search(12), LinfThreat(eps=common.EPS), label="FOA")
        for values, colour, when in (
            (outcome.clean, common.CLEAN, "before"),
            (outcome.attacked, common.ATTACKED, "after"),
        ):
            axes.hist(
                values["kendall"].numpy(), bins=11, range=(-1.1, 1.1), color=colour, alpha=0.6, label=when
            )
        axes.set(title=shown, xlabel="Kendall's tau with the wanted order", yticks=[])
    axes.legend(loc="upper left")
