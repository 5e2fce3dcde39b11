"""Many least-distance programmes at once, by a dual active-set method that never overstates a radius.

A programme asks for the shortest move ``delta`` of a point z after which every rival (a reference of another
class) is at most as far as every rightful neighbour that it must pass::

    min |delta|   such that   a_ij . delta <= b_ij       a_ij = 2 M (x_i - x_j)
                                                         b_ij = d(z, x_i) - d(z, x_j)

Wang et al. (NeurIPS 2020) solve the dual by greedy coordinate descent over all rightful neighbours and
report the length of wherever it stops. Here the method of Goldfarb and Idnani (Math. Programming 27, 1983)
adds the most violated half-space at a time: few are ever active, the dual value only rises, and at every
moment it bounds the solution from below. So a programme can be left as soon as its value passes a cut-off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .territory import Territory

FIRST_SLOTS = 8
FEASIBLE = 1e-12
"""Violations of squared distances that count as rounding, relative to the largest squared length."""
DEPENDENT = 1e-11
"""A normal is a combination of the active ones if this share of its squared length is left outside."""
ROUNDING = 1e-11
"""By how much radii are reduced, relatively, to stay below the true value in float64."""


@dataclass(kw_only=True, eq=False)
class Working:
    """Active half-spaces and their multipliers, one row for each programme; a state to start from again.

    Attributes
    ----------
    guard, rival
        (n, w) which half-space sits in a slot: number of the rightful neighbour within the class (from p on:
        walls of the box) and row of the rival; -1 in empty slots.
    dual
        (n, w) multipliers >= 0.
    """

    guard: Tensor
    rival: Tensor
    dual: Tensor

    @classmethod
    def empty(cls, n: int, like: Tensor) -> Working:
        """Return n rows without any half-space."""
        none = torch.full((n, FIRST_SLOTS), -1, dtype=torch.int64, device=like.device)
        return cls(guard=none, rival=none.clone(), dual=like.new_zeros(n, FIRST_SLOTS))

    def rows(self, which: Tensor) -> Working:
        """Return some of the rows."""
        return Working(guard=self.guard[which], rival=self.rival[which], dual=self.dual[which])


@dataclass(kw_only=True, eq=False)
class Solution:
    """What a batch of programmes came to.

    Attributes
    ----------
    bound
        (n,) no solution is shorter; infinite, or very large, where there is none.
    move
        (n, r) the moves in coordinates; feasible up to rounding where ``solved``.
    solved
        (n,) bool; the others were left at the cut-off.
    working
        Where they stopped.
    """

    bound: Tensor
    move: Tensor
    solved: Tensor
    working: Working


def normals(land: Territory, t: Tensor, guard: Tensor, rival: Tensor) -> tuple[Tensor, Tensor]:
    """Return normals (..., r) and offsets (...) of half-spaces around points t (..., r); 0 for guard -1."""
    r = land.references
    p, width = len(land.own), r.points.shape[1]
    neighbour = land.own[guard.clamp(0, p - 1)]
    other = rival.clamp_min(0)
    a = 2 * (r.images[neighbour] - r.images[other])
    b = (a * ((r.points[neighbour] + r.points[other]) / 2 - t)).sum(-1)
    walls = land.walls(t)
    if walls is not None:
        wall = (guard - p).clamp_min(0)
        up = wall < width
        unit = torch.nn.functional.one_hot(wall % width, width).to(a) * torch.where(up, 1.0, -1.0)[..., None]
        room = torch.cat(walls, -1).gather(-1, wall[..., None]).squeeze(-1)
        a = torch.where((guard >= p)[..., None], unit, a)
        b = torch.where(guard >= p, room, b)
    used = guard >= 0
    return a * used[..., None], torch.where(used, b, torch.zeros_like(b))


def inward(land: Territory, t: Tensor, working: Working) -> Tensor:
    """Return (n, r) directions that leave every active half-space's boundary at unit speed, to its inside."""
    a, _ = normals(land, t[:, None, :].expand(-1, working.guard.shape[1], -1), working.guard, working.rival)
    gram = a @ a.transpose(1, 2)
    gram.diagonal(dim1=1, dim2=2).masked_fill_(working.guard < 0, 1.0)
    weight, _ = torch.linalg.solve_ex(gram, a.norm(dim=2))
    out: Tensor = -(weight[:, None, :] @ a).squeeze(1)
    return out


