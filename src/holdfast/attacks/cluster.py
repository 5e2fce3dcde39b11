"""Attacks on clustering-based inference: drive a query out of the cell of its own centroid.

A1 to A7 are this library's own design, not formulas of a paper. A cluster task is a retrieval task among
centroids, so some of them are attacks of retrieval with other measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.ranking import retrieval_scores
from ..rng import Randomness
from ..types import Attack, ClusterTask, PairwiseDistance
from .places import hits, nearest_allowed, other_rows


def cluster_measures(z: Tensor, task: ClusterTask) -> dict[str, Tensor]:
    """Return what became of every query, each (n,).

    Parameters
    ----------
    z
        (n, e) embeddings of the queries, clean or attacked.
    task
        Queries and frozen clusters.

    Returns
    -------
    dict
        ``flip``: 1 where the query is not strictly nearest to its own centroid. With ``names``:
        ``accuracy`` and ``majority``, 1 where the clusters that bear the query's class (by the
        one-to-one naming and by majority) are strictly nearest. With ``images``: ``recall@1`` (0 or 1)
        and ``map@r`` in [0, 1] among images.

    Notes
    -----
    Ties and embeddings with NaN count against the defense: such a query has flipped and is not right. A
    query of unknown class (-1) is never right. With one cluster nothing can flip.
    """
    out = {"flip": 1 - hits(z, task)}
    if task.names is not None:
        d = task.distance.matrix(z, task.gallery.z)  # (n, K)
        for name, called in (("accuracy", task.names.hungarian), ("majority", task.names.majority)):
            right = (called[None, :] == task.truth[:, None]) & (task.truth >= 0)[:, None]
            out[name] = (nearest_allowed(d, right) < nearest_allowed(d, ~right)).to(z.dtype)
    if task.images is not None:
        seen, gallery = task.images, task.images.gallery
        scores = retrieval_scores(z, seen.y, gallery.z, gallery.y, seen.distance, seen.self_index)
        out["recall@1"] = hits(z, seen)
        out["map@r"] = scores.map_at_r.to(z.dtype)
    return out


@dataclass(frozen=True)
class OnClusters:
    """An attack of retrieval with centroids as gallery, and the measures of clusters.

    Attributes
    ----------
    attack
        Chooses targets and says what to climb: :class:`~holdfast.attacks.RankMargin` is A1,
        :class:`~holdfast.attacks.TargetedNeighbour` A3, :class:`~holdfast.attacks.EmbeddingShift` A5.
    distance
        What the attack sees in place of the task's distance; ``None`` changes nothing. The squared
        distance to the clean embedding is flat at the clean input, where a search by gradient cannot
        begin; the Euclidean distance of this library has the same maximum and is not.

    Notes
    -----
    The gain of A1, ``d(z, own centroid) - d(z, nearest other centroid)``, is >= 0 exactly where ``flip``
    is 1. That of A3 is a lower bound of it. With one cluster A1 and A3 have nothing to climb: their gain
    is -1.
    """

    attack: Attack[ClusterTask, Any]
    distance: PairwiseDistance | None = None

    @property
    def differentiable(self) -> bool:
        """Whether a search by gradient can climb the gain."""
        return bool(getattr(self.attack, "differentiable", True))

    def target(self, task: ClusterTask, generator: Randomness = None) -> Any:
        """Return what the attack chooses."""
        return self.attack.target(self._seen(task), generator)

    def gain(self, z: Tensor, target: Any, task: ClusterTask) -> Tensor:
        """Return the gain of the attack (n,)."""
        return self.attack.gain(z, target, self._seen(task))

    def measure(self, z: Tensor, target: Any, task: ClusterTask) -> dict[str, Tensor]:
        """Return :func:`cluster_measures`."""
        return cluster_measures(z, task)

    def _seen(self, task: ClusterTask) -> ClusterTask:
        return task if self.distance is None else replace(task, distance=self.distance)


@dataclass(frozen=True, kw_only=True)
class SoftAssignment:
    """Climb the cross-entropy of the soft assignment against the own cluster (A2).

    With ``p = softmax(-d_k / tau)`` over the K centroids, the gain is the log-odds against the own
    cluster, ``tau * log((1 - p_own) / p_own) = tau * logsumexp_{k != own}((d_own - d_k) / tau)``, in
    units of the distance. The cross-entropy is ``softplus(gain / tau)``, a rising function of it: both
    have the same maxima and the same direction of ascent, but the gradient of the log-odds does not
    vanish where the query lies deep inside its cell.

    Attributes
    ----------
    tau
        Temperature in units of the distance, > 0. ``None`` takes half the median, over the centroids, of
        the distance to the nearest other centroid.

    Notes
    -----
    The gap ``d_(2) - d_(1)`` of a query grows from 0 on the border of its cell to the distance of the
    two centroids, when it stands on its own: half of that stands in for the median gap of the clean
    queries, which would depend on the batch. With m the gain of A1, ``m <= gain <= m + tau * log(K-1)``:
    a query that has flipped has a gain >= 0, but for K > 2 not the other way round. With one cluster
    there is nothing to climb and the gain is -1.
    """

    tau: float | None = None

    def __post_init__(self) -> None:
        if self.tau is not None and not 0 < self.tau < math.inf:
            raise InvalidArgument("tau", "a finite number > 0, or None", self.tau)

    def target(self, task: ClusterTask, generator: Randomness = None) -> Tensor:
        """Return the temperature, the same for every query: (n,), > 0."""
        if self.tau is not None:
            return task.z.new_full((len(task.z),), self.tau)
        centroids = task.gallery.z
        if len(centroids) < 2:
            return task.z.new_ones(len(task.z))
        between = task.distance.matrix(centroids, centroids).fill_diagonal_(torch.inf)
        tau = between.amin(1).median() / 2
        return tau.clamp_min(torch.finfo(tau.dtype).eps).expand(len(task.z))

    def gain(self, z: Tensor, target: Tensor, task: ClusterTask) -> Tensor:
        """Return the scaled log-odds (n,), in units of the distance."""
        if len(task.gallery.z) < 2:
            return 0 * z.sum(1) - 1
        d = task.distance.matrix(z, task.gallery.z)  # (n, K)
        lead = (d.gather(1, task.cluster_of[:, None]) - d) / target[:, None]
        return target * lead.masked_fill(~other_rows(task), -torch.inf).logsumexp(1)

    def measure(self, z: Tensor, target: Tensor, task: ClusterTask) -> dict[str, Tensor]:
        """Return :func:`cluster_measures`."""
        return cluster_measures(z, task)


@dataclass(frozen=True, kw_only=True)
class CentroidRepel:
    """Push a query away from its own centroid, wherever that leads (A4).

    Notes
    -----
    The gain is the distance to the own centroid and says nothing of the others. A query that stands
    exactly on its centroid, as the only member of its cluster does, is on flat ground: use a random
    start.
    """

    def target(self, task: ClusterTask, generator: Randomness = None) -> None:
        """Nothing is chosen."""
        return

    def gain(self, z: Tensor, target: None, task: ClusterTask) -> Tensor:
        """Return ``d(z, own centroid)``: (n,), >= 0."""
        return task.distance.rowwise(z, task.gallery.z[task.cluster_of])

    def measure(self, z: Tensor, target: None, task: ClusterTask) -> dict[str, Tensor]:
        """Return :func:`cluster_measures`."""
        return cluster_measures(z, task)


@dataclass(frozen=True, kw_only=True)
class ProxyGain:
    """Climb the proxy-anchor loss of the query alone, with the unit centroids as proxies (A6).

    With s the cosine similarity to a centroid, the gain is ``log(1 + exp(-alpha (s_own - margin)))``
    plus ``sum_{k != own} log(1 + exp(alpha (s_k + margin))) / K``: the loss of a batch of one row, so
    that a query does not depend on its neighbours.

    Attributes
    ----------
    alpha
        Sharpness, > 0.
    margin
        >= 0, in units of cosine similarity.

    References
    ----------
    Kim et al., *Proxy Anchor Loss for Deep Metric Learning*, CVPR 2020, equation 4.
    """

    alpha: float = 32.0
    margin: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise InvalidArgument("alpha", "a finite number > 0", self.alpha)
        if not 0 <= self.margin < math.inf:
            raise InvalidArgument("margin", "a finite number >= 0", self.margin)

    def target(self, task: ClusterTask, generator: Randomness = None) -> None:
        """Nothing is chosen."""
        return

    def gain(self, z: Tensor, target: None, task: ClusterTask) -> Tensor:
        """Return the loss (n,), >= 0."""
        s = F.normalize(z, dim=1) @ F.normalize(task.gallery.z, dim=1).T  # (n, K)
        own = s.gather(1, task.cluster_of[:, None])[:, 0]
        push = F.softplus(self.alpha * (s + self.margin)) * other_rows(task)
        return F.softplus(-self.alpha * (own - self.margin)) + push.mean(1)

    def measure(self, z: Tensor, target: None, task: ClusterTask) -> dict[str, Tensor]:
        """Return :func:`cluster_measures`."""
        return cluster_measures(z, task)


@dataclass(frozen=True, kw_only=True)
class HardLabel:
    """Leave the own cluster when only the number of the assigned cluster comes back (A7).

    Notes
    -----
    The gain is -1 while the query keeps its cluster and 0 where it has flipped; ties are flips. It is
    constant almost everywhere and cut off from the graph: a search by gradient refuses it. Use
    :class:`~holdfast.search.RayS`, or :class:`~holdfast.search.Square` with ``stop_at=0``.
    """

    differentiable: ClassVar[bool] = False

    def target(self, task: ClusterTask, generator: Randomness = None) -> None:
        """Nothing is chosen."""
        return

    def gain(self, z: Tensor, target: None, task: ClusterTask) -> Tensor:
        """Return -1 where the cluster is kept and 0 where it is not, (n,); detached."""
        z = z.detach()
        return 0 * z.sum(1) - hits(z, task)  # NaN in an embedding stays visible

    def measure(self, z: Tensor, target: None, task: ClusterTask) -> dict[str, Tensor]:
        """Return :func:`cluster_measures`."""
        return cluster_measures(z, task)
