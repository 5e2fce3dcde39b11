"""Which of two is better: the same queries twice, or several training seeds of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from ..errors import InvalidArgument
from .stats import Z95, Values, bootstrap, numbers, zeros_and_ones

LEVEL = 0.05
MIN_SEEDS = 3
Alternative = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """B against A on the same queries.

    Attributes
    ----------
    difference
        Mean of B minus mean of A.
    low, high
        Its 95 % interval over queries.
    p_value
        Two-sided, of no difference.
    n
        Queries.
    discordant
        Queries on which A is higher, and queries on which B is higher.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    discordant: tuple[int, int]

    @property
    def supported(self) -> bool:
        """Whether a difference may be claimed: p < 0.05, and 0 outside the interval."""
        return self.p_value < LEVEL and not self.low <= 0 <= self.high

    def words(self, a: str = "A", b: str = "B", *, points: bool = True) -> str:
        """Say it in a sentence.

        Parameters
        ----------
        a, b
            What the two are called.
        points
            Show shares in percentage points; else plain numbers.

        Examples
        --------
        >>> found = dict(difference=0.042, low=0.01, high=0.074, p_value=0.01)
        >>> Comparison(**found, n=500, discordant=(9, 30)).words()
        'B is 4.2 points higher than A (95 % interval 1.0 to 7.4, p = 0.01)'
        """
        return _sentence(self.difference, self.low, self.high, self.p_value, self.supported, a, b, points)


@dataclass(frozen=True, kw_only=True)
class SeedComparison:
    """B against A over training seeds.

    Attributes
    ----------
    difference
        Mean of B minus mean of A.
    seeds
        How many of A and of B.
    sd
        Spread of one training: the root of the mean of the two variances. This and all that follows is
        ``None`` with fewer than three seeds of either.
    low, high
        95 % interval of the difference.
    p_value
        Two-sided.
    """

    difference: float
    seeds: tuple[int, int]
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    @property
    def enough(self) -> bool:
        """Whether there are three seeds of each."""
        return min(self.seeds) >= MIN_SEEDS

    @property
    def supported(self) -> bool:
        """Whether a difference may be claimed: more than two ``sd``, and p < 0.05."""
        if self.sd is None or self.p_value is None:
            return False
        return abs(self.difference) > 2 * self.sd and self.p_value < LEVEL

    def words(self, a: str = "A", b: str = "B", *, points: bool = True) -> str:
        """Say it in a sentence; see :meth:`Comparison.words`."""
        if self.low is None or self.high is None or self.p_value is None:
            return (
                f"not enough seeds: {self.seeds[0]} of {a}, {self.seeds[1]} of {b}, need {MIN_SEEDS} of each"
            )
        return _sentence(self.difference, self.low, self.high, self.p_value, self.supported, a, b, points)


def compare(a: Values, b: Values, *, seed: int = 0, resamples: int = 1000) -> Comparison:
    """Compare two evaluations of the same queries.

    Values that are all 0 or 1 get McNemar's exact test and the Bonett-Price interval. Others get the paired
    bootstrap interval, and the p value of flipping the sign of each query's difference at random, of which
    McNemar's test is the form for 0/1 values.

    Parameters
    ----------
    a, b
        (n,) values, the same query in the same row.
    seed, resamples
        Of the bootstrap and of the sign flips; the least p value is ``1 / (resamples + 1)``.

    Raises
    ------
    InvalidArgument
        If the two are not one finite number for each of the same queries.

    Notes
    -----
    Why no bootstrap for 0/1 values: where no query differs it gives the interval from 0 to 0, however few
    the queries are. No p value is corrected for the number of comparisons that are made.

    References
    ----------
    McNemar, Psychometrika 12 (1947). Bonett and Price, *Adjusted Wald Confidence Interval for a Difference of
    Binomial Proportions Based on Paired Data*, J. Educational and Behavioral Statistics 37 (2012).

    Examples
    --------
    >>> compare([1, 0, 1, 1], [1, 0, 1, 1]).words()
    'within noise: B - A is 0.0 points (95 % interval -46.2 to 46.2, p = 1)'
    """
    a, b = _pairs(a, b)
    d = b - a
    difference = float(d.mean())
    worse, better = int((d < 0).sum()), int((d > 0).sum())
    if zeros_and_ones(a, b):
        low, high = _bonett_price(worse, better, d.size)
        p = mcnemar(a, b)
    else:
        low, high = bootstrap(lambda rows: float(d[rows].mean()), d.size, resamples, seed)
        p = _sign_flips(d, resamples, seed)
    return Comparison(
        difference=difference,
        low=min(low, difference),
        high=max(high, difference),
        p_value=p,
        n=d.size,
        discordant=(worse, better),
    )


