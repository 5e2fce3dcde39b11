"""What a robust linear metric is trained on: margins of triplets, and losses of margins."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, float], Tensor]
"""(margins (n,), calibration in the units of the margins) -> losses (n,)."""

FLOOR = 1e-12
"""Least squared length of ``M (a - c)``, so that duplicates have a margin and a gradient."""


def triplet_margins(
    anchor: Tensor, positive: Tensor, negative: Tensor, components: Tensor, floor: float = FLOOR
) -> Tensor:
    r"""Return the smallest perturbations that bring an anchor nearer to its negative than to its positive.

    For an anchor z, a positive a, a negative c and ``M = G^T G`` the quadratic terms of the perturbation
    cancel, so it is the signed distance to a half-space, in input-space l2 units:

    .. math:: m = \frac{d_M(z, c) - d_M(z, a)}{2 \lVert M (a - c) \rVert_2}
                = \frac{(a - c)^T M (2 z - a - c)}{2 \lVert M (a - c) \rVert_2}.

    Parameters
    ----------
    anchor, positive, negative
        (..., D), shapes that broadcast.
    components
        (r, D) the factor G.
    floor
        Least value of ``||M (a - c)||^2``; the published training code uses 1e-6.

    Returns
    -------
    Tensor
        (...), negative where the anchor is already nearer to the negative (not clamped, as in the published
        training code). It does not change when G is multiplied by a number, but for ``floor``.

    References
    ----------
    Wang et al., Provably Robust Metric Learning, NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> z, a, c = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])
    >>> float(triplet_margins(z, a, c, torch.eye(2)))
    2.0
    """
    apart = positive - negative
    image = through_matrix(apart, components)
    rise = (image * (2 * anchor - positive - negative)).sum(-1)
    return rise / (2 * image.square().sum(-1).clamp_min(floor).sqrt())


def through_matrix(x: Tensor, components: Tensor) -> Tensor:
    """Return ``G^T G x`` of each row of ``x``, by the cheaper of the two orders: (..., D) -> (..., D)."""
    rank, width = components.shape
    if 5 * rank < 2 * width:  # forward and backward: five products with G against two with M
        return F.linear(x, components) @ components
    return x @ (components.T @ components)


def neg(margins: Tensor, calibration: float) -> Tensor:
    """``-m``: the published objective, the mean radius of the triplets."""
    return -margins


def hinge(margins: Tensor, calibration: float) -> Tensor:
    """``max(0, calibration - m)``: radii beyond the calibration count no more."""
    return (calibration - margins).clamp_min(0)


def exp(margins: Tensor, calibration: float) -> Tensor:
    """``exp(-m)``."""
    return (-margins).exp()


def logistic(margins: Tensor, calibration: float) -> Tensor:
    """``log(1 + exp(-m))``."""
    return F.softplus(-margins)


LOSSES: Mapping[str, Loss] = {"neg": neg, "hinge": hinge, "exp": exp, "logistic": logistic}
"""Losses of the margins by name (specification 1.3)."""
