"""Random windows for a search by queries: what one query changes, in l-inf and in l2."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..functional.projection import unit
from ..threat import RowBall
from ..types import Threat

TILES = 5
"""The l2 start has this many tiles along each side of an image."""
LEAST = 2
"""Shortest side of an l2 window: smaller ones could only gather the change on single values."""


class Windows(Protocol):
    """Random changes of inputs; each row is changed as its own random numbers say.

    Attributes
    ----------
    start_draws, draws
        How many U(0, 1) numbers a row needs for its start and for a window.
    """

    start_draws: int
    draws: int

    def start(self, x0: Tensor, threat: Threat, u: Tensor) -> Tensor:
        """Return a random allowed point for every row, from (k, start_draws) numbers."""
        ...

    def move(self, x: Tensor, x0: Tensor, threat: Threat, u: Tensor, share: float, rows: Any) -> Tensor:
        """Return ``x`` with a window changed that covers a share of the input, from (k, draws) numbers.

        ``rows`` says which rows of the whole batch these are.
        """
        ...


class SignWindows:
    """Windows whose values go to one or the other end of what is allowed, channel by channel.

    Parameters
    ----------
    x0, threat
        Of the whole batch; every row's windows lie in the smallest rectangle that holds all of its values
        that can change.
    """

    def __init__(self, x0: Tensor, threat: Threat) -> None:
        plane = _plane(x0)
        _, c, h, w = plane.shape
        self.start_draws, self.draws = c * w, 2 + c
        above, below = (threat.project(x0 + sign * threat.eps, x0) for sign in (1, -1))
        free = (_plane(above) != _plane(below)).any(1)  # (n, h, w)
        self.top, self.height = _extent(free.any(2), h)
        self.left, self.width = _extent(free.any(1), w)

    def start(self, x0: Tensor, threat: Threat, u: Tensor) -> Tensor:
        """Return vertical stripes of ``-eps`` and ``eps`` in each channel."""
        k, c, _, w = _plane(x0).shape
        stripes = _signs(u).reshape(k, c, 1, w).to(x0)
        return threat.project((_plane(x0) + threat.eps * stripes).reshape(x0.shape), x0)

    def move(self, x: Tensor, x0: Tensor, threat: Threat, u: Tensor, share: float, rows: Any) -> Tensor:
        """Return ``x`` with one window pushed up or down in each channel."""
        plane = _plane(x)
        top, left, height, width = (v[rows] for v in (self.top, self.left, self.height, self.width))
        a, b = _sides(share, height, width)
        inside = _span(plane.shape[2], top, height, a, u[:, 0])[:, :, None]
        inside = inside & _span(plane.shape[3], left, width, b, u[:, 1])[:, None, :]  # (k, h, w)
        push = 2 * threat.eps * (_signs(u[:, 2:])[:, :, None, None] * inside[:, None]).to(x)
        push = push.reshape(x.shape)
        moved = threat.project(x + push, x0)
        idle = (moved == x).flatten(1).all(1)
        if not bool(idle.any()):
            return moved
        return torch.where(idle.reshape(-1, *[1] * (x.ndim - 1)), threat.project(x - push, x0), moved)


class L2Windows:
    """Windows that take the change from one place, and what is left of the radius, to another."""

    def __init__(self, x0: Tensor, threat: Threat) -> None:
        _, c, h, w = _plane(x0).shape
        self.tiles = min(TILES, h), min(TILES, w)
        self.start_draws, self.draws = c * self.tiles[0] * self.tiles[1], 5 + c

    def start(self, x0: Tensor, threat: Threat, u: Tensor) -> Tensor:
        """Return tiles of bumps with random signs, of length ``eps`` together."""
        plane = _plane(x0)
        k, c, h, w = plane.shape
        (down, right), change = self.tiles, torch.zeros_like(plane)
        a, b = h // down, w // right
        signs = _signs(u).reshape(k, c, down, 1, right, 1)
        tiled = (signs * _bumps(a, b)[0].to(u)[:, None, :]).reshape(k, c, down * a, right * b)
        top, left = (h - down * a) // 2, (w - right * b) // 2
        change[:, :, top : top + down * a, left : left + right * b] = tiled.to(x0)
        return threat.project((plane + unit(change) * _radius(threat, plane)).reshape(x0.shape), x0)

    def move(self, x: Tensor, x0: Tensor, threat: Threat, u: Tensor, share: float, rows: Any) -> Tensor:
        """Return ``x`` with the change of a second window moved into the first."""
        change = (_plane(x) - _plane(x0)).flatten(2)  # (k, c, h * w)
        _, _, h, w = _plane(x).shape
        a, b = (int(side) for side in _sides(share, torch.tensor([h]), torch.tensor([w])))
        a, b = min(max(a, LEAST), h), min(max(b, LEAST), w)
        first, second = _places(u[:, :2], h, w, a, b), _places(u[:, 2:4], h, w, a, b)  # (k, a * b)
        both = (
            torch.zeros_like(change[:, 0], dtype=torch.bool).scatter(1, first, True).scatter(1, second, True)
        )
        radius = _radius(threat, change)  # (k, 1, 1)
        unused = (radius.square() - change.square().sum((1, 2), keepdim=True)).clamp_min(0)
        length = ((change.square() * both[:, None]).sum(2, keepdim=True) + unused / change.shape[1]).sqrt()

        variants = _bumps(a, b).flatten(1).to(change)  # (v, a * b)
        bump = variants[(u[:, 4] * len(variants)).long().clamp_max(len(variants) - 1)]
        bump = _signs(u[:, 5:]).to(change)[:, :, None] * bump[:, None]  # (k, c, a * b)
        first, second = (places[:, None].expand_as(bump) for places in (first, second))
        mixed = bump + _unit(change.gather(2, first))
        mixed = _unit(torch.where((mixed == 0).all(2, keepdim=True), bump, mixed))
        change = change.scatter(2, second, 0.0).scatter(2, first, mixed * length)
        return threat.project(x0 + change.reshape(x.shape), x0)


def _plane(x: Tensor) -> Tensor:
    """Return (n, c, h, w): images as they are, all other rows as images of one channel and one line."""
    return x if x.ndim == 4 else x.reshape(len(x), 1, 1, -1)


def _signs(u: Tensor) -> Tensor:
    return torch.where(u < 0.5, -1.0, 1.0)


def _radius(threat: Threat, like: Tensor) -> Tensor:
    """Return the radius of every row, (k, 1, ..., 1)."""
    own = threat.radii if isinstance(threat, RowBall) else like.new_full((len(like),), threat.eps)
    return own.to(like).reshape(-1, *[1] * (like.ndim - 1))


def _extent(free: Tensor, whole: int) -> tuple[Tensor, Tensor]:
    """Return first place and length of what is free in every line (n, whole); all of it if nothing is."""
    free = free | ~free.any(1, keepdim=True)
    first = free.int().argmax(1)
    return first, whole - free.flip(1).int().argmax(1) - first


def _sides(share: float, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sides of a window that covers a share of a rectangle: square, or as long as it must be."""
    side = (share * height * width).sqrt().round()
    a = torch.where(side > width, (share * height).round(), torch.minimum(side, height))
    b = torch.where(side > height, (share * width).round(), torch.minimum(side, width))
    return a.clamp_min(1).long(), b.clamp_min(1).long()


