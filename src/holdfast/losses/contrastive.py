"""Contrastive loss on triplets: positives to distance 0, negatives beyond a margin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance, Roles
from .checks import check_roles
from .reduce import over_violators


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Contrastive loss ``mean d(a, p) + mean over {d(a, n) < margin} of (margin - d(a, n))``.

    Attributes
    ----------
    margin
        Distance from which on a negative is far enough, > 0. Published: 1.0 for normalised embeddings.

    Notes
    -----
    After Hadsell et al. (CVPR 2006), linear instead of squared, as in the code of Hardness
    Manipulation. There the second mean runs over the violating negatives only. To stay unreduced, the value
    of a violating triplet is scaled by t / #violators, so that the plain mean over the t triplets is the
    published one. A value thus depends on the other triplets of the batch, by a factor.

    Examples
    --------
    >>> import torch
    >>> from holdfast.functional.distance import SquaredEuclidean
    >>> a, p, n = torch.zeros(2, 1), torch.tensor([[0.5], [0.0]]), torch.tensor([[0.5], [3.0]])
    >>> Contrastive()(Roles(a, p, n), SquaredEuclidean()).tolist()
    [1.75, 0.0]
    """

    margin: float = 1.0
    reads: ClassVar[Literal["triplets", "batch"]] = "triplets"

    def __post_init__(self) -> None:
        if not 0 < self.margin < math.inf:
            raise InvalidArgument("margin", "a finite number > 0", self.margin)

    def __call__(self, z: Roles, distance: PairwiseDistance) -> Tensor:
        """Return one value for each triplet.

        Parameters
        ----------
        z
            Embeddings of the three roles, each (t, e).
        distance
            Its row-wise form is used.

        Returns
        -------
        Tensor
            (t,), >= 0; its mean is the published value.

        Raises
        ------
        InvalidArgument
            If the roles differ in shape.
        """
        check_roles(z)
        push = over_violators(self.margin - distance.rowwise(z.anchor, z.negative))
        return distance.rowwise(z.anchor, z.positive) + push
