"""How often an encoder was asked."""

from __future__ import annotations

from torch import Tensor, nn

from ..types import Encoder


class Counted(nn.Module):
    """An encoder that counts the images passed forward.

    It is a module whatever the encoder is; an inner module is its child, so that modes, devices and weights
    are reached through it. A pass counts even if the encoder fails, and backward passes count nothing.

    Parameters
    ----------
    encoder
        Any callable (n, *s) -> (n, e).

    Attributes
    ----------
    calls
        Images of every call so far, in order.

    Examples
    --------
    >>> import torch
    >>> counted = Counted(torch.neg)
    >>> _ = counted(torch.zeros(3, 2)), counted(torch.zeros(5, 2))
    >>> counted.queries, counted.calls
    (8, [3, 5])
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.training = encoder.training if isinstance(encoder, nn.Module) else False
        self.calls: list[int] = []

    @property
    def queries(self) -> int:
        """Images in all calls together."""
        return sum(self.calls)

    def reset(self) -> None:
        """Count from 0 again."""
        self.calls = []

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, *s) images."""
        self.calls.append(len(x))
        return self.encoder(x)
