"""Training in low precision: the networks compute in bfloat16, everything behind embeddings in float32."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from ..search import LowPrecision
from ..types import Members


class LowEncoder(LowPrecision):
    """An encoder under bfloat16 autocast that returns float32; all else is asked of the encoder itself.

    Distances, losses and gains read float32 embeddings and are not under autocast: their matrix products
    keep float32.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("encoder"), name)


class LowMembers(LowEncoder):
    """The same of an encoder made of members, each of which computes in bfloat16 as well."""

    def __len__(self) -> int:
        return len(cast(Members, self.encoder))

    def __bool__(self) -> bool:
        return True

    def member(self, m: int) -> nn.Module:
        """Return one member, sharing weights."""
        return LowEncoder(cast(Members, self.encoder).member(m))


def for_training(encoder: nn.Module, precision: str) -> nn.Module:
    """Return what a defense calls: the encoder itself (``"fp32"``), or a view that computes in bfloat16.

    Examples
    --------
    >>> import torch
    >>> low = for_training(nn.Linear(2, 1), "bf16")
    >>> low(torch.ones(3, 2)).dtype, low.out_features
    (torch.float32, 1)
    """
    if precision == "fp32":
        return encoder
    return LowMembers(encoder) if hasattr(encoder, "widths") else LowEncoder(encoder)
