"""Histogram of the cosine between each query and a random gallery image, before and after the attack.

Cosine with the chosen image of another query, before and after (100 queries, eps 0.1). The score of a
*collapsed* encoder is bad here whatever the attack does: all cosines are 1 from the start.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from holdfast.attacks import ATTACKS, run
from holdfast.threat import LinfThreat

from . import common


def draw(figure: Figure) -> None:
    """Draw both encoders."""
    for axes, (name, shown) in zip(figure.subplots(1, 2, sharex=True), common.NAMES.items(), strict=True):
        outcome = run(
            common.task(name), ATTACKS["TMA"], common.search(), LinfThreat(eps=common.EPS), label="TMA"
        )
        for values, colour, when in (
            (outcome.clean, common.CLEAN, "before"),
            (outcome.attacked, common.ATTACKED, "after"),
        ):
            axes.hist(values["cosine"].numpy(), bins=24, range=(-1, 1), color=colour, alpha=0.6, label=when)
        axes.set(title=shown, xlabel="cosine with the chosen image", yticks=[])
    axes.legend(loc="upper left")
