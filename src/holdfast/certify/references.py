"""Labelled reference points under a Mahalanobis metric, prepared once for predictions and certificates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.distance import Mahalanobis

RANK_TOLERANCE = 1e-13
"""Eigenvalues of M up to this times the largest one and the width count as 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """Reference points of a k-NN classifier, in float64 and in coordinates that make certificates cheap.

    All radii are l2 lengths in the input space, and the directions that M does not see never help an
    adversary; so, without a box, points are kept in an orthonormal basis of the range of M. Everything is
    centred, for expanded products cancel badly where the mean is large. Build it with :meth:`prepare`.

    Attributes
    ----------
    points
        (N, r) centred coordinates.
    images
        (N, r) ``M p`` of every point p; half the gradient of the squared distance.
    labels
        (N,) int64 class codes.
    matrix
        (D, D) the metric M as given, or None for the Euclidean one.
    centre
        (D,) what was subtracted.
    basis
        (D, r) orthonormal columns, or None where coordinates are the centred inputs themselves.
    factor
        (r', r) L with ``L^T L = M`` in these coordinates, or None for the Euclidean metric.
    box
        (low, high) range of admissible inputs, or None.

    Examples
    --------
    >>> import torch
    >>> r = References.prepare(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    >>> r.predict(torch.tensor([[0.4, 5.0]]), 1)
    tensor([0])
    """

    points: Tensor
    images: Tensor
    labels: Tensor
    matrix: Tensor | None
    centre: Tensor
    basis: Tensor | None
    factor: Tensor | None
    box: tuple[float, float] | None

    @classmethod
    def prepare(
        cls,
        x: Tensor,
        y: Tensor,
        matrix: Tensor | None = None,
        *,
        box: tuple[float, float] | None = None,
        rotate: bool = True,
    ) -> References:
        """Check and prepare reference points.

        Parameters
        ----------
        x
            (N, D) finite inputs.
        y
            (N,) class codes >= 0.
        matrix
            (D, D) symmetric positive semi-definite M; None for the identity.
        box
            Range that perturbed inputs must not leave, or None.
        rotate
            Whether to drop the directions that M does not see; certificates are the same without.

        Raises
        ------
        InvalidArgument
            If a shape is wrong, a number not finite, or M not symmetric positive semi-definite.
        """
        if x.ndim != 2 or not len(x):
            raise InvalidArgument("x", "references (N, D) with N >= 1", tuple(x.shape))
        if y.shape != (len(x),):
            raise InvalidArgument("y", f"a label for each of the {len(x)} references", tuple(y.shape))
        if not bool(torch.isfinite(x).all()):
            raise InvalidArgument("x", "finite numbers", "NaN or infinity")
        if box is not None and not box[0] < box[1]:
            raise InvalidArgument("box", "low < high", box)
        x = x.double()
        centre = x.mean(0)
        points, basis, factor = x - centre, None, None
        images = points
        if matrix is not None:
            if matrix.shape != (x.shape[1], x.shape[1]):
                raise InvalidArgument("matrix", f"a ({x.shape[1]}, {x.shape[1]}) matrix", tuple(matrix.shape))
            matrix = matrix.to(x)
            factor = Mahalanobis.from_matrix(matrix).factor  # raises what is wrong with M
            matrix = (matrix + matrix.T) / 2
            values = factor.square().sum(1)  # its rows are eigenvectors times the roots of eigenvalues
            keep = values > RANK_TOLERANCE * len(values) * values.max()
            if bool(keep.any()):
                values, factor = values[keep], factor[keep]  # (r,), (r, D)
                vectors = (factor / values.sqrt()[:, None]).T
            else:  # M = 0: one direction that it does not see either
                values, factor, vectors = (
                    values[:1] * 0,
                    factor[:1] * 0,
                    torch.eye(len(matrix)).to(matrix)[:, :1],
                )
            if rotate and box is None and len(values) < len(matrix):
                basis = vectors
                points = points @ basis
                factor = values.sqrt().diag()
                images = points * values
            else:
                images = points @ (factor.T @ factor)
        return cls(
            points=points,
            images=images,
            labels=y.long(),
            matrix=matrix,
            centre=centre,
            basis=basis,
            factor=factor,
            box=box,
        )

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def squares(self) -> Tensor:
        """(N,) squared lengths ``p^T M p``."""
        return (self.points * self.images).sum(1)

    @cached_property
    def steepness(self) -> float:
        """The largest ``|M v| / sqrt(v^T M v)``: root of the largest eigenvalue of M."""
        if self.factor is None:
            return 1.0
        return float(torch.linalg.matrix_norm(self.factor, 2)) if self.factor.numel() else 0.0

    def inside(self, x: Tensor) -> Tensor:
        """Turn inputs (n, D) into coordinates (n, r)."""
        if x.ndim != 2 or x.shape[1] != len(self.centre):
            raise InvalidArgument("x", f"points (n, {len(self.centre)})", tuple(x.shape))
        if not bool(torch.isfinite(x).all()):
            raise InvalidArgument("x", "finite numbers", "NaN or infinity")
        x = x.to(self.centre)
        if self.box is not None and bool(((x < self.box[0]) | (x > self.box[1])).any()):
            span = f"{float(x.min()):.4g} to {float(x.max()):.4g}"
            raise InvalidArgument("x", f"features inside the box {list(self.box)}", span)
        t = x - self.centre
        return t if self.basis is None else t @ self.basis

    def outside(self, moves: Tensor) -> Tensor:
        """Turn perturbations in coordinates (n, r) into perturbations of inputs (n, D)."""
        return moves if self.basis is None else moves @ self.basis.T

    def distances(self, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return squared distances, (n, r) coordinates -> (n, N) or to some of the references, >= 0."""
        images, squares = self.images, self.squares
        if rows is not None:
            images, squares = images[rows], squares[rows]
        own = t if self.factor is None else t @ self.factor.T
        product = torch.addmm(squares[None, :], t, images.T, alpha=-2.0)
        return product.add_(own.square().sum(1)[:, None]).clamp_min_(0)

    def nearest(self, t: Tensor, k: int, chunk: int = 1024) -> Tensor:
        """Return (n, k) rows of the references nearest to coordinates (n, r), nearest first, ties by row.

        Distances are those of :meth:`distances`; ties are exact equality of its float64 numbers, so rounding
        may break what is equal on paper. Certificates count such ties as lost.
        """
        if not 1 <= k <= len(self):
            raise InvalidArgument("k", f"between 1 and the {len(self)} references", k)
        parts = [torch.empty(0, k, dtype=torch.int64, device=t.device)]
        for first in range(0, len(t), chunk):
            d = self.distances(t[first : first + chunk])
            cut = d.kthvalue(k, dim=1, keepdim=True).values
            several = int((d <= cut).sum(1).max())  # k, or more where distances tie
            rows = d.topk(several, dim=1, largest=False).indices.sort(dim=1).values
            order = d.gather(1, rows).sort(dim=1, stable=True).indices[:, :k]
            parts.append(rows.gather(1, order))
        return torch.cat(parts)

    def votes(self, t: Tensor, k: int) -> Tensor:
        """Return (n, C) counts of each class (codes 0 to C - 1) among the k nearest to coordinates (n, r)."""
        near = self.labels[self.nearest(t, k)]
        counts = near.new_zeros(len(near), int(self.labels.max()) + 1)
        return counts.scatter_add_(1, near, torch.ones_like(near))

    def answer(self, t: Tensor, k: int) -> Tensor:
        """Return (n,) codes of the most frequent class among the k nearest; equal votes: the lower code."""
        return self.votes(t, k).argmax(1)

    def predict(self, x: Tensor, k: int) -> Tensor:
        """Return (n,) class codes of inputs (n, D); see :meth:`answer`."""
        return self.answer(self.inside(x), k)


def majority(k: int) -> tuple[int, int]:
    """Return how many wrong neighbours break a strict majority of k, and how many right ones may stay.

    Examples
    --------
    >>> majority(1), majority(2), majority(11)
    ((1, 0), (1, 1), (6, 5))
    """
    wrong = (k + 1) // 2
    return wrong, k - wrong
