"""Generalised lifted structure loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.distance import norms
from ..types import PairwiseDistance
from .checks import check_batch


@dataclass(frozen=True, kw_only=True)
class LiftedStructure:
    """Generalised lifted structure loss, with every row of the batch as an anchor.

    For an anchor a, ``relu(log sum_p exp(d(a, p)) + log sum_n exp(margin - d(a, n)))`` over all other rows p
    of its class and all rows n of other classes, plus ``weight`` times the Euclidean norm of the embedding.

    Attributes
    ----------
    margin
        >= 0, in units of the distance. Published: 0.2 for normalised embeddings, 1.0 for raw Euclidean ones.
    weight
        Factor of the norm, >= 0. For unit embeddings it adds a constant.

    Notes
    -----
    Hermans et al. (In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737, 2017) gave
    this form to the loss of Oh Song et al. (Deep Metric Learning via Lifted Structured Feature Embedding,
    CVPR 2016); norm and constants are those of the code of Hardness Manipulation. A row is never its own
    positive (excluded by its place in the batch, so that duplicates of it count). A row without any positive
    or without any negative keeps its norm only. The plain mean over the rows is the value of the batch.

    Examples
    --------
    >>> from holdfast.functional.distance import SquaredEuclidean
    >>> z, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 0, 1])
    >>> [round(v, 4) for v in LiftedStructure(margin=0.5, weight=0.0)(z, y, SquaredEuclidean()).tolist()]
    [0.0, 0.5, 0.0]
    """

    margin: float = 0.2
    weight: float = 5e-3
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __post_init__(self) -> None:
        for name in ("margin", "weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidArgument(name, "a finite number >= 0", getattr(self, name))

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return one value for each row.

        Parameters
        ----------
        z, y
            (n, e) embeddings and (n,) labels, in any order.
        distance
            Its matrix form is used.

        Returns
        -------
        Tensor
            (n,), >= 0.

        Raises
        ------
        InvalidArgument
            If the shapes do not fit.
        """
        check_batch(z, y)
        d = distance.matrix(z, z)  # (n, n)
        same = y[:, None] == y
        positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        pull = d.masked_fill(~positive, -math.inf).logsumexp(1)  # (n,)
        push = (self.margin - d).masked_fill(same, -math.inf).logsumexp(1)
        return (pull + push).relu() + self.weight * norms(z)
