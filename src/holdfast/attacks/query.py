"""Raise or lower chosen gallery images in the result list of one query, by changing the query (QA+, QA-)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.ranking import fraction_closer, without_self
from ..rng import Randomness, choose
from ..types import RetrievalTask


class ChosenCandidates(NamedTuple):
    """(n, m) gallery rows whose places the query shall change."""

    rows: Tensor


def hinge_below(d: Tensor, rows: Tensor) -> Tensor:
    """Return how far the chosen rows stand behind others: mean of ``relu(d_chosen - d)``, (n,).

    Parameters
    ----------
    d
        (n, g) distances to the whole gallery.
    rows
        (n, m) chosen columns.
    """
    return torch.relu(d.gather(1, rows)[..., None] - d[:, None, :]).mean((1, 2))


def hinge_above(d: Tensor, rows: Tensor) -> Tensor:
    """Return how far the chosen rows stand before others: mean of ``relu(d - d_chosen)``, (n,)."""
    return torch.relu(d[:, None, :] - d.gather(1, rows)[..., None]).mean((1, 2))


@dataclass(frozen=True, kw_only=True)
class QueryAttack:
    """Move a query so that ``m`` chosen candidates rank higher (QA+) or lower (QA-) in its list.

    Attributes
    ----------
    direction
        ``"up"``: candidates are drawn uniformly from the gallery. ``"down"``: from the query's nearest rows.
    m
        Candidates for each query.
    top
        For ``"down"``: the share of the gallery that counts as nearest; at least ``m`` rows.

    Notes
    -----
    The list is the whole clean gallery, the query's own clean image included, as published. A rank is the
    share of the gallery that is strictly closer to the query, in [0, 1].

    References
    ----------
    Zhou et al., *Adversarial Ranking Attack and Defense*, ECCV 2020, section 3.2.
    """

    direction: Literal["up", "down"]
    m: int = 1
    top: float = 0.01

    def __post_init__(self) -> None:
        if self.direction not in ("up", "down"):
            raise InvalidArgument("direction", "'up' or 'down'", self.direction)
        if self.m < 1:
            raise InvalidArgument("m", "an integer >= 1", self.m)
        if not 0 < self.top <= 1:
            raise InvalidArgument("top", "a share in (0, 1]", self.top)

    def target(self, task: RetrievalTask, generator: Randomness = None) -> ChosenCandidates:
        """Choose ``m`` candidates for every query, without replacement when lowering."""
        size = len(task.gallery.z)
        if self.direction == "up":
            allowed = torch.ones(len(task), size, dtype=torch.bool, device=task.z.device)
            return ChosenCandidates(choose(allowed, generator, self.m))
        d = without_self(task.distance.matrix(task.z, task.gallery.z), task.self_index)
        near = d.topk(min(size, max(self.m, int(self.top * size))), dim=1, largest=False).indices
        allowed = torch.zeros_like(d, dtype=torch.bool).scatter_(1, near, True)
        return ChosenCandidates(choose(allowed, generator, self.m, replacement=False))

    def gain(self, z: Tensor, target: ChosenCandidates, task: RetrievalTask) -> Tensor:
        """Return minus the mean hinge over candidates and gallery: (n,), at most 0."""
        d = task.distance.matrix(z, task.gallery.z)
        return -(hinge_below if self.direction == "up" else hinge_above)(d, target.rows)

    def measure(self, z: Tensor, target: ChosenCandidates, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``rank`` (n,), the mean normalised rank of the candidates, in [0, 1]."""
        d = task.distance.matrix(z, task.gallery.z)
        behind = d[:, None, :].expand(-1, target.rows.shape[1], -1)
        return {"rank": fraction_closer(d.gather(1, target.rows), behind).mean(1)}
