"""Quadruplet loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance
from .checks import check_batch


@dataclass(frozen=True, kw_only=True)
class Quadruplet:
    """Quadruplet loss, with every row of the batch as an anchor.

    ``max(0, d(a, p) - d(a, n) + margin) + max(0, d(a, p) - d(n, m) + second)``: the second part asks that
    a pair of one class be closer than two rows of two *other* classes, whoever the anchor is.

    Attributes
    ----------
    margin
        Of the triplet part, >= 0, in units of the distance.
    second
        Of the second part, >= 0. Published: 0.1 for normalised embeddings, 0.5 for raw Euclidean ones.

    Notes
    -----
    Chen et al. (Beyond Triplet Loss: A Deep Quadruplet Network for Person Re-identification, CVPR 2017),
    with fixed margins and plain distances. The fourth row must be of another class than anchor and negative,
    which triplets do not tell, so the loss reads a batch and chooses by itself, without chance: p is the
    farthest row of the anchor's class (never the anchor, excluded by its place), n the nearest row of another
    class, m the nearest row to n of a third class. The code of Hardness Manipulation takes a mined triplet.
    The choice carries no gradient. Anchors without p or n give 0; without m the second part is 0.

    Examples
    --------
    >>> from holdfast.functional.distance import SquaredEuclidean
    >>> z, y = torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([0, 0, 1, 2])
    >>> Quadruplet(margin=0.0, second=0.5)(z, y, SquaredEuclidean()).tolist()
    [0.5, 0.5, 0.0, 0.0]
    """

    margin: float = 0.2
    second: float = 0.1
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __post_init__(self) -> None:
        for name in ("margin", "second"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidArgument(name, "a finite number >= 0", getattr(self, name))

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return one value for each row.

        Parameters
        ----------
        z, y
            (n, e) embeddings and (n,) labels, in any order.
        distance
            Its matrix form chooses the rows, its row-wise form gives the value.

        Returns
        -------
        Tensor
            (n,), >= 0.

        Raises
        ------
        InvalidArgument
            If the shapes do not fit.
        """
        check_batch(z, y)
        fixed = z.detach()
        d = distance.matrix(fixed, fixed)  # (n, n)
        same = y[:, None] == y
        positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        p = d.masked_fill(~positive, -math.inf).argmax(1)  # (n,)
        n = d.masked_fill(same, math.inf).argmin(1)
        third = ~same & ~same[n]  # (n, n): neither of the anchor's class nor of its negative's
        m = d[n].masked_fill(~third, math.inf).argmin(1)
        near = distance.rowwise(z, z[p])
        triplet = (near - distance.rowwise(z, z[n]) + self.margin).relu()
        rest = (near - distance.rowwise(z[n], z[m]) + self.second).relu()
        complete = positive.any(1) & ~same.all(1)
        return torch.where(complete, triplet + torch.where(third.any(1), rest, 0.0), 0.0)
