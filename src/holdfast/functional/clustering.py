"""k-means on embeddings, names of clusters, and their agreement with classes.

Class labels are >= 0; rows with a negative label are unlabelled: they are clustered, and no name or score
counts them. scikit-learn is imported inside functions, for it is slow to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgument
from ..types import ClusterNames, PairwiseDistance
from .distance import Cosine

ON_CENTROID = 1e-12
"""Cosine distance below which a row counts as lying on its centroid, so that it can seed no other cluster."""


class Clusters(NamedTuple):
    """Centroids (k, e) and the cluster of every row (n,)."""

    centroids: Tensor
    cluster_of: Tensor


def kmeans(z: Tensor, k: int, seed: int = 0, n_init: int = 1, max_iter: int = 300) -> Clusters:
    """Cluster embeddings by Lloyd's algorithm from k-means++ starts.

    Parameters
    ----------
    z
        (n, e) finite embeddings. Fewer than ``k`` distinct rows leave clusters without members, whose
        centroids repeat a row; scikit-learn warns.
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
    _check(z, k)
    from sklearn.cluster import KMeans

    model = KMeans(k, random_state=seed, n_init=n_init, max_iter=max_iter).fit(z.detach().cpu().numpy())
    return Clusters(
        torch.as_tensor(model.cluster_centers_, device=z.device).to(z.dtype),
        torch.as_tensor(model.labels_, device=z.device).long(),
    )


def spherical_kmeans(z: Tensor, k: int, seed: int = 0, n_init: int = 1, max_iter: int = 300) -> Clusters:
    """Cluster the directions of embeddings: Lloyd's algorithm under the cosine distance, in float64.

    A centroid is the sum of the directions of its members, divided by its length; where members cancel out,
    it stays. A cluster without members is given the row farthest from its centroid.

    Parameters
    ----------
    z
        (n, e) finite embeddings of length > 0, which need not be 1. Fewer than ``k`` distinct directions
        leave clusters without members, whose centroids repeat a direction.
    k
        Number of clusters, 1 to n.
    seed
        Of the k-means++ starts, drawn by the squared chord ``2 (1 - cos)``.
    n_init
        Starts; the one with the smallest sum of cosine distances is kept.
    max_iter
        Iterations at most.

    Returns
    -------
    Clusters
        With centroids of length 1 and the dtype and device of ``z``.

    References
    ----------
    Dhillon, Modha. Concept Decompositions for Large Sparse Text Data using Clustering. Machine Learning 2001.
    """
    _check(z, k)
    if n_init < 1:
        raise InvalidArgument("n_init", "an integer >= 1", n_init)
    if not bool(z.any(1).all()):
        raise InvalidArgument("z", "rows of length > 0, for directions are clustered", "a row of zeros")
    from sklearn.cluster import kmeans_plusplus
    from sklearn.utils import check_random_state

    u = F.normalize(z.detach().cpu().double(), dim=1)
    state = check_random_state(seed)
    runs = []
    for _ in range(n_init):
        start, _ = kmeans_plusplus(u.numpy(), k, random_state=state)
        runs.append(_lloyd(u, torch.from_numpy(start), max_iter))
    centroids = min(runs, key=lambda run: run[1])[0].to(z)
    return Clusters(centroids, assign(z.detach(), centroids, Cosine()))


def _check(z: Tensor, k: int) -> None:
    if not 1 <= k <= len(z):
        raise InvalidArgument("k", f"1 to {len(z)}, the number of rows", k)
    if not bool(torch.isfinite(z).all()):
        raise InvalidArgument("z", "finite embeddings", "NaN or infinity")


def _lloyd(u: Tensor, centroids: Tensor, max_iter: int) -> tuple[Tensor, float]:
    """Return centroids and the sum of cosine distances, from unit rows (n, e) and a start (k, e)."""
    before = None
    for _ in range(max_iter):
        cluster_of = _filled(u, centroids, (u @ centroids.T).argmax(1))
        if before is not None and torch.equal(cluster_of, before):
            break
        before = cluster_of
        sums = torch.zeros_like(centroids).index_add_(0, cluster_of, u)
        lengths = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(lengths > ON_CENTROID, sums / lengths.clamp_min(ON_CENTROID), centroids)
    return centroids, float((1 - (u @ centroids.T).max(1).values).sum())


