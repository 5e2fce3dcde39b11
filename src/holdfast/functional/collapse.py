"""How near a batch of triplets is to the collapse of all embeddings into one point."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import InvalidArgument


def sharp_mean(d: Tensor, sharpness: float) -> Tensor:
    """Return the mean of ``d`` weighted by ``softmax(sharpness * d)``.

    Sharpness 0 gives the plain mean, infinity the maximum. The weights carry gradient.

    Parameters
    ----------
    d
        (t,) distances.
    sharpness
        lambda of the paper, >= 0.
    """
    if not sharpness >= 0:
        raise InvalidArgument("sharpness", "a number >= 0", sharpness)
    if math.isinf(sharpness):
        return d.max()
    return ((sharpness * d).softmax(0) * d).sum()


def half_mean(d: Tensor) -> Tensor:
    """Return the mean of the smaller half of ``d``, rounded down but at least one value."""
    return d.topk(max(1, len(d) // 2), largest=False).values.mean()


def collapseness(d_ap: Tensor, d_an: Tensor, sharpness: float = 10.0) -> Tensor:
    """Return ``C = D_p - D_n``, sharp means of positive and negative distances.

    Near 0 positives are no nearer than negatives: the embedding space has collapsed. Far distances weigh
    most, so negatives that are not collapsed yet are attacked first.

    Parameters
    ----------
    d_ap, d_an
        (t,) distances from anchors to positives and to negatives.
    sharpness
        lambda of the paper: 10 for CUB, 9.5 for Cars, 2 for SOP.

    Returns
    -------
    Tensor
        A scalar; one value for the whole batch.

    References
    ----------
    Tian et al., *Collapse-Aware Triplet Decoupling for Adversarially Robust Image Retrieval*, ICML 2024.
    """
    return sharp_mean(d_ap, sharpness) - sharp_mean(d_an, sharpness)
