"""Short perturbations that change the answer of a k-NN classifier: an attack guided by the same programmes.

The boundary attack of Wang et al. (NeurIPS 2020) walks at random and ends 1.5 times too far in the median.
Here every start names the rivals that shall take the majority; the programme gives the shortest move that
makes them nearer than all rightful neighbours; those whose half-spaces press hardest are spared, as many as
may stay; then the nearest rivals and neighbours at the point that was reached are taken, and so on. For
K = 1 and enough starts this is the exact answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .branch import Outcome
from .nearest import Radii, screen
from .programme import Solution, Territory, solve
from .references import References, majority

CHUNK = 1024
BEYOND = (1e-9, 1e-7, 1e-5, 1e-3)
"""How much further than the boundary, relatively, a move may go until the answer changes."""


def counterexamples(land: Territory, t: Tensor, k: int, starts: int = 8, rounds: int = 3) -> Radii:
    """Look for short moves after which another class has a strict majority of the k nearest.

    Parameters
    ----------
    land
        The class of the points.
    t
        (n, r) points in the coordinates of the references.
    k
        Neighbours that vote.
    starts
        Rivals to begin with, for each point.
    rounds
        Times that rivals and spared neighbours are chosen anew.

    Returns
    -------
    Radii
        Lengths and moves; infinite and 0 where no other class has enough references.
    """
    wrong, spare = majority(k)
    best = Radii(lower=t.new_zeros(len(t)), upper=t.new_full((len(t),), torch.inf), move=torch.zeros_like(t))
    labels = land.references.labels
    large = torch.bincount(labels)[labels[land.others]] >= wrong
    if not len(t) or not bool(large.any()):
        return best
    bounds = screen(land, t, spare=spare).masked_fill(~large, torch.inf)
    first = bounds.topk(min(starts, int(large.sum())), dim=1, largest=False).indices  # (n, h)
    points = torch.arange(len(t), device=t.device).repeat_interleave(first.shape[1])
    at, wanted = t[points], labels[land.others[first.flatten()]]
    rivals = _nearest_of(land.references, land.references.points[land.others[first.flatten()]], wanted, wrong)
    must = torch.ones(len(at), len(land.own), dtype=torch.bool, device=t.device)
    endless = at.new_full((len(at),), torch.inf)
    for turn in range(spare + rounds):
        solution = solve(land, at, rivals, cutoff=endless, must=must)
        length = torch.where(torch.isinf(solution.bound), torch.inf, solution.move.norm(dim=1))
        best.take(points, Outcome(solution.bound, length, solution.move))
        if turn < spare:
            must = _spare_one(solution, must)
            continue
        reached = at + solution.move
        rivals = _nearest_of(land.references, reached, wanted, wrong)
        if spare:
            own = land.references.distances(reached, land.own)
            near = own.topk(min(spare, own.shape[1]), dim=1, largest=False).indices
            must = torch.ones_like(must).scatter_(1, near, value=False)
    return best


def _nearest_of(references: References, y: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Return (n, count) rows of the references of the wanted classes that are nearest to y."""
    rows = []
    for part, labels in zip(y.split(CHUNK), wanted.split(CHUNK), strict=True):
        d = references.distances(part).masked_fill_(references.labels != labels[:, None], torch.inf)
        rows.append(d.topk(count, dim=1, largest=False).indices)
    return torch.cat(rows)


def _spare_one(solution: Solution, must: Tensor) -> Tensor:
    """Spare the neighbour whose half-spaces press hardest: the one with the largest multipliers."""
    guard, p = solution.working.guard, must.shape[1]
    counts = (guard >= 0) & (guard < p)
    press = must.new_zeros(must.shape, dtype=solution.move.dtype)
    press.scatter_add_(1, guard.clamp(0, p - 1), solution.working.dual * counts)
    heaviest = press.masked_fill(~must, -1.0).argmax(1)
    return must.scatter(1, heaviest[:, None], value=False)


def flips(references: References, t: Tensor, radii: Radii, answer: Tensor, k: int) -> Radii:
    """Lengthen moves a little until the classifier's answer changes; give up those that do not.

    Parameters
    ----------
    references
        The classifier.
    t
        (n, r) points in its coordinates.
    radii
        Moves to the boundary.
    answer
        (n,) answers that shall change.
    k
        Neighbours that vote.
    """
    upper, move = torch.full_like(radii.upper, torch.inf), torch.zeros_like(radii.move)
    waiting = torch.isfinite(radii.upper)
    for beyond in BEYOND:
        at = torch.nonzero(waiting).squeeze(1)
        if not len(at):
            break
        longer = radii.move[at] * (1 + beyond)
        if references.box is not None:
            low, high = (side - references.centre for side in references.box)
            longer = torch.clamp(t[at] + longer, low, high) - t[at]
        changed = references.answer(t[at] + longer, k) != answer[at]
        move[at[changed]] = longer[changed]
        upper[at[changed]] = longer[changed].norm(dim=1)
        waiting[at[changed]] = False
    return radii._replace(upper=upper, move=move)
