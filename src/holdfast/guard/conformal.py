"""Which clean score is the threshold, and how many clean queries a false-alarm rate needs."""

from __future__ import annotations

import math
from fractions import Fraction

SCALE_EVERY = 4
"""Every fourth clean query sets means and scales; the others, which the score has not seen, the threshold."""


def conformal_place(n: int, rate: float) -> int:
    """Return ``ceil((n + 1) (1 - rate))``, in exact decimal arithmetic; above n where n is too small.

    Examples
    --------
    >>> conformal_place(99, 0.01), conformal_place(98, 0.01), conformal_place(999, 0.1)
    (99, 99, 900)
    """
    return math.ceil((n + 1) * (1 - Fraction(str(float(rate)))))


def queries_needed(rate: float) -> int:
    """Return the least number of clean queries with which a false-alarm rate can be kept.

    Examples
    --------
    >>> queries_needed(0.01)
    132
    """
    least = max(1, math.ceil(1 / Fraction(str(float(rate)))) - 1)  # of those that set the threshold
    n = least + math.ceil(least / (SCALE_EVERY - 1))
    return max(n, SCALE_EVERY + 1)  # two of them must set the scales
