"""k-means of ClusterIndex against its bare products, scikit-learn and faiss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from ...inference import ClusterIndex
from .. import peers
from ..job import Job, Size
from .ranking import embeddings

ROWS = {"tiny": 40, "quick": 5000, "full": 60000}
WIDTH = {"tiny": 8, "quick": 128, "full": 512}
CLUSTERS = {"tiny": 2, "quick": 50, "full": 100}


def clustering(size: Size) -> Iterator[Job]:
    """Yield k-means from one start, as many iterations as scikit-learn needs."""
    n, e, k = ROWS[size], WIDTH[size], CLUSTERS[size]
    z, _ = embeddings(n, e)
    turns = int(KMeans(k, n_init=1, random_state=0).fit(z.numpy()).n_iter_)

    def bare() -> Tensor:
        centres = z[:k]
        for _ in range(turns):
            nearest = (centres.square().sum(1) - 2 * (z @ centres.T)).argmin(1)
        return nearest

    yield Job(
        name=f"k-means: {n} x {e}, {k} clusters",
        ours=lambda: ClusterIndex(k, n_init=1, backend="sklearn").fit(z.numpy()),
        limit=bare,
        limit_is=f"{turns} times the products of all rows and centroids",
        peers={
            "scikit-learn": peers.sklearn_kmeans(z, k),
            f"faiss, {turns} iterations": peers.faiss_kmeans(z, k, turns, torch.get_num_threads()),
        },
        memory=True,
        note="ours also checks the rows, takes their hash, and assigns every row once more",
    )
