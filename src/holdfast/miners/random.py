"""Random negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rng
from ..types import PairwiseDistance, Triplets
from .pairs import read_pairs


@dataclass(frozen=True, kw_only=True)
class Random:
    """Take any row of another class, all with the same chance; the positive is the anchor's partner.

    Examples
    --------
    >>> import torch
    >>> from holdfast.functional.distance import Euclidean
    >>> z, y = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1])
    >>> a, p, n = Random()(z, y, Euclidean(), torch.Generator())
    >>> a.tolist(), p.tolist(), bool((y[n] != y[a]).all())
    ([0, 2], [1, 3], True)
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
            Not needed for the choice; every miner has the same call.
        generator
            Source of the draws; the global one of torch if ``None``.

        Returns
        -------
        Triplets
            Rows of the batch, each (n / 2,).
        """
        pairs = read_pairs(z, y, distance)
        return Triplets(pairs.anchor, pairs.partner, rng.choose(pairs.other, generator)[:, 0])
