"""The number of clusters by the silhouette, and the nearest centroid in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.distance import Cosine
from ..functional.ranking import chunks
from ..types import PairwiseDistance
from .backends import CHUNK

Array = NDArray[Any]
SAMPLE = 2048
"""Rows on which silhouettes are taken."""


def nearest(z: Array, centroids: Array, distance: PairwiseDistance) -> tuple[Array, float]:
    """Return the nearest centroid of every row (n,), and the sum of the distances to them, in float64."""
    to = torch.from_numpy(centroids).double()
    found = [distance.matrix(double(z[rows]), to).min(1) for rows in chunks(len(z), CHUNK)]
    return torch.cat([f.indices for f in found]).numpy(), sum(float(f.values.sum()) for f in found)


def double(z: Array) -> Tensor:
    """Return a float64 tensor of an array; a copy, for torch warns of memory that it may not write."""
    return torch.from_numpy(z.astype(np.float64))


def by_silhouette(
    z: Array, find: Callable[[int], Array], distance: PairwiseDistance, largest: int, seed: int
) -> tuple[Array, dict[int, float]]:
    """Try every number of clusters from 2 to ``largest``.

    Parameters
    ----------
    z
        (n, e) rows; silhouettes are taken on at most 2048 of them, drawn by ``seed``, the same for all.
    find
        Number of clusters k -> centroids (k, e).
    distance
        Cosine, or else silhouettes are Euclidean.
    largest
        At most n - 1 are tried.
    seed
        An integer >= 0.

    Returns
    -------
    tuple
        Centroids of the largest silhouette, the fewest of equals; and the silhouette of every number of
        clusters, without those of which the drawn rows lie in one cluster, or each in its own.

    Raises
    ------
    InvalidArgument
        If no number of clusters has a silhouette.

    References
    ----------
    Rousseeuw. Silhouettes: a graphical aid to the interpretation and validation of cluster analysis. 1987.
    """
    from sklearn.metrics import silhouette_score

    drawn = np.random.default_rng(seed).permutation(len(z))[:SAMPLE]
    sample = z[np.sort(drawn)]
    metric = "cosine" if isinstance(distance, Cosine) else "euclidean"
    best: Array | None = None
    values: dict[int, float] = {}
    for k in range(2, min(largest, len(z) - 1) + 1):
        centroids = find(k)
        labels, _ = nearest(sample, centroids, distance)
        if 2 <= len(np.unique(labels)) < len(sample):
            value = float(silhouette_score(sample, labels, metric=metric))
            best = centroids if best is None or value > max(values.values()) else best
            values[k] = value
    if best is None:
        need = f"at least 3 rows, not all alike, for a silhouette (n_samples = {len(z)})"
        raise InvalidArgument("n_clusters", need, "auto")
    return best, values
