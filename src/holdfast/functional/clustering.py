"""k-means and normalised mutual information, by scikit-learn, for tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance


class Clusters(NamedTuple):
    """Centroids (k, e) and the cluster of every row (n,)."""

    centroids: Tensor
    cluster_of: Tensor


def kmeans(z: Tensor, k: int, seed: int = 0, n_init: int = 1, max_iter: int = 300) -> Clusters:
    """Cluster embeddings by Lloyd's algorithm from k-means++ starts.

    Parameters
    ----------
    z
        (n, e) finite embeddings.
    k
        Number of clusters, 1 to n.
    seed
        Of the starts.
    n_init
        Starts; the one with the smallest inertia is kept.
    max_iter
        Iterations at most.

    Returns
    -------
    Clusters
        With centroids of the dtype and device of ``z``.
    """
    if not 1 <= k <= len(z):
        raise InvalidArgument("k", f"1 to {len(z)}, the number of rows", k)
    if not bool(torch.isfinite(z).all()):
        raise InvalidArgument("z", "finite embeddings", "NaN or infinity")
    from sklearn.cluster import KMeans  # slow to import

    model = KMeans(k, random_state=seed, n_init=n_init, max_iter=max_iter).fit(z.detach().cpu().numpy())
    return Clusters(
        torch.as_tensor(model.cluster_centers_, device=z.device).to(z.dtype),
        torch.as_tensor(model.labels_, device=z.device).long(),
    )


def assign(z: Tensor, centroids: Tensor, distance: PairwiseDistance) -> Tensor:
    """Return the nearest centroid of every row: (n, e), (k, e) -> (n,) int64."""
    return distance.matrix(z, centroids).argmin(1)


def nmi(y: Tensor, cluster_of: Tensor) -> float:
    """Return normalised mutual information with the arithmetic mean, in [0, 1].

    Examples
    --------
    >>> import torch
    >>> nmi(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 2, 2]))
    1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(y.cpu().numpy(), cluster_of.cpu().numpy()))
