"""Three triplets in the plane; under ACT the positive and the negative of each move towards each other.

ACT draws positive and negative together and leaves the anchor alone: what the encoder then has to do is
to pull a collapsed pair apart. Grey circles are the budgets.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from holdfast.adversaries import Collapse, MinMax

from . import common

SIZE = (6.0, 3.1)


def draw(figure: Figure) -> None:
    """Draw ACT beside min-max on the same roles."""
    left, right = figure.subplots(1, 2)
    common.draw_triplets(left, common.moved(Collapse()), "ACT: p and n meet")
    common.draw_triplets(right, common.moved(MinMax(moves="pn")), "min-max on p and n: they change sides")