def _filled(u: Tensor, centroids: Tensor, cluster_of: Tensor) -> Tensor:
    """Give every cluster without members the row farthest from its centroid that leaves none empty."""
    sizes = torch.bincount(cluster_of, minlength=len(centroids))
    if bool((sizes > 0).all()):
        return cluster_of
    cluster_of = cluster_of.clone()
    d = 1 - (u * centroids[cluster_of]).sum(1)
    for empty in torch.nonzero(sizes == 0).squeeze(1).tolist():
        row = int(torch.where(sizes[cluster_of] > 1, d, -1.0).argmax())
        if d[row] <= ON_CENTROID:
            break  # fewer distinct directions than clusters
        sizes[cluster_of[row]] -= 1
        sizes[empty], cluster_of[row], d[row] = 1, empty, 0.0
    return cluster_of


def assign(z: Tensor, centroids: Tensor, distance: PairwiseDistance) -> Tensor:
    """Return the nearest centroid of every row: (n, e), (k, e) -> (n,) int64."""
    return distance.matrix(z, centroids).argmin(1)


def _votes(truth: Tensor, cluster_of: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return how many rows of each class a cluster holds (k, c), and the labels of the classes (c,)."""
    if truth.shape != cluster_of.shape or truth.ndim != 1:
        raise InvalidArgument("truth", f"labels {tuple(cluster_of.shape)}", tuple(truth.shape))
    if len(cluster_of) and not 0 <= int(cluster_of.min()) <= int(cluster_of.max()) < k:
        raise InvalidArgument("cluster_of", f"numbers of clusters, 0 to {k - 1}", int(cluster_of.max()))
    known = truth >= 0
    classes, codes = torch.unique(truth[known], return_inverse=True)
    cells = cluster_of[known] * len(classes) + codes
    return torch.bincount(cells, minlength=k * len(classes)).view(k, len(classes)), classes


def hungarian(truth: Tensor, cluster_of: Tensor, k: int) -> Tensor:
    """Name clusters one to one so that most rows lie in a cluster of their class.

    Parameters
    ----------
    truth
        (n,) class labels.
    cluster_of
        (n,) clusters, 0 to k - 1.
    k
        Number of clusters.

    Returns
    -------
    Tensor
        (k,) class labels; -1 for clusters without labelled members, and for those that are left over where
        there are more clusters than classes.

    References
    ----------
    Kuhn. The Hungarian method for the assignment problem. Naval Research Logistics 1955.

    Examples
    --------
    >>> import torch
    >>> hungarian(torch.tensor([7, 7, 7, 3]), torch.tensor([1, 1, 0, 0]), 2)
    tensor([3, 7])
    """
    from scipy.optimize import linear_sum_assignment

    votes, classes = _votes(truth, cluster_of, k)
    rows, columns = linear_sum_assignment(votes.cpu().numpy(), maximize=True)
    names = truth.new_full((k,), -1)
    names[torch.from_numpy(rows).to(names.device)] = classes[torch.from_numpy(columns).to(classes.device)]
    return names.masked_fill(votes.sum(1) == 0, -1)


def majority(truth: Tensor, cluster_of: Tensor, k: int) -> Tensor:
    """Name each cluster by the commonest class of its members; among equals the smallest label wins.

    Parameters and result as for :func:`hungarian`, but two clusters may share a name.
    """
    votes, classes = _votes(truth, cluster_of, k)
    if not len(classes):
        return truth.new_full((k,), -1)
    most, column = votes.max(1)
    return classes[column].masked_fill(most == 0, -1)


def name_clusters(truth: Tensor, cluster_of: Tensor, k: int) -> ClusterNames:
    """Name clusters by :func:`hungarian` and by :func:`majority`."""
    return ClusterNames(hungarian(truth, cluster_of, k), majority(truth, cluster_of, k))


def _labelled(truth: Tensor, cluster_of: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if truth.shape != cluster_of.shape or truth.ndim != 1:
        raise InvalidArgument("truth", f"labels {tuple(cluster_of.shape)}", tuple(truth.shape))
    known = truth >= 0
    if not bool(known.any()):
        raise InvalidArgument("truth", "at least one labelled row", "none")
    return truth[known].cpu().numpy(), cluster_of[known].cpu().numpy()


def purity(truth: Tensor, cluster_of: Tensor) -> float:
    """Return the share of rows that are of the commonest class of their cluster, in (0, 1].

    Grows with the number of clusters: it is 1 where every row is its own.

    Examples
    --------
    >>> import torch
    >>> purity(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 5, 2]))
    0.75
    """
    clusters, codes = torch.unique(cluster_of, return_inverse=True)
    y, _ = _labelled(truth, codes)
    votes, _ = _votes(truth, codes, len(clusters))
    return float(votes.max(1).values.sum()) / len(y)


def nmi(truth: Tensor, cluster_of: Tensor) -> float:
    """Return normalised mutual information with the arithmetic mean, in [0, 1].

    Examples
    --------
    >>> import torch
    >>> nmi(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 2, 2]))
    1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_labelled(truth, cluster_of)))


