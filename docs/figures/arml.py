"""Certified circles around queries in the plane, larger under the learned metric than the Euclidean one.

Exact certified radii of 1-NN around the crosses: no step inside a circle changes the answer. ARML learns
that only the upright direction matters; the circles stay circles of the input space, whatever the
metric.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from holdfast.linear import ARML

from . import _table

SIZE = (5.2, 5.6)


def draw(figure: Figure) -> None:
    """Draw both metrics."""
    x, y = _table.data()
    model = ARML(random_state=0).fit(x, y)
    left, right = figure.subplots(2, 1)
    _table.draw(left, x, y, None, "Euclidean")
    _table.draw(right, x, y, model.get_mahalanobis_matrix(), "ARML")
