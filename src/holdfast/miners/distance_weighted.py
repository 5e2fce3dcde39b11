"""Negatives drawn with the inverse of the density that their distance has on a sphere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rng
from ..errors import InvalidArgument
from ..types import PairwiseDistance, Triplets
from .pairs import Pairs, read_pairs

NEAREST = 1e-12
"""Distances count as at least this, so that a duplicate gets a large weight instead of an infinite one."""


@dataclass(frozen=True, kw_only=True)
class DistanceWeighted:
    """Draw negatives so that all distances become about equally frequent; the positive is the partner.

    The distance d between random points of the unit sphere in D dimensions has a density proportional to
    ``d^(D-2) (1 - d^2/4)^((D-3)/2)``; a negative at distance d is drawn with the inverse of that as weight.

    Attributes
    ----------
    dimension
        D, at least 2; ``None`` takes the width e of the embeddings.

    Notes
    -----
    Distance-weighted sampling of Wu et al. (Sampling Matters in Deep Embedding Learning, ICCV
    2017), without their cut-offs of near and far negatives, as in the code of Hardness Manipulation. That
    code fixes D = 512, the width of its embeddings, for which this is nearly the hardest negative.

    The weights mean what they say for Euclidean distance of unit vectors. Any other distance is put into
    the formula as it is; values of 2 and above get weight 0, and an anchor whose negatives all have weight
    0 takes any of them.

    Examples
    --------
    >>> import torch
    >>> from holdfast.functional.distance import Euclidean
    >>> z, y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 1, 1])
    >>> DistanceWeighted(dimension=8).weights(z, y, Euclidean()).tolist()[0]
    [0.0, 0.0, 0.5, 0.5]
    """

    dimension: int | None = None

    def __post_init__(self) -> None:
        if self.dimension is not None and self.dimension < 2:
            raise InvalidArgument("dimension", "an integer >= 2 or None", self.dimension)

    def _log_weights(self, pairs: Pairs, width: int) -> Tensor:
        dimension = width if self.dimension is None else self.dimension
        d = pairs.d.double()
        density = (dimension - 2) * d.clamp_min(NEAREST).log() + (dimension - 3) / 2 * torch.log1p(-d * d / 4)
        allowed = pairs.other & (d < 2)
        log_weights = torch.where(allowed, -density, -math.inf)
        uniform = torch.zeros_like(d).masked_fill(pairs.same, -math.inf)
        return torch.where(allowed.any(1, keepdim=True), log_weights, uniform)

    def weights(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return each row's chance to become the anchor's negative: (n / 2, n) float64, rows sum to 1."""
        return self._log_weights(read_pairs(z, y, distance), z.shape[1]).softmax(1)

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
            The distance that is weighted; see the notes of the class.
        generator
            Source of the draws; the global one of torch if ``None``.

        Returns
        -------
        Triplets
            Rows of the batch, each (n / 2,).
        """
        pairs = read_pairs(z, y, distance)
        log_weights = self._log_weights(pairs, z.shape[1])
        u = rng.uniform(log_weights, generator).clamp_min(2.0**-25)
        gumbel = -(-u.log()).log()  # the argmax of log w + Gumbel noise is a draw with chances w / sum(w)
        return Triplets(pairs.anchor, pairs.partner, (log_weights + gumbel).argmax(1))