def mcnemar(a: Values, b: Values, alternative: Alternative = "two-sided") -> float:
    """Return the p value of McNemar's exact test on paired 0/1 values.

    Parameters
    ----------
    a, b
        (n,) values, 0 or 1.
    alternative
        ``"greater"`` asks whether B is 1 more often than A.

    Examples
    --------
    >>> a, b = [1] + 9 * [0] + 5 * [1], [0] + 9 * [1] + 5 * [1]
    >>> mcnemar(a, b), mcnemar(a, b, "greater")  # 22 / 1024 and 11 / 1024
    (0.021484375, 0.0107421875)
    """
    a, b = _pairs(a, b)
    if not zeros_and_ones(a, b):
        raise InvalidArgument("a, b", "values 0 or 1", "others")
    if alternative not in ("two-sided", "greater", "less"):
        raise InvalidArgument("alternative", "'two-sided', 'greater' or 'less'", alternative)
    better, discordant = int((b > a).sum()), int((b != a).sum())
    if discordant == 0:
        return 1.0
    return float(scipy.stats.binomtest(better, discordant, 0.5, alternative=alternative).pvalue)


def tolerance(p: float, n: int) -> float:
    """Return by how much one attack may fall behind another on ``n`` queries before it counts as weaker.

    ``max(0.01, 1.64 sqrt(p (1 - p) / n))``: one percentage point, or one-sided 95 % noise of a proportion.

    Examples
    --------
    >>> round(tolerance(0.5, 200), 4), tolerance(0.0, 200)
    (0.058, 0.01)
    """
    if not 0 <= p <= 1:
        raise InvalidArgument("p", "a proportion in [0, 1]", p)
    if n < 1:
        raise InvalidArgument("n", "an integer >= 1", n)
    return max(0.01, 1.64 * math.sqrt(p * (1 - p) / n))


def compare_seeds(a: Values, b: Values) -> SeedComparison:
    """Compare two methods by the same measure of several trainings of each (Welch).

    Parameters
    ----------
    a, b
        One value for each training seed; the numbers of seeds may differ.

    Notes
    -----
    A difference is claimed when it exceeds twice the spread of one training and Welch's test gives p < 0.05;
    with three seeds the second is the stricter. The noise of queries is a matter of :func:`compare`.

    References
    ----------
    Welch, *The Generalization of 'Student's' Problem when Several Different Population Variances are
    Involved*, Biometrika 34 (1947).

    Examples
    --------
    >>> compare_seeds([0.31, 0.33], [0.38, 0.39]).words()
    'not enough seeds: 2 of A, 2 of B, need 3 of each'
    """
    a, b = numbers("a", a), numbers("b", b)
    difference = float(b.mean() - a.mean())
    seeds = (a.size, b.size)
    if min(seeds) < MIN_SEEDS:
        return SeedComparison(difference=difference, seeds=seeds)
    variances = np.array([a.var(ddof=1), b.var(ddof=1)])
    parts = variances / seeds
    error = math.sqrt(parts.sum())
    if error == 0:
        half, p = 0.0, float(difference == 0)
    else:
        freedom = parts.sum() ** 2 / (parts**2 / (np.array(seeds) - 1)).sum()
        half = float(scipy.stats.t.ppf(0.975, freedom)) * error
        p = float(2 * scipy.stats.t.sf(abs(difference) / error, freedom))
    return SeedComparison(
        difference=difference,
        seeds=seeds,
        sd=math.sqrt(variances.mean()),
        low=difference - half,
        high=difference + half,
        p_value=p,
    )


def _pairs(a: Values, b: Values) -> tuple[np.ndarray, np.ndarray]:
    first, second = numbers("a", a), numbers("b", b)
    if first.size != second.size:
        raise InvalidArgument("b", f"a value for each of the {first.size} queries of a", second.size)
    return first, second


def _bonett_price(worse: int, better: int, n: int) -> tuple[float, float]:
    """Return the interval of (better - worse) / n, one query added to each."""
    up, down = (better + 1) / (n + 2), (worse + 1) / (n + 2)
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def _sign_flips(d: np.ndarray, resamples: int, seed: int) -> float:
    """Return the two-sided p value of a mean of 0 when the sign of each difference is a coin's toss."""
    rng = np.random.default_rng(seed)
    total = d.sum()
    sums = [total - 2 * d[rng.integers(0, 2, d.size, dtype=np.bool_)].sum() for _ in range(resamples)]
    slack = 1e-12 * np.abs(d).sum()  # of rounding
    extreme = int((np.abs(sums) >= abs(total) - slack).sum())
    return (extreme + 1) / (resamples + 1)


def _sentence(
    difference: float, low: float, high: float, p: float, supported: bool, a: str, b: str, points: bool
) -> str:
    scale, digits, unit = (100, 1, " points") if points else (1, 3, "")
    chance = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"

    def show(value: float) -> str:
        return f"{round(scale * value, digits) + 0.0:.{digits}f}"  # no minus before 0.0

    if not supported:
        sign = "+" if difference > 0 else ""
        return (
            f"within noise: {b} - {a} is {sign}{show(difference)}{unit} "
            f"(95 % interval {show(low)} to {show(high)}, {chance})"
        )
    word = "higher" if difference > 0 else "lower"
    if difference < 0:
        low, high = -high, -low
    return (
        f"{b} is {show(abs(difference))}{unit} {word} than {a} "
        f"(95 % interval {show(low)} to {show(high)}, {chance})"
    )
