"""Raise or lower the place of one gallery image in the result lists of chosen queries (CA+, CA-)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.ranking import fraction_closer, without_self
from ..rng import Randomness, choose
from ..types import RetrievalTask


class ChosenQueries(NamedTuple):
    """The queries of every candidate.

    Attributes
    ----------
    rows
        (n, w) gallery rows that serve as queries.
    z
        (n, w, e) their clean embeddings.
    gallery_d
        (n, w, m) distances from them to the whole clean gallery.
    """

    rows: Tensor
    z: Tensor
    gallery_d: Tensor


@dataclass(frozen=True, kw_only=True)
class CandidateAttack:
    """Move a candidate so that ``w`` chosen queries rank it higher (CA+) or lower (CA-).

    Attributes
    ----------
    direction
        ``"up"``: queries are drawn uniformly from the gallery. ``"down"``: from the candidate's own nearest
        gallery rows.
    w
        Queries for each candidate.
    top
        For ``"down"``: the share of the gallery that counts as nearest; at least one row.

    Notes
    -----
    The list is the whole clean gallery, the candidate's own clean image included, as published. A rank is the
    share of the gallery that is strictly closer to the query, in [0, 1]: near 0.5 before CA+, near 0 before
    CA-.

    References
    ----------
    Zhou et al., *Adversarial Ranking Attack and Defense*, ECCV 2020, equations 3 to 6.
    """

    direction: Literal["up", "down"]
    w: int = 1
    top: float = 0.01

    def __post_init__(self) -> None:
        if self.direction not in ("up", "down"):
            raise InvalidArgument("direction", "'up' or 'down'", self.direction)
        if self.w < 1:
            raise InvalidArgument("w", "an integer >= 1", self.w)
        if not 0 < self.top <= 1:
            raise InvalidArgument("top", "a share in (0, 1]", self.top)

    def target(self, task: RetrievalTask, generator: Randomness = None) -> ChosenQueries:
        """Choose ``w`` queries for every candidate."""
        gallery = task.gallery
        allowed = torch.ones(len(task), len(gallery.z), dtype=torch.bool, device=task.z.device)
        if self.direction == "down":
            d = without_self(task.distance.matrix(task.z, gallery.z), task.self_index)
            near = d.topk(max(1, int(self.top * len(gallery.z))), dim=1, largest=False).indices
            allowed = torch.zeros_like(allowed).scatter_(1, near, True)
        return self.aimed(task, choose(allowed, generator, self.w))

    def aimed(self, task: RetrievalTask, rows: Tensor) -> ChosenQueries:
        """Return the target for given gallery rows (n, w)."""
        z = task.gallery.z[rows]  # (n, w, e)
        gallery_d = task.distance.matrix(z.flatten(0, 1), task.gallery.z).reshape(*rows.shape, -1)
        # A clean candidate ties with itself in the list. Computed the same way as in measure(), the tie is
        # exact; otherwise rounding, and so the batch size, would decide it.
        inside = torch.nonzero(task.self_index >= 0).squeeze(1)
        gallery_d[inside, :, task.self_index[inside]] = self._d(task.z, z, task)[inside]
        return ChosenQueries(rows, z, gallery_d)

    def _d(self, z: Tensor, queries: Tensor, task: RetrievalTask) -> Tensor:
        """Distances of candidates (n, e) to their queries (n, w, e): (n, w)."""
        n, w, _ = queries.shape
        everything = task.distance.matrix(z, queries.flatten(0, 1)).reshape(n, n, w)
        return everything.diagonal(dim1=0, dim2=1).T

    def gain(self, z: Tensor, target: ChosenQueries, task: RetrievalTask) -> Tensor:
        """Return minus the mean hinge over queries and gallery: (n,), at most 0."""
        lead = self._d(z, target.z, task)[..., None] - target.gallery_d  # (n, w, m): > 0 where others lead
        return -torch.relu(lead if self.direction == "up" else -lead).mean((1, 2))

    def measure(self, z: Tensor, target: ChosenQueries, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``rank`` (n,), the mean normalised rank over the queries, in [0, 1]."""
        return {"rank": fraction_closer(self._d(z, target.z, task), target.gallery_d).mean(1)}
