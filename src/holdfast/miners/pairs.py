"""The pair layout that all miners read: row 2i is an anchor, row 2i + 1 its partner of the same class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, InvalidArgument
from ..types import PairwiseDistance


class Pairs(NamedTuple):
    """What a batch in pair layout offers its t = n / 2 anchors.

    Attributes
    ----------
    anchor, partner
        (t,) int64 rows 2i and 2i + 1.
    itself
        (t, n) bool: the anchor's own row.
    same
        (t, n) bool: rows of the anchor's class, the anchor itself included.
    other
        (t, n) bool: rows of other classes; at least one in every row.
    d
        (t, n) distances from the anchors to all rows, exactly 0 to the anchor itself.
    """

    anchor: Tensor
    partner: Tensor
    itself: Tensor
    same: Tensor
    other: Tensor
    d: Tensor

    @property
    def d_partner(self) -> Tensor:
        """(t, 1) distance from each anchor to its partner."""
        return self.d.gather(1, self.partner[:, None])


@torch.no_grad()
def read_pairs(z: Tensor, y: Tensor, distance: PairwiseDistance) -> Pairs:
    """Check a batch in pair layout and measure it, without gradient.

    Parameters
    ----------
    z
        (n, e) embeddings, used as they are: normalisation is the encoder's job.
    y
        (n,) integer labels.
    distance
        The distance of the run.

    Raises
    ------
    InvalidArgument
        If the shapes do not fit, n is odd or 0, the labels of a pair differ, or a distance is not finite.
    DataError
        If the whole batch is of one class: no anchor has a negative then.
    """
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise InvalidArgument("z, y", "shapes (n, e) and (n,)", (tuple(z.shape), tuple(y.shape)))
    n = len(z)
    if n == 0 or n % 2:
        raise InvalidArgument("z", "an even number of rows: 2i an anchor, 2i + 1 its partner", n)
    differing = (y[0::2] != y[1::2]).nonzero()
    if len(differing):
        i = int(differing[0])
        got = f"{int(y[2 * i])} and {int(y[2 * i + 1])} in rows {2 * i} and {2 * i + 1}"
        raise InvalidArgument("y", "the same label in rows 2i and 2i + 1", got)
    if bool((y == y[0]).all()):
        raise DataError(
            f"a batch of {n} rows holds class {int(y[0])} only; every batch needs at least two classes"
        )
    rows = torch.arange(n, device=z.device)
    anchor, partner = rows[0::2], rows[1::2]
    itself = anchor[:, None] == rows
    same = y[0::2, None] == y
    d = distance.matrix(z[0::2], z).masked_fill(itself, 0.0)  # (t, n)
    if not bool(torch.isfinite(d).all()):
        raise InvalidArgument(
            "z", "embeddings at finite distances", "NaN or infinity (did training diverge?)"
        )
    return Pairs(anchor, partner, itself, same, ~same, d)


def or_else(first: Tensor, second: Tensor) -> Tensor:
    """Return ``first``, with ``second`` in those rows where ``first`` is empty; both (t, n) bool."""
    return torch.where(first.any(1, keepdim=True), first, second)
