"""Two attacks on the same queries."""

from __future__ import annotations

import math

from scipy.stats import binomtest
from torch import Tensor

LEVEL = 0.05


def beats(a: Tensor, b: Tensor) -> float:
    """Return the one-sided p-value of McNemar's exact test that ``a`` succeeds on more queries than ``b``.

    Parameters
    ----------
    a, b
        (n,) bool, the same queries.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5, alternative="greater").pvalue)


def tolerance(p: float, n: int) -> float:
    """Return what counts as equal: one point, or 1.64 standard errors of a proportion."""
    return max(0.01, 1.64 * math.sqrt(max(p * (1 - p), 0.0) / max(n, 1)))


def share(hits: Tensor) -> float:
    """Return the share of True in (n,); 0 for no queries."""
    return float(hits.double().mean()) if len(hits) else 0.0
