"""Short perturbations that change the answer of a k-NN classifier: an attack guided by the same programmes.

The boundary attack of Wang et al. (NeurIPS 2020) walks at random and ends 1.5 times too far in the median.
Here every start names the rivals that shall take the majority; the programme gives the shortest move that
makes them nearer than all rightful neighbours but those that are spared. At the point that was reached, the
nearest rivals are taken, and the neighbour whose half-spaces press hardest is spared; and so on. For K = 1
the exact search itself is the attack.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .branch import Outcome
from .nearest import Effort, nothing, screen, smallest, take
from .programme import Solution, solve
from .references import References
from .territory import Territory

CHUNK = 1024
BEYOND = (1e-9, 1e-7, 1e-5, 1e-3)
"""How far beyond the boundary, relative to its length, a move may go until the answer changes."""


def counterexamples(land: Territory, t: Tensor, k: int, starts: int = 8, rounds: int = 3) -> Outcome:
    """Look for short moves after which another class wins the vote of the k nearest.

    It wins with a strict majority, or with half of an even number of votes if its label is the lower one.

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
    Outcome
        Lengths and moves; infinite and 0 where no other class has enough references.
    """
    if k == 1:
        return smallest(land, t, 1, Effort())
    best = nothing(t)
    if not len(land.own) or not len(t):
        return best
    labels = land.references.labels
    classes = labels[land.others]
    enough = torch.bincount(labels)[classes]
    wrong = k // 2 + 1
    _search(land, t, enough >= wrong, wrong, k - wrong, starts, rounds, best)
    if k % 2 == 0:
        wins_ties = classes < labels[land.own[0]]
        _search(land, t, wins_ties & (enough >= k // 2), k // 2, k // 2, starts, rounds, best)
    return best


def _search(
    land: Territory,
    t: Tensor,
    allowed: Tensor,
    wrong: int,
    spare: int,
    starts: int,
    rounds: int,
    best: Outcome,
) -> None:
    """Bring ``wrong`` references of one of the allowed classes near, all but ``spare`` of the own far."""
    if not bool(allowed.any()):
        return
    bounds = screen(land, t, spare=spare).masked_fill(~allowed, torch.inf)
    rows, seeds, must = _starts(land, bounds, wrong, spare, starts)
    at, wanted = t[rows], land.references.labels[seeds]
    rivals, _ = _nearest_of(land.references, land.references.points[seeds], wanted, wrong)
    third = len(at) // 3
    rivals[:third] = _likeliest(land, bounds[rows[:third]], seeds[:third], wrong)
    endless = at.new_full((len(at),), torch.inf)
    for _ in range(spare + rounds):
        solution = solve(land, at, rivals, cutoff=endless, must=must)
        take(best, rows, Outcome.of(land, at, solution))
        reached = at + solution.move
        if wrong > 1:
            rivals, _ = _nearest_of(land.references, reached, wanted, wrong)
        if spare:
            must = _respare(land, solution, reached, must, spare)


def _starts(
    land: Territory, bounds: Tensor, wrong: int, spare: int, starts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of points (b,), references to begin at (b,) and which neighbours must be passed (b, p).

    A third of the starts are the rivals with the lowest bounds, and a third the same with their nearest
    mates, nobody spared. The others stand where their class wins already: the neighbours that are nearest
    there are spared.
    """
    r = land.references
    wide = min(4 * starts, bounds.shape[1])
    listed = bounds.topk(wide, dim=1, largest=False)
    places = torch.where(torch.isinf(listed.values), listed.indices[:, :1], listed.indices)
    seeds, inverse = torch.unique(land.others[places], return_inverse=True)
    own = r.distances(r.points[seeds], land.own)
    near = own.topk(min(spare + 1, own.shape[1]), dim=1, largest=False)
    _, reach = _nearest_of(r, r.points[seeds], r.labels[seeds], wrong)
    wins = (reach < near.values[:, -1]) | (own.shape[1] <= spare)
    preferred = (~wins[inverse]).double() * 1e9 + torch.arange(wide, device=bounds.device)
    first = inverse[:, : min(starts, wide)]
    second = inverse.gather(1, preferred.topk(min(starts, wide), dim=1, largest=False).indices)
    points = torch.arange(len(bounds), device=bounds.device).repeat_interleave(first.shape[1])
    must = torch.ones(3 * len(points), own.shape[1], dtype=torch.bool, device=bounds.device)
    if spare:
        must[2 * len(points) :].scatter_(1, near.indices[second.flatten(), :spare], value=False)
    chosen = torch.cat((first.flatten(), first.flatten(), second.flatten()))
    return points.repeat(3), seeds[chosen], must


def _likeliest(land: Territory, bounds: Tensor, seeds: Tensor, count: int) -> Tensor:
    """Return (n, count) rows: seeds, and the references of their classes with the lowest bounds (n, q)."""
    labels = land.references.labels
    same = labels[land.others] == labels[seeds][:, None]
    order = torch.where(same, bounds, torch.inf).masked_fill(land.others == seeds[:, None], -1.0)
    return land.others[order.topk(count, dim=1, largest=False).indices]


def _nearest_of(references: References, y: Tensor, wanted: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (n, count) rows of references of wanted classes nearest to y, and (n,) how far the last is."""
    rows, reach = [], []
    for part, labels in zip(torch.split(y, CHUNK), torch.split(wanted, CHUNK), strict=True):
        d = references.distances(part).masked_fill_(references.labels != labels[:, None], torch.inf)
        near = d.topk(count, dim=1, largest=False)
        rows.append(near.indices)
        reach.append(near.values.amax(1))
    return torch.cat(rows), torch.cat(reach)


def _respare(land: Territory, solution: Solution, reached: Tensor, must: Tensor, spare: int) -> Tensor:
    """Spare the neighbour whose half-spaces press hardest, and no longer the one that is farthest away."""
    guard, p = solution.working.guard, must.shape[1]
    counts = (guard >= 0) & (guard < p)
    press = torch.zeros(must.shape, dtype=reached.dtype, device=must.device)
    press.scatter_add_(1, guard.clamp(0, p - 1), solution.working.dual * counts)
    heaviest = press.masked_fill(~must, -1.0).argmax(1, keepdim=True)
    away = land.references.distances(reached, land.own).masked_fill(must, -1.0).argmax(1, keepdim=True)
    full = (~must).sum(1, keepdim=True) >= spare
    freed = must.scatter(1, away, must.gather(1, away) | full)
    return freed.scatter(1, heaviest, value=False)


def flips(references: References, t: Tensor, found: Outcome, answer: Tensor, k: int) -> Outcome:
    """Go beyond the boundary, a little, until the classifier's answer changes; give up moves that do not.

    Parameters
    ----------
    references
        The classifier.
    t
        (n, r) points in its coordinates.
    found
        Moves to the boundary.
    answer
        (n,) answers that shall change.
    k
        Neighbours that vote.
    """
    upper, move = torch.full_like(found.upper, torch.inf), torch.zeros_like(found.move)
    waiting = torch.isfinite(found.upper)
    for beyond in BEYOND:
        at = torch.nonzero(waiting).squeeze(1)
        if not len(at):
            break
        longer = found.move[at] + beyond * found.upper[at, None] * found.inward[at]
        if references.box is not None:
            low, high = (side - references.centre for side in references.box)
            longer = torch.clamp(t[at] + longer, low, high) - t[at]
        changed = references.answer(t[at] + longer, k) != answer[at]
        move[at[changed]] = longer[changed]
        upper[at[changed]] = longer[changed].norm(dim=1)
        waiting[at[changed]] = False
    return found._replace(upper=upper, move=move)
