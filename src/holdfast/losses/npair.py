"""N-pair loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.distance import norms
from ..types import PairwiseDistance
from .checks import check_batch


@dataclass(frozen=True, kw_only=True)
class NPair:
    """N-pair loss ``log(1 + sum_n exp(a^ . n - a^ . p))``, a^ the anchor scaled to length 1.

    n runs over all rows of other classes. The value of an anchor is the mean over its positives p, the other
    rows of its class; every row adds ``weight`` times its Euclidean norm.

    Attributes
    ----------
    weight
        Factor of the norm, >= 0. For unit embeddings it adds a constant.
    anchors
        ``"all"``: every row is an anchor, and rows may come in any order. ``"even"``: rows 0, 2, 4, ... of a
        batch in pair layout, as in the code of Hardness Manipulation.

    Notes
    -----
    Sohn (Improved Deep Metric Learning with Multi-class N-pair Loss Objective, NIPS 2016); there the
    negatives of a pair are the second rows of the other pairs only, and the norm is squared. Scaling the
    anchor and the plain norm follow the code of Hardness Manipulation.

    The loss is a mean over anchors, given back row by row: each anchor holds its own value. With
    ``anchors="even"`` these values are doubled and odd rows hold their norm only, so that in both cases the
    plain mean over the n rows is the value of the batch. An anchor without any positive or without any
    negative keeps its norm only. The loss lives on inner products whatever the distance of the run, which is
    not used.

    Examples
    --------
    >>> from holdfast.functional.distance import Euclidean
    >>> z, y = torch.eye(3), torch.tensor([0, 0, 1])
    >>> [round(v, 4) for v in NPair(weight=0.0)(z, y, Euclidean()).tolist()]
    [0.6931, 0.6931, 0.0]
    """

    weight: float = 5e-3
    anchors: Literal["all", "even"] = "all"
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise InvalidArgument("weight", "a finite number >= 0", self.weight)
        if self.anchors not in ("all", "even"):
            raise InvalidArgument("anchors", "'all' or 'even'", self.anchors)

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Return one value for each row.

        Parameters
        ----------
        z, y
            (n, e) embeddings and (n,) labels; for ``anchors="even"`` in pair layout, rows 2i and 2i + 1 of
            one class.
        distance
            Not used; see the notes of the class.

        Returns
        -------
        Tensor
            (n,), >= 0.

        Raises
        ------
        InvalidArgument
            If the shapes do not fit, or the batch is not in the layout that ``anchors`` needs.
        """
        check_batch(z, y)
        s = F.normalize(z, dim=-1) @ z.T  # (n, n): anchors are rows
        same = y[:, None] == y
        positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        rivals = s.masked_fill(same, -math.inf).logsumexp(1, keepdim=True)  # (n, 1)
        pairs = F.softplus(rivals - s).masked_fill(~positive, 0.0)  # (n, n): log(1 + sum_n exp(s_n - s_p))
        value = pairs.sum(1) / positive.sum(1).clamp_min(1)
        if self.anchors == "even":
            if len(z) % 2 or bool((y[0::2] != y[1::2]).any()):
                raise InvalidArgument("y", "pairs of rows 2i and 2i + 1 with one label each", y.tolist())
            value = value * (2 - 2 * (torch.arange(len(z), device=z.device) % 2))
        return value + self.weight * norms(z)
