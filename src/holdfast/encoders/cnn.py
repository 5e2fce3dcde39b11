"""Small convolutional encoders: the published network for 28x28 images, and a faster one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..errors import InvalidArgument
from ..rng import seeded
from .encoder import Encoder, Shape, check_shape, check_width


@dataclass(frozen=True, kw_only=True)
class C2F2:
    """Two 5x5 convolutions and two linear layers, the network of the published 28x28 results.

    conv 32 - ReLU - max-pool 2 - conv 64 - ReLU - max-pool 2 - linear 1024 - ReLU - linear ``embedding_dim``;
    no batch normalisation, no dropout. For 28x28 inputs the first linear layer has 3136 inputs. Pooling
    comes before ReLU, which is the same to the bit, gradients included, and a tenth faster.

    Parameters
    ----------
    embedding_dim
        Width of the embeddings.
    width
        Factor > 0 on the channels and units before the head; 1 is the published network.
    normalize
        Whether embeddings have L2 norm 1.
    mean, std
        Standardisation of the input, one number or one for each channel; none by default, as published.

    References
    ----------
    Zhou, Wang, Niu, Zhang, Zheng and Hua, "Adversarial Attack and Defense in Deep Ranking",
    arXiv:2106.03614 (C2F2).

    Examples
    --------
    >>> C2F2().build((1, 28, 28), seed=0).trunk[7].in_features
    3136
    """

    embedding_dim: int = 512
    width: float = 1.0
    normalize: bool = True
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    name: ClassVar[str] = "c2f2"

    def __post_init__(self) -> None:
        check_width("embedding_dim", self.embedding_dim)
        if not 0 < self.width < math.inf:
            raise InvalidArgument("width", "a finite number > 0", self.width)

    def build(self, shape: Shape, seed: int) -> Encoder:
        """Return a fresh encoder for inputs (c, h, w) with h, w >= 4, in PyTorch's default initialisation."""
        check_shape(shape, least=4)
        c, h, w = shape
        first, second, units = (max(1, round(n * self.width)) for n in (32, 64, 1024))
        with seeded(seed, "encoder"):
            trunk = nn.Sequential(
                nn.Conv2d(c, first, 5, padding=2),
                nn.MaxPool2d(2),
                nn.ReLU(),
                nn.Conv2d(first, second, 5, padding=2),
                nn.MaxPool2d(2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(second * (h // 4) * (w // 4), units),
                nn.ReLU(),
            )
            head = nn.Linear(units, self.embedding_dim)
        return Encoder(
            trunk, head, shape=shape, spec=self, mean=self.mean, std=self.std, normalize=self.normalize
        )


@dataclass(frozen=True, kw_only=True)
class SmallCNN:
    """Three 3x3 convolutions and two linear layers: fast on 8x8 to 64x64 inputs.

    conv ``width`` - ReLU - conv ``2 width``, stride 2 - ReLU - conv ``width`` (stride 2 from 16 pixels on) -
    ReLU - mean-pooling to at most 7x7 - linear 128 - ReLU - linear ``embedding_dim``; no batch normalisation.
    About 120 000 parameters at 8x8. Every operation has a deterministic gradient on a GPU.

    Parameters
    ----------
    width
        Channels of the first convolution.
    embedding_dim
        Width of the embeddings.
    normalize
        Whether embeddings have L2 norm 1.
    mean, std
        Standardisation of the input, one number or one for each channel.

    Examples
    --------
    >>> sum(p.numel() for p in SmallCNN().build((1, 8, 8), seed=0).parameters())
    119456
    """

    width: int = 32
    embedding_dim: int = 128
    normalize: bool = True
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    name: ClassVar[str] = "small-cnn"

    def __post_init__(self) -> None:
        check_width("width", self.width)
        check_width("embedding_dim", self.embedding_dim)

    def build(self, shape: Shape, seed: int) -> Encoder:
        """Return a fresh encoder for inputs (c, h, w) with h, w >= 4, in PyTorch's default initialisation."""
        check_shape(shape, least=4)
        stride = 2 if min(shape[1:]) >= 16 else 1
        sides = [((side + 1) // 2 + stride - 1) // stride for side in shape[1:]]  # a padded 3x3 rounds up
        pool = (max(1, sides[0] // 4), max(1, sides[1] // 4))
        flat = self.width * (sides[0] // pool[0]) * (sides[1] // pool[1])
        with seeded(seed, "encoder"):
            trunk = nn.Sequential(
                nn.Conv2d(shape[0], self.width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(self.width, 2 * self.width, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(2 * self.width, self.width, 3, stride=stride, padding=1),
                nn.ReLU(),
                nn.AvgPool2d(pool) if pool != (1, 1) else nn.Identity(),
                nn.Flatten(),
                nn.Linear(flat, 128),
                nn.ReLU(),
            )
            head = nn.Linear(128, self.embedding_dim)
        return Encoder(
            trunk, head, shape=shape, spec=self, mean=self.mean, std=self.std, normalize=self.normalize
        )
