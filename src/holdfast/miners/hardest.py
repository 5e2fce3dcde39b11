"""The hardest negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import PairwiseDistance, Triplets
from .pairs import read_pairs


@dataclass(frozen=True, kw_only=True)
class Hardest:
    """Take the nearest row of another class; the positive is the anchor's partner.

    Notes
    -----
    The published code looks for the nearest negative at a distance other than 0; here classes decide, so that
    an exact duplicate with another label counts as the hardest negative that it is. Ties go to one of the
    nearest rows.

    Examples
    --------
    >>> import torch
    >>> from holdfast.functional.distance import Euclidean
    >>> z, y = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1])
    >>> Hardest()(z, y, Euclidean()).negative.tolist()
    [2, 1]
    """

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
            The distance that decides who is nearest.
        generator
            Not used: nothing is random here.

        Returns
        -------
        Triplets
            Rows of the batch, each (n / 2,).
        """
        pairs = read_pairs(z, y, distance)
        return Triplets(pairs.anchor, pairs.partner, pairs.d.masked_fill(pairs.same, math.inf).argmin(1))
