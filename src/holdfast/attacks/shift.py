"""Push the embedding of a query as far from its place as the threat allows (ES)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..rng import Randomness
from ..types import RetrievalTask
from .places import hits


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
    return hits(z, task, 1)
