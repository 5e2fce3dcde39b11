"""The encoder module: images in [0, 1] to embeddings, with all normalisation inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidArgument

Shape = tuple[int, int, int]

CHANNELS_LAST_FROM = 16
"""Side in pixels from which convolution weights are kept channels last."""
"""Channels, height and width of one input."""


class Standardize(nn.Module):
    """Compute ``(x - mean) / std`` for every channel; x (n, c, h, w).

    Parameters
    ----------
    mean, std
        One number, or one for each channel, in pixel units of [0, 1]; ``std`` > 0. They are buffers: stored
        with the weights, never trained.
    channels
        Number of channels c.

    Examples
    --------
    >>> Standardize((0.5,), (0.5,), channels=1)(torch.ones(1, 1, 1, 1)).item()
    1.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        super().__init__()
        for argument, values in (("mean", mean), ("std", std)):
            low = 0.0 if argument == "std" else -math.inf
            if len(values) not in (1, channels) or not all(low < v < math.inf for v in values):
                sign = " above 0" if argument == "std" else ""
                raise InvalidArgument(argument, f"1 or {channels} finite numbers{sign}", values)
            full = torch.tensor(list(values), dtype=torch.float32).expand(channels).reshape(1, channels, 1, 1)
            self.register_buffer(argument, full.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        return (x - self.mean) / self.std


class EncoderSpec(Protocol):
    """A frozen dataclass of plain fields from which an encoder can be built again."""

    @property
    def name(self) -> str:
        """Name in the table of encoders."""
        ...

    def build(self, shape: Shape, seed: int) -> Encoder:
        """Return a fresh encoder for inputs of a shape; the weights depend on ``seed`` alone."""
        ...


class Encoder(nn.Module):
    """Standardize, then trunk, then a linear head, then (if asked) L2 normalisation.

    Parameters
    ----------
    trunk
        (n, c, h, w) -> (n, f).
    head
        Linear layer f -> e.
    shape
        Channels, height and width of the inputs.
    spec
        The value this encoder was built from; :func:`holdfast.encoders.save` stores it.
    mean, std
        See :class:`Standardize`; the default changes nothing.
    normalize
        Whether embeddings are divided by their L2 norm (a zero embedding stays zero).

    Attributes
    ----------
    embedding_dim : int
        Width e of the embeddings.
    spec, shape, normalize
        As given.
    """

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Linear,
        *,
        shape: Shape,
        spec: EncoderSpec,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.standardize = Standardize(mean, std, channels=shape[0])
        self.trunk = trunk
        self.head = head
        self.shape = (shape[0], shape[1], shape[2])
        self.spec = spec
        self.normalize = normalize
        self.embedding_dim = head.out_features
        self.lay_out()

    def lay_out(self) -> None:
        """Put convolution weights in the memory order that is faster for images of this size.

        Channels last from 16 pixels on (C2F2: 1.2 times as fast in float32, 1.3 in bfloat16); only rounding
        differs. safetensors refuses such weights as they are: :func:`holdfast.encoders.save` packs them,
        others have to call ``contiguous()``.
        """
        if min(self.shape[1:]) >= CHANNELS_LAST_FROM:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Embed images.

        Parameters
        ----------
        x
            (n, c, h, w), pixels in [0, 1], in the dtype and on the device of the weights.

        Returns
        -------
        Tensor
            (n, e). Half-precision results, as autocast gives them, are turned into float32 before they are
            normalised.

        Raises
        ------
        InvalidArgument
            If the images have another shape than the encoder was built for, or are not floating point.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise InvalidArgument(
                "x", f"images of shape (n, {', '.join(map(str, self.shape))})", tuple(x.shape)
            )
        if not x.is_floating_point():
            raise InvalidArgument("x", "floating-point pixels in [0, 1]", x.dtype)
        z: Tensor = self.head(self.trunk(self.standardize(x)))
        if z.dtype in (torch.float16, torch.bfloat16):
            z = z.float()
        return F.normalize(z, dim=1) if self.normalize else z


def check_shape(shape: Shape, least: int = 1) -> None:
    """Raise InvalidArgument unless the shape is (c >= 1, h >= least, w >= least)."""
    plain = len(shape) == 3 and all(type(s) is int for s in shape)
    if not plain or shape[0] < 1 or min(shape[1:]) < least:
        raise InvalidArgument("shape", f"(channels, height, width) with both sides >= {least}", shape)


def check_width(argument: str, value: int) -> None:
    """Raise InvalidArgument unless the value is an integer >= 1."""
    if type(value) is not int or value < 1:
        raise InvalidArgument(argument, "an integer >= 1", value)
