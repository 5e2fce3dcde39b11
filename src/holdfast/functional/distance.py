"""Distances between embeddings, as values that offer a matrix and a row-wise form."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance

OFFSET = 1e-6
"""Added to every coordinate difference of row-wise Euclidean distances, the convention of PyTorch's
``pairwise_distance``: at u = v the value is ``1e-6 * sqrt(e)`` and the gradient is finite and not zero."""

TINY = 1e-12
"""Lengths below this count as this, as in PyTorch's ``normalize``."""

LEAST = 16
"""Rows from which a matrix product on a CPU rounds a float32 entry alike whatever the number of rows."""

STEP = 4096
"""Rows whose squares are held at a time."""

PART = 2**20
"""Distances that are worked out from products at a time."""

FEW = 4096
"""Rows on both sides up to which the Euclidean matrix is ``torch.cdist``. That it copies both sides and
differentiates both is cheap there, and where a row nearly meets itself (the sign of such a gradient is
rounding) searches and golden numbers keep the rounding that they were made with."""


def norms(x: Tensor) -> Tensor:
    """Return Euclidean norms along the last axis: (n, e) -> (n,)."""
    out: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return out


def _squares(x: Tensor) -> Tensor:
    """Return squared lengths (m, e) -> (m,); without a copy of a large ``x`` unless a gradient needs it."""
    if len(x) <= STEP or (x.requires_grad and torch.is_grad_enabled()):
        return x.square().sum(1)
    out, buffer = (
        x.new_empty(len(x)),
        x.new_empty(STEP, x.shape[1]),
    )  # one buffer: many would scatter the heap
    with torch.no_grad():
        for start in range(0, len(x), STEP):
            part = x[start : start + STEP]
            torch.sum(torch.square(part, out=buffer[: len(part)]), 1, out=out[start : start + STEP])
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
    product = torch.addmm(_squares(b)[None, :], a, b.T, alpha=-2.0)  # (n, m)
    return (product + _squares(a)[:, None]).clamp_min(0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b.T``; a handful of rows take the kernel of many, whose sums are in another order."""
    n, m = len(a), len(b)
    a = F.pad(a, (0, 0, 0, LEAST - n)) if n < LEAST else a
    b = F.pad(b, (0, 0, 0, LEAST - m)) if m < LEAST else b
    out = a @ b.T
    return out if out.shape == (n, m) else out[:n, :m].clone()  # a view would keep the padding in memory


class _Matrix(torch.autograd.Function):
    """Euclidean matrix by one product; ``torch.cdist`` copies both sides and differentiates both."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        d, of_a, of_b = _product(a, b), _squares(a)[:, None], _squares(b)
        step = max(1, PART // max(len(b), 1))
        for start in range(0, len(a), step):  # in parts that stay in the cache
            rows = slice(start, start + step)
            part = of_a[rows] + of_b  # the order of a and b does not matter to the bit
            torch.sqrt(part.sub_(d[rows], alpha=2).clamp_min_(0), out=d[rows])
        ctx.save_for_backward(a, b, d)
        return d

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        with _full_precision(grads[0]):
            a, b, d = ctx.saved_tensors
            ratio = grads[0] / d.masked_fill(d == 0, torch.inf)  # 0 where d = 0, differentiated again too
            to_a = to_b = None
            if ctx.needs_input_grad[0]:
                to_a = torch.addmm(a * ratio.sum(1, keepdim=True), ratio, b, alpha=-1.0)
            if ctx.needs_input_grad[1]:
                to_b = torch.addmm(b * ratio.sum(0)[:, None], ratio.T, a, alpha=-1.0)
            return to_a, to_b


def _full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Return a block without autocast, which would round the products; ``torch.cdist`` has the same rule."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean matrix by one product, whatever the sizes, so that chunks agree; gradient 0 at distance 0."""
    if torch.is_autocast_enabled(a.device.type):
        a, b = a.float(), b.float()
    if max(len(a), len(b)) <= FEW:
        near: Tensor = torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")
        return near
    with _full_precision(a):
        out: Tensor = _Matrix.apply(a, b)  # type: ignore[no-untyped-call]
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
        return _euclidean(a, b)

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
        return 1 - F.normalize(a, dim=-1) @ b.T / norms(b).clamp_min(TINY)

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
        return _euclidean(a @ factor.T, b @ factor.T)

    def rowwise(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (n, e) -> (n,)."""
        return norms((a - b) @ self.factor.to(a).T + self.offset)


DISTANCES: Mapping[str, PairwiseDistance] = {
    "euclidean": Euclidean(),
    "squared": SquaredEuclidean(),
    "cosine": Cosine(),
}
