"""Projections onto balls, the box of images, and the cone of positive semi-definite matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def _norms(x: Tensor) -> Tensor:
    """(n, *s) -> (n, 1, ..., 1) Euclidean norms of rows."""
    flat: Tensor = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
    return flat.reshape(-1, *[1] * (x.ndim - 1))


def linf_ball(x: Tensor, centre: Tensor, radius: float) -> Tensor:
    """Project (n, *s) rows onto the l-inf balls around ``centre``."""
    return torch.minimum(torch.maximum(x, centre - radius), centre + radius)


def l2_ball(x: Tensor, centre: Tensor, radius: float) -> Tensor:
    """Project (n, *s) rows onto the l2 balls around ``centre``.

    Examples
    --------
    >>> import torch
    >>> l2_ball(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 1.0)
    tensor([[0.6000, 0.8000]])
    """
    delta = x - centre
    norm = _norms(delta).clamp_min(torch.finfo(x.dtype).tiny)
    return centre + delta * (radius / norm).clamp_max(1.0)


def box(x: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Clip to ``[lo, hi]``; ``None`` leaves everything."""
    return x if bounds is None else x.clamp(*bounds)


def unit(x: Tensor) -> Tensor:
    """Scale (n, *s) rows to Euclidean norm 1; zero rows stay zero."""
    return x / _norms(x).clamp_min(torch.finfo(x.dtype).tiny)


def psd_cone(m: Tensor) -> Tensor:
    """Return the nearest positive semi-definite matrix in the Frobenius norm.

    Parameters
    ----------
    m
        (e, e); its symmetric part is taken.

    References
    ----------
    Higham, *Computing a nearest symmetric positive semidefinite matrix*, 1988, theorem 2.1.
    """
    values, vectors = torch.linalg.eigh((m + m.T) / 2)
    out: Tensor = (vectors * values.clamp_min(0)) @ vectors.T
    return out
