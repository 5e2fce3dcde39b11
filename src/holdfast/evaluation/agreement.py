"""Agreement of clusters with classes from counts alone, which makes resampling of queries cheap."""

from __future__ import annotations

import numpy as np
from torch import Tensor

TINY = float(np.finfo(np.float64).eps)


def contingency(truth: Tensor, cluster_of: Tensor) -> np.ndarray:
    """Return how many rows each class has in each cluster: (n,), (n,) -> (classes, clusters) int64."""
    classes, rows = np.unique(truth.numpy(force=True), return_inverse=True)
    clusters, columns = np.unique(cluster_of.numpy(force=True), return_inverse=True)
    counts = np.zeros((len(classes), len(clusters)), dtype=np.int64)
    np.add.at(counts, (rows, columns), 1)
    return counts


def agreement_of_counts(counts: np.ndarray) -> tuple[float, float, float, float]:
    """Return purity, NMI, AMI (both with the arithmetic mean) and ARI.

    The same numbers as :func:`~holdfast.functional.clustering.purity`, ``nmi``, ``ami`` and ``ari`` give for
    the labels that were counted.

    Parameters
    ----------
    counts
        (classes, clusters) whole numbers, at least one above 0.

    Examples
    --------
    >>> agreement_of_counts(np.array([[2, 0], [0, 3]]))
    (1.0, 1.0, 1.0, 1.0)
    """
    from sklearn.metrics.cluster import expected_mutual_information  # slow to import

    counts = counts[counts.any(1)][:, counts.any(0)]
    n, a, b = int(counts.sum()), counts.sum(1), counts.sum(0)
    purity = float(counts.max(0).sum() / n)
    squares, rows, columns = (float(np.square(v.astype(np.float64)).sum()) for v in (counts, a, b))
    ari = _adjusted_rand(n, squares, rows, columns)
    if len(a) == len(b) == 1:
        return purity, 1.0, 1.0, ari
    filled = counts > 0
    p, outer = counts[filled] / n, np.outer(a, b)[filled] / n**2
    information = max(0.0, float((p * np.log(p / outer)).sum()))
    mean = (_entropy(a / n) + _entropy(b / n)) / 2
    nmi = 0.0 if information <= TINY else information / mean
    expected = float(expected_mutual_information(counts, n))
    room = mean - expected
    room = min(room, -TINY) if room < 0 else max(room, TINY)
    return purity, nmi, (information - expected) / room, ari


def _entropy(p: np.ndarray) -> float:
    return -float((p * np.log(p)).sum())


def _adjusted_rand(n: int, squares: float, rows: float, columns: float) -> float:
    """Return ARI from sums of squares: of all counts, of row sums, of column sums."""
    both, only_class, only_cluster = squares - n, rows - squares, columns - squares
    if only_class == 0 and only_cluster == 0:
        return 1.0
    neither = n**2 - both - only_class - only_cluster - n
    above = 2 * (both * neither - only_class * only_cluster)
    return above / (
        (both + only_class) * (only_class + neither) + (both + only_cluster) * (only_cluster + neither)
    )


def resampled_agreement(counts: np.ndarray, resamples: int = 100, seed: int = 0) -> np.ndarray:
    """Return :func:`agreement_of_counts` of queries drawn with replacement: (resamples, 4)."""
    n = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(n, counts.ravel() / n, size=resamples)
    return np.array([agreement_of_counts(draw.reshape(counts.shape)) for draw in draws])
