"""Search in low precision, measure in full: an encoder that computes in bfloat16."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..types import Encoder

Precision = Literal["fp32", "bf16"]


class LowPrecision(nn.Module):
    """Run an encoder under bfloat16 autocast; embeddings come back in float32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, c, h, w) images."""
        with torch.autocast(x.device.type, torch.bfloat16):
            z: Tensor = self.encoder(x)
        return z.float()


def in_precision(encoder: Encoder, precision: Precision) -> Encoder:
    """Return the encoder for a search: itself, or in bfloat16.

    Raises
    ------
    InvalidArgument
        For an unknown precision, or bf16 with an encoder that is no module.
    """
    if precision not in ("fp32", "bf16"):
        raise InvalidArgument("precision", "'fp32' or 'bf16'", precision)
    if precision == "fp32":
        return encoder
    if not isinstance(encoder, nn.Module):
        raise InvalidArgument("precision", "'fp32' for an encoder that is no torch module", precision)
    return LowPrecision(encoder)
