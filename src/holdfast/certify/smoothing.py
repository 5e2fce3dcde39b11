"""Randomized smoothing of embeddings: the mean embedding under Gaussian noise, and radii for what it decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..functional.distance import norms
from ..rng import RowStreams, normal, stream
from ..search import frozen
from ..types import Encoder
from .gaussian import (
    TOLERANCE,
    ball_width,
    halfspace_radius,
    lower_proportion,
    noisy_batches,
    staircase_radius,
)

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
        Levels of each margin, and groups of competitors with one margin each.
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
        for name in ("n_select", "n_certify", "batch_size", "levels", "groups", "competitors"):
            if not getattr(self, name) >= 1:
                raise InvalidArgument(name, "an integer >= 1", getattr(self, name))
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


class Halfspaces(NamedTuple):
    """Conditions <g, u> > t on a smoothed embedding g.

    Attributes
    ----------
    u, t
        (l, e) directions of length 1 and (l,) thresholds, float64. A threshold of infinity can never be met.
    """

    u: Tensor
    t: Tensor

    @classmethod
    def nearer(cls, winner: Tensor, losers: Tensor) -> Halfspaces:
        """Return the conditions that ``winner`` (e,) is strictly nearer than each of ``losers`` (l, e)."""
        winner, losers = winner.double(), losers.double()
        difference = winner - losers
        length = norms(difference)
        safe = torch.where(length > 0, length, torch.ones_like(length))
        # |a|^2 - |b|^2 = <a - b, a + b>: no cancellation between squares
        t = (difference * (winner + losers)).sum(1) / (2 * safe)
        return cls(difference / safe[:, None], torch.where(length > 0, t, torch.inf))

    def take(self, rows: Tensor) -> Halfspaces:
        """Return some of the conditions."""
        return Halfspaces(self.u[rows], self.t[rows])

    def radii(self, mean: Tensor, width: float, sigma: float) -> Tensor:
        """Return (l,) radii that hold for every g within ``width`` of ``mean``."""
        score = (self.u @ mean - width).cpu().numpy()
        return torch.from_numpy(halfspace_radius(score, self.t.cpu().numpy(), sigma))


Source = Callable[[], Iterator[Halfspaces]]
"""Conditions in chunks, as often as it is called: a gallery of any size never stands in memory as pairs."""


def ball_radii(source: Source, mean: Tensor, width: float, sigma: float) -> Tensor:
    """Return the radii of all conditions by the mean embedding alone, (l,)."""
    parts = [chunk.radii(mean, width, sigma) for chunk in source()]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


class Margins:
    """Groups of conditions, each with one margin whose distribution under noise is counted.

    The margin of a group is ``X(f) = min_j (<f, u_j> - t_j)``, concave in f, so ``X(g) >= E X(f)`` for
    ``g = E f`` (Jensen): where the mean of X is above 0, g meets every condition of the group. For |f| <= 1
    it is never below ``min_j (-1 - t_j)``. Groups are few, so the probability alpha is shared by few bounds;
    members of a group lie close together, so Jensen costs little.

    Parameters
    ----------
    spaces
        The conditions, hardest first.
    select
        (n, e) embeddings under noise that choose the levels.
    groups, levels
        How many of each.
    """

    def __init__(self, spaces: Halfspaces, select: Tensor, groups: int, levels: int) -> None:
        member = _groups(torch.cat([spaces.u, spaces.t[:, None]], 1), groups)
        order = member.argsort(stable=True)
        self.spaces = spaces.take(order)
        self.sizes = torch.bincount(member).tolist()
        self.floor = torch.stack([-1 - t.max() for t in self.spaces.t.split(self.sizes)])
        x = self.of(select)
        low, high = x.amin(0), x.amax(0)
        low = torch.maximum(self.floor, low - (high - low) / 4)
        share = torch.linspace(0, 1, levels, dtype=torch.float64, device=low.device)
        rising = low[:, None] + share * (high - low).clamp_min(0)[:, None]  # (g, t)
        self.levels = rising.cummax(1).values
        self.hits = torch.zeros(self.levels.shape, dtype=torch.int64, device=low.device)
        self.n = 0

    def of(self, z: Tensor) -> Tensor:
        """Return the margins (n, g) of embeddings (n, e)."""
        each = z @ self.spaces.u.T - self.spaces.t
        return torch.stack([part.amin(1) for part in each.split(self.sizes, 1)], 1)

    def see(self, z: Tensor) -> None:
        """Count how often each level is reached."""
        self.hits += (self.of(z)[:, :, None] >= self.levels + TOLERANCE).sum(0)
        self.n += len(z)

    def radius(self, sigma: float, alpha: float) -> float:
        """Return the radius inside which all conditions hold, with probability 1 - alpha."""
        p = lower_proportion(self.hits.cpu().numpy(), self.n, alpha / self.hits.numel())
        radii = staircase_radius(self.levels.cpu().numpy(), p, self.floor.cpu().numpy(), sigma)
        return float(radii.min())


def _groups(points: Tensor, k: int) -> Tensor:
    """Return the group of each point: that of the nearest of k pivots, farthest first from point 0."""
    member = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    nearest = norms(points - points[0])
    for group in range(1, min(k, len(points))):
        far = int(nearest.argmax())
        if not float(nearest[far]) > 0:
            break
        d = norms(points - points[far])
        member[d < nearest] = group
        nearest = torch.minimum(nearest, d)
    return member.unique(return_inverse=True)[1]


class Chosen(NamedTuple):
    """What the select sample settled for one input.

    Attributes
    ----------
    margins
        Of the hardest conditions; None where the ball alone certifies.
    listed
        (l,) bool: conditions that the margins cover.
    dropped
        (l,) bool: conditions that need not hold.
    """

    margins: Margins | None
    listed: Tensor
    dropped: Tensor


def choose(source: Source, select: Tensor, s: Smoothing, spare: int = 0) -> Chosen:
    """Settle, on select embeddings (n, e), which conditions are certified and how; ``spare`` may fail."""
    hardness = ball_radii(source, select.mean(0), 0.0, 1.0)
    order = hardness.argsort(stable=True)
    listed, dropped = torch.zeros(2, len(hardness), dtype=torch.bool).unbind()
    dropped[order[:spare]] = True
    kept = order[spare:]
    able = kept[(hardness[kept] > 0) & (hardness[kept] < math.inf)][: s.competitors]
    # A condition that fails on the select sample is left to the ball, which then refuses it.
    if s.bound == "ball" or not len(able):
        return Chosen(None, listed, dropped)
    listed[able] = True
    place = torch.full((len(hardness),), len(hardness))
    place[able] = torch.arange(len(able))
    parts, start = [], 0
    for chunk in source():
        rows = torch.nonzero(listed[start : start + len(chunk.t)]).squeeze(1)
        parts.append((place[start + rows], chunk.take(rows.to(chunk.t.device))))
        start += len(chunk.t)
    back = torch.cat([where for where, _ in parts]).argsort()
    u, t = torch.cat([h.u for _, h in parts]), torch.cat([h.t for _, h in parts])
    hardest = Halfspaces(u, t).take(back.to(t.device))
    return Chosen(Margins(hardest, select, s.groups, s.levels), listed, dropped)


def conditions_radius(source: Source, chosen: Chosen, mean: Tensor, s: Smoothing) -> float:
    """Return the radius inside which all conditions (but the dropped ones) hold for the smoothed embedding.

    Parameters
    ----------
    source
        The conditions, fixed before the certify sample was drawn.
    chosen
        From the select sample; its margins have seen the certify sample.
    mean
        (e,) mean of the certify sample.
    s
        Noise and alpha. With margins, ball and margins fail with probability alpha / 2 each.
    """
    alpha = s.alpha if s.bound == "ball" else s.alpha / 2
    ball = ball_radii(source, mean, ball_width(float(norms(mean)), s.n_certify, alpha), s.sigma)
    need = ~chosen.dropped
    everywhere = float(ball[need].min()) if bool(need.any()) else math.inf
    if chosen.margins is None:
        return everywhere
    rest = ball[need & ~chosen.listed]
    by_margins = chosen.margins.radius(s.sigma, alpha)
    return max(everywhere, min([by_margins, *([float(rest.min())] if len(rest) else [])]))
