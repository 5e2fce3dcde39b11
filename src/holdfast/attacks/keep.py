"""Move chosen images in a query's list while the images that belong on top stay there (SPQA+, SPQA-)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.ranking import without_self
from ..rng import Randomness, choose
from ..types import RetrievalTask
from .query import ChosenCandidates, QueryAttack, hinge_below

CEILING = 1e9
OVERFLOW = 1e7
_LARGEST_EXPONENT = math.log(torch.finfo(torch.float64).max)  # about 709.8


def keeping_weight(loss: Tensor, stiffness: float) -> Tensor:
    """Return ``xi = min(exp(stiffness * loss), 1e9)`` without gradient: (n,) -> (n,), in [1, 1e9].

    Parameters
    ----------
    loss
        (n,) how far the images to keep stand behind others, >= 0.
    stiffness
        >= 0.

    Notes
    -----
    As published, the weight is 1e7 and not 1e9 where the exponential overflows double precision. So it falls
    once, where ``stiffness * loss`` passes 710, and a search that keeps the best point may then like a list
    that is lost already. Where losses get that large choose a smaller stiffness.
    """
    exponent = stiffness * loss.detach()
    return torch.where(exponent > _LARGEST_EXPONENT, OVERFLOW, exponent.exp().clamp_max(CEILING))


def kept_on_top(d: Tensor, rows: Tensor, stiffness: float) -> Tensor:
    """Return ``xi * L``, L how far chosen rows stand behind others (``hinge_below``): (n,), >= 0.

    Parameters
    ----------
    d
        (n, g) distances to the whole gallery.
    rows
        (n, m) columns that should stay on top.
    stiffness
        Of :func:`keeping_weight`.
    """
    loss = hinge_below(d, rows)
    return keeping_weight(loss, stiffness) * loss


def near_rows(task: RetrievalTask, top: float, least: int) -> Tensor:
    """Return the nearest share of every clean query's list, itself left out: (n, m) bool.

    Parameters
    ----------
    task
        Queries and clean gallery.
    top
        Share of the gallery, in (0, 1].
    least
        Rows that the share has at the very least.

    Raises
    ------
    InvalidArgument
        If a query's list is shorter than ``least``.
    """
    d = without_self(task.distance.matrix(task.z, task.gallery.z), task.self_index)
    size = d.shape[1]
    limit = size - int(bool((task.self_index >= 0).any()))
    if least > limit:
        raise InvalidArgument("task", f"at least {least} gallery rows besides the query", limit)
    near = d.topk(min(size, max(least, int(top * size))), dim=1, largest=False).indices
    allowed = torch.zeros_like(d, dtype=torch.bool).scatter_(1, near, True)
    return allowed & (d != torch.inf)


class ChosenAndKept(NamedTuple):
    """Gallery rows of every query: (n, m) whose places shall change, (n, g) that shall stay on top."""

    rows: Tensor
    kept: Tensor


@dataclass(frozen=True, kw_only=True)
class PreservingQueryAttack:
    """Move chosen candidates in a query's list while the images that belong on top stay there (SPQA+, SPQA-).

    Attributes
    ----------
    query
        The attack on the chosen candidates.
    stiffness
        How fast the weight of the kept images grows with their loss, >= 0. Published: 2e4 for MNIST, 4e4 for
        Fashion-MNIST and CUB, 7e4 for Cars and SOP. The loss is a mean over the gallery, so a gallery a
        hundred times smaller needs a stiffness a hundred times smaller.
    kept
        Images that shall stay on top, >= 1: raising, the nearest to the query; lowering, drawn from what the
        candidates leave of its nearest share ``query.top`` (of at least ``query.m + kept`` rows).

    Notes
    -----
    The gain is that of the query attack minus ``xi * L``: L is the loss of raising the kept images and xi its
    weight (:func:`keeping_weight`), computed for each query where the published code has one for a batch.
    The query's own clean image is none of the kept ones; it stands in the list that the hinges compare with,
    as in :class:`QueryAttack`.

    References
    ----------
    Zhou et al., *Adversarial Ranking Attack and Defense*, ECCV 2020, the semantics-preserving query attack;
    the growing weight is that of the code published with Zhou et al., TPAMI 2024.
    """

    query: QueryAttack
    stiffness: float = 4e4
    kept: int = 5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.stiffness) and self.stiffness >= 0):
            raise InvalidArgument("stiffness", "a finite number >= 0", self.stiffness)
        if self.kept < 1:
            raise InvalidArgument("kept", "an integer >= 1", self.kept)

    def target(self, task: RetrievalTask, generator: Randomness = None) -> ChosenAndKept:
        """Choose the candidates as the query attack does, and the images to keep."""
        rows = self.query.target(task, generator).rows
        if self.query.direction == "up":
            nearest = near_rows(task, 1.0, self.kept)
            d = task.distance.matrix(task.z, task.gallery.z).masked_fill(~nearest, torch.inf)
            return ChosenAndKept(rows, d.topk(self.kept, dim=1, largest=False).indices)
        rest = near_rows(task, self.query.top, self.query.m + self.kept).scatter(1, rows, False)
        return ChosenAndKept(rows, choose(rest, generator, self.kept, replacement=False))

    def gain(self, z: Tensor, target: ChosenAndKept, task: RetrievalTask) -> Tensor:
        """Return the query attack's gain minus the weighted loss of the kept images: (n,), at most 0."""
        d = task.distance.matrix(z, task.gallery.z)
        moved = self.query.gain(z, ChosenCandidates(target.rows), task)
        return moved - kept_on_top(d, target.kept, self.stiffness)

    def measure(self, z: Tensor, target: ChosenAndKept, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``rank`` of the candidates and ``kept_rank`` of the kept images.

        Each (n,), mean normalised ranks in [0, 1].
        """
        moved, kept = (self.query.measure(z, ChosenCandidates(rows), task)["rank"] for rows in target)
        return {"rank": moved, "kept_rank": kept}
