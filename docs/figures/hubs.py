"""Share of lists that hold each of 30 gallery images, before and after the attack that makes hubs of them.

Share of 200 digits whose first ten results hold a gallery image, for 30 images before (blue) and after
(orange) each was moved by at most 0.1, on the undefended encoder. In a fair gallery everybody stands in
a twentieth of the lists.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from holdfast.attacks import HubAttack, run
from holdfast.threat import LinfThreat

from . import common


def draw(figure: Figure) -> None:
    """Draw both."""
    axes, task = figure.subplots(), common.task("plain", 2 * common.QUERIES)
    count = min(30, len(task))
    outcome = run(
        task.rows(slice(0, count)),
        HubAttack(k=10, w=min(128, len(task) // 2)),
        common.search(12),
        LinfThreat(eps=common.EPS),
        label="HUB",
    )
    order = outcome.clean["hub"].argsort()
    for places, (values, colour, shown) in enumerate(
        ((outcome.clean, common.CLEAN, "before"), (outcome.attacked, common.ATTACKED, "after"))
    ):
        xs = [i + 0.42 * places for i in range(count)]
        axes.bar(xs, 100 * values["hub"][order].numpy(), 0.4, color=colour, label=shown)
    axes.set(xlabel="gallery image", ylabel="lists that hold it, %", xticks=[])
    axes.legend()
