"""How sure a number is: Wilson and bootstrap intervals over queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..errors import InvalidArgument

Z95 = 1.959963984540054


class Estimate(NamedTuple):
    """A mean over ``n`` queries and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


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
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def estimate(values: Tensor, seed: int = 0) -> Estimate:
    """Return the mean of per-query values with its interval: Wilson for 0/1 values, else the bootstrap.

    Parameters
    ----------
    values
        (n,) finite numbers.
    seed
        Of the bootstrap.
    """
    array = values.detach().double().cpu().numpy()
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise InvalidArgument("values", "at least one finite number, (n,)", array.shape)
    mean = float(array.mean())
    if np.isin(array, (0.0, 1.0)).all():
        low, high = wilson(round(float(array.sum())), array.size)
    else:
        low, high = bootstrap(lambda rows: float(array[rows].mean()), array.size, seed=seed)
    return Estimate(mean, min(low, mean), max(high, mean), array.size)
