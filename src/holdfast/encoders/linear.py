"""A linear encoder: for tabular data, and for tests whose best attack is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..rng import seeded
from .encoder import Encoder, Shape, check_shape, check_width


@dataclass(frozen=True)
class LinearEncoder:
    """Flatten the input and multiply by a matrix, without bias: ``z = W x``.

    Parameters
    ----------
    embedding_dim
        Width of the embeddings.
    normalize
        Whether embeddings have L2 norm 1; off by default, so that distances are a Mahalanobis distance with
        the matrix ``W^T W``.

    Examples
    --------
    >>> tuple(LinearEncoder(2).build((1, 1, 5), seed=0).head.weight.shape)  # five features, tabular
    (2, 5)
    """

    embedding_dim: int
    normalize: bool = False
    name: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        check_width("embedding_dim", self.embedding_dim)

    def build(self, shape: Shape, seed: int) -> Encoder:
        """Return a fresh encoder for inputs (c, h, w), in PyTorch's default initialisation."""
        check_shape(shape)
        with seeded(seed, "encoder"):
            head = nn.Linear(shape[0] * shape[1] * shape[2], self.embedding_dim, bias=False)
        return Encoder(nn.Flatten(), head, shape=shape, spec=self, normalize=self.normalize)