def violations(land: Territory, y: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor]:
    """Return by how much (squared distance) rightful neighbours stay nearer than the farthest rival.

    Parameters
    ----------
    land
        The class.
    y
        (n, r) moved points.
    rivals
        (n, s) rows of rivals, -1 where there are fewer.

    Returns
    -------
    tuple
        (n, p) violations ``max_j d(y, x_j) - d(y, x_i)``, and (n,) rows of the farthest rivals.
    """
    r = land.references
    other = rivals.clamp_min(0)
    away = r.squares[other] - 2 * torch.einsum("nsr,nr->ns", r.images[other], y)
    farthest = away.masked_fill(rivals < 0, -torch.inf).max(1)
    near = torch.addmm(r.squares[land.own][None, :], y, r.images[land.own].T, beta=-1.0, alpha=2.0)
    return near.add_(farthest.values[:, None]), rivals.gather(1, farthest.indices[:, None]).squeeze(1)


def solve(
    land: Territory,
    t: Tensor,
    rivals: Tensor,
    *,
    cutoff: Tensor,
    must: Tensor | None = None,
    start: Working | None = None,
    max_steps: int = 100_000,
) -> Solution:
    """Solve a batch of programmes.

    Parameters
    ----------
    land
        The class whose points are attacked.
    t
        (n, r) points in the coordinates of the references.
    rivals
        (n, s) rows of the references that have to come near, -1 where there are fewer.
    cutoff
        (n,) lengths; a programme is left once its bound reaches this.
    must
        (n, p) bool: rightful neighbours that the rivals must pass; None for all.
    start
        Half-spaces and multipliers to go on from: those of a programme with fewer constraints.
    max_steps
        Steps after which programmes are left unsolved, with the bound they have.
    """
    n = len(t)
    out = Solution(
        bound=t.new_zeros(n),
        move=torch.zeros_like(t),
        solved=torch.zeros(n, dtype=torch.bool, device=t.device),
        working=Working.empty(n, t),
    )
    if n:
        _Batch(land, t, rivals, cutoff, must, start or Working.empty(n, t), out).run(max_steps)
    walls = land.walls(t)
    if walls is not None:  # no move inside the box is longer than to its farthest corner
        out.bound[out.bound > torch.maximum(*walls).norm(dim=1) * (1 + ROUNDING)] = torch.inf
    return out


