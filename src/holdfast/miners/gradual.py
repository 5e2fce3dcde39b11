"""Semihard negatives from a window that shrinks while training proceeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import PairwiseDistance, Progress, Triplets
from .semihard import Semihard


@dataclass(frozen=True, kw_only=True)
class GradualSemihard:
    """Offer, for each epoch e of E, the semihard miner with window ``margin * (1 - e / (2 E))^2``.

    The window falls from ``margin`` in the first epoch towards ``margin / 4``.

    Attributes
    ----------
    margin
        Width of the first window, > 0, in units of the distance.

    Notes
    -----
    The miner of CA-TRIDE (Tian et al., ICML 2024). A miner's call knows nothing of the training
    run, so the epoch enters by :meth:`at`: ``miner.at(ctx.progress)(z, y, distance, generator)``. Called
    directly, it mines as in the first epoch.

    Examples
    --------
    >>> GradualSemihard(margin=0.2).at(Progress(epoch=0, epochs=8))
    Semihard(margin=0.2)
    >>> round(GradualSemihard(margin=0.2).at(Progress(epoch=4, epochs=8)).margin, 4)
    0.1125
    """

    margin: float = 0.2

    def __post_init__(self) -> None:
        Semihard(margin=self.margin)  # the same condition, and the same error

    def at(self, progress: Progress) -> Semihard:
        """Return the miner of an epoch; epochs count from 0."""
        share = progress.epoch / max(progress.epochs, 1)
        return Semihard(margin=self.margin * (1 - share / 2) ** 2)

    def __call__(
        self, z: Tensor, y: Tensor, distance: PairwiseDistance, generator: torch.Generator | None = None
    ) -> Triplets:
        """Mine one triplet for each pair as in the first epoch; see :class:`Semihard`."""
        return self.at(Progress())(z, y, distance, generator)
