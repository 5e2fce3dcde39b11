"""Mean place of chosen candidates over the steps of QA+ and QA-, for an undefended and a hardened encoder.

Mean place of the chosen candidates as the search goes on (100 queries, eps 0.1). QA+ pulls random
candidates forward from the middle of the list, QA- pushes near ones back.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from holdfast.attacks import ATTACKS, run
from holdfast.search import PGD
from holdfast.threat import LinfThreat

from . import common

STEPS = (0, 1, 2, 4, 6, 8, 12)


def draw(figure: Figure) -> None:
    """Draw two panels."""
    for axes, label in zip(figure.subplots(1, 2), ("QA+", "QA-"), strict=True):
        for (name, shown), colour in zip(common.NAMES.items(), (common.ATTACKED, common.HELD), strict=True):
            places = []
            for steps in STEPS:
                search = PGD(steps=steps, alpha=0.02)
                outcome = run(
                    common.task(name), ATTACKS[label], search, LinfThreat(eps=common.EPS), label=label
                )
                places.append(100 * float(outcome.attacked["rank"].mean()))
            axes.plot(STEPS, places, "o-", color=colour, label=shown, markersize=4)
        axes.set(title=label, xlabel="steps", ylabel="mean place, %", ylim=(0, None))
    axes.legend()