class _Batch:
    """The programmes that still run; finished rows are written to ``out`` and dropped now and then."""

    def __init__(
        self,
        land: Territory,
        t: Tensor,
        rivals: Tensor,
        cutoff: Tensor,
        must: Tensor | None,
        start: Working,
        out: Solution,
    ) -> None:
        self.land, self.out = land, out
        self.t, self.rivals, self.must = t, rivals, must
        self.enough = 0.5 * cutoff.square()
        self.rows = torch.arange(len(t), device=t.device)
        self.guard, self.rival, self.dual = start.guard.clone(), start.rival.clone(), start.dual.clone()
        self.a, self.b = normals(
            land, t[:, None, :].expand(-1, self.guard.shape[1], -1), self.guard, self.rival
        )
        self.gram = self.a @ self.a.transpose(1, 2)
        self._reset_idle()
        self.move = -(self.dual[:, None, :] @ self.a).squeeze(1)
        scale = land.references.squares.max() + land.references.distances(t, land.own[:1]).max()
        self.tolerance = FEASIBLE * float(scale)
        self.blur, self.blur_normal = land.bisectors.slack(t), land.bisectors.blur * land.bisectors.reach
        n = len(t)
        self.running = torch.ones(n, dtype=torch.bool, device=t.device)
        self.pending = torch.zeros(n, dtype=torch.bool, device=t.device)
        self.next_guard = torch.full((n,), -1, dtype=torch.int64, device=t.device)
        self.next_rival = self.next_guard.clone()
        self.next_a, self.next_b, self.next_dual = torch.zeros_like(t), t.new_zeros(n), t.new_zeros(n)

    _PER_ROW = (
        "rows", "t", "rivals", "must", "enough", "blur", "guard", "rival", "dual", "a", "b", "gram", "move",
        "running", "pending", "next_guard", "next_rival", "next_a", "next_b", "next_dual",
    )  # fmt: skip

    def run(self, max_steps: int) -> None:
        for _ in range(max_steps):
            self._look()
            if not bool(self.running.any()):
                break
            if float(self.running.double().mean()) < 0.75:
                self._keep(self.running)
            self._step()
        else:
            self._finish(self.running.clone(), solved=False)
        self._keep(self.running)

    def _keep(self, which: Tensor) -> None:
        for name in self._PER_ROW:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value[which])

    def _reset_idle(self) -> None:
        """Give empty slots a unit diagonal, so that the Gram matrix of the others can be solved with."""
        idle = self.guard < 0
        self.gram.masked_fill_(idle[:, :, None] | idle[:, None, :], 0.0)
        self.gram.diagonal(dim1=1, dim2=2).masked_fill_(idle, 1.0)

    def _values(self) -> Tensor:
        """Dual values: half the square of a length that no solution is below."""
        pull = (self.b * self.dual).sum(1) + self.next_b * self.next_dual
        return -0.5 * self.move.square().sum(1) - pull

    def _finish(self, which: Tensor, solved: bool) -> None:
        """Write out some rows, with moves and bounds computed afresh from the multipliers."""
        if not bool(which.any()):
            return
        at, out = self.rows[which], self.out
        move = -(self.dual[which][:, None, :] @ self.a[which]).squeeze(1)
        move -= self.next_dual[which][:, None] * self.next_a[which]
        pulls = torch.cat((self.b * self.dual, (self.next_b * self.next_dual)[:, None]), 1)[which]
        value = -0.5 * move.square().sum(1) - pulls.sum(1)
        slack = ROUNDING * (move.square().sum(1) + pulls.abs().sum(1))
        weight = self.dual[which].sum(1) + self.next_dual[which]  # what errors of normals and offsets add
        slack += weight * (self.blur[which] + move.norm(dim=1) * 2 * self.blur_normal)
        bound = (2 * (value - slack)).clamp_min(0).sqrt()
        out.bound[at] = torch.maximum(out.bound[at], bound)
        out.move[at] = move
        out.solved[at] = solved
        wide = self.guard.shape[1] - out.working.guard.shape[1]
        if wide > 0:
            w = out.working
            w.guard, w.rival = (torch.nn.functional.pad(v, (0, wide), value=-1) for v in (w.guard, w.rival))
            w.dual = torch.nn.functional.pad(w.dual, (0, wide))
        for name in ("guard", "rival", "dual"):
            getattr(out.working, name)[at, : self.guard.shape[1]] = getattr(self, name)[which]
        self.running &= ~which

    def _look(self) -> None:
        """Leave rows past their cut-off; find the most violated half-space of rows that have none pending."""
        self._finish(self.running & (self._values() >= self.enough), solved=False)
        ask = torch.nonzero(self.running & ~self.pending).squeeze(1)
        if not len(ask):
            return
        y = self.t[ask] + self.move[ask]
        excess, farthest = violations(self.land, y, self.rivals[ask])
        if self.must is not None:
            excess = excess.masked_fill(~self.must[ask], -torch.inf)
        walls = self.land.walls(y)
        if walls is not None:
            excess = torch.cat((excess, -walls[0], -walls[1]), 1)
        worst = excess.max(1)
        done = worst.values <= self.tolerance
        finished = torch.zeros_like(self.running)
        finished[ask[done]] = True
        self._finish(finished, solved=True)
        ask, guard, rival = ask[~done], worst.indices[~done], farthest[~done]
        self.next_guard[ask], self.next_rival[ask] = guard, rival
        self.next_a[ask], self.next_b[ask] = normals(self.land, self.t[ask], guard, rival)
        self.next_dual[ask] = 0.0
        self.pending[ask] = True

    def _step(self) -> None:
        """One step of the dual method: as far as the pending half-space asks, or a multiplier allows."""
        size = self.next_a.square().sum(1)
        along = (self.a @ self.next_a[:, :, None]).squeeze(2)  # 0 in empty slots
        share, _ = torch.linalg.solve_ex(self.gram, along)
        rest = self.next_a - (share[:, None, :] @ self.a).squeeze(1)
        left = rest.square().sum(1)
        excess = (self.next_a * self.move).sum(1) - self.next_b
        full = torch.where(left > DEPENDENT * size, excess / left, torch.inf)
        ratio = torch.where((self.guard >= 0) & (share > 0), self.dual / share, torch.inf)
        blocked = ratio.min(1)
        step = torch.minimum(full, blocked.values)
        stuck = self.running & torch.isinf(step)
        if bool(stuck.any()):
            self._give_up(stuck, share, excess / left.clamp_min(torch.finfo(left.dtype).tiny))
        step = torch.where(self.running, step.nan_to_num(posinf=0.0), torch.zeros_like(step))
        short = torch.where(left > DEPENDENT * size, step, torch.zeros_like(step))
        self.move -= short[:, None] * rest
        self.dual = (self.dual - step[:, None] * share).clamp_min_(0).masked_fill_(self.guard < 0, 0.0)
        self.next_dual += step
        added = self.running & (full <= blocked.values)
        self._drop(self.running & ~added, blocked.indices)
        self._add(added, along, size)

    def _give_up(self, which: Tensor, share: Tensor, full: Tensor) -> None:
        """Leave rows whose half-spaces have nothing in common, up to rounding.

        The dual value then grows without limit along a direction; as far as rounding lets it be proved.
        """
        self._finish(which, solved=False)
        far = torch.where(which, full.clamp_max(1 / FEASIBLE), torch.zeros_like(full))
        self.dual = (self.dual - far[:, None] * share).clamp_min_(0).masked_fill_(self.guard < 0, 0.0)
        self.next_dual += far
        self.running |= which
        self._finish(which, solved=False)

    def _drop(self, which: Tensor, slot: Tensor) -> None:
        at = torch.nonzero(which).squeeze(1)
        if not len(at):
            return
        s = slot[at]
        self.guard[at, s] = -1
        self.rival[at, s] = -1
        self.dual[at, s] = 0.0
        self.a[at, s] = 0.0
        self.b[at, s] = 0.0
        self.gram[at, s, :] = 0.0
        self.gram[at, :, s] = 0.0
        self.gram[at, s, s] = 1.0

    def _add(self, which: Tensor, along: Tensor, size: Tensor) -> None:
        at = torch.nonzero(which).squeeze(1)
        if not len(at):
            return
        if bool((self.guard[at] >= 0).all(1).any()):
            self._widen()
            along = torch.nn.functional.pad(along, (0, self.guard.shape[1] - along.shape[1]))
        s = (self.guard[at] < 0).int().argmax(1)
        self.guard[at, s], self.rival[at, s] = self.next_guard[at], self.next_rival[at]
        self.dual[at, s] = self.next_dual[at]
        self.a[at, s], self.b[at, s] = self.next_a[at], self.next_b[at]
        self.gram[at, s, :] = along[at]
        self.gram[at, :, s] = along[at]
        self.gram[at, s, s] = size[at]
        self.next_dual[at] = 0.0
        self.pending[at] = False

    def _widen(self) -> None:
        more = self.guard.shape[1]
        pad = torch.nn.functional.pad
        self.guard, self.rival = (pad(v, (0, more), value=-1) for v in (self.guard, self.rival))
        self.dual, self.b = pad(self.dual, (0, more)), pad(self.b, (0, more))
        self.a = pad(self.a, (0, 0, 0, more))
        self.gram = pad(self.gram, (0, more, 0, more))
        self._reset_idle()
