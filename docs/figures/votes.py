"""Certified radius against the share of votes, for 100, 1 000 and 10 000 noisy copies.

The radius that votes certify (sigma 0.25, failure probability 0.001), by the share of copies that got
the winning answer. Copies buy large radii: a unanimous vote of 100 certifies less than half of what 10
000 do.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from holdfast.certify.gaussian import lower_proportion, vote_radius

from . import common


def draw(figure: Figure) -> None:
    """Draw one line for each number of copies."""
    axes = figure.subplots()
    for copies, colour in ((100, common.WARM), (1000, common.CLEAN), (10_000, common.HELD)):
        hits = np.unique(np.linspace(copies / 2, copies, 101).astype(int))
        radius = vote_radius(lower_proportion(hits, copies, 1e-3), 0.25)
        axes.plot(100 * hits / copies, np.asarray(radius), color=colour, label=f"{copies} copies")
    axes.set(
        xlabel="copies with the winning answer, %",
        ylabel="certified l2 radius",
        ylim=(0, None),
        xlim=(50, 100),
    )
    axes.legend()
