"""Keep a moved embedding near its clean one (the second term of SES)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..errors import InvalidArgument
from ..types import BatchView, PairwiseDistance


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """``weight * d(moved, clean)`` for every row of the batch.

    Attributes
    ----------
    weight
        1 in the reference code, where the triplet loss beside it reads the clean embeddings.
    """

    weight: float = 1.0
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"
    clean_roles: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InvalidArgument("weight", "a number >= 0", self.weight)

    def __call__(self, z: BatchView, distance: PairwiseDistance) -> Tensor:
        """Return (n,), >= 0."""
        return self.weight * distance.rowwise(z.now, z.clean)
