"""Attacks on the exact decision of retrieval: which of two distances is smaller.

All gains here are a distance that should be small minus one that should be large, and a gain >= 0 means that
the query is broken: ties count against the defense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.ranking import without_self
from ..rng import Randomness
from ..types import RetrievalTask
from .places import clean_first, hits, nearest_allowed, other_rows, own_rows


def _where_defined(gain: Tensor, own: Tensor, other: Tensor, z: Tensor) -> Tensor:
    """Replace gains that miss one side by constants that say the same: broken (0) or unbreakable (-1).

    ``own`` and ``other`` (n,) tell where there is a row to keep and a rival; NaN in ``z`` stays visible.
    """
    flat = 0 * z.sum(1)
    return torch.where(own, torch.where(other, gain, flat - 1), flat)


def _nearest_row(d: Tensor, allowed: Tensor) -> Tensor:
    """Return the nearest allowed row, -1 where there is none: (n,)."""
    return d.masked_fill(~allowed, torch.inf).argmin(1).where(allowed.any(1), -1)


@dataclass(frozen=True, kw_only=True)
class RankMargin:
    """Climb the margin that decides Recall@k itself, whoever is nearest at the moment (RANK).

    ``d(z, nearest row of the own class) - d(z, k-th nearest row of other classes)``; at 0 or above, no row of
    the query's class stands among its first ``k``.

    Attributes
    ----------
    k
        Places that count, >= 1.

    Notes
    -----
    A query whose class has no other row is wrong already: its gain is 0 and cannot be climbed. One with
    fewer than ``k`` rows of other classes cannot be broken: its gain is -1.
    """

    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InvalidArgument("k", "an integer >= 1", self.k)

    def target(self, task: RetrievalTask, generator: Randomness = None) -> None:
        """Nothing is chosen."""
        return

    def gain(self, z: Tensor, target: None, task: RetrievalTask) -> Tensor:
        """Return the margin (n,), in units of the distance; >= 0 exactly where ``recall@k`` is 0."""
        d = task.distance.matrix(z, task.gallery.z)
        own, other = own_rows(task), other_rows(task)
        margin = nearest_allowed(d, own) - nearest_allowed(d, other, self.k)
        return _where_defined(margin, own.any(1), other.sum(1) >= self.k, z)

    def measure(self, z: Tensor, target: None, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``recall@1`` and, for another ``k``, ``recall@k``; each (n,), 0 or 1."""
        return {f"recall@{k}": hits(z, task, k) for k in sorted({1, self.k})}


