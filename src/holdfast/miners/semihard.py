"""Semihard negatives: farther than the positive, but not by more than a window."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rng
from ..errors import InvalidArgument
from ..types import PairwiseDistance, Triplets
from .pairs import Pairs, or_else, read_pairs


@dataclass(frozen=True, kw_only=True)
class Semihard:
    """Take a negative of ``{n : d(a, p) < d(a, n) < d(a, p) + margin}``, all with the same chance.

    The positive is the anchor's partner. Where the set is empty, any row of another class may be taken.

    Attributes
    ----------
    margin
        Width of the window, > 0, in units of the distance.

    Notes
    -----
    The rule of Schroff et al. (FaceNet, CVPR 2015), with plain instead of squared distances. Some published
    runs used a window of 1.0 beside a loss margin of 0.2 without saying so; here the window is a field.

    Examples
    --------
    >>> import torch
    >>> from holdfast.functional.distance import Euclidean
    >>> z, y = torch.tensor([[0.0], [1.0], [1.1], [3.0]]), torch.tensor([0, 0, 1, 1])
    >>> Semihard(margin=0.2).negatives(z, y, Euclidean()).tolist()[0]
    [False, False, True, False]
    """

    margin: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.margin < math.inf:
            raise InvalidArgument("margin", "a finite number > 0", self.margin)

    def _negatives(self, pairs: Pairs) -> Tensor:
        inside = (pairs.d > pairs.d_partner) & (pairs.d < pairs.d_partner + self.margin)
        return pairs.other & inside

    def negatives(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return the candidate negatives of each anchor, without the fallback: (n / 2, n) bool."""
        return self._negatives(read_pairs(z, y, distance))

    def __call__(
        self, z: Tensor, y: Tensor, distance: PairwiseDistance, generator: torch.Generator | None = None
    ) -> Triplets:
        """Mine one triplet for each pair.

        Parameters
        ----------
        z, y
            (n, e) embeddings and (n,) labels in pair layout; see :func:`holdfast.miners.pairs.read_pairs`,
            also for the errors.
        distance
            The distance that the window is measured in.
        generator
            Source of the draws; the global one of torch if ``None``.

        Returns
        -------
        Triplets
            Rows of the batch, each (n / 2,).
        """
        pairs = read_pairs(z, y, distance)
        allowed = or_else(self._negatives(pairs), pairs.other)
        return Triplets(pairs.anchor, pairs.partner, rng.choose(allowed, generator)[:, 0])
