"""Draw positive and negative together (ACT)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..types import Adversary, Context, TripletView


@dataclass(frozen=True, kw_only=True)
class Collapse(Adversary[TripletView]):
    """Lower the distance between positive and negative; the anchor stays clean.

    Attributes
    ----------
    moves
        ``"pn"``.

    References
    ----------
    Zhou et al., *Adversarial Attack and Defense in Deep Ranking*, TPAMI 2024: anti-collapse triplets (ACT).
    """

    moves: str = "pn"

    def gain(self, z: TripletView, ctx: Context) -> Tensor:
        """Return ``-d(p, n)``, (t,)."""
        return -ctx.distance.rowwise(z.now.positive, z.now.negative)