@dataclass(frozen=True, kw_only=True)
class TargetedNeighbour:
    """Bring the j-th nearest clean row of another class before the query's own class (TARGET1).

    Attributes
    ----------
    j
        Place of the target among the clean query's rows of other classes, >= 1; the last where there are
        fewer.

    Notes
    -----
    The gain ``d(z, nearest own row) - d(z, target)`` is a lower bound of :class:`RankMargin`'s. Queries
    without a row of their class, or a gallery without another class: as there.
    """

    j: int = 1

    def __post_init__(self) -> None:
        if self.j < 1:
            raise InvalidArgument("j", "an integer >= 1", self.j)

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Tensor:
        """Return the wanted first row of every query, (n,); -1 where there is no other class."""
        other = other_rows(task)
        d = task.distance.matrix(task.z, task.gallery.z).masked_fill(~other, torch.inf)
        nearest = d.topk(min(self.j, d.shape[1]), dim=1, largest=False).indices  # (n, j)
        last = (other.sum(1) - 1).clamp(0, nearest.shape[1] - 1)
        return nearest.gather(1, last[:, None])[:, 0].where(other.any(1), -1)

    def gain(self, z: Tensor, target: Tensor, task: RetrievalTask) -> Tensor:
        """Return ``d(z, nearest own row) - d(z, target)``: (n,)."""
        d = task.distance.matrix(z, task.gallery.z)
        own = own_rows(task)
        lead = nearest_allowed(d, own) - d.gather(1, target.clamp_min(0)[:, None])[:, 0]
        return _where_defined(lead, own.any(1), target >= 0, z)

    def measure(self, z: Tensor, target: Tensor, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``recall@1`` (n,), 0 or 1."""
        return {"recall@1": hits(z, task)}


class Pair(NamedTuple):
    """Gallery rows of every query, each (n,), -1 where there is none: of its own and of another class."""

    positive: Tensor
    negative: Tensor


@dataclass(frozen=True, kw_only=True)
class TripletGain:
    """Climb the triplet of a query, its clean nearest own row and its clean nearest other row (TRIPLET).

    Notes
    -----
    Both rows stay those of the clean query, so a gain >= 0 does not yet mean that the query is broken:
    another own row may be nearer. Queries without a row of their class, or a gallery without another class:
    as in :class:`RankMargin`.
    """

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Pair:
        """Return the two rows of every query."""
        d = task.distance.matrix(task.z, task.gallery.z)
        return Pair(_nearest_row(d, own_rows(task)), _nearest_row(d, other_rows(task)))

    def gain(self, z: Tensor, target: Pair, task: RetrievalTask) -> Tensor:
        """Return ``d(z, positive) - d(z, negative)``: (n,)."""
        positive, negative = (task.distance.rowwise(z, task.gallery.z[rows.clamp_min(0)]) for rows in target)
        return _where_defined(positive - negative, target.positive >= 0, target.negative >= 0, z)

    def measure(self, z: Tensor, target: Pair, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``recall@1`` (n,), 0 or 1."""
        return {"recall@1": hits(z, task)}


class ClassMeans(NamedTuple):
    """Means of clean gallery embeddings, not normalised; all 0 where there is no row to take a mean of.

    Attributes
    ----------
    own, other
        (n, e) mean of the query's class without the query itself, and of the wrong class.
    counts
        (n, 2) int64 rows behind the two means.
    """

    own: Tensor
    other: Tensor
    counts: Tensor


@dataclass(frozen=True, kw_only=True)
class CentroidGain:
    """Leave the mean of the own class for the nearest mean of another class (CENTROID).

    Notes
    -----
    Means of unit embeddings lie inside the sphere and are left there: scaling them up would let a scattered
    class pull as strongly as a dense one. A gain >= 0 does not yet mean that the query is broken. Queries
    without a row of their class, or a gallery without another class: as in :class:`RankMargin`.
    """

    def target(self, task: RetrievalTask, generator: Randomness = None) -> ClassMeans:
        """Return the two means of every query; the wrong class is the one whose mean is nearest to it."""
        z, own = task.gallery.z, own_rows(task)
        n_own = own.sum(1)
        classes, member, sizes = torch.unique(task.gallery.y, return_inverse=True, return_counts=True)
        means = z.new_zeros(len(classes), z.shape[1]).index_add_(0, member, z) / sizes[:, None]  # (c, e)
        nearest = _nearest_row(task.distance.matrix(task.z, means), classes[None, :] != task.y[:, None])
        there = nearest >= 0
        return ClassMeans(
            (own.to(z) @ z) / n_own.clamp_min(1)[:, None],
            means[nearest.clamp_min(0)] * there[:, None],
            torch.stack([n_own, sizes[nearest.clamp_min(0)] * there], 1),
        )

    def gain(self, z: Tensor, target: ClassMeans, task: RetrievalTask) -> Tensor:
        """Return ``d(z, own mean) - d(z, wrong mean)``: (n,)."""
        lead = task.distance.rowwise(z, target.own) - task.distance.rowwise(z, target.other)
        return _where_defined(lead, target.counts[:, 0] > 0, target.counts[:, 1] > 0, z)

    def measure(self, z: Tensor, target: ClassMeans, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``recall@1`` (n,), 0 or 1."""
        return {"recall@1": hits(z, task)}


@dataclass(frozen=True, kw_only=True)
class FirstPlaceMargin:
    """Let any other row overtake the query's first result; needs no labels (FIRST).

    Notes
    -----
    The gain is ``d(z, clean first result) - d(z, nearest other row)``, the query itself left out by index. A
    gallery with no other row leaves nothing to climb: the gain is -1.
    """

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Tensor:
        """Return the first result of every clean query, (n,)."""
        return clean_first(task)

    def gain(self, z: Tensor, target: Tensor, task: RetrievalTask) -> Tensor:
        """Return the margin (n,), in units of the distance; >= 0 exactly where ``retain@1`` is 0."""
        d = task.distance.matrix(z, task.gallery.z)
        first = d.gather(1, target[:, None])
        others = without_self(d, task.self_index).scatter(1, target[:, None], torch.inf).amin(1)
        there = others != torch.inf
        return _where_defined(first[:, 0] - others, torch.ones_like(there), there, z)

    def measure(self, z: Tensor, target: Tensor, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``retain@1`` (n,): whether the former first result is still strictly nearest, 0 or 1."""
        return {"retain@1": (self.gain(z, target, task) < 0).to(z.dtype)}
