"""A small fully connected encoder, for tables of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import nn

from ..errors import InvalidArgument
from ..rng import seeded
from .encoder import Encoder, Shape, check_shape, check_width


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Flatten, then linear layers with ReLU, then a linear head.

    Parameters
    ----------
    hidden
        Units of the layers before the head, at least one layer.
    embedding_dim
        Width of the embeddings.
    normalize
        Whether embeddings have L2 norm 1.
    mean, std
        Standardisation of the input; the default centres values in [0, 1].

    Examples
    --------
    >>> MLP(hidden=(8,), embedding_dim=2).build((1, 1, 5), seed=0).embedding_dim
    2
    """

    hidden: tuple[int, ...] = (128, 128)
    embedding_dim: int = 64
    normalize: bool = True
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    name: ClassVar[str] = "mlp"

    def __post_init__(self) -> None:
        check_width("embedding_dim", self.embedding_dim)
        if not isinstance(self.hidden, tuple) or not self.hidden:
            raise InvalidArgument("hidden", "a tuple of at least one width", self.hidden)
        for width in self.hidden:
            check_width("hidden", width)

    def build(self, shape: Shape, seed: int) -> Encoder:
        """Return a fresh encoder for inputs (c, h, w), in PyTorch's default initialisation."""
        check_shape(shape)
        widths = (shape[0] * shape[1] * shape[2], *self.hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        with seeded(seed, "encoder"):
            for before, after in pairwise(widths):
                layers += [nn.Linear(before, after), nn.ReLU()]
            head = nn.Linear(widths[-1], self.embedding_dim)
        return Encoder(
            nn.Sequential(*layers), head, shape=shape, spec=self, mean=self.mean, std=self.std,
            normalize=self.normalize,
        )  # fmt: skip
