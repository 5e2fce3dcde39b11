"""Certified radii that training watches: the closed-form bound for one neighbour, without losing any."""

from __future__ import annotations

import torch
from torch import Tensor

from .objectives import FLOOR, through_matrix
from .triplets import BLOCK, ClassBlocks

POSITIVES = 10
"""Nearest positives that screen the negatives."""
NEGATIVES = 16
"""Negatives that are then compared with all positives."""


def closed_form_radii(z: Tensor, y: Tensor, blocks: ClassBlocks, components: Tensor) -> Tensor:
    """Return ``min over negatives of max over positives`` of the triplet radii, for one nearest neighbour.

    It is the K = 1 bound of Wang et al. (2020), computed in the dtype of its inputs, so fit to choose between
    metrics; for certificates use :meth:`~holdfast.linear.base.MahalanobisMixin.certify`. A few near positives
    give a lower bound for every negative; only negatives whose lower bound is below the best value found are
    compared with all positives. The result is the same as without screening.

    Parameters
    ----------
    z, y
        (n, D) points and (n,) class codes. A class without references has radius 0.
    blocks
        The references.
    components
        (r, D) the factor G.

    Returns
    -------
    Tensor
        (n,) input-space l2 radii >= 0; 0 where the nearest reference is of another class.
    """
    radii = z.new_zeros(len(z))
    embedded, images = blocks.x @ components.T, through_matrix(blocks.x, components)
    for k, (start, end) in enumerate(zip(blocks.starts[:-1], blocks.starts[1:], strict=True)):
        rows = torch.nonzero(y == k).squeeze(1)
        if len(rows) == 0 or start == end or end - start == len(blocks):
            continue
        inside = torch.arange(start, end, device=z.device)
        outside = torch.cat([torch.arange(start), torch.arange(end, len(blocks))]).to(z.device)
        step = max(1, BLOCK // max(POSITIVES * len(outside), NEGATIVES * len(inside)))
        for part in rows.split(step):
            d = _squared(z[part] @ components.T, embedded)
            radii[part] = _bound(d[:, inside], d[:, outside], images[inside], images[outside])
    return radii


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(b.square().sum(1)[None, :], a, b.T, alpha=-2.0)  # but for the row's own square


def _eps(d_negative: Tensor, d_positive: Tensor, length: Tensor) -> Tensor:
    """(n, q), (n, p), (n, p, q) -> (n, p, q)."""
    rise = (d_negative[:, None, :] - d_positive[:, :, None]).clamp_min(0)
    return rise / (2 * length.clamp_min(FLOOR**0.5))


def _bound(dp: Tensor, dn: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """(n, P), (n, Q) distances and (P, D), (Q, D) images under M -> (n,)."""
    few = min(POSITIVES, dp.shape[1])
    near_d, near = dp.topk(few, largest=False)
    length = torch.cdist(positive[near].flatten(0, 1), negative).unflatten(0, near.shape)
    lower = _eps(dn, near_d, length).amax(1)  # (n, Q)
    width = min(NEGATIVES, dn.shape[1])
    best = dp.new_full((len(dp),), torch.inf)
    low, order = lower.sort(1)
    undecided = torch.arange(len(dp), device=dp.device)
    for first in range(0, dn.shape[1], width):
        columns = order[undecided, first : first + width]
        length = torch.cdist(negative[columns].flatten(0, 1), positive).unflatten(0, columns.shape).mT
        full = _eps(dn[undecided].gather(1, columns), dp[undecided], length).amax(1).amin(1)
        best[undecided] = torch.minimum(best[undecided], full)
        if first + width >= dn.shape[1]:
            break
        undecided = undecided[low[undecided, first + width] < best[undecided]]
        if len(undecided) == 0:
            break
    return best
