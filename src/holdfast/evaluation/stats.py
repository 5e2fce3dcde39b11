"""How sure a number is: Wilson and bootstrap intervals over queries, and how many queries are enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument

Z95 = 1.959963984540054
Values = Tensor | np.ndarray | Sequence[float]
"""One number for each query, (n,)."""


class Estimate(NamedTuple):
    """A mean over ``n`` queries and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def numbers(argument: str, values: Values, *, finite: bool = True) -> np.ndarray:
    """Return per-query values as a float64 array.

    Parameters
    ----------
    argument
        Name for the error.
    values
        (n,), n >= 1.
    finite
        Whether infinity is refused; NaN always is.
    """
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(values, dtype=np.float64)
    bad = ~np.isfinite(array) if finite else np.isnan(array)
    if array.ndim != 1 or array.size == 0 or bad.any():
        need = "at least one finite number, (n,)" if finite else "at least one number, (n,), no NaN"
        raise InvalidArgument(argument, need, "NaN or infinity" if bad.any() else array.shape)
    return array


def zeros_and_ones(*arrays: np.ndarray) -> bool:
    """Return whether all values are 0 or 1, so that their mean is a proportion."""
    return all(bool(np.isin(array, (0.0, 1.0)).all()) for array in arrays)


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion.

    Examples
    --------
    >>> low, high = wilson(0, 10)
    >>> low, round(high, 3)
    (0.0, 0.278)

    References
    ----------
    Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 1927.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InvalidArgument("successes, n", "0 <= successes <= n, n >= 1", (successes, n))
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + half) / scale)
    return low, high


def half_width(p: float, n: int, z: float = Z95) -> float:
    """Return half the length of the Wilson interval of a proportion ``p`` seen on ``n`` queries.

    Examples
    --------
    >>> round(half_width(0.5, 1000), 4)
    0.0309
    """
    if not 0 <= p <= 1:
        raise InvalidArgument("p", "a proportion in [0, 1]", p)
    if n < 1:
        raise InvalidArgument("n", "an integer >= 1", n)
    return z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)


def enough_queries(p: float, half_width: float, z: float = Z95) -> int:
    """Return the least number of queries at which the Wilson interval is as narrow as wanted.

    Parameters
    ----------
    p
        Expected proportion; 0.5 is the worst case.
    half_width
        Wanted half-length, in (0, 0.5].

    Examples
    --------
    >>> enough_queries(0.5, 0.02)
    2398
    """
    if not 0 <= p <= 1:
        raise InvalidArgument("p", "a proportion in [0, 1]", p)
    if not 0 < half_width <= 0.5:
        raise InvalidArgument("half_width", "a number in (0, 0.5]", half_width)
    # With q = p (1 - p) and m = n + z^2, half_width^2 m^2 - z^2 q m + z^4 (q - 1/4) = 0.
    q, w, zz = p * (1 - p), half_width, z * z
    m = zz * (q + math.sqrt(q * q + 4 * w * w * (0.25 - q))) / (2 * w * w)
    return max(1, math.ceil(m - zz - 1e-9 * m))


def resample(
    statistic: Callable[[np.ndarray], Any], n: int, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return a statistic on queries drawn with replacement.

    Parameters
    ----------
    statistic
        From (n,) row numbers to a number or an array of fixed shape.
    n
        Number of queries.
    resamples, seed
        Of the resampling.

    Returns
    -------
    numpy.ndarray
        (resamples, ...).
    """
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(0, n, n)) for _ in range(resamples)])


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic under resampling of queries.

    Parameters
    ----------
    statistic
        From (n,) row numbers, drawn with replacement, to a number.
    n
        Number of queries.
    resamples, seed
        Of the resampling.
    """
    low, high = np.percentile(resample(statistic, n, resamples, seed), [2.5, 97.5])
    return float(low), float(high)


def estimate(values: Values, seed: int = 0) -> Estimate:
    """Return the mean of per-query values with its interval: Wilson for 0/1 values, else the bootstrap.

    Parameters
    ----------
    values
        (n,) finite numbers.
    seed
        Of the bootstrap.
    """
    array = numbers("values", values)
    mean = float(array.mean())
    if zeros_and_ones(array):
        low, high = wilson(round(float(array.sum())), array.size)
    else:
        low, high = bootstrap(lambda rows: float(array[rows].mean()), array.size, seed=seed)
    return Estimate(mean, min(low, mean), max(high, mean), array.size)
