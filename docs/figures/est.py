"""Three triplets in the plane; under EST every image moves away from its own place, whatever its role.

Left: the shift of EST, here with the plane as its own embedding. All arrows point the same way, because
the gradient at the start is that of a tiny constant in the distance; a real encoder bends them. Right:
REST moves positives and negatives only.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from holdfast.adversaries import Shift

from . import common

SIZE = (6.0, 3.1)


def draw(figure: Figure) -> None:
    """Draw two panels."""
    left, right = figure.subplots(1, 2)
    common.draw_triplets(left, common.moved(Shift(moves="apn")), "EST: every image")
    common.draw_triplets(right, common.moved(Shift(moves="pn")), "REST: positives and negatives")
