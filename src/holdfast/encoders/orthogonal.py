"""Layers that never lengthen a difference: orthogonal maps, shifts and sorting, all with an l2 gain <= 1.

Their gain is proven and not estimated: in evaluation mode a weight is computed in float64 and divided by an
upper bound of its largest singular value, so that nothing rests on how far an iteration has converged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidArgument
from .encoder import check_width

EPS = torch.finfo(torch.float64).eps
SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
"""Rows and columns by which the five channel groups of an :class:`OrthogonalConv2d` move."""


def spectral_bound(weight: Tensor) -> float:
    """Return an upper bound of the largest singular value of a matrix (o, i), tight to about 1e-13.

    Singular values in float64, raised by more than the solver's backward error, ``16 (o + i)`` units in the
    last place; infinite where a weight is not finite.
    """
    w = weight.detach().double()
    if not bool(w.isfinite().all()):
        return math.inf
    top = float(torch.linalg.svdvals(w).max()) if w.numel() else 0.0
    return math.nextafter(top * (1 + 16 * EPS * sum(w.shape)), math.inf) if top > 0 else 0.0


def gram_bound(weight: Tensor) -> Tensor:
    """Return an upper bound of the largest singular value, by matrix products alone.

    With G = W W^T (or W^T W, the smaller) it is ``|G^4|_F^(1/8)``, at most ``n^(1/16)`` times too large for
    n rows.

    References
    ----------
    Delattre et al., *Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration*,
    ICML 2023.
    """
    w = weight if weight.shape[0] <= weight.shape[1] else weight.T
    scale = torch.linalg.vector_norm(w).clamp_min(torch.finfo(w.dtype).tiny)
    gram = (w / scale) @ (w / scale).T
    for _ in range(2):
        gram = gram @ gram
    bound: Tensor = torch.linalg.vector_norm(gram).pow(1 / 8) * scale
    return bound


def orthogonalise(weight: Tensor, iterations: int) -> Tensor:
    """Return the matrix (o, i) with its singular values driven towards 1, differentiable.

    Björck and Bowie's iteration ``W <- 1.5 W - 0.5 W W^T W`` on ``W / gram_bound(W)``: singular values stay
    in [0, 1] and grow. All iterates are ``P W`` with P a polynomial of the smaller Gram matrix, so only that
    small matrix is iterated.

    References
    ----------
    Björck and Bowie, *An Iterative Algorithm for Computing the Best Estimate of an Orthogonal Matrix*,
    SIAM J. Numer. Anal. 8 (1971); Anil, Lucas and Grosse, *Sorting out Lipschitz Function Approximation*,
    ICML 2019.
    """
    with torch.no_grad():
        scale = gram_bound(weight).clamp_min(torch.finfo(weight.dtype).tiny)
    tall = weight.shape[0] > weight.shape[1]
    w = (weight.T if tall else weight) / scale  # (n, l), n <= l
    unit = torch.eye(len(w), dtype=w.dtype, device=w.device)
    gram, total = w @ w.T, unit
    for _ in range(iterations):
        step = 1.5 * unit - 0.5 * gram
        total, gram = step @ total, step @ gram @ step
    out = total @ w
    return out.T if tall else out


class OrthogonalLinear(nn.Linear):
    """A linear layer whose matrix is orthogonalised: gain <= 1, and all singular values near 1.

    Parameters
    ----------
    in_features, out_features
        Widths. A wider output keeps all lengths, a narrower one projects.
    iterations
        Of :func:`orthogonalise`, >= 1. Fewer are faster; lengths then shrink more in some directions.

    Notes
    -----
    In training mode the matrix is that of :func:`orthogonalise`, in the precision of the weights. In
    evaluation mode it is computed in float64 and divided by :func:`spectral_bound`, is a constant (no
    gradient reaches the weights) and is kept until the weights change.
    """

    def __init__(self, in_features: int, out_features: int, iterations: int = 5) -> None:
        check_width("iterations", iterations)
        super().__init__(in_features, out_features)
        self.iterations = iterations
        self._kept: tuple[Tensor, Tensor] | None = None
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)

    def exact_weight(self) -> Tensor:
        """Return the matrix of evaluation mode: (o, i) float64 with a largest singular value <= 1."""
        with torch.no_grad():
            w = orthogonalise(self.weight.double(), self.iterations)
            bound = spectral_bound(w)
            # Raised once more, so that a bound of the quotient itself stands at or below 1.
            return w / (bound * (1 + 64 * EPS * sum(w.shape))) if bound > 0 else w

    def matrix(self) -> Tensor:
        """Return the matrix that the layer multiplies by in its present mode, (o, i)."""
        if self.training:
            with torch.autocast(self.weight.device.type, enabled=False):
                return orthogonalise(self.weight, self.iterations)
        raw = self.weight.detach()
        if self._kept is None or not _same(self._kept[0], raw):
            self._kept = raw.clone(), self.exact_weight().to(raw.dtype)
        return self._kept[1]

    def forward(self, x: Tensor) -> Tensor:
        """(n, i) -> (n, o)."""
        return F.linear(x, self.matrix(), self.bias)

    def lipschitz_constant(self) -> float:
        """Return a proven bound of the l2 gain in evaluation mode, at most 1."""
        return spectral_bound(self.exact_weight())

    def rounding(self, unit: float) -> tuple[float, float]:
        """Return (a, b): rounding moves an output by at most ``a |x| + b`` in units ``unit``, any summation.

        Standard bound of inner products of i terms (Higham, *Accuracy and Stability*, section 3.1), with the
        rounding of the matrix and the addition of the bias.
        """
        steps = (self.in_features + 3) * unit
        gamma = steps / (1 - steps)
        norm = float(torch.linalg.vector_norm(self.exact_weight())) * (1 + 1e-9)
        return gamma * norm, gamma * float(self.bias.detach().double().norm()) * (1 + 1e-9)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


class OrthogonalConv2d(OrthogonalLinear):
    """Shift groups of channels by a pixel, then multiply the channels of every pixel by one matrix.

    The channels are cut into five groups; group g moves by ``SHIFTS[g]``, around the edges. With
    ``shift=False`` all stay where they are (a 1x1 convolution). A shift is a permutation of the values and
    keeps every length; the matrix acts on each pixel alone; so the gain of the layer is the largest singular
    value of the matrix.

    Notes
    -----
    A matrix before and one after a shift of some channels is the factor from which orthogonal convolutions
    are built: ``Q2 (P + (I - P) S) Q1`` with a projection P and the shift S (Li et al. 2019). Two
    layers in a row thus give the orthogonal kernels over a cross of five pixels, at the price of 1x1
    convolutions.

    References
    ----------
    Li, Haque, Anil, Lucas, Grosse and Jacobsen, *Preventing Gradient Attenuation in Lipschitz Constrained
    Convolutional Networks*, NeurIPS 2019.
    """

    def __init__(self, in_channels: int, out_channels: int, iterations: int = 5, shift: bool = True) -> None:
        super().__init__(in_channels, out_channels, iterations)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, h, w) -> (n, o, h, w)."""
        if self.shift:
            groups = x.tensor_split(len(SHIFTS), dim=1)
            x = torch.cat([part.roll(by, (2, 3)) for part, by in zip(groups, SHIFTS, strict=True)], 1)
        return F.conv2d(x, self.matrix()[:, :, None, None], self.bias)


