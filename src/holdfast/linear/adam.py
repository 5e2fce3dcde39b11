"""Adam for a few tensors, without what building ``torch.optim.Adam`` imports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""The published constants."""


class Adam:
    """Adam's rule (Kingma and Ba, 2015, algorithm 1, with PyTorch's place of epsilon).

    Written out because building a ``torch.optim.Adam`` imports a compiler: 1.3 s, longer than most fits here.

    Parameters
    ----------
    tensors
        What is stepped on, in place.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)
        self.moments = [(torch.zeros_like(t), torch.zeros_like(t)) for t in self.tensors]
        self.count = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Sequence[float]) -> None:
        """Step against the gradients, each tensor at its own rate."""
        self.count += 1
        for t, g, (first, second), lr in zip(self.tensors, gradients, self.moments, rates, strict=True):
            first.lerp_(g, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            length = second.sqrt().div_(math.sqrt(1 - BETAS[1] ** self.count)).add_(EPSILON)
            t.addcdiv_(first, length, value=-lr / (1 - BETAS[0] ** self.count))
