"""Places of candidates before and after CA+ and CA-, for an undefended and a hardened encoder.

Place of 100 test digits in the lists of chosen queries, before and after (eps 0.1). CA+ brings random
candidates to the front; CA- sends near ones to the back. On the hardened encoder (`hm-ics`, trained for
a few seconds) they move less far.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from holdfast.attacks import ATTACKS, run
from holdfast.threat import LinfThreat

from . import common

SIZE = (6.4, 4.2)


def draw(figure: Figure) -> None:
    """Draw four panels."""
    grid = figure.subplots(2, 2, sharex=True)
    for row, label in zip(grid, ("CA+", "CA-"), strict=True):
        for axes, (name, shown) in zip(row, common.NAMES.items(), strict=True):
            outcome = run(
                common.task(name), ATTACKS[label], common.search(), LinfThreat(eps=common.EPS), label=label
            )
            for values, colour, when in (
                (outcome.clean, common.CLEAN, "before"),
                (outcome.attacked, common.ATTACKED, "after"),
            ):
                axes.hist(
                    100 * values["rank"].numpy(), bins=20, range=(0, 100), color=colour, alpha=0.6, label=when
                )
            axes.set(title=f"{label}, {shown}", yticks=[])
    for axes in grid[1]:
        axes.set_xlabel("place in the list, %")
    grid[0][0].legend()
