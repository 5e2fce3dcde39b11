"""Draw positive and negative together (ACT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import Adversary, Context, TripletView
from .moves import check_moves


@dataclass(frozen=True, kw_only=True)
class Collapse(Adversary[TripletView]):
    """Lower the distance between positive and negative; the anchor stays clean.

    Attributes
    ----------
    margin
        ``None``, or the margin of a contrastive loss: a negative beyond it gives no gradient there, so
        its positive is pushed away from the anchor instead (the published adaptation to contrastive loss).
    moves
        ``"pn"``, or one of the two.

    References
    ----------
    Zhou et al., *Adversarial Attack and Defense in Deep Ranking*, TPAMI 2024: anti-collapse triplets (ACT).
    """

    margin: float | None = None
    moves: str = "pn"

    def __post_init__(self) -> None:
        check_moves(self.moves, "pn")

    def gain(self, z: TripletView, ctx: Context) -> Tensor:
        """Return ``-d(p, n)``, or ``d(a, p)`` where the clean negative lies beyond ``margin``; (t,)."""
        together = -ctx.distance.rowwise(z.now.positive, z.now.negative)
        if self.margin is None:
            return together
        apart = ctx.distance.rowwise(z.now.anchor, z.now.positive)
        near = ctx.distance.rowwise(z.clean.anchor, z.clean.negative) < self.margin
        return torch.where(near, together, apart)
