"""What the terms share: directions without trouble at zero, cosines of all pairs, and nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from ....functional.projection import unit
from ..view import EnsembleView


def directions(rows: Tensor, smallest: float = 0.0) -> Tensor:
    """Scale (n, d) rows to length 1; a row with no entry beyond ``smallest`` becomes 0 and has no gradient.

    Examples
    --------
    >>> directions(torch.tensor([[3.0, -4.0], [0.0, 1e-9]]), 1e-6).tolist()
    [[0.6000000238418579, -0.800000011920929], [0.0, 0.0]]
    """
    flat = rows.detach().abs().amax(1, keepdim=True) <= smallest  # (n, 1); NaN is not flat and stays
    return torch.where(flat, torch.zeros_like(rows), unit(rows))


def pair_cosines(members: Sequence[Tensor]) -> Tensor:
    """Return (M(M-1)/2, n) cosines of all pairs m < n, from M tensors (n, d) of rows of length 1 or 0."""
    return torch.stack([(a * b).sum(1) for a, b in combinations(members, 2)])


def nothing(view: EnsembleView) -> Tensor:
    """Return 0, joined to encoders and proxies by gradients of 0: the diversity of one member."""
    parts = (*view.z, *view.z_attacked, *(part.proxies for part in view.proxies))
    return 0.0 * torch.stack([part.sum() for part in parts]).sum()
