"""Robustness curves: the share of queries that is still right at every radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy

from ..errors import InvalidArgument
from .stats import Estimate, Values, estimate, numbers, wilson, zeros_and_ones


def curve(radii: Values, clean_right: Values, eps: Sequence[float]) -> list[Estimate]:
    """Return the share of queries that is still right at each radius, with Wilson intervals.

    Parameters
    ----------
    radii
        (n,) norm of the smallest change that was found to break each query, >= 0, in input units; infinity
        where none was found.
    clean_right
        (n,) 0 or 1: whether the query is right without any change.
    eps
        Radii to read the curve at, >= 0, in input units.

    Returns
    -------
    list of Estimate
        One for each ``eps``, in [0, 1]. A query is right at ``eps`` if it is right when clean and its radius
        is larger than ``eps``: at its own radius it is broken.

    Notes
    -----
    A search finds *some* change, so that the curve is an upper bound of the robustness, as tight as the
    search is good. Each interval is that of its own radius, not of the curve as a whole.

    Examples
    --------
    >>> [e.value for e in curve([0.1, 0.3, 0.3, 0.2], [1, 1, 1, 0], [0.0, 0.1, 0.2, 0.3])]
    [0.75, 0.5, 0.5, 0.0]
    """
    r = _effective(radii, clean_right)
    n = r.size
    found = []
    for at in eps:
        if not 0 <= at < np.inf:
            raise InvalidArgument("eps", "finite radii >= 0", at)
        right = int((r > at).sum())
        found.append(Estimate(right / n, *wilson(right, n), n))
    return found


def median_radius(radii: Values, clean_right: Values) -> Estimate:
    """Return the smallest radius at which at least half of the queries are broken.

    Queries that are wrong when clean count with radius 0. Of an even number the lower of the two middle radii
    is taken, which counts against the defense. The interval is that of order statistics: it makes no
    assumption, holds with infinite radii, and covers at least 95 % from six queries on; for fewer it is the
    whole range and covers less.

    Parameters
    ----------
    radii, clean_right
        As for :func:`curve`.

    Examples
    --------
    >>> median_radius([0.1, 0.3, float("inf"), 0.2], [1, 1, 1, 1]).value
    0.2
    """
    r = np.sort(_effective(radii, clean_right))
    n = r.size
    k = max(1, int(scipy.stats.binom.ppf(0.025, n, 0.5)))  # chance < 0.025 that fewer are below the median
    return Estimate(float(r[(n - 1) // 2]), float(r[k - 1]), float(r[n - k]), n)


def area_under_curve(radii: Values, clean_right: Values, eps_max: float, seed: int = 0) -> Estimate:
    """Return the mean of the robustness curve over radii from 0 to ``eps_max``, in [0, 1].

    The exact integral, divided by ``eps_max``; no grid is involved.

    Parameters
    ----------
    radii, clean_right
        As for :func:`curve`.
    eps_max
        Largest radius, > 0, in input units.
    seed
        Of the bootstrap of the interval.

    Examples
    --------
    >>> area_under_curve([0.1, 0.3, 0.9, 0.2], [1, 1, 1, 0], eps_max=0.4).value
    0.5
    """
    if not 0 < eps_max < np.inf:
        raise InvalidArgument("eps_max", "a finite radius > 0", eps_max)
    return estimate(np.minimum(_effective(radii, clean_right), eps_max) / eps_max, seed)


def radii_from_evaluations(right: Mapping[float, Values]) -> np.ndarray:
    """Return the smallest radius at which each query was found broken, from evaluations at several radii.

    Parameters
    ----------
    right
        Radius -> (n,) 0 or 1: whether each query is still right there. The same queries in every evaluation;
        0 for the clean values.

    Returns
    -------
    numpy.ndarray
        (n,) infinity where a query was never broken. What breaks a query in a small ball lies in every
        larger one, so a later evaluation that missed it does not mend it. With ``clean_right`` of
        ``right[0.0]``, :func:`curve` at these radii is then the curve of the evaluations together.

    Examples
    --------
    >>> radii_from_evaluations({0.0: [1, 1, 1], 0.2: [0, 1, 1], 0.1: [1, 0, 1]})
    array([0.2, 0.1, inf])
    """
    if not right:
        raise InvalidArgument("right", "at least one radius", right)
    radii: np.ndarray | None = None
    for eps in sorted(right):
        if not 0 <= eps < np.inf:
            raise InvalidArgument("right", "finite radii >= 0", eps)
        held = numbers(f"right[{eps}]", right[eps])
        if radii is None:
            radii = np.full(held.size, np.inf)
        if held.size != radii.size or not zeros_and_ones(held):
            raise InvalidArgument(f"right[{eps}]", f"0 or 1 for each of {radii.size} queries", held.size)
        radii = np.where((held == 0) & np.isinf(radii), eps, radii)
    assert radii is not None
    return radii


def _effective(radii: Values, clean_right: Values) -> np.ndarray:
    """Return the radii, 0 for queries that are wrong when clean."""
    r, right = numbers("radii", radii, finite=False), numbers("clean_right", clean_right)
    if (r < 0).any():
        raise InvalidArgument("radii", "numbers >= 0, infinity allowed", float(r.min()))
    if right.size != r.size or not zeros_and_ones(right):
        raise InvalidArgument("clean_right", f"0 or 1 for each of {r.size} queries", right.size)
    return np.where(right == 1, r, 0.0)
