"""Lengths of the normals of bisecting hyperplanes between references, rounded up.

A certificate divides a difference of squared distances by such a length, so the one is reduced and the other
raised, by ``8 (r + 16) 2^-53`` of the scale of what was added up to get them, r being the number of
coordinates. Radii lose less than 1e-10 of themselves on ordinary data; they fall to 0 where z is as far from
x_i as from x_j up to rounding, and as x_i and x_j come nearer to each other than about 1e-6 of the scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.distance import norms
from .references import References

DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}
"""Norm of a perturbation -> norm of the bisector's normal."""
TINY = 1e-150
"""Stands for a length of 0, so that 0 / 0 becomes 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bisectors:
    """Lengths of the bisectors' normals between rows of references.

    Attributes
    ----------
    references
        The references.
    norm
        Norm of the perturbation: 1, 2 or infinity.
    """

    references: References
    norm: float = 2.0

    def __post_init__(self) -> None:
        if self.norm not in DUAL:
            raise InvalidArgument("norm", "1, 2 or infinity", self.norm)

    @cached_property
    def rounding(self) -> float:
        """Relative error of a sum over the coordinates."""
        return 8.0 * (self.references.points.shape[1] + 16) * 2.0**-53

    @cached_property
    def images(self) -> Tensor:
        """(N, r) ``M x``; in the inputs' own coordinates for norms that a rotation changes."""
        r = self.references
        return r.images if self.norm == 2 else r.outside(r.images)

    @cached_property
    def squares(self) -> Tensor:
        """(N,) squared lengths of the images."""
        r = self.references
        return r.squares if r.matrix is None else norms(r.images).square()

    @cached_property
    def reach(self) -> float:
        """Largest distance of a reference from the centre."""
        r = self.references
        if r.matrix is None:
            return float(r.squares.max().clamp_min(0).sqrt())
        return float(norms(r.points).max())

    @cached_property
    def blur(self) -> float:
        """Error of the image of a point of length 1."""
        wide = math.sqrt(self.images.shape[1]) if self.norm == math.inf else 1.0
        return self.rounding * self.references.steepness**2 * wide

    def between(self, rows: Tensor, others: Tensor) -> Tensor:
        """Return ``|M (x_i - x_j)|_q``, rounded up, for rows i (a,) and others j (b,): (a, b)."""
        a, b = self.images[rows], self.images[others]
        if self.norm != 2:
            return torch.cdist(a, b, p=DUAL[self.norm]).add_(2 * self.blur * self.reach).clamp_min_(TINY)
        squares = self.squares * (1 + self.rounding)
        product = torch.addmm(squares[others][None, :], a, b.T, alpha=-2.0)
        product.add_(squares[rows][:, None]).clamp_min_(0).sqrt_().add_(2 * self.blur * self.reach)
        return product.clamp_min_(TINY)

    def slack(self, t: Tensor) -> Tensor:
        """Return (n,) what differences of squared distances from points t (n, r) may be too large by."""
        return self.rounding * (self.references.steepness * (norms(t) + self.reach)).square()

    def around(self, t: Tensor, distances: Tensor) -> Tensor:
        """Return ``|M (x_j - z)|_q``, rounded up, for all references: (n, N).

        ``distances`` are the squared distances (n, N) from the points t (n, r).
        """
        r = self.references
        if r.matrix is None and self.norm == 2:
            return (distances + self.slack(t)[:, None]).sqrt_().clamp_min_(TINY)
        image = t if r.factor is None else (t @ r.factor.T) @ r.factor
        blur = self.blur * (norms(t) + self.reach)[:, None]
        if self.norm != 2:
            return torch.cdist(r.outside(image), self.images, p=DUAL[self.norm]).add_(blur).clamp_min_(TINY)
        squares = self.squares * (1 + self.rounding)
        product = torch.addmm(squares[None, :], image, self.images.T, alpha=-2.0)
        product.add_(image.square().sum(1)[:, None], alpha=1 + self.rounding)
        return product.clamp_min_(0).sqrt_().add_(blur).clamp_min_(TINY)
