"""Split conformal prediction: which of some scores is the threshold, in exact decimal arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction


def conformal_place(n: int, rate: float) -> int:
    """Return ``ceil((n + 1) (1 - rate))``, in exact decimal arithmetic; above n where n is too small.

    A new score is above the score at that place, counted from 1 in ascending order, with probability at most
    ``rate``, where it and the n scores are exchangeable.

    References
    ----------
    Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005, chapter 4.

    Examples
    --------
    >>> conformal_place(99, 0.01), conformal_place(98, 0.01), conformal_place(999, 0.1)
    (99, 99, 900)
    """
    return math.ceil((n + 1) * (1 - Fraction(str(float(rate)))))


def scores_needed(rate: float) -> int:
    """Return the least n for which :func:`conformal_place` is at most n.

    Examples
    --------
    >>> scores_needed(0.01), scores_needed(0.3), scores_needed(0.99)
    (99, 3, 1)
    """
    return max(1, math.ceil(1 / Fraction(str(float(rate)))) - 1)
