"""Push every image away from where it was (EST)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types import Adversary, BatchView, Context, TripletView
from .moves import check_moves


@dataclass(frozen=True, kw_only=True)
class Shift(Adversary[Any]):
    """Raise the distance of every embedding from its own clean one.

    Attributes
    ----------
    moves
        ``"x"``: every row of the batch (EST). ``"pn"``: positives and negatives only (REST).

    Notes
    -----
    At the clean input the distance is 0. The Euclidean distance of this library adds a tiny constant to every
    coordinate, so its gradient there is the direction of growing coordinates, the same for every run; the
    published code adds random noise of 1e-7 instead. For the cosine distance use a random start.

    References
    ----------
    Zhou et al., *Adversarial Ranking Attack and Defense*, ECCV 2020, section 3.3.
    """

    moves: str = "x"

    def __post_init__(self) -> None:
        check_moves(self.moves, "x" if self.moves == "x" else "apn")

    def gain(self, z: BatchView | TripletView, ctx: Context) -> Tensor:
        """Return the shift (n,), for triplets the sum over the roles that move (t,)."""
        if isinstance(z, BatchView):
            return ctx.distance.rowwise(z.now, z.clean)
        pairs = [(z.now[i], z.clean[i]) for i, role in enumerate("apn") if role in self.moves]
        return torch.stack([ctx.distance.rowwise(now, clean) for now, clean in pairs]).sum(0)
