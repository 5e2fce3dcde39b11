"""The smallest perturbation after which the right class lacks a strict majority of the K nearest.

For K = 1 a programme for every reference of another class finds the shortest move that makes it the nearest;
the least of these lengths is the radius (Wang et al., NeurIPS 2020). For K > 1 the same is asked of sets of
``ceil(K/2)`` rivals, with rightful neighbours to spare (:mod:`holdfast.certify.branch`). Either way sets are
tried in the order of a lower bound, and once the next bound reaches the best length no other set is shorter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .branch import SAME, Outcome, branch
from .references import majority
from .territory import Territory

SCREEN = 16
"""Nearest rightful neighbours that order the rivals."""
FIRST_RIVALS = 32
BLOCK = 2**24
"""Numbers of the largest arrays that are held at once (128 MiB)."""


class Effort(NamedTuple):
    """How long to search when K > 1.

    Attributes
    ----------
    nodes
        Relaxed programmes for each set of rivals.
    sets
        Sets of rivals for each point.
    deadline
        Moment of ``time.monotonic()`` at which to stop, or None.
    """

    nodes: int = 64
    sets: int = 64
    deadline: float | None = None


def nothing(t: Tensor) -> Outcome:
    """Return that nothing is known of points (n, r)."""
    endless = t.new_full((len(t),), torch.inf)
    return Outcome(t.new_zeros(len(t)), endless, torch.zeros_like(t), torch.zeros_like(t))


def take(best: Outcome, points: Tensor, outcome: Outcome) -> None:
    """Note the moves of outcomes (b,) that are shorter than those known of their points (b,)."""
    order = outcome.upper.argsort(descending=True)
    order = order[outcome.upper[order] < best.upper[points[order]]]
    for i in order.tolist():  # the shortest of a point comes last
        best.upper[points[i]] = outcome.upper[i]
        best.move[points[i]], best.inward[points[i]] = outcome.move[i], outcome.inward[i]


def screen(land: Territory, t: Tensor, size: int = SCREEN, spare: int = 0) -> Tensor:
    """Return (n, q) lower bounds of the programmes of all rivals, from the nearest rightful neighbours.

    The bound of one half-space, ``[d(z, x_j) - d(z, x_i)]_+ / (2 |M (x_i - x_j)|)``, at its largest over the
    ``size`` nearest i, or at the next largest but ``spare``. References that coincide give 0.
    """
    r = land.references
    size = min(size + spare, len(land.own))
    own = r.distances(t, land.own)
    other = r.distances(t, land.others) - land.bisectors.slack(t)[:, None]
    best = torch.zeros_like(other)
    if size <= spare:
        return best
    near = own.topk(size, dim=1, largest=False)
    rows, inverse = torch.unique(near.indices, return_inverse=True)
    width = max(1, BLOCK // max(1, len(rows) + size * len(t)))
    for first in range(0, len(land.others), width):
        part = slice(first, first + width)
        across = land.bisectors.between(land.own[rows], land.others[part])  # (u, w)
        ahead = (other[:, None, part] - near.values[:, :, None]).clamp_min_(0)  # (n, size, w)
        ahead /= (2 * across)[inverse]
        best[:, part] = ahead.amax(1) if spare == 0 else ahead.topk(spare + 1, dim=1).values[:, spare]
    return best


def smallest(land: Territory, t: Tensor, k: int, effort: Effort, known: Outcome | None = None) -> Outcome:
    """Bound, or find, the smallest perturbations of points (n, r) that are classified rightly.

    Parameters
    ----------
    land
        The class of the points.
    t
        Points in the coordinates of the references.
    k
        Neighbours that vote.
    effort
        Limits for K > 1.
    known
        Moves that are known to do; shorter ones are searched.
    """
    wrong, spare = majority(k)
    best = known or nothing(t)
    if len(land.others) < wrong or not len(t):
        return best._replace(lower=torch.full_like(best.lower, torch.inf))
    bounds = screen(land, t, spare=spare)
    singles = _singles(land, t, bounds, spare, wrong, best, effort)
    if wrong == 1:
        return best._replace(lower=singles.amin(1))
    return _sets(land, t, singles, wrong, spare, best, effort)


def _singles(
    land: Territory, t: Tensor, bounds: Tensor, spare: int, wrong: int, best: Outcome, effort: Effort
) -> Tensor:
    """Raise the bounds (n, q) of single rivals, lowest first, as far as they can matter."""
    bounds = bounds.clone()
    enough = best.upper.clone()
    done = torch.zeros_like(bounds, dtype=torch.bool)
    wave = wrong
    while True:
        listed = bounds.masked_fill(done, torch.inf).topk(min(wave, bounds.shape[1]), 1, largest=False)
        pairs = torch.nonzero((listed.values < enough[:, None]).T)  # by rank: the likely ones come first
        if not len(pairs):
            return torch.minimum(bounds, enough[:, None]) if wrong == 1 else bounds
        for part in torch.split(pairs, max(1, BLOCK // (64 * t.shape[1] + 8 * len(land.own)))):
            points, column = part[:, 1], listed.indices[part[:, 1], part[:, 0]]
            useful = bounds[points, column] < enough[points]
            points, column = points[useful], column[useful]
            outcome = branch(
                land, t[points], land.others[column][:, None], spare, enough[points],
                nodes=effort.nodes, deadline=effort.deadline,
            )  # fmt: skip
            bounds[points, column] = torch.maximum(bounds[points, column], outcome.lower)
            done[points, column] = True
            if wrong == 1:
                take(best, points, outcome)
                enough = best.upper.clone()
        wave = max(FIRST_RIVALS, wave * 2)


def _sets(
    land: Territory, t: Tensor, singles: Tensor, wrong: int, spare: int, best: Outcome, effort: Effort
) -> Outcome:
    """Sets of rivals, in the order of the bound of their worst member."""
    order = singles.sort(dim=1)
    lower = best.upper * (1 - SAME)  # of all sets that were opened
    width = order.values.shape[1]
    queues = [_combinations(width, wrong) for _ in range(len(t))]
    waiting = [next(queue) for queue in queues]
    spent = [0] * len(t)
    while True:
        points: list[int] = []
        sets: list[tuple[int, ...]] = []
        for i, queue in enumerate(queues):
            for _ in range(max(1, 256 // len(t))):
                chosen = waiting[i]
                if not chosen or spent[i] >= effort.sets or order.values[i, chosen[-1]] >= best.upper[i]:
                    break
                points.append(i)
                sets.append(chosen)
                spent[i] += 1
                waiting[i] = next(queue, ())
        if not points:
            break
        at = torch.tensor(points, device=t.device)
        rivals = land.others[order.indices[at[:, None], torch.tensor(sets, device=t.device)]]
        outcome = branch(
            land, t[at], rivals, spare, best.upper[at], nodes=effort.nodes, deadline=effort.deadline
        )
        take(best, at, outcome)
        bound = torch.maximum(outcome.lower, order.values[at, [s[-1] for s in sets]])
        lower.scatter_reduce_(0, at, bound, "amin")
    rest = [float(order.values[i, s[-1]]) if s else torch.inf for i, s in enumerate(waiting)]
    lower = torch.minimum(torch.minimum(lower, t.new_tensor(rest)), best.upper * (1 - SAME))
    return best._replace(lower=lower)


def _combinations(width: int, size: int) -> Iterator[tuple[int, ...]]:
    """Yield ascending sets of places, those with the lowest largest place first."""
    for last in range(size - 1, width):
        for rest in itertools.combinations(range(last), size - 1):
            yield (*rest, last)
