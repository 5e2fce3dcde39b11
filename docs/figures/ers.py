"""Ten items of the robustness score for an undefended, a hardened and a collapsed encoder.

Each item of ERS, mapped to 0 to 100 (eps 0.1, 60 queries). The third encoder maps every digit to nearly
the same point: it answers next to nothing right, and still gets full marks for the shift and high ones
for ranks that hardly move.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from holdfast.evaluation import SUITES, retrieval_task, run_suite, score
from holdfast.threat import LinfThreat

from . import common

SIZE = (6.4, 3.6)


def collapsed(x: Tensor) -> Tensor:
    """Embed everything near one point."""
    first = torch.zeros(len(x), 4)
    first[:, 0] = 1
    return torch.nn.functional.normalize(first + 0.01 * x.flatten(1)[:, 20:24], dim=1)


def draw(figure: Figure) -> None:
    """Draw the profile."""
    axes = figure.subplots()
    base = common.task("plain")
    count = min(60, len(base))
    encoders = {
        "undefended": common.encoder("plain"),
        "HM&ICS": common.encoder("hm-ics"),
        "collapsed": collapsed,
    }
    suite = SUITES["ers"]
    for place, ((shown, encoder), colour) in enumerate(
        zip(encoders.items(), (common.ATTACKED, common.HELD, common.SOFT), strict=True)
    ):
        task = retrieval_task(encoder, base.x[:count], base.y[:count])
        results = run_suite(task, suite, common.search(6), LinfThreat(eps=common.EPS))
        found = score(suite, results)
        values = [one.value for one in found.items.values()]
        xs = [i + (place - 1) * 0.27 for i in range(len(values))]
        axes.bar(xs, values, 0.25, color=colour, alpha=0.85, label=f"{shown}: {found.total.value:.0f}")
    axes.set(xticks=range(len(found.items)), ylabel="item, 0 to 100", ylim=(0, 128))
    axes.set_xticklabels(list(found.items), rotation=35, ha="right")
    axes.legend(ncols=3, loc="upper center")