class GroupSort(nn.Module):
    """Sort the values of neighbouring channels, in groups: an activation that keeps gradients at length 1.

    Parameters
    ----------
    size
        Channels in a group; 2 is MaxMin. It has to divide the channels.

    Notes
    -----
    Sorting is a permutation chosen by the values. Between two inputs it never adds length: for sorted
    vectors the inner product is largest (rearrangement inequality), so ``|sort(a) - sort(b)| <= |a - b|``.
    It rounds nothing.

    References
    ----------
    Anil, Lucas and Grosse, *Sorting out Lipschitz Function Approximation*, ICML 2019.

    Examples
    --------
    >>> GroupSort()(torch.tensor([[1.0, 3.0, 7.0, 5.0]]))
    tensor([[3., 1., 7., 5.]])
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        check_width("size", size)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, ...) -> (n, c, ...), every group of channels in descending order."""
        if x.shape[1] % self.size:
            raise InvalidArgument("x", f"channels divisible by {self.size}", x.shape[1])
        groups = torch.unflatten(x, 1, (-1, self.size))  # keeps no number of rows when traced
        if self.size == 2:
            a, b = groups.unbind(2)
            return torch.stack([torch.maximum(a, b), torch.minimum(a, b)], 2).flatten(1, 2)
        out: Tensor = groups.sort(dim=2, descending=True).values.flatten(1, 2)
        return out

    def lipschitz_constant(self) -> float:
        """Return 1."""
        return 1.0
