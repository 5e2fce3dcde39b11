"""Encoders whose embeddings move no further than their images: l2 gain <= 1, proven from the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..errors import InvalidArgument
from ..rng import seeded
from .encoder import Encoder, Shape, check_shape, check_width
from .orthogonal import GroupSort, OrthogonalConv2d, OrthogonalLinear

LARGEST_SIDE = 7
"""Sides in pixels are halved until they are at most this long."""


class LipschitzNet(Encoder):
    """An encoder of layers with a proven gain, without L2 normalisation, which would multiply it.

    It is built by :class:`LipschitzEncoder`. In evaluation mode its weights are constants: gradients reach
    the images, not the weights.
    """

    def lipschitz_constant(self) -> float:
        """Return a proven bound of ``|f(x) - f(x')| / |x - x'|`` in evaluation mode, at most 1.

        The product of the largest singular values of all matrices, in float64 and rounded up. Every other
        step has gain 1: cutting into blocks of pixels, padding with zeros, flattening, sorting.
        """
        constant = 1.0
        for layer in self._matrices():
            constant = math.nextafter(constant * layer.lipschitz_constant(), math.inf)
        return constant

    def rounding_error(self, dtype: torch.dtype = torch.float64) -> float:
        """Return a proven bound of the norm by which rounding moves an embedding of pixels in [0, 1].

        Parameters
        ----------
        dtype
            Precision of the weights and of the images: float64 or float32 (without TF32 and autocast).
        """
        if dtype not in (torch.float32, torch.float64):
            raise InvalidArgument("dtype", "torch.float32 or torch.float64", dtype)
        unit = torch.finfo(dtype).eps / 2
        size, error = math.sqrt(math.prod(self.shape)), 0.0
        for layer in self._matrices():
            a, b = layer.rounding(unit)
            error += a * (size + error) + b
            size += float(layer.bias.detach().double().norm())
        return error * (1 + 1e-9)

    def _matrices(self) -> list[OrthogonalLinear]:
        return [m for m in (*self.trunk, self.head) if isinstance(m, OrthogonalLinear)]  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class LipschitzEncoder:
    """Blocks of pixels, orthogonal convolutions and linear layers, sorted pairs of channels: gain <= 1.

    For each halving of the sides (until at most 7 pixels): 2x2 blocks become channels - 1x1 convolution to
    ``width`` (doubled at each halving) - MaxMin - ``depth`` shifted convolutions, each with MaxMin. Then
    ``hidden`` linear layers of ``units`` with MaxMin and a linear head. Every matrix is orthogonalised.

    Parameters
    ----------
    width
        Channels after the first halving, even.
    depth
        Shifted convolutions at each size, >= 0.
    units, hidden
        Width (even) and number of the linear layers before the head; ``hidden`` may be 0.
    embedding_dim
        Width of the embeddings.
    iterations
        Of the orthogonalisation; see :class:`~holdfast.encoders.orthogonal.OrthogonalLinear`.

    Notes
    -----
    At 8x8 the default never has fewer dimensions than the image, so a fresh encoder is nearly an isometry;
    narrower ones start with shorter distances and end with smaller radii.
    Embeddings are not normalised: dividing by the norm has a gain of one over the smallest norm. Distances
    between embeddings are in pixel units: never longer than the l2 distance of the images.

    Examples
    --------
    >>> encoder = LipschitzEncoder().build((1, 8, 8), seed=0)
    >>> encoder.lipschitz_constant() <= 1
    True
    """

    width: int = 16
    depth: int = 1
    units: int = 256
    hidden: int = 1
    embedding_dim: int = 256
    iterations: int = 5
    name: ClassVar[str] = "lipschitz"
    normalize: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for argument in ("width", "units", "embedding_dim", "iterations"):
            check_width(argument, getattr(self, argument))
        for argument in ("width", "units"):
            if getattr(self, argument) % 2:
                raise InvalidArgument(
                    argument, "an even number, as channels are sorted in pairs", getattr(self, argument)
                )
        for argument in ("depth", "hidden"):
            value = getattr(self, argument)
            if type(value) is not int or value < 0:
                raise InvalidArgument(argument, "an integer >= 0", value)

    def build(self, shape: Shape, seed: int) -> LipschitzNet:
        """Return a fresh encoder for inputs (c, h, w); the weights are random orthogonal matrices."""
        check_shape(shape)
        c, h, w = shape
        layers: list[nn.Module] = []
        width = self.width
        with seeded(seed, "encoder"):
            while min(h, w) > LARGEST_SIDE or (not layers and min(h, w) > 1):
                if h % 2 or w % 2:
                    layers.append(nn.ZeroPad2d((0, w % 2, 0, h % 2)))
                h, w = (h + 1) // 2, (w + 1) // 2
                layers += [nn.PixelUnshuffle(2), self._conv(4 * c, width, shift=False), GroupSort()]
                for _ in range(self.depth):
                    layers += [self._conv(width, width, shift=True), GroupSort()]
                c, width = width, 2 * width
            layers.append(nn.Flatten())
            flat = c * h * w
            for _ in range(self.hidden):
                layers += [OrthogonalLinear(flat, self.units, self.iterations), GroupSort()]
                flat = self.units
            head = OrthogonalLinear(flat, self.embedding_dim, self.iterations)
        return LipschitzNet(nn.Sequential(*layers), head, shape=shape, spec=self, normalize=False)

    def _conv(self, inputs: int, outputs: int, shift: bool) -> OrthogonalConv2d:
        return OrthogonalConv2d(inputs, outputs, self.iterations, shift)
