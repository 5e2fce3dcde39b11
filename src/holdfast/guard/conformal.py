"""How many clean queries a false-alarm rate needs."""

from __future__ import annotations

import math

from ..functional.conformal import scores_needed

SCALE_EVERY = 4
"""Every fourth clean query sets means and scales; the others, which the score has not seen, the threshold."""


def queries_needed(rate: float) -> int:
    """Return the least number of clean queries with which a false-alarm rate can be kept.

    Examples
    --------
    >>> queries_needed(0.01)
    132
    """
    least = scores_needed(rate)  # of those that set the threshold
    n = least + math.ceil(least / (SCALE_EVERY - 1))
    return max(n, SCALE_EVERY + 1)  # two of them must set the scales
