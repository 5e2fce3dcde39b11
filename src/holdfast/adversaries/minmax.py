"""Make every triplet as hard as the budget allows (the direct min-max game)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..functional.hardness import hardness
from ..types import Adversary, Context, TripletView
from .moves import check_moves


@dataclass(frozen=True, kw_only=True)
class MinMax(Adversary[TripletView]):
    """Raise the hardness of every triplet without limit.

    Known to collapse in training; kept as the boundary case of
    :class:`~holdfast.adversaries.HardnessManipulation` and for comparison.

    References
    ----------
    Zhou and Patel, CVPR 2022, section 3.1: HM with destination hardness 2.
    """

    moves: str = "apn"

    def __post_init__(self) -> None:
        check_moves(self.moves, "apn")

    def gain(self, z: TripletView, ctx: Context) -> Tensor:
        """Return the hardness (t,)."""
        return hardness(z.now, ctx.distance)
