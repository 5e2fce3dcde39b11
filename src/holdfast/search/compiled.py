"""An encoder compiled by torch.compile, or as it is where that cannot be done."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import HoldfastWarning, told


class Compiled(nn.Module):
    """Embed by a compiled copy of the code of an encoder; the weights are the encoder's own.

    Parameters
    ----------
    encoder
        What is compiled, at its first call in each mode and for each kind of shape; that takes 10 s and more.
        Where compiling fails (no C++ compiler, say) a warning says why and the encoder is used as it is.

    Notes
    -----
    Results differ by rounding, so a search may end elsewhere. Nothing in the library uses it: input-gradient
    passes of C2F2 on one CPU thread were slower compiled, 0.57 times the speed in float32 and 0.49 times in
    bfloat16. Measure before you take it.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.training = encoder.training
        self._code: Callable[[Tensor], Tensor] | None = torch.compile(lambda x: encoder(x))  # no second child

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, *s) images."""
        if self._code is not None:
            try:
                return self._code(x)
            except Exception as error:  # many classes, of several packages
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                self._code = None
                warnings.warn(
                    f"torch.compile failed, the encoder runs as it is: {told(error)}",
                    HoldfastWarning,
                    stacklevel=2,
                )
        z: Tensor = self.encoder(x)
        return z
