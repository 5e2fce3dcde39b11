"""The training rows as references, and the moved rows that take their place.

Above: training rows as references under ARML. Below: the rows as `RobustPrototypes` moved them, with its
metric. References that stood awkwardly have gone back into their class; mean radii stand in the titles.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from holdfast.linear import ARML, RobustPrototypes

from . import _table

SIZE = (5.2, 5.6)


def draw(figure: Figure) -> None:
    """Draw both sets of references."""
    x, y = _table.data()
    plain = ARML(random_state=0).fit(x, y)
    model = RobustPrototypes(None, steps=150, random_state=0).fit(x, y)
    left, right = figure.subplots(2, 1)
    _table.draw(left, x, y, plain.get_mahalanobis_matrix(), "training rows")
    labels = np.asarray(model.reference_labels_).astype(np.int64)
    _table.draw(right, np.asarray(model.references_), labels, model.get_mahalanobis_matrix(), "moved rows")
