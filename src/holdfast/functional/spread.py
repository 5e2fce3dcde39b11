"""How embeddings use their space: measures that show a collapse long before recall does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance
from .collapse import collapseness


def effective_rank(z: Tensor) -> float:
    """Return ``exp`` of the entropy of the singular values of (n, e): 1 for a line, up to ``min(n, e)``.

    References
    ----------
    Roy and Vetterli, *The effective rank*, EUSIPCO 2007.

    Examples
    --------
    >>> import torch
    >>> round(effective_rank(torch.eye(3)), 3), round(effective_rank(torch.ones(5, 3)), 3)
    (3.0, 1.0)
    """
    values = torch.linalg.svdvals(z.double())
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.exp(-(p * p.clamp_min(1e-300).log()).sum()))


def mean_cosine(z: Tensor) -> float:
    """Return the mean cosine between different rows, in [-1, 1]; near 1 all point the same way."""
    n = len(z)
    if n < 2:
        raise InvalidArgument("z", "at least two rows", n)
    unit = F.normalize(z.double(), dim=1)
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


def uniformity(z: Tensor) -> float:
    """Return ``log mean exp(-2 |u - v|^2)`` over pairs of unit embeddings: 0 when collapsed, lower is better.

    References
    ----------
    Wang and Isola, *Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere*, ICML 2020.
    """
    squared = torch.nn.functional.pdist(F.normalize(z.double(), dim=1)).square()
    return float((-2 * squared).exp().mean().log())


def spread(z: Tensor, y: Tensor, distance: PairwiseDistance, sharpness: float = 10.0) -> dict[str, float]:
    """Measure how a labelled batch uses the space.

    Parameters
    ----------
    z, y
        (n, e) and (n,), at least two classes and one pair of a class.
    distance
        For the distances within and between classes.
    sharpness
        Of the collapseness.

    Returns
    -------
    dict
        ``effective_rank``, ``mean_cosine``, ``uniformity``, ``alignment`` (mean squared distance of unit
        embeddings of a class), ``intra_inter`` (mean distance within classes over mean distance between) and
        ``collapseness`` (sharp mean within minus between; near 0 is collapsed).
    """
    same = y[:, None] == y[None, :]
    upper = torch.ones_like(same).triu(1)
    within, between = same & upper, ~same & upper
    if not bool(within.any()) or not bool(between.any()):
        raise InvalidArgument("y", "two classes, one of them with two rows", sorted(set(y.tolist())))
    d = distance.matrix(z, z).double()
    unit = F.normalize(z.double(), dim=1)
    squared = torch.cdist(unit, unit).square()
    return {
        "effective_rank": effective_rank(z),
        "mean_cosine": mean_cosine(z),
        "uniformity": uniformity(z),
        "alignment": float(squared[within].mean()),
        "intra_inter": float(d[within].mean() / d[between].mean().clamp_min(1e-12)),
        "collapseness": float(collapseness(d[within], d[between], sharpness)),
    }
