"""Make a hub of one gallery image: move it so that it stands among the first k of many queries (HUB)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.ranking import nearest
from ..rng import Randomness, choose
from ..types import Gallery, PairwiseDistance, RetrievalTask


class HubTarget(NamedTuple):
    """The queries that a candidate is to be returned for.

    Attributes
    ----------
    rows
        (n, w) gallery rows that serve as queries.
    radius
        (n, w) distance from each to the k-th nearest row of the gallery, without itself and without the
        candidate: a candidate at most so far away stands among its first k.
    """

    rows: Tensor
    radius: Tensor


def reach(
    z: Tensor, own: Tensor, gallery: Gallery, k: int, distance: PairwiseDistance, without: Tensor
) -> Tensor:
    """Return how far from a query a new row may be and still stand among its first ``k``.

    Parameters
    ----------
    z, own
        (q, e) queries, and the gallery row (q,) that each is itself, -1 where there is none.
    gallery, distance
        What is ranked, and by what.
    k
        Places, >= 1.
    without
        (n,) gallery rows, one for each candidate, that the candidate stands in for; -1 where it is added.

    Returns
    -------
    Tensor
        (n, q) distances to the k-th nearest row that is neither the query nor the candidate's.

    Raises
    ------
    InvalidArgument
        If the gallery has fewer than ``k + 2`` rows.
    """
    if not 1 <= k <= len(gallery.z) - 2:
        raise InvalidArgument("k", f"1 to {len(gallery.z) - 2}, the gallery rows less two", k)
    d, rows = nearest(z, gallery.z, k + 1, distance, own)
    listed = torch.stack([(rows[:, :k] == one).any(1) for one in without])  # (n, q)
    return torch.where(listed, d[:, k], d[:, k - 1])


@dataclass(frozen=True, kw_only=True)
class HubAttack:
    """Move a gallery image so that it stands among the first ``k`` of as many queries as possible.

    Attributes
    ----------
    k
        Length of the lists, >= 1.
    w
        Queries that the attacker knows for each candidate, >= 1: gallery rows drawn uniformly, the
        candidate's own left out. He sees the gallery, as for CA+, and not the queries of other people.
    softness
        Width of the step that stands in for "is in the list", in units of the mean radius of the candidate's
        queries, > 0.
    score, limit, weight
        What an adaptive attacker knows of a gate: its differentiable score (n, e) -> (n,), the value above
        which it refuses, and the weight > 0 of the excess over it. ``None`` knows of no gate.

    Notes
    -----
    This library's own design. The gain is the mean over the queries of ``sigmoid((r - d) / (softness * r'))``
    with the distance d to the candidate, the radius r of :class:`HubTarget` and its mean r', a smooth count
    of the lists that hold the candidate, less ``weight * max(0, score / limit - 1)``. A mean of hinges as in
    CA+ would pull towards the middle of all queries, where an image may stand in no list at all.

    References
    ----------
    Habler et al., *HubScan*, arXiv:2602.22427 (hubs made of vectors; images are not moved there).
    """

    k: int = 10
    w: int = 256
    softness: float = 0.25
    score: Callable[[Tensor], Tensor] | None = None
    limit: float = math.inf
    weight: float = 10.0

    def __post_init__(self) -> None:
        for argument in ("k", "w"):
            if type(getattr(self, argument)) is not int or getattr(self, argument) < 1:
                raise InvalidArgument(argument, "an integer >= 1", getattr(self, argument))
        for argument in ("softness", "weight"):
            if not 0 < getattr(self, argument) < math.inf:
                raise InvalidArgument(argument, "a finite number > 0", getattr(self, argument))
        if not self.limit > 0:
            raise InvalidArgument("limit", "a number > 0", self.limit)

    def target(self, task: RetrievalTask, generator: Randomness = None) -> HubTarget:
        """Draw ``w`` queries for every candidate."""
        allowed = torch.ones(len(task), len(task.gallery.z), dtype=torch.bool, device=task.z.device)
        inside = torch.nonzero(task.self_index >= 0).squeeze(1)
        allowed[inside, task.self_index[inside]] = False
        return self.aimed(task, choose(allowed, generator, self.w))

    def aimed(self, task: RetrievalTask, rows: Tensor) -> HubTarget:
        """Return the target for given gallery rows (n, w)."""
        some, back = torch.unique(rows, return_inverse=True)
        radius = reach(task.gallery.z[some], some, task.gallery, self.k, task.distance, task.self_index)
        return HubTarget(rows, radius.gather(1, back))

    def gain(self, z: Tensor, target: HubTarget, task: RetrievalTask) -> Tensor:
        """Return the smooth share of the queries that list the candidate, less the penalty: (n,)."""
        d = task.distance.matrix(z, task.gallery.z).gather(1, target.rows)
        width = (self.softness * target.radius.mean(1, keepdim=True)).clamp_min(torch.finfo(z.dtype).tiny)
        gain = torch.sigmoid((target.radius - d) / width).mean(1)
        if self.score is None:
            return gain
        return gain - self.weight * torch.relu(self.score(z) / self.limit - 1)

    def measure(self, z: Tensor, target: HubTarget, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``hub`` (n,), the share of the queries that list the candidate, in [0, 1]; ties count."""
        d = task.distance.matrix(z, task.gallery.z).gather(1, target.rows)
        return {"hub": (d <= target.radius).to(z.dtype).mean(1)}
