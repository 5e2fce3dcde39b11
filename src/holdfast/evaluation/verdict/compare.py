"""Two attacks on the same queries."""

from __future__ import annotations

from torch import Tensor

from ..paired import LEVEL, mcnemar
from ..paired import tolerance as tolerance_of


def beats(a: Tensor, b: Tensor) -> float:
    """Return the one-sided p-value of McNemar's exact test that ``a`` succeeds on more queries than ``b``.

    Parameters
    ----------
    a, b
        (n,) bool, the same queries.
    """
    return mcnemar(b, a, "greater") if len(a) else 1.0


def tolerance(p: float, n: int) -> float:
    """Return :func:`~holdfast.evaluation.paired.tolerance`, of one query where there is none."""
    return tolerance_of(p, max(n, 1))


__all__ = ["LEVEL", "beats", "share", "tolerance"]


def share(hits: Tensor) -> float:
    """Return the share of True in (n,); 0 for no queries."""
    return float(hits.double().mean()) if len(hits) else 0.0
