"""The half-batch regulariser that the released CA-TRIDE code adds to the triplet loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.collapse import half_mean
from ..types import PairwiseDistance, TripletView


@dataclass(frozen=True, kw_only=True)
class HalfBatch:
    """Keep the nearer half of positives nearer than the nearer half of negatives, by a margin.

    ``weight * relu(mean(smallest half of d_ap) - mean(smallest half of d_an) + margin)``, moved triplets.

    Attributes
    ----------
    weight, margin
        0.5 and 0.04 in the released code.

    Notes
    -----
    The term is not in the method's description; in the released code it stands in the kernel of the triplet
    loss behind a switch that makes it fall on every training step.
    """

    weight: float = 0.5
    margin: float = 0.04
    reads: ClassVar[Literal["triplets", "batch"]] = "triplets"
    clean_roles: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InvalidArgument("weight", "a number >= 0", self.weight)

    def __call__(self, z: TripletView, distance: PairwiseDistance) -> Tensor:
        """Return (1,), one value for the batch."""
        d_ap = distance.rowwise(z.now.anchor, z.now.positive)
        d_an = distance.rowwise(z.now.anchor, z.now.negative)
        return self.weight * torch.relu(half_mean(d_ap) - half_mean(d_an) + self.margin)[None]
