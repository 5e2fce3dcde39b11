"""Shrink whole triplets (TBC), and collapse or harden by chance (ACAP)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional.hardness import hardness
from ..types import Adversary, Context, TripletView


@dataclass(frozen=True, kw_only=True)
class BodyCollapse(Adversary[TripletView]):
    """Draw anchor, positive and negative together: the triplet-body collapse of the reference code."""

    moves: str = "apn"

    def gain(self, z: TripletView, ctx: Context) -> Tensor:
        """Return minus the sum of the three distances, (t,)."""
        a, p, n = z.now
        rowwise = ctx.distance.rowwise
        return -(rowwise(a, p) + rowwise(a, n) + rowwise(p, n))


@dataclass(frozen=True, kw_only=True)
class AnchoredCollapse(Adversary[TripletView]):
    """By a fair coin at each step of the search, collapse the pair or raise hardness (ACAP)."""

    moves: str = "apn"

    def gain(self, z: TripletView, ctx: Context) -> Tensor:
        """Return ``-d(p, n)`` or the hardness, (t,); the coin comes from ``ctx.generator``."""
        if float(torch.rand((), generator=ctx.generator)) < 0.5:
            return -ctx.distance.rowwise(z.now.positive, z.now.negative)
        return hardness(z.now, ctx.distance)
