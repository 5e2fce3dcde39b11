"""Distances between embeddings, as values that offer a matrix and a row-wise form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance

OFFSET = 1e-6
"""Added to every coordinate difference of row-wise Euclidean distances, the convention of PyTorch's
``pairwise_distance``: at u = v the value is ``1e-6 * sqrt(e)`` and the gradient is finite and not zero."""


def norms(x: Tensor) -> Tensor:
    """Return Euclidean norms along the last axis: (n, e) -> (n,)."""
    out: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return out


def squared_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Return squared Euclidean distances by one matrix product, clamped at 0.

    Parameters
    ----------
    a, b
        (n, e) and (m, e).

    Returns
    -------
    Tensor
        (n, m), >= 0. Absolute rounding error is about ``eps(dtype) * (|a|^2 + |b|^2)``.
    """
    product = torch.addmm(b.square().sum(1)[None, :], a, b.T, alpha=-2.0)  # (n, m)
    return (product + a.square().sum(1)[:, None]).clamp_min(0)


def _cdist(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean matrix by one product, whatever the sizes, so that chunks agree; gradient 0 at distance 0."""
    out: Tensor = torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")
    return out


@dataclass(frozen=True, kw_only=True)
class Euclidean:
    """Euclidean distance.

    Attributes
    ----------
    offset
        Added to every coordinate difference in :meth:`rowwise` (see :data:`OFFSET`); :meth:`matrix` is exact.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    >>> round(float(Euclidean().rowwise(a, b)), 4), float(Euclidean().matrix(a, b))
    (5.0, 5.0)
    """

    offset: float = OFFSET

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (m, e) -> (n, m); the gradient at distance 0 is 0."""
        return _cdist(a, b)

    def rowwise(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (n, e) -> (n,)."""
        return norms(a - b + self.offset)


@dataclass(frozen=True, kw_only=True)
class SquaredEuclidean:
    """Squared Euclidean distance."""

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (m, e) -> (n, m)."""
        return squared_matrix(a, b)

    def rowwise(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (n, e) -> (n,)."""
        return (a - b).square().sum(-1)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Cosine distance ``1 - cos``, in [0, 2]; embeddings need not be normalised."""

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (m, e) -> (n, m)."""
        return 1 - F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T

    def rowwise(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (n, e) -> (n,)."""
        return 1 - F.cosine_similarity(a, b, dim=-1)


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """Mahalanobis distance ``sqrt((u - v)^T M (u - v))``.

    Parameters
    ----------
    factor
        L with M = L^T L, (r, e). Working with L keeps the distance real and its gradient finite.

    Examples
    --------
    >>> import torch
    >>> d = Mahalanobis.from_matrix(torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    >>> float(d.matrix(torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))[0, 0])
    2.0
    """

    factor: Tensor
    offset: float = OFFSET

    def __post_init__(self) -> None:
        if self.factor.ndim != 2:
            raise InvalidArgument("factor", "a matrix (r, e)", tuple(self.factor.shape))
        if not bool(torch.isfinite(self.factor).all()):
            raise InvalidArgument("factor", "finite numbers", "NaN or infinity")

    @classmethod
    def from_matrix(cls, m: Tensor, tolerance: float = 1e-8) -> Mahalanobis:
        """Factor a symmetric positive semi-definite M (e, e).

        Parameters
        ----------
        m
            The matrix.
        tolerance
            Rounding errors that are forgiven, relative to the largest entry; at least those of an
            eigenvalue solver in the precision of M, ``4 * e * eps(dtype)``.

        Raises
        ------
        InvalidArgument
            If M is not square, not finite, not symmetric, or has an eigenvalue below ``-tolerance`` times
            its largest entry.
        """
        if m.ndim != 2 or m.shape[0] != m.shape[1]:
            raise InvalidArgument("m", "a square matrix", tuple(m.shape))
        if not bool(torch.isfinite(m).all()):
            raise InvalidArgument("m", "finite numbers", "NaN or infinity")
        scale = float(m.abs().max().clamp_min(torch.finfo(m.dtype).tiny))
        tolerance = max(tolerance, 4 * len(m) * torch.finfo(m.dtype).eps)
        if float((m - m.T).abs().max()) > tolerance * scale:
            raise InvalidArgument("m", "a symmetric matrix", f"asymmetry {float((m - m.T).abs().max()):.3g}")
        values, vectors = torch.linalg.eigh((m + m.T) / 2)
        if float(values.min()) < -tolerance * scale:
            raise InvalidArgument("m", "a positive semi-definite matrix", f"eigenvalue {values.min():.3g}")
        return cls((vectors * values.clamp_min(0).sqrt()).T)

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (m, e) -> (n, m)."""
        factor = self.factor.to(a)
        return _cdist(a @ factor.T, b @ factor.T)

    def rowwise(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (n, e) -> (n,)."""
        return norms((a - b) @ self.factor.to(a).T + self.offset)


DISTANCES: Mapping[str, PairwiseDistance] = {
    "euclidean": Euclidean(),
    "squared": SquaredEuclidean(),
    "cosine": Cosine(),
}
