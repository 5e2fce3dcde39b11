"""Intra-class structure: an attacked anchor should stay nearer to itself than its positive is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..errors import InvalidArgument
from ..types import PairwiseDistance, TripletView
from .checks import check_roles


@dataclass(frozen=True, kw_only=True)
class IntraClassStructure:
    """Structure term ``weight * max(0, d(a, a') - d(a, p))``: a, p clean, a' the attacked anchor.

    Attributes
    ----------
    weight
        Factor lambda, >= 0. Published: 0.5, and 0.05 for SOP.

    Notes
    -----
    Hardness Manipulation (Zhou and Patel, CVPR 2022), Eq. 8, without margin. It is a term beside a triplet
    loss, never the only loss, and reads clean embeddings too, so it is not in the ``LOSSES`` table. Gradient
    flows through the clean embeddings: the caller embeds them again for it. Where a miner gives the anchor as
    its own positive, the term punishes d(a, a') as such.

    Examples
    --------
    >>> import torch
    >>> from holdfast.functional.distance import SquaredEuclidean
    >>> from holdfast.types import Roles
    >>> clean = Roles(torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[5.0]]))
    >>> now = Roles(torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([[5.0]]))
    >>> IntraClassStructure(weight=0.5)(TripletView(now=now, clean=clean), SquaredEuclidean()).tolist()
    [1.5]
    """

    weight: float = 0.5
    reads: ClassVar[Literal["triplets", "batch"]] = "triplets"
    clean_roles: ClassVar[str] = "ap"

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise InvalidArgument("weight", "a finite number >= 0", self.weight)

    def __call__(self, z: TripletView, distance: PairwiseDistance) -> Tensor:
        """Return one value for each triplet.

        Parameters
        ----------
        z
            Attacked (``now``) and clean embeddings of the three roles, each (t, e).
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
        check_roles(z.clean)
        check_roles(z.now)
        shift = distance.rowwise(z.clean.anchor, z.now.anchor)
        return self.weight * (shift - distance.rowwise(z.clean.anchor, z.clean.positive)).relu()
