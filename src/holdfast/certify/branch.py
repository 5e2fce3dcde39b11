"""Programmes in which a few rightful neighbours may stay near: branch and bound over which ones.

With K neighbours, a wrong majority needs ``s = ceil(K/2)`` rivals among the nearest, and leaves room for
``m = K - s`` rightful neighbours beside them (:func:`holdfast.certify.references.majority`). For given rivals
the shortest such move is the smallest solution over all ways to spare m rightful neighbours. A relaxed
programme passes only some of them; where its solution leaves more than m unpassed, one of the m + 1 most
violated has to be passed too, which gives m + 1 smaller problems. The smallest open bound is always sound.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .programme import FEASIBLE, Solution, Working, inward, solve, violations
from .territory import Territory

ROWS = 512
"""Programmes that are solved together."""
SAME = 1e-9
"""Relative difference of bounds that counts as none; results are reduced by it."""


class Outcome(NamedTuple):
    """What was found for n points.

    Attributes
    ----------
    lower
        (n,) no move is shorter.
    upper, move
        (n,) lengths of the best moves, infinite where none was found, and (n, r) the moves to the boundary.
    inward
        (n, r) where to go from there to get beyond the boundary.
    """

    lower: Tensor
    upper: Tensor
    move: Tensor
    inward: Tensor

    @classmethod
    def of(cls, land: Territory, t: Tensor, solution: Solution) -> Outcome:
        """Turn solutions into outcomes."""
        reached = solution.solved & torch.isfinite(solution.bound)
        upper = torch.where(reached, solution.move.norm(dim=1), torch.inf)
        return cls(solution.bound, upper, solution.move, inward(land, t, solution.working))


@dataclass(order=True, slots=True)
class _Node:
    bound: float
    number: int
    must: tuple[int, ...] | None = field(compare=False)
    """Rightful neighbours to pass, numbered within the class; None for all that are not spared."""
    spared: tuple[int, ...] = field(compare=False)
    working: Working | None = field(compare=False)


def branch(
    land: Territory,
    t: Tensor,
    rivals: Tensor,
    spare: int,
    cutoff: Tensor,
    *,
    nodes: int = 10_000,
    deadline: float | None = None,
) -> Outcome:
    """Bound the shortest moves that bring all rivals nearer than all but ``spare`` rightful neighbours.

    Parameters
    ----------
    land
        The class whose points move.
    t
        (n, r) points in the coordinates of the references.
    rivals
        (n, s) rows of the references that come near.
    spare
        Rightful neighbours that may stay nearer, >= 0.
    cutoff
        (n,) lengths from which nobody asks any more.
    nodes
        Relaxed programmes for each point, at most.
    deadline
        Moment of ``time.monotonic()`` at which to stop, or None.
    """
    if spare == 0 or len(land.own) <= spare:
        return _without_branches(land, t, rivals, spare, cutoff)
    return _Search(land, t, rivals, spare, cutoff).run(nodes, deadline)


def _without_branches(land: Territory, t: Tensor, rivals: Tensor, spare: int, cutoff: Tensor) -> Outcome:
    if len(land.own) <= spare:  # all may stay: the rivals are there already
        zero = t.new_zeros(len(t))
        return Outcome(zero, zero, torch.zeros_like(t), torch.zeros_like(t))
    return Outcome.of(land, t, solve(land, t, rivals, cutoff=cutoff))


class _Search:
    """Best-first search, for many points side by side."""

    def __init__(self, land: Territory, t: Tensor, rivals: Tensor, spare: int, cutoff: Tensor) -> None:
        self.land, self.t, self.rivals, self.spare = land, t, rivals, spare
        self.cutoff = cutoff.tolist()
        self.upper = [float("inf")] * len(t)
        self.settled = [float("inf")] * len(t)  # least bound of the solutions that count
        self.move, self.inward = torch.zeros_like(t), torch.zeros_like(t)
        self.counter = itertools.count()
        self.heaps = [[_Node(0.0, next(self.counter), (), (), None)] for _ in range(len(t))]
        self.spent = [0] * len(t)
        self.tolerance = FEASIBLE * 4 * float(land.references.squares.max() + t.square().sum(1).max())

    def run(self, nodes: int, deadline: float | None) -> Outcome:
        while deadline is None or time.monotonic() < deadline:
            batch = self._pick(nodes)
            if not batch:
                break
            self._expand(batch)
        lower = [
            min(heap[0].bound if heap else torch.inf, self.settled[i], self.cutoff[i]) * (1 - SAME)
            for i, heap in enumerate(self.heaps)
        ]
        return Outcome(self.t.new_tensor(lower), self.t.new_tensor(self.upper), self.move, self.inward)

    def _enough(self, point: int) -> float:
        return float(min(self.upper[point], self.cutoff[point]))

    def _pick(self, nodes: int) -> list[tuple[int, _Node]]:
        """Take the best open nodes of all points that are not finished, about ``ROWS`` together."""
        open_points = []
        for i, heap in enumerate(self.heaps):
            if heap and heap[0].bound >= self._enough(i) * (1 - SAME):
                heap.clear()
            if heap and self.spent[i] < nodes:
                open_points.append(i)
        each = max(1, min(16, ROWS // max(1, len(open_points))))
        batch = []
        for i in open_points[:ROWS]:
            heap = self.heaps[i]
            for _ in range(min(each, len(heap))):
                if heap[0].bound >= self._enough(i) * (1 - SAME):
                    break
                batch.append((i, heapq.heappop(heap)))
                self.spent[i] += 1
        return batch

    def _expand(self, batch: Sequence[tuple[int, _Node]]) -> None:
        points = torch.tensor([i for i, _ in batch], device=self.t.device)
        must = self._mask([node for _, node in batch])
        cutoff = self.t.new_tensor([self._enough(i) for i, _ in batch])
        t, rivals = self.t[points], self.rivals[points]
        start = self._start([node for _, node in batch])
        solution = solve(self.land, t, rivals, cutoff=cutoff, must=must, start=start)
        values, worst = self._unpassed(batch, t + solution.move, rivals, must)
        bounds, solved = solution.bound.tolist(), solution.solved.tolist()
        excess, guards = values.tolist(), worst.tolist()
        for row, (i, node) in enumerate(batch):
            bound = max(bounds[row], node.bound)
            if not solved[row] or bound >= self._enough(i) * (1 - SAME):
                continue
            left = [g for g, e in zip(guards[row], excess[row], strict=True) if e > 0]
            if len(left) <= self.spare - len(node.spared):
                self.settled[i] = min(self.settled[i], bound)
                length = float(solution.move[row].norm())
                if length < self.upper[i]:
                    self.upper[i], self.move[i] = length, solution.move[row]
                    at = torch.tensor([row], device=t.device)
                    self.inward[i] = inward(self.land, t[at], solution.working.rows(at))[0]
            else:
                self._branch(i, node, bound, left, solution, row)

    def _branch(
        self, point: int, node: _Node, bound: float, left: list[int], solution: Solution, row: int
    ) -> None:
        """Add a node for each of the first unpassed neighbours: it is passed, those before it are spared."""
        room = self.spare - len(node.spared)
        working = solution.working.rows(torch.tensor([row], device=self.t.device))
        must = node.must or ()
        for k, guard in enumerate(left[: room + 1]):
            spared = (*node.spared, *left[:k])
            passed = None if len(spared) == self.spare else (*must, guard)
            heapq.heappush(self.heaps[point], _Node(bound, next(self.counter), passed, spared, working))

    def _mask(self, nodes: Sequence[_Node]) -> Tensor:
        p = len(self.land.own)
        rows: list[int] = []
        columns: list[int] = []
        for row, node in enumerate(nodes):
            listed = node.spared if node.must is None else node.must
            rows.extend([row] * len(listed))
            columns.extend(listed)
        must = torch.zeros(len(nodes), p, dtype=torch.bool, device=self.t.device)
        must[rows, columns] = True
        closed = torch.tensor([node.must is None for node in nodes], device=self.t.device)
        return must ^ closed[:, None]

    def _start(self, nodes: Sequence[_Node]) -> Working:
        states = [node.working or Working.empty(1, self.t) for node in nodes]
        wide = max(s.guard.shape[1] for s in states)

        def stack(name: str, value: float) -> Tensor:
            pad = torch.nn.functional.pad
            return torch.cat(
                [pad(v, (0, wide - v.shape[1]), value=value) for v in (getattr(s, name) for s in states)]
            )

        return Working(guard=stack("guard", -1), rival=stack("rival", -1), dual=stack("dual", 0.0))

    def _unpassed(
        self, batch: Sequence[tuple[int, _Node]], y: Tensor, rivals: Tensor, must: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return, largest first, how far the half-spaces of unpassed neighbours are, and which they are."""
        excess, farthest = violations(self.land, y, rivals)
        free = ~must
        for row, (_, node) in enumerate(batch):
            free[row, list(node.spared)] = False
        free &= excess > self.tolerance
        rows, inverse = torch.unique(farthest, return_inverse=True)
        length = self.land.bisectors.between(rows, self.land.own)[inverse]
        away = torch.where(free, excess / (2 * length), 0.0)
        return away.topk(min(self.spare + 1, away.shape[1]), dim=1)