def _first(u: Tensor, free: Tensor) -> Tensor:
    """Turn U(0, 1) numbers into places 0 to ``free``."""
    return torch.minimum((u * (free + 1)).long(), free)


def _span(whole: int, low: Tensor, length: Tensor, side: Tensor, u: Tensor) -> Tensor:
    """Return where random stretches of length ``side`` inside a longer one are, (k, whole)."""
    begin = (low + _first(u, length - side))[:, None]
    place = torch.arange(whole, device=u.device)
    return (place >= begin) & (place < begin + side[:, None])


def _places(u: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    """Return the flat places of random windows, (k, a * b)."""
    free = torch.tensor([h - a, w - b], device=u.device)
    top, left = _first(u, free).unbind(1)
    down = top[:, None] + torch.arange(a, device=u.device)
    right = left[:, None] + torch.arange(b, device=u.device)
    return (down[:, :, None] * w + right[:, None, :]).flatten(1)


def _unit(v: Tensor) -> Tensor:
    """Scale (k, c, m) to norm 1 along the last axis; zeros stay zeros."""
    return unit(v.flatten(0, 1)).reshape(v.shape)


def _bump(a: int, b: int) -> Tensor:
    """Return the sum of ``1 / j^2`` over centred squares, (a, b): highest in the middle (equation 2)."""
    n = max(a // 2, b // 2)
    away = torch.maximum((torch.arange(a) - a // 2).abs()[:, None], (torch.arange(b) - b // 2).abs())
    weight = 1 / torch.arange(1, n + 2).square()
    return weight.flip(0).cumsum(0).flip(0)[away]  # the sum over j = away + 1, ..., n + 1


def _bumps(a: int, b: int) -> Tensor:
    """Return a bump beside its opposite, one above the other and side by side: (1 or 2, a, b), norm 1."""
    half = a // 2, b // 2
    above = torch.cat([_bump(half[0], b), -_bump(a - half[0], b)]) if half[0] else None
    beside = torch.cat([_bump(a, half[1]), -_bump(a, b - half[1])], 1) if half[1] else None
    found = [v for v in (above, beside) if v is not None] or [torch.ones(a, b)]
    return unit(torch.stack(found))
