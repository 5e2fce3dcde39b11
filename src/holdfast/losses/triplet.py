"""Triplet loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance, Roles
from .checks import check_roles


@dataclass(frozen=True, kw_only=True)
class Triplet:
    """Triplet loss ``max(0, d(a, p) - d(a, n) + margin)``.

    Attributes
    ----------
    margin
        >= 0, in units of the distance. Published: 0.2 for normalised embeddings, 1.0 for raw Euclidean ones.

    Notes
    -----
    Schroff et al. (FaceNet, CVPR 2015), with plain instead of squared distances, as in Hardness Manipulation
    (Zhou and Patel, CVPR 2022) and in PyTorch's ``triplet_margin_loss``. Pass ``SquaredEuclidean()`` for the
    former.

    Examples
    --------
    >>> import torch
    >>> from holdfast.functional.distance import SquaredEuclidean
    >>> z = Roles(torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[0.5]]))
    >>> Triplet(margin=0.25)(z, SquaredEuclidean()).tolist()
    [1.0]
    """

    margin: float = 0.2
    reads: ClassVar[Literal["triplets", "batch"]] = "triplets"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise InvalidArgument("margin", "a finite number >= 0", self.margin)

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
            (t,), >= 0.

        Raises
        ------
        InvalidArgument
            If the roles differ in shape.
        """
        check_roles(z)
        gap = distance.rowwise(z.anchor, z.positive) - distance.rowwise(z.anchor, z.negative)
        return (gap + self.margin).relu()
