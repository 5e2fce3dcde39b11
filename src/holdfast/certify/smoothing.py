"""Randomized smoothing of embeddings: the mean embedding of an input under Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..functional.distance import norms
from ..rng import RowStreams, normal, stream
from ..search import frozen
from ..types import Encoder
from .gaussian import noisy_batches

UNIT = 1e-5
"""How much longer than 1 an embedding may be; it is then scaled to length 1 in float64."""


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """How an encoder is smoothed and how its answers are certified.

    Attributes
    ----------
    sigma
        Standard deviation of the noise in input units, > 0.
    n_select, n_certify
        Noisy copies of each input that choose what is to be certified, and that certify it. They are
        different draws: a bound holds for a choice only if the samples behind it did not make the choice.
    alpha
        Probability, for each input, that its radius is too large; in (0, 1).
    seed
        Names the noise, with the purpose and the input's own index. Inputs must not have been made with
        knowledge of this noise.
    batch_size
        Noisy copies in one forward pass; bounds the memory and does not change what is drawn.
    bound
        ``"ball"``: the mean embedding alone, all of ``alpha`` for one ball around it, whatever the gallery.
        ``"levels"``: the distribution of the margins as well, half of ``alpha`` for each; radii about three
        times as large, never much smaller.
    levels, groups
        Levels of each margin (two or more), and groups of competitors with one margin each.
    competitors
        Hardest competitors (chosen on the select sample) whose margins are looked at; all others are
        certified by the ball.
    """

    sigma: float
    n_select: int = 200
    n_certify: int = 10_000
    alpha: float = 1e-3
    seed: int = 0
    batch_size: int = 256
    bound: Literal["ball", "levels"] = "levels"
    levels: int = 16
    groups: int = 64
    competitors: int = 8192

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise InvalidArgument("sigma", "a finite number > 0, in input units", self.sigma)
        for name in ("n_select", "n_certify", "batch_size", "groups", "competitors"):
            if not getattr(self, name) >= 1:
                raise InvalidArgument(name, "an integer >= 1", getattr(self, name))
        if self.levels < 2:
            raise InvalidArgument("levels", "an integer >= 2", self.levels)
        if not 0 < self.alpha < 1:
            raise InvalidArgument("alpha", "a probability in (0, 1)", self.alpha)
        if self.seed < 0:
            raise InvalidArgument("seed", "an integer >= 0", self.seed)
        if self.bound not in ("ball", "levels"):
            raise InvalidArgument("bound", "'ball' or 'levels'", self.bound)


class SmoothedEncoder(nn.Module):
    """An encoder that answers with the mean embedding of noisy copies, for attacks and for deployment.

    Every call draws fresh noise, and gradients pass: wrap the gradient of a search in
    :class:`~holdfast.search.Averaged` for expectation over transformation.

    Parameters
    ----------
    encoder
        (n, *s) -> (n, e).
    sigma
        Standard deviation in input units.
    samples
        Copies of each input in a call; certificates are about infinitely many.
    seed
        Of the noise.
    """

    def __init__(self, encoder: Encoder, sigma: float, samples: int = 32, seed: int = 0) -> None:
        super().__init__()
        if not (math.isfinite(sigma) and sigma >= 0):
            raise InvalidArgument("sigma", "a finite number >= 0, in input units", sigma)
        if samples < 1:
            raise InvalidArgument("samples", "an integer >= 1", samples)
        self.encoder, self.sigma, self.samples = encoder, sigma, samples
        self.generator = stream(seed, "smoothed encoder")

    def forward(self, x: Tensor) -> Tensor:
        """(n, *s) -> (n, e), of length at most 1 where the encoder's embeddings are."""
        z = self.encoder(x + self.sigma * normal(x, self.generator))
        for _ in range(self.samples - 1):
            z = z + self.encoder(x + self.sigma * normal(x, self.generator))
        return z / self.samples


def embeddings_under_noise(
    encoder: Encoder, x: Tensor, n: int, purpose: str, index: int, s: Smoothing
) -> Iterator[Tensor]:
    """Yield float64 embeddings (batch, e), of length at most 1, of ``n`` noisy copies of one input.

    Raises
    ------
    InvalidArgument
        If embeddings are not (batch, e), not finite, or longer than 1 by more than 1e-5: smoothing needs a
        bound on them, and 1 is that of a normalised encoder.
    """
    streams = RowStreams(s.seed, "smoothing", purpose, index=[index])
    for copies in noisy_batches(x, s.sigma, n, streams, s.batch_size):
        with torch.no_grad():
            z = encoder(copies)
        if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != len(copies):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise InvalidArgument("encoder", f"embeddings ({len(copies)}, e)", got)
        z = z.double()
        length = norms(z)
        if not bool(torch.isfinite(length).all()):
            raise InvalidArgument("encoder", "finite embeddings under noise", "NaN or infinity")
        if float(length.max()) > 1 + UNIT:
            raise InvalidArgument(
                "encoder", "embeddings of length at most 1 (a normalised encoder)", float(length.max())
            )
        yield z / length.clamp_min(1)[:, None]


def smoothed_embeddings(
    encoder: Encoder,
    x: Tensor,
    smoothing: Smoothing,
    *,
    purpose: str = "certify",
    index: Tensor | Sequence[int] | None = None,
) -> Tensor:
    """Estimate the mean embedding of every input under Gaussian noise.

    Parameters
    ----------
    encoder
        (n, *s) -> (n, e), embeddings of length at most 1.
    x
        (n, *s) inputs; the noisy copies are not clipped.
    smoothing
        Noise, and how many copies: ``n_select`` for the purpose ``"select"``, else ``n_certify``.
    purpose
        Names the draws, together with ``index``: another purpose, fresh noise.
    index
        (n,) the inputs' own numbers; 0, 1, ... by default.

    Returns
    -------
    Tensor
        (n, e) float64 means, each within :func:`~holdfast.certify.gaussian.ball_width` of the true one with
        probability 1 - alpha.
    """
    n = smoothing.n_select if purpose == "select" else smoothing.n_certify
    with frozen(encoder):
        means = [
            sum_of(embeddings_under_noise(encoder, x[i], n, purpose, number, smoothing)) / n
            for i, number in enumerate(numbers(index, len(x)))
        ]
    return torch.stack(means) if means else torch.empty(0, 0, dtype=torch.float64)


def sum_of(batches: Iterable[Tensor]) -> Tensor:
    """Return the sum (e,) over all rows of all batches."""
    return cast(Tensor, sum(z.sum(0) for z in batches))


def numbers(index: Tensor | Sequence[int] | None, n: int) -> list[int]:
    """Return the inputs' own numbers."""
    own = list(range(n)) if index is None else [int(i) for i in index]
    if len(own) != n:
        raise InvalidArgument("index", f"a number for each of the {n} inputs", len(own))
    return own