def ami(truth: Tensor, cluster_of: Tensor) -> float:
    """Return mutual information adjusted for chance, arithmetic mean: 0 in expectation at random, at most 1.

    References
    ----------
    Vinh, Epps, Bailey. Information Theoretic Measures for Clusterings Comparison. JMLR 2010.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(*_labelled(truth, cluster_of)))


def ari(truth: Tensor, cluster_of: Tensor) -> float:
    """Return the Rand index adjusted for chance: 0 in expectation at random, in [-0.5, 1].

    References
    ----------
    Hubert, Arabie. Comparing partitions. Journal of Classification 1985.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_labelled(truth, cluster_of)))


def agreement(truth: Tensor, cluster_of: Tensor, k: int) -> dict[str, float]:
    """Return all scores of a clustering whose names come from the same rows.

    Parameters
    ----------
    truth, cluster_of, k
        As for :func:`hungarian`; at least one row is labelled.

    Returns
    -------
    dict
        ``nmi``, ``ami``, ``ari``, ``purity``, ``accuracy`` (share of rows in a cluster that
        :func:`hungarian` names by their class) and ``majority`` (the same by :func:`majority`, which on the
        rows that vote equals the purity).
    """
    known = truth >= 0
    names = name_clusters(truth, cluster_of, k)
    shares = [float((name[cluster_of] == truth)[known].double().mean()) for name in names]
    return {
        "nmi": nmi(truth, cluster_of),
        "ami": ami(truth, cluster_of),
        "ari": ari(truth, cluster_of),
        "purity": purity(truth, cluster_of),
        "accuracy": shares[0],
        "majority": shares[1],
    }


def reclustered(
    z: Tensor,
    truth: Tensor,
    k: int,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    spherical: bool = False,
    n_init: int = 10,
) -> dict[str, tuple[float, float]]:
    """Cluster embeddings anew, and score the clusters: inference in its transductive form.

    Our design: the attacked test set itself is clustered, as NMI is usually measured, although the attack
    was made against the frozen clusters of the clean references.

    Parameters
    ----------
    z
        (n, e) finite embeddings, clean or attacked.
    truth
        (n,) class labels, negative where unknown.
    k
        Number of clusters, 1 to n.
    seeds
        k-means is random: one clustering for each seed.
    spherical
        By :func:`spherical_kmeans` instead of :func:`kmeans`.
    n_init
        Starts for each seed.

    Returns
    -------
    dict
        The scores of :func:`agreement`, each as (mean, standard deviation over the seeds, with n - 1; 0 for
        one seed).
    """
    if not len(seeds):
        raise InvalidArgument("seeds", "at least one seed", seeds)
    cluster = spherical_kmeans if spherical else kmeans
    runs = [agreement(truth, cluster(z, k, seed, n_init).cluster_of, k) for seed in seeds]
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    return {name: (fmean(v), stdev(v) if len(v) > 1 else 0.0) for name, v in columns.items()}
