"""Hardness of triplets, and the pseudo-hardness functions of the gradual adversary."""

from __future__ import annotations

from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance, Roles


def hardness(z: Roles, distance: PairwiseDistance) -> Tensor:
    """Return ``H = d(a, p) - d(a, n)``.

    Parameters
    ----------
    z
        Three (t, e) embeddings.
    distance
        Any row-wise distance.

    Returns
    -------
    Tensor
        (t,); in [-2, 2] for the Euclidean distance of unit embeddings.

    References
    ----------
    Zhou and Patel, *Enhancing Adversarial Robustness for Deep Metric Learning*, CVPR 2022, equation 2.
    """
    return distance.rowwise(z.anchor, z.positive) - distance.rowwise(z.anchor, z.negative)


def normalised_loss(loss: float, upper: float = 0.2) -> float:
    """Return ``min(u, max(0, loss)) / u``, in [0, 1].

    Examples
    --------
    >>> normalised_loss(0.1), normalised_loss(2.0), normalised_loss(-1.0)
    (0.5, 1.0, 0.0)
    """
    if upper <= 0:
        raise InvalidArgument("upper", "a number > 0", upper)
    return min(upper, max(0.0, loss)) / upper


def gradual(loss: float, margin: float = 0.2, power: float = 1.0) -> float:
    """Return the pseudo-hardness ``-margin * normalised_loss ** power``, in [-margin, 0].

    The weaker the model stands (large previous loss), the easier the adversary.

    Parameters
    ----------
    loss
        Adversarial triplet loss of the previous step.
    margin
        The triplet margin, which is also the upper bound of the loss.
    power
        1 is the linear gradual adversary gLGA; 2 and 1/2 are the variants g_2 and g_1/2 of the appendix.

    References
    ----------
    Zhou and Patel, CVPR 2022, equations 6 and 7.
    """
    if power <= 0:
        raise InvalidArgument("power", "a number > 0", power)
    return -margin * float(normalised_loss(loss, margin) ** power)


def mixed_boundary(mined: Tensor, loss: float, margin: float = 0.2, xi: float = 0.1) -> Tensor:
    """Return ``g_B = H + xi * (1 - normalised_loss)``: a mined hardness, raised as the loss falls.

    Parameters
    ----------
    mined
        (t,) hardness of mined triplets.
    loss, margin
        As for :func:`gradual`.
    xi
        Largest raise.
    """
    return mined + xi * (1 - normalised_loss(loss, margin))
