"""Margin loss with a learnable boundary between positives and negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..types import PairwiseDistance, Roles
from .checks import check_roles
from .reduce import over_violators


def margin_loss(z: Roles, distance: PairwiseDistance, margin: float, beta: float | Tensor) -> Tensor:
    """Return the margin loss (t,) for a boundary ``beta``; see :class:`Margin`."""
    check_roles(z)
    pull = over_violators(distance.rowwise(z.anchor, z.positive) - beta + margin)
    push = over_violators(beta - distance.rowwise(z.anchor, z.negative) + margin)
    return pull + push


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Margin loss ``(d(a, p) - beta + margin)_+  +  (beta - d(a, n) + margin)_+``, beta learnable.

    Calling this object uses the initial ``beta``; :meth:`setup` returns the form whose beta is learnt.

    Attributes
    ----------
    margin
        Half-width of the band around the boundary, >= 0, in units of the distance.
    beta
        Initial boundary, > 0, in units of the distance.

    Notes
    -----
    Wu et al. (Sampling Matters in Deep Embedding Learning, ICCV 2017), with one beta for all
    classes. In the code of Hardness Manipulation each of the two parts is averaged over its own positive
    values only; here the parts of a triplet are scaled by t / #violators of that part, so that the plain
    mean is that value. That code learns beta by SGD with its own rate (5e-4); here it joins the optimiser
    that the caller chooses.

    Examples
    --------
    >>> import torch
    >>> from holdfast.functional.distance import SquaredEuclidean
    >>> a, p, n = torch.zeros(1, 1), torch.tensor([[1.0]]), torch.tensor([[2.0]])
    >>> round(float(Margin()(Roles(a, p, n), SquaredEuclidean())), 4)
    0.6
    """

    margin: float = 0.2
    beta: float = 0.6
    reads: ClassVar[Literal["triplets", "batch"]] = "triplets"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise InvalidArgument("margin", "a finite number >= 0", self.margin)
        if not 0 < self.beta < math.inf:
            raise InvalidArgument("beta", "a finite number > 0", self.beta)

    def setup(self, embedding_dim: int, n_classes: int) -> nn.Module:
        """Return the loss with its learnable beta; the sizes are not needed here."""
        return LearnedMargin(self)

    def __call__(self, z: Roles, distance: PairwiseDistance) -> Tensor:
        """Return one value for each triplet at the initial beta.

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
        return margin_loss(z, distance, self.margin, self.beta)


class LearnedMargin(nn.Module):
    """The margin loss with ``beta`` as a parameter (a scalar); called as :class:`Margin` is."""

    reads: ClassVar[Literal["triplets", "batch"]] = "triplets"

    def __init__(self, loss: Margin) -> None:
        super().__init__()
        self.margin = loss.margin
        self.beta = nn.Parameter(torch.tensor(loss.beta))

    def forward(self, z: Roles, distance: PairwiseDistance) -> Tensor:
        """Return one value for each triplet, (t,)."""
        return margin_loss(z, distance, self.margin, self.beta)
