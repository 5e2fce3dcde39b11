"""Conditions <g, u> > t on a smoothed embedding, and the radius inside which all of them hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..functional.distance import norms
from .gaussian import TOLERANCE, halfspace_radius, lower_proportion, staircase_radius
from .smoothing import Smoothing


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
        self.floor = torch.stack([-1 - t.max() for t in torch.split(self.spaces.t, self.sizes)])
        x = self.of(select)
        low, high = x.amin(0), x.amax(0)
        low = torch.maximum(self.floor, low - (high - low) / 4)
        share = torch.linspace(0, 1, levels, dtype=torch.float64, device=low.device)
        rising = low[:, None] + share * (high - low).clamp_min(0)[:, None]  # (g, t)
        # A little lower, so that a margin that never changes reaches the level that it set.
        lowered = torch.maximum(rising - 2 * TOLERANCE, self.floor[:, None])
        self.levels = lowered.cummax(1).values
        self.hits = torch.zeros(self.levels.shape, dtype=torch.int64, device=low.device)
        self.n = 0

    def of(self, z: Tensor) -> Tensor:
        """Return the margins (n, g) of embeddings (n, e)."""
        each = z @ self.spaces.u.T - self.spaces.t
        return torch.stack([part.amin(1) for part in torch.split(each, self.sizes, 1)], 1)

    def see(self, z: Tensor) -> Tensor:
        """Count how often each level is reached; return the embeddings (n, e) as they came."""
        self.hits += (self.of(z)[:, :, None] >= self.levels + TOLERANCE).sum(0)
        self.n += len(z)
        return z

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
    kept: Tensor = torch.unique(member, return_inverse=True)[1]
    return kept


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


def conditions_radius(source: Source, chosen: Chosen, mean: Tensor, width: float, s: Smoothing) -> float:
    """Return the radius inside which all conditions (but the dropped ones) hold for the smoothed embedding.

    Parameters
    ----------
    source
        The conditions, fixed before the certify sample was drawn.
    chosen
        From the select sample; its margins have seen the certify sample, and fail with probability alpha / 2.
    mean, width
        (e,) mean of the certify sample, and how far from it the true one may lie.
    s
        Noise and alpha.
    """
    ball = ball_radii(source, mean, width, s.sigma)
    needed = ball[~chosen.dropped]
    everywhere = float(needed.min()) if len(needed) else math.inf
    if chosen.margins is None:
        return everywhere
    rest = ball[~chosen.dropped & ~chosen.listed]
    by_margins = chosen.margins.radius(s.sigma, s.alpha / 2)
    return max(everywhere, min(by_margins, float(rest.min()) if len(rest) else math.inf))
