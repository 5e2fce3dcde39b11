"""Multi-similarity loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance
from .checks import check_batch
from .reduce import log_one_plus_sum_exp


@dataclass(frozen=True, kw_only=True)
class MultiSimilarity:
    """Multi-similarity loss, with every row of the batch as an anchor.

    With s_ik the cosine similarity, ``log(1 + sum_P exp(-alpha (s_ik - threshold))) / alpha`` over the kept
    positives plus ``log(1 + sum_N exp(beta (s_ik - threshold))) / beta`` over the kept negatives. Kept are
    the positives below the most similar negative plus ``mining``, and the negatives above the least similar
    positive minus ``mining``.

    Attributes
    ----------
    alpha, beta
        Sharpness for positives and negatives, > 0.
    threshold
        Similarity that both are measured against, in [-1, 1].
    mining
        Width of the mining margin, >= 0.

    Notes
    -----
    Wang et al. (CVPR 2019), Eq. 11, 12 and 15. A row is never its own positive (excluded by its
    place in the batch, so that duplicates of it count); the code of Hardness Manipulation counts it, and
    takes even rows as anchors only. The loss lives on cosine similarities whatever the distance of the run:
    rows are normalised here, and ``distance`` is not used. The choice of pairs carries no gradient.

    Examples
    --------
    >>> from holdfast.functional.distance import Cosine
    >>> z, y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> [round(v, 4) for v in MultiSimilarity()(z, y, Cosine()).tolist()]
    [0.6566, 0.6566, 0.0]
    """

    alpha: float = 2.0
    beta: float = 40.0
    threshold: float = 0.5
    mining: float = 0.1
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidArgument(name, "a finite number > 0", getattr(self, name))
        if not -1 <= self.threshold <= 1:
            raise InvalidArgument("threshold", "a similarity in [-1, 1]", self.threshold)
        if not 0 <= self.mining < math.inf:
            raise InvalidArgument("mining", "a finite number >= 0", self.mining)

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return one value for each row.

        Parameters
        ----------
        z, y
            (n, e) embeddings and (n,) labels, in any order.
        distance
            Not used; see the notes of the class.

        Returns
        -------
        Tensor
            (n,), >= 0; 0 for rows without any kept pair.

        Raises
        ------
        InvalidArgument
            If the shapes do not fit.
        """
        check_batch(z, y)
        unit = F.normalize(z, dim=-1)
        s = unit @ unit.T  # (n, n)
        same = y[:, None] == y
        positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        fixed = s.detach()
        least = torch.where(positive, fixed, math.inf).amin(1, keepdim=True)  # (n, 1)
        most = torch.where(same, -math.inf, fixed).amax(1, keepdim=True)  # (n, 1)
        kept_positive = positive & (fixed < most + self.mining)
        kept_negative = ~same & (fixed > least - self.mining)
        pull = log_one_plus_sum_exp(-self.alpha * (s - self.threshold), kept_positive, dim=1) / self.alpha
        push = log_one_plus_sum_exp(self.beta * (s - self.threshold), kept_negative, dim=1) / self.beta
        return pull + push
