"""Push the embedding of a query as far from its place as the threat allows (ES)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional.ranking import without_self
from ..rng import Randomness
from ..types import RetrievalTask


@dataclass(frozen=True, kw_only=True)
class EmbeddingShift:
    """Raise the distance between a query and its own clean embedding (ES:D, ES:R).

    Notes
    -----
    At the clean input the distance is 0; for the start gradient see
    :class:`~holdfast.adversaries.Shift`, which climbs the same gain in training.

    References
    ----------
    Zhou et al., *Adversarial Ranking Attack and Defense*, ECCV 2020, section 3.3; the two measures
    are items of the empirical robustness score.
    """

    def target(self, task: RetrievalTask, generator: Randomness = None) -> None:
        """Nothing is chosen."""
        return

    def gain(self, z: Tensor, target: None, task: RetrievalTask) -> Tensor:
        """Return the shift (n,)."""
        return task.distance.rowwise(z, task.z)

    def measure(self, z: Tensor, target: None, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``shift`` (the distance from the clean embedding) and ``recall@1`` (0 or 1); each (n,)."""
        return {"shift": task.distance.rowwise(z, task.z), "recall@1": first_is_right(z, task)}


def first_is_right(z: Tensor, task: RetrievalTask) -> Tensor:
    """Return 1 where a gallery row of the query's label is strictly nearer than all others: (n,).

    The query's own clean image is left out, by index. Ties count against the defense.
    """
    d = without_self(task.distance.matrix(z, task.gallery.z), task.self_index)  # (n, m)
    same = task.gallery.y[None, :] == task.y[:, None]
    right = d.masked_fill(~same, torch.inf).amin(1) < d.masked_fill(same, torch.inf).amin(1)
    return right.to(z.dtype)
