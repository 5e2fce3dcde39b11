"""The smallest perturbation that changes a nearest neighbour's label, exactly.

For every reference of another class a programme (:mod:`holdfast.certify.programme`) finds the shortest move
that makes it the nearest; the smallest of these lengths is the radius (Wang et al., NeurIPS 2020). References
are tried in the order of a lower bound, and as soon as the next bound reaches the best length no other can
be shorter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .programme import Territory, solve

SCREEN = 16
"""Nearest rightful neighbours that order the rivals."""
FIRST_RIVALS = 32
BLOCK = 2**24
"""Numbers of the largest arrays that are held at once (128 MiB)."""


class Radii(NamedTuple):
    """Lower bounds, lengths of known moves, and the moves; (n,), (n,) and (n, r)."""

    bound: Tensor
    upper: Tensor
    move: Tensor


def screen(land: Territory, t: Tensor, size: int = SCREEN) -> Tensor:
    """Return (n, q) lower bounds of the programmes of all rivals, from the nearest rightful neighbours.

    The bound of one half-space, ``[d(z, x_j) - d(z, x_i)]_+ / (2 |M (x_i - x_j)|)``, at its largest over the
    ``size`` nearest i. References that coincide give 0.
    """
    r = land.references
    size = min(size, len(land.own))
    own, other = r.distances(t, land.own), r.distances(t, land.others)
    near = own.topk(size, dim=1, largest=False)
    rows, inverse = torch.unique(near.indices, return_inverse=True)
    best = torch.zeros_like(other)
    width = max(1, BLOCK // max(1, len(rows) + size * len(t)))
    for first in range(0, len(land.others), width):
        part = slice(first, first + width)
        across = r.bisector_norms(land.own[rows], land.others[part])  # (u, w)
        ahead = (other[:, None, part] - near.values[:, :, None]).clamp_min_(0)  # (n, size, w)
        ahead /= (2 * across)[inverse]
        best[:, part] = ahead.nan_to_num_(nan=0.0).amax(1)
    return best


def nearest_radii(land: Territory, t: Tensor) -> Radii:
    """Return the radii of points (n, r) whose nearest reference is one of the class's own."""
    n = len(t)
    found = Radii(
        bound=t.new_full((n,), torch.inf), upper=t.new_full((n,), torch.inf), move=torch.zeros_like(t)
    )
    if not len(land.others) or not n:
        return found
    bounds = screen(land, t)
    opened, wave = torch.zeros(n, dtype=torch.int64, device=t.device), 1
    listed = bounds.topk(min(FIRST_RIVALS, bounds.shape[1]), dim=1, largest=False, sorted=True)
    while True:
        if wave > listed.values.shape[1] < bounds.shape[1]:
            listed = bounds.topk(min(2 * wave, bounds.shape[1]), dim=1, largest=False, sorted=True)
        rank = torch.arange(listed.values.shape[1], device=t.device)
        ask = (rank >= opened[:, None]) & (rank < wave) & (listed.values < found.bound[:, None])
        pairs = torch.nonzero(ask.T)  # by rank, so that the likely ones come first
        for part in torch.split(pairs, max(1, BLOCK // (64 * t.shape[1] + 8 * len(land.own)))):
            _open(land, t, part[:, 1], land.others[listed.indices[part[:, 1], part[:, 0]]], found)
        opened.fill_(wave)
        if wave >= bounds.shape[1]:
            break
        if wave < listed.values.shape[1] and not bool((listed.values[:, wave] < found.bound).any()):
            break
        wave = min(bounds.shape[1], FIRST_RIVALS if wave == 1 else 2 * wave)
    return found


def _open(land: Territory, t: Tensor, points: Tensor, rivals: Tensor, found: Radii) -> None:
    """Solve programmes and keep the best of each point."""
    solution = solve(land, t[points], rivals[:, None], cutoff=found.bound[points])
    order = solution.bound.argsort(descending=True)  # the last write wins: the smallest
    for i in order[solution.solved[order]].tolist():
        at = int(points[i])
        if solution.bound[i] < found.bound[at]:
            found.bound[at] = solution.bound[i]
            found.upper[at] = solution.move[i].norm()
            found.move[at] = solution.move[i]
