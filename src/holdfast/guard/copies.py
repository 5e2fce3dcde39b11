"""Slightly changed copies of images, and an encoder that embeds an image together with its copies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..rng import stream, uniform
from ..types import Encoder


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Small shifts and small uniform noise, drawn once from the seed and the same for every image.

    A copy is the image shifted by whole pixels (the edge is replicated), plus noise, clipped to [0, 1]. As
    the draws belong to the seed and the copy's number alone, a copy is a fixed function of its image: what
    is computed from it depends neither on the batch nor on the order of queries.

    Attributes
    ----------
    count
        Copies of each image, >= 1; the cost is so many further forward passes.
    noise
        Largest change of a pixel by noise, in input units, in [0, 1].
    shift
        Largest shift in pixels, in each direction, >= 0. On tiny images a pixel is no small change: on the
        8-pixel digits it hides what the guard looks for, and 0 is better.
    seed
        Names the draws. Whoever knows it can compute the copies.

    Examples
    --------
    >>> import torch
    >>> Copies(count=3)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([3, 2, 1, 8, 8])
    """

    count: int = 8
    noise: float = 0.05
    shift: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidArgument("count", "an integer >= 1", self.count)
        if not (math.isfinite(self.noise) and 0 <= self.noise <= 1):
            raise InvalidArgument("noise", "a number in [0, 1], in input units", self.noise)
        if self.shift < 0:
            raise InvalidArgument("shift", "an integer >= 0, in pixels", self.shift)
        if self.noise == 0 and self.shift == 0:
            raise InvalidArgument("noise, shift", "at least one above 0, else copies do not differ", (0, 0))
        if self.seed < 0:
            raise InvalidArgument("seed", "an integer >= 0", self.seed)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the copies of images in [0, 1]: (n, c, h, w) -> (count, n, c, h, w), differentiable."""
        if x.ndim != 4:
            raise InvalidArgument("x", "images (n, c, h, w)", tuple(x.shape))
        places, noise = _draw(self, tuple(x.shape[1:]))
        s, (h, w) = self.shift, x.shape[2:]
        padded = F.pad(x, (s, s, s, s), mode="replicate") if s else x
        shifted = torch.stack([padded[:, :, i : i + h, j : j + w] for i, j in places])
        return (shifted + noise[:, None].to(x)).clamp(0, 1)


@lru_cache(maxsize=8)
def _draw(copies: Copies, shape: tuple[int, ...]) -> tuple[list[tuple[int, int]], Tensor]:
    """Return where each copy is cut out of the padded image, and its noise (count, c, h, w)."""
    places, noise = [], []
    for j in range(copies.count):
        u = uniform(torch.empty(2), stream(copies.seed, "guard", "shift", j))
        down, right = (u * (2 * copies.shift + 1)).long().clamp_max(2 * copies.shift).tolist()
        places.append((down, right))
        noise.append(2 * uniform(torch.empty(shape), stream(copies.seed, "guard", "noise", j)) - 1)
    return places, copies.noise * torch.stack(noise)


class WithCopies(nn.Module):
    """An encoder of an image and its copies: (n, c, h, w) -> (n, (1 + count) * e), the image first.

    A search sees only the embeddings of the rows that it moves; through this encoder it also sees those of
    the copies, so that a gain may speak of both.

    Parameters
    ----------
    encoder
        Any encoder; its weights and modes are not touched.
    copies
        Of each image.
    """

    def __init__(self, encoder: Encoder, copies: Copies) -> None:
        super().__init__()
        self.encoder = encoder
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        """Embed images and copies in one pass."""
        rows = torch.cat([x[None], self.copies(x)]).flatten(0, 1)  # ((1 + count) * n, c, h, w)
        z: Tensor = self.encoder(rows)
        if z.ndim != 2 or len(z) != len(rows):
            raise InvalidArgument("encoder", f"embeddings ({len(rows)}, e)", tuple(z.shape))
        return z.reshape(1 + self.copies.count, len(x), -1).transpose(0, 1).flatten(1)
