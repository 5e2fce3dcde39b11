"""Attacks on the first places of a query's list: learn, greedy, or targeted against the first match."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional.ranking import without_self
from ..rng import Randomness, choose
from ..types import RetrievalTask
from .places import clean_first
from .query import hinge_above
from .shift import first_is_right


@dataclass(frozen=True, kw_only=True)
class TargetedMismatch:
    """Turn a query's embedding towards a random gallery image (TMA).

    References
    ----------
    Tolias, Radenovic and Chum, *Targeted Mismatch Adversarial Attack*, ICCV 2019, the global-descriptor form.
    """

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Tensor:
        """Choose one gallery row for every query, (n,)."""
        allowed = torch.ones(len(task), len(task.gallery.z), dtype=torch.bool, device=task.z.device)
        return choose(allowed, generator)[:, 0]

    def gain(self, z: Tensor, target: Tensor, task: RetrievalTask) -> Tensor:
        """Return the cosine with the chosen embedding, (n,)."""
        return F.cosine_similarity(z, task.gallery.z[target])

    def measure(self, z: Tensor, target: Tensor, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``cosine`` (n,), in [-1, 1]."""
        return {"cosine": self.gain(z, target, task)}


@dataclass(frozen=True, kw_only=True)
class LearningToMismatch:
    """Bring every image of another class before every image of the query's own class (LTM).

    Attributes
    ----------
    exclude_self
        Leave the query's own clean image out of its class. The published code keeps it in by mistake, so that
        the attack mostly pushes the query away from itself; ``ers-robrank`` sets this to False.

    References
    ----------
    Zhou et al., *Adversarial Attack and Defense in Deep Ranking*, TPAMI 2024: learning-to-misrank.
    """

    exclude_self: bool = True

    def target(self, task: RetrievalTask, generator: Randomness = None) -> None:
        """Nothing is chosen."""
        return

    def gain(self, z: Tensor, target: None, task: RetrievalTask) -> Tensor:
        """Return ``-relu(max d(other class) - min d(own class))``: (n,), at most 0."""
        d = task.distance.matrix(z, task.gallery.z)
        same = task.gallery.y[None, :] == task.y[:, None]
        own = without_self(d, task.self_index) if self.exclude_self else d
        farthest = d.masked_fill(same, -torch.inf).amax(1)
        nearest = own.masked_fill(~same, torch.inf).amin(1)
        return -torch.relu(torch.where(nearest.isfinite(), farthest - nearest, 0 * farthest))

    def measure(self, z: Tensor, target: None, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``recall@1`` (n,), 0 or 1."""
        return {"recall@1": first_is_right(z, task)}


@dataclass(frozen=True, kw_only=True)
class GreedyMismatch:
    """Move a query onto the nearest gallery image of another class (GTM).

    Attributes
    ----------
    published_index
        Repeat two habits of the published code: the class left out is that of the first *result*, and the
        smallest distance is sought in the list without that class but its position there is used in the whole
        gallery, which points to another image. ``ers-robrank`` sets this.

    References
    ----------
    Zhou et al., TPAMI 2024: greedy top-1 misranking.
    """

    published_index: bool = False

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Tensor:
        """Choose one gallery row for every query, (n,)."""
        d = without_self(task.distance.matrix(task.z, task.gallery.z), task.self_index)
        if not self.published_index:
            return d.masked_fill(task.gallery.y[None, :] == task.y[:, None], torch.inf).argmin(1)
        other = task.gallery.y[None, :] != task.gallery.y[d.argmin(1)][:, None]
        best = d.masked_fill(~other, torch.inf).argmin(1, keepdim=True)
        return other.cumsum(1).gather(1, best)[:, 0] - 1  # its position among the others

    def gain(self, z: Tensor, target: Tensor, task: RetrievalTask) -> Tensor:
        """Return minus the distance to the chosen image, (n,)."""
        return -task.distance.rowwise(z, task.gallery.z[target])

    def measure(self, z: Tensor, target: Tensor, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``recall@1`` (n,), 0 or 1."""
        return {"recall@1": first_is_right(z, task)}


@dataclass(frozen=True, kw_only=True)
class GreedyTopTranslocation:
    """Push the first result of a query down its list (GTT).

    Attributes
    ----------
    within
        Places among which the former first result counts as retained.

    References
    ----------
    Zhou et al., TPAMI 2024: greedy top-1 translocation.
    """

    within: int = 4

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Tensor:
        """Return the first result of every clean query, (n,)."""
        return clean_first(task)

    def gain(self, z: Tensor, target: Tensor, task: RetrievalTask) -> Tensor:
        """Return minus the mean hinge over the gallery: (n,), at most 0."""
        return -hinge_above(task.distance.matrix(z, task.gallery.z), target[:, None])

    def measure(self, z: Tensor, target: Tensor, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``retain@k`` (n,): whether the image is still among the first ``within``, 0 or 1."""
        d = without_self(task.distance.matrix(z, task.gallery.z), task.self_index)
        before = (d < d.gather(1, target[:, None])).sum(1)
        return {f"retain@{self.within}": (before < self.within).to(z.dtype)}
