"""Hinge on the certified radius of Recall@1 in embedding space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.distance import squared_matrix
from ..types import PairwiseDistance
from .checks import check_batch

TINY = 1e-9
"""Added to squared distances between rows, so that duplicates have a bisector with a finite gradient."""


@dataclass(frozen=True, kw_only=True)
class BisectorMargin:
    """Keep every row at least ``margin`` from the bisectors that decide its Recall@1.

    ``max(0, margin - max_p min_q (|z - z_q|^2 - |z - z_p|^2) / (2 |z_p - z_q|))`` over the other rows p of
    the row's class and the rows q of other classes: with the rest of the batch as gallery this is the
    distance by which the embedding may move, in any direction, until its nearest row is of another class.

    Attributes
    ----------
    margin
        >= 0, in Euclidean embedding units; for an encoder of gain 1 a radius in the l2 norm of the pixels.

    Notes
    -----
    Ours: what :class:`holdfast.certify.LipschitzCertifier` certifies, as a loss. The triplet loss bounds it
    by ``(d(a, n) - d(a, p)) / 2`` and asks it of every positive, although one is enough. Always Euclidean.
    A row without any positive or without any negative costs nothing. Time and memory grow with the cube of
    the rows.

    Examples
    --------
    >>> from holdfast.functional.distance import Euclidean
    >>> z, y = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
    >>> [round(v, 4) for v in BisectorMargin(margin=2.0)(z, y, Euclidean()).tolist()]  # bisectors 2, 1.5
    [0.0, 1.5, 0.0]
    """

    margin: float = 1.0
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise InvalidArgument("margin", "a finite number >= 0", self.margin)

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return one value for each row.

        Parameters
        ----------
        z, y
            (n, e) embeddings and (n,) labels, in any order.
        distance
            Not used.

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
        same = y[:, None] == y
        positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        p, q = _deciding(z.detach(), positive, ~same)
        height = (
            (2 * z - z[p] - z[q]) * (z[p] - z[q])
        ).sum(1) / (2 * ((z[p] - z[q]).square().sum(1) + TINY).sqrt())  # fmt: skip
        return (self.margin - height).relu() * (positive.any(1) & ~same.all(1))


def _deciding(z: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows p and q (n,) at which the maximum and the minimum are taken."""
    z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    d = squared_matrix(z, z)
    inverse = 0.5 / (d + TINY).sqrt()
    best = d.new_full((len(z),), -math.inf)
    p = q = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for rows in torch.split(torch.arange(len(z), device=z.device), 64):
        height = (d[rows, None, :] - d[rows, :, None]) * inverse  # (c, p, q)
        least, at = height.masked_fill_(~negative[rows, None, :], math.inf).min(2)  # (c, p)
        best[rows], place = least.masked_fill(~positive[rows], -math.inf).max(1)
        p = p.index_put((rows,), place)
        q = q.index_put((rows,), at.gather(1, place[:, None])[:, 0])
    return p, q
