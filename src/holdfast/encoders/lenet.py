"""LeNet, the smaller of the two published networks for 28x28 images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..rng import seeded
from .encoder import Encoder, Shape, check_shape, check_width


@dataclass(frozen=True, kw_only=True)
class LeNet:
    """Two 5x5 convolutions without padding and two linear layers; about 490 000 parameters at 28x28.

    conv 20 - max-pool 2 - conv 50 - max-pool 2 - linear 500 - ReLU - linear ``embedding_dim``; no
    batch normalisation. For 28x28 inputs the first linear layer has 800 inputs.

    Parameters
    ----------
    embedding_dim
        Width of the embeddings.
    normalize
        Whether embeddings have L2 norm 1.
    mean, std
        Standardisation of the input, one number or one for each channel; none by default, as published.

    References
    ----------
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998, in
    the form of the reference code of Zhou et al., arXiv:2106.03614.

    Examples
    --------
    >>> LeNet().build((1, 28, 28), seed=0).trunk[5].in_features
    800
    """

    embedding_dim: int = 128
    normalize: bool = True
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    name: ClassVar[str] = "lenet"

    def __post_init__(self) -> None:
        check_width("embedding_dim", self.embedding_dim)

    def build(self, shape: Shape, seed: int) -> Encoder:
        """Return a fresh encoder for inputs (c, h, w), h, w >= 16, in PyTorch's default initialisation."""
        check_shape(shape, least=16)
        height, width = (((side - 4) // 2 - 4) // 2 for side in shape[1:])
        with seeded(seed, "encoder"):
            trunk = nn.Sequential(
                nn.Conv2d(shape[0], 20, 5),
                nn.MaxPool2d(2),
                nn.Conv2d(20, 50, 5),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(50 * height * width, 500),
                nn.ReLU(),
            )
            head = nn.Linear(500, self.embedding_dim)
        return Encoder(
            trunk, head, shape=shape, spec=self, mean=self.mean, std=self.std, normalize=self.normalize
        )
