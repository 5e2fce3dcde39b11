"""Softhard triplets: negatives nearer than the farthest positive, positives farther than the nearest one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rng
from ..types import PairwiseDistance, Triplets
from .pairs import Pairs, or_else, read_pairs


@dataclass(frozen=True, kw_only=True)
class Softhard:
    """Take triplets that are hard, but not the hardest of all.

    Negatives come from ``{n : d(a, n) < max_p d(a, p)}`` and positives from ``{p : d(a, p) > min_n d(a,
    n)}``, with p over the rows of the anchor's class and n over the rest, and all candidates with the same
    chance. Where no negative qualifies, any row of another class may be taken; where no positive does, the
    partner is.

    Attributes
    ----------
    self_positive
        Count the anchor itself among the positives, and fall back on any row of its class, the anchor
        included, as the published code does.

    Notes
    -----
    The miner of Roth et al. (ICML 2020), used by Hardness Manipulation (Zhou and Patel, CVPR
    2022). In the code of the latter an "easy" anchor, one whose class is nearer than any negative, may be
    its own positive, which makes d(a, p) = 0: with chance 1/2 if its class has two rows in the batch. All
    their headline figures were obtained so; ``self_positive=True`` reproduces it. The default never pairs a
    row with itself.

    Examples
    --------
    >>> import torch
    >>> from holdfast.functional.distance import Euclidean
    >>> z, y = torch.tensor([[0.0], [2.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1])
    >>> Softhard().negatives(z, y, Euclidean())[0].tolist()
    [False, False, True, False]
    >>> Softhard().positives(z, y, Euclidean())[0].tolist()
    [False, True, False, False]
    """

    self_positive: bool = False

    def _negatives(self, pairs: Pairs) -> Tensor:
        farthest = pairs.d.masked_fill(pairs.other, 0.0).amax(1, keepdim=True)  # (t, 1) over the class
        return pairs.other & (pairs.d < farthest)

    def _class_rows(self, pairs: Pairs) -> Tensor:
        return pairs.same if self.self_positive else pairs.same & ~pairs.itself

    def _positives(self, pairs: Pairs) -> Tensor:
        nearest = pairs.d.masked_fill(pairs.same, math.inf).amin(1, keepdim=True)  # (t, 1) over the rest
        return self._class_rows(pairs) & (pairs.d > nearest)

    def negatives(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return the candidate negatives of each anchor, without the fallback: (n / 2, n) bool."""
        return self._negatives(read_pairs(z, y, distance))

    def positives(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return the candidate positives of each anchor, without the fallback: (n / 2, n) bool."""
        return self._positives(read_pairs(z, y, distance))

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
            The distance that is compared.
        generator
            Source of the draws, negatives first; the global one of torch if ``None``.

        Returns
        -------
        Triplets
            Rows of the batch, each (n / 2,).
        """
        pairs = read_pairs(z, y, distance)
        partner = torch.zeros_like(pairs.same).scatter_(1, pairs.partner[:, None], True)
        fallback = pairs.same if self.self_positive else partner
        negative = rng.choose(or_else(self._negatives(pairs), pairs.other), generator)[:, 0]
        positive = rng.choose(or_else(self._positives(pairs), fallback), generator)[:, 0]
        return Triplets(pairs.anchor, positive, negative)
