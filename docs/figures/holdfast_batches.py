"""Recall@1 against the robustness score by method and seed; holdfast lies to the upper right.

Measured runs of the small Fashion-MNIST protocol (files in `benchmarks/results`), one point for each
seed. `holdfast` is HM&ICS in batches of 16 pairs: about 10 points more score, about 1 point less recall.
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from . import common

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
COLOURS = {
    "plain": common.SOFT, "est": common.OTHER, "act": common.WARM, "hm": common.CLEAN, "hm-ics": common.CLEAN,
    "holdfast": common.HELD, "holdfast-robust": common.HELD,
}  # fmt: skip


def draw(figure: Figure) -> None:
    """Draw the runs."""
    axes = figure.subplots()
    rows = [
        row
        for name in ("2026-11-21-fashion-small.json", "2026-11-21-holdfast-small.json")
        for row in json.loads((RESULTS / name).read_text(encoding="utf-8"))["rows"]
        if row["method"] in COLOURS
    ]
    for method, colour in COLOURS.items():
        own = [row for row in rows if row["method"] == method]
        xs, ys = [100 * row["recall@1"] for row in own], [row["ers"] for row in own]
        axes.plot(xs, ys, "s" if method in ("hm-ics", "holdfast-robust") else "o", color=colour, markersize=6)
        label = {"hm": "", "hm-ics": "hm, hm-ics"}.get(method, method)
        if own and label:
            axes.annotate(
                label, (max(xs), sum(ys) / len(ys)), textcoords="offset points", xytext=(7, -3), color=colour
            )
    axes.set(xlabel="clean Recall@1, %", ylabel="ERS", xlim=(64, 86))
