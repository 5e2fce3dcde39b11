"""Push every image away from where it was (EST)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..types import Adversary, BatchView, Context


@dataclass(frozen=True, kw_only=True)
class Shift(Adversary[BatchView]):
    """Raise the distance of every embedding from its own clean one.

    Attributes
    ----------
    moves
        ``"x"``: every row of the batch.

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

    def gain(self, z: BatchView, ctx: Context) -> Tensor:
        """Return the shift (n,)."""
        return ctx.distance.rowwise(z.now, z.clean)
