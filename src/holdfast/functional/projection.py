"""Projections onto balls, the box of images, and the cone of positive semi-definite matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def _scaled(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split (n, *s) rows into ``x = scale * y`` with max |y| = 1.

    Squares of tiny or huge numbers would leave the range of float32 otherwise. Zero rows have scale 1.

    Returns
    -------
    tuple of Tensor
        y like ``x``; its Euclidean norms and the scales, both (n, 1, ..., 1).
    """
    shape = (-1, *[1] * (x.ndim - 1))
    largest = x.reshape(len(x), -1).abs().amax(1)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest)).reshape(shape)
    y = x / scale
    return y, torch.linalg.vector_norm(y.reshape(len(x), -1), dim=1).reshape(shape), scale


def linf_ball(x: Tensor, centre: Tensor, radius: float | Tensor) -> Tensor:
    """Project (n, *s) rows onto the l-inf balls around ``centre``.

    Parameters
    ----------
    x, centre
        (n, *s).
    radius
        One for all rows, or (n, 1, ..., 1) with one for each; >= 0.
    """
    return torch.minimum(torch.maximum(x, centre - radius), centre + radius)


def l2_ball(x: Tensor, centre: Tensor, radius: float | Tensor) -> Tensor:
    """Project (n, *s) rows onto the l2 balls around ``centre``.

    Parameters
    ----------
    x, centre
        (n, *s).
    radius
        One for all rows, or (n, 1, ..., 1) with one for each; >= 0.

    Examples
    --------
    >>> import torch
    >>> l2_ball(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 1.0)
    tensor([[0.6000, 0.8000]])
    """
    y, norm, scale = _scaled(x - centre)
    return torch.where(norm * scale > radius, centre + y / norm.clamp_min(1) * radius, x)


def box(x: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Clip to ``[lo, hi]``; ``None`` leaves everything."""
    return x if bounds is None else x.clamp(*bounds)


def unit(x: Tensor) -> Tensor:
    """Scale (n, *s) rows to Euclidean norm 1; zero rows stay zero."""
    y, norm, _ = _scaled(x)
    return y / norm.clamp_min(1)  # 1 <= |y| unless the row is zero


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
