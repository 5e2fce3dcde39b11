"""Passes replayed as CUDA graphs: no launch of single kernels, which small networks wait for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import HoldfastWarning, told


class Graphed(nn.Module):
    """Replay the passes of an encoder for the first batch shape that a search asks for.

    Every other pass, on other shapes, on other devices, without gradient, is the encoder's own; so is all of
    it where capturing fails, after a warning. Made for one search on a GPU and opt-in: on a CPU it changes
    nothing.

    Parameters
    ----------
    encoder
        In the mode that it shall be searched in, and without operations that wait for the GPU. Its weights
        may change in place between passes; they must stay where they are. For bfloat16 wrap the wrapper:
        ``Graphed(LowPrecision(encoder))``.

    Notes
    -----
    Embeddings and gradients are copied out of the graph's own memory, as searches keep them beyond the next
    pass. Written without a GPU at hand: the tests marked ``gpu`` have not been run yet.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.training = encoder.training
        self._seen: tuple[object, ...] | None = None
        self._replay: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, *s) images."""
        if x.is_cuda and x.requires_grad and torch.is_grad_enabled():
            kind = (x.shape, x.stride(), x.dtype, x.device, torch.is_autocast_enabled("cuda"))
            if self._seen is None:
                self._seen, self._replay = kind, self._captured(x)
            if self._replay is not None and kind == self._seen:
                return self._replay(x * 1).clone()  # ``* 1``: the gradient becomes a tensor of its own
        z: Tensor = self.encoder(x)
        return z

    def _captured(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        weights = {name: p.detach() for name, p in self.encoder.named_parameters()}  # no gradient to these

        def embed(x: Tensor) -> Tensor:
            z: Tensor = functional_call(self.encoder, weights, (x,))
            return z

        try:
            sample = x.detach().clone().requires_grad_(True)
            replay = torch.cuda.make_graphed_callables(embed, (sample,))
        except RuntimeError as error:
            warnings.warn(
                f"no CUDA graph, passes run one by one: {told(error)}", HoldfastWarning, stacklevel=3
            )
            return None
        return cast(Callable[[Tensor], Tensor], replay)
