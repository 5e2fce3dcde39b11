"""What Gaussian noise proves: radii from probabilities and means that were estimated by sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy.special import betainc, betaincinv, ndtr, ndtri
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import Randomness, normal

TOLERANCE = 1e-9
"""Given away on every mean, score and proportion for the rounding of float64 sums (up to 1e6 terms)."""
BISECTIONS = 60


def noisy_batches(
    x: Tensor, sigma: float, n: int, generator: Randomness, batch_size: int
) -> Iterator[Tensor]:
    """Yield ``n`` noisy copies of one input, a batch at a time.

    Parameters
    ----------
    x
        (*s) one input.
    sigma
        Standard deviation in input units.
    n
        Copies in all.
    generator
        ``RowStreams`` of one stream: each copy then takes its noise from it in turn, whatever the batch size.
    batch_size
        Copies at a time, >= 1.

    Notes
    -----
    Copies are **not** clipped to [0, 1]: the theorem is about Gaussian inputs, and an encoder that clips does
    so as a part of itself. Noise is float32; that float32 noise is exactly Gaussian is assumed, as everywhere
    in practice (Voráček and Hein, *Sound Randomized Smoothing in Floating-Point Arithmetics*, ICLR 2023, show
    what a hostile encoder could make of the difference).
    """
    for start in range(0, n, batch_size):
        copies = x.expand(min(batch_size, n - start), *x.shape)
        yield copies + sigma * normal(copies, generator)


def lower_proportion(k: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """Return the one-sided Clopper-Pearson bound: p >= it with probability 1 - alpha, for k hits of n.

    Parameters
    ----------
    k
        (...) hits, integers in [0, n].
    n, alpha
        Draws; probability of failure of each bound, in (0, 1).

    Notes
    -----
    The root of P(Bin(n, p) >= k) = alpha, made a little smaller; 0 should float64 not confirm that the left
    side is no larger there.

    Examples
    --------
    >>> p = lower_proportion(np.array([0, 10]), 10, 0.001)
    >>> [round(float(v), 6) for v in p], round(0.001**0.1, 6)
    ([0.0, 0.501187], 0.501187)
    """
    if not 0 < alpha < 1:
        raise InvalidArgument("alpha", "a probability in (0, 1)", alpha)
    hits = np.asarray(k, dtype=np.float64)
    if n < 1 or bool(((hits < 0) | (hits > n)).any()):
        raise InvalidArgument("k", f"integers in [0, n], n >= 1 (n = {n})", k)
    safe = np.maximum(hits, 1)
    p = betaincinv(safe, n - safe + 1, alpha) * (1 - TOLERANCE)
    high = betainc(safe, n - safe + 1, p) > alpha  # a failure of the inverse; not met so far
    return np.where((hits > 0) & ~high, p, 0.0)


def rounded_down(radius: np.ndarray) -> np.ndarray:
    """Return radii made smaller by a relative ``TOLERANCE``, never below 0; infinite ones stay."""
    small = np.nextafter(radius * (1 - TOLERANCE), -np.inf)
    return np.where(np.isinf(radius), radius, np.maximum(small, 0.0))


def vote_radius(p: np.ndarray, sigma: float) -> np.ndarray:
    """Return ``sigma * Phi^-1(p)`` where p > 1/2, else 0 (Cohen et al. 2019, theorem 1)."""
    p = np.minimum(np.asarray(p, dtype=np.float64), 1 - TOLERANCE)
    return np.where(p > 0.5, rounded_down(sigma * ndtri(np.maximum(p, 0.5))), 0.0)


def halfspace_radius(score: np.ndarray, threshold: np.ndarray, sigma: float) -> np.ndarray:
    """Return the radius inside which a smoothed score stays above a threshold, from its mean alone.

    Parameters
    ----------
    score
        Lower bounds of <g(x), u>, u of length 1, for a smoothed embedding g of vectors in the unit ball.
    threshold
        Of the same shape. Below or at -1: infinite, if the score is above -1; at 1 or above: 0.
    sigma
        Standard deviation of the noise.

    Notes
    -----
    ``h(x) = (1 + <f(x), u>) / 2`` lies in [0, 1], so ``Phi^-1(E h(x + sigma n))`` changes by at most
    ``|delta| / sigma`` (Salman et al. 2019, lemma 2). The radius is therefore
    ``sigma [Phi^-1((1 + score) / 2) - Phi^-1((1 + threshold) / 2)]``, never less than what the Lipschitz
    constant gives: ``sigma sqrt(pi / 2) (score - threshold)``.

    Examples
    --------
    >>> [float(r) for r in halfspace_radius(np.array([0.5, 0.5, 0.5]), np.array([0.5, 1.0, -1.5]), 1.0)]
    [0.0, 0.0, inf]
    """
    s = np.clip(np.asarray(score, dtype=np.float64) - TOLERANCE, -1.0, 1.0 - TOLERANCE)
    t = np.asarray(threshold, dtype=np.float64) + TOLERANCE
    inside = np.abs(t) < 1
    radius = sigma * (ndtri((1 + s) / 2) - ndtri((1 + np.where(inside, t, 0.0)) / 2))
    radius = np.where(inside & (s > t), rounded_down(np.maximum(radius, 0.0)), 0.0)
    return np.where((t < -1) | ((t <= -1) & (s > -1)), np.inf, radius)


def staircase_radius(levels: np.ndarray, p: np.ndarray, floor: np.ndarray, sigma: float) -> np.ndarray:
    """Return the radius inside which the mean of a bounded quantity stays above 0, from its distribution.

    Parameters
    ----------
    levels
        (g, t) rising levels of g quantities, none below the floor.
    p
        (g, t) lower bounds of P(X >= level) under the noise.
    floor
        (g,) what the quantities are never below.
    sigma
        Standard deviation of the noise.

    Returns
    -------
    numpy.ndarray
        (g,) radii; infinite where the floor is above 0, 0 where the mean itself is not proved positive.

    Notes
    -----
    With ``l_0 = floor``, ``X >= l_0 + sum_i (l_i - l_(i-1)) 1[X >= l_i]``. Each indicator lies in [0, 1], so
    its probability after a shift of length r is at least ``Phi(Phi^-1(p_i) - r / sigma)``, and

    ``E X >= l_0 + sum_i (l_i - l_(i-1)) Phi(Phi^-1(p_i) - r / sigma)``,

    which falls with r; the root is bracketed and its lower end returned. A mean alone allows that X is at
    its two extremes; the levels exclude that, which is worth a factor of about three for embeddings.

    References
    ----------
    Kumar, Levine, Feizi and Goldstein, *Certifying Confidence via Randomized Smoothing*, NeurIPS 2020,
    theorem 2 (there with a band around the distribution function instead of chosen levels).
    """
    steps = np.diff(levels, axis=1, prepend=floor[:, None])  # (g, t)
    if steps.size and steps.min() < 0:
        raise InvalidArgument("levels", "rising levels, none below the floor", float(steps.min()))
    z = ndtri(p)

    def mean(r: np.ndarray) -> np.ndarray:
        return np.asarray(floor + (steps * ndtr(z - r[:, None] / sigma)).sum(1) - TOLERANCE)

    low = np.zeros(len(floor))
    proved = mean(low) > 0
    high = np.full(len(floor), sigma * (40.0 + max(0.0, float(z.max(initial=0.0)))))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        up = mean(middle) > 0
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    radius = np.where(proved, rounded_down(low), 0.0)
    return np.where(floor > TOLERANCE, np.inf, radius)


def ball_width(length: float, n: int, alpha: float) -> float:
    """Return b with ``|mean - E f| <= b`` with probability 1 - alpha, for vectors f in the unit ball.

    Parameters
    ----------
    length
        Length of the mean of the n samples.
    n, alpha
        Samples; probability of failure.

    Notes
    -----
    Let m be the mean of n independent copies of f, |f| <= 1, and g = E f. The bound is on the *length* of
    m - g and so holds for all directions at once, whatever the width of the embedding or the gallery.

    1. ``E |m - g|^2 = (E |f|^2 - |g|^2) / n <= v / n`` with ``v = 1 - |g|^2``; by Jensen
       ``E |m - g| <= sqrt(v / n) <= 1 / sqrt(n)``.
    2. McDiarmid: replacing one sample moves |m - g| by at most 2 / n, so that it exceeds its mean by
       ``sqrt(2 ln(1 / alpha) / n)`` with probability at most alpha. Together
       ``b_1 = 1 / sqrt(n) + sqrt(2 ln(1 / alpha) / n)``.
    3. Bousquet, with ``n |m - g| = sup_u sum_i <f_i - g, u>``, terms at most 2 and of variance at most v:
       ``b_2(|g|) = sqrt(v / n) + sqrt(2 L (v + 4 sqrt(v / n)) / n) + 2 L / (3 n)``, ``L = ln(1 / alpha)``.
    4. Which of the two is smaller depends on the true |g| alone, not on the sample, so their minimum
       b(|g|) fails with probability alpha too. |g| is not known, but where the bound holds,
       ``|g| >= |m| - b(|g|)``; b falls with |g|, so from b = b_1 each step ``b <- b(max(0, |m| - b))`` stays
       an upper bound, and costs no probability.

    References
    ----------
    Boucheron, Lugosi and Massart, *Concentration Inequalities*, 2013, theorems 6.2 and 12.5.

    Examples
    --------
    >>> [round(ball_width(0.0, n, 1e-3), 3) for n in (1000, 10_000, 100_000)]
    [0.149, 0.047, 0.015]
    >>> round(ball_width(0.95, 10_000, 1e-3), 3)
    0.018
    """
    log = math.log(1 / alpha)
    width = 1 / math.sqrt(n) + math.sqrt(2 * log / n)
    for _ in range(BISECTIONS):
        v = max(0.0, 1 - max(0.0, length - width) ** 2)
        spread = math.sqrt(v / n)
        bousquet = spread + math.sqrt(2 * log / n * (v + 4 * spread)) + 2 * log / (3 * n)
        if not bousquet < width:
            break
        width = bousquet
    return width + TOLERANCE
