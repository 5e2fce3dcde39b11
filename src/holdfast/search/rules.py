"""How a run of the search loop gets from one point to the next: steps of fixed or of adaptive length."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..schedules import Schedule, at
from ..threat import RowBall
from ..types import Threat
from .moving import by_row
from .region import Region


class Rule(Protocol):
    """The update rule of one run, made anew for each; all tensors belong to the groups that still move."""

    def see(self, x: Tensor, value: Tensor, grad: Tensor, step: int) -> None:
        """Take the newest point (r*k, *s), its values (k,) and its gradient."""
        ...

    def moving(self, slope: Tensor) -> Tensor:
        """Return which rows could still move if their gradient stayed as it is: (r*k,) bool.

        ``slope``, (r*k,) bool, says where a gradient is not zero.
        """
        ...

    def cut(self, rows: Tensor, groups: Tensor) -> None:
        """Keep some rows and groups, given as numbers."""
        ...

    def move(self, region: Region, step: int) -> Tensor:
        """Return the next point, a new tensor inside the region."""
        ...


class Fixed:
    """``x <- project(x + alpha * direction(gradient))``, with a number or a schedule for ``alpha``."""

    def __init__(self, alpha: float | Schedule, steps: int) -> None:
        self.alpha, self.steps = alpha, steps
        self.x = self.grad = torch.empty(0)

    def see(self, x: Tensor, value: Tensor, grad: Tensor, step: int) -> None:
        """Keep point and gradient."""
        self.x, self.grad = x, grad

    def moving(self, slope: Tensor) -> Tensor:
        """Return the rows with a gradient."""
        return slope

    def cut(self, rows: Tensor, groups: Tensor) -> None:
        """Keep some rows."""
        self.x, self.grad = self.x[rows], self.grad[rows]

    def move(self, region: Region, step: int) -> Tensor:
        """Take one step."""
        return region.step(self.x, self.grad, at(self.alpha, step / self.steps))


class Adaptive:
    """Momentum, and a step length that is halved, group by group, where progress has ended.

    At checkpoints a group goes back to its best point, with half the step and without momentum, if fewer than
    ``rho`` of its last steps rose, or if neither step nor best value changed since the last checkpoint.
    """

    def __init__(self, steps: int, rho: float, momentum: float) -> None:
        self.rho, self.momentum = rho, momentum
        self.checkpoints = checkpoints(steps)
        self.checked = 0
        self.looked_back = False
        empty = torch.empty(0)
        self.x = self.before = self.grad = self.best_x = self.best_grad = empty  # rows
        self.value = self.best = self.best_then = self.share = self.rises = empty  # groups
        self.fresh = self.halved = empty

    def see(self, x: Tensor, value: Tensor, grad: Tensor, step: int) -> None:
        """Count rises, keep the best; at a checkpoint halve steps and go back."""
        if step == 0:
            self.x = self.before = self.best_x = x
            self.grad = self.best_grad = grad
            self.value = self.best = self.best_then = value
            self.share, self.rises = torch.ones_like(value), torch.zeros_like(value)
            self.fresh = torch.ones_like(value, dtype=torch.bool)
            self.halved = torch.zeros_like(self.fresh)
            return
        self.before, self.x, self.grad = self.x, x, grad
        self.rises = self.rises + (value > self.value)
        better = value > self.best
        rows = by_row(better, x)
        self.best_x, self.best_grad = (
            torch.where(rows, x, self.best_x),
            torch.where(rows, grad, self.best_grad),
        )
        self.best = torch.where(better, value, self.best)
        self.value = value
        self.fresh = torch.zeros_like(better)
        self.looked_back = step in self.checkpoints
        if self.looked_back:
            self._check(step)

    def _check(self, step: int) -> None:
        few = self.rises < self.rho * (step - self.checked)
        stuck = ~self.halved & (self.best == self.best_then)
        again = few | stuck
        rows = by_row(again, self.x)
        self.share = torch.where(again, self.share / 2, self.share)
        self.before = torch.where(rows, self.best_x, self.before)
        self.x = torch.where(rows, self.best_x, self.x)
        self.grad = torch.where(rows, self.best_grad, self.grad)
        self.value = torch.where(again, self.best, self.value)
        self.fresh = self.halved = again
        self.best_then, self.rises, self.checked = self.best, torch.zeros_like(self.rises), step

    def moving(self, slope: Tensor) -> Tensor:
        """Return the rows with a gradient, with momentum, or away from their best point."""
        if not self.looked_back and bool(slope.all()):  # the common case, without a pass over the points
            return slope
        return _any((self.grad != 0) | (self.x != self.before) | (self.x != self.best_x))

    def cut(self, rows: Tensor, groups: Tensor) -> None:
        """Keep some rows and groups."""
        for name in ("x", "before", "grad", "best_x", "best_grad"):
            setattr(self, name, getattr(self, name)[rows])
        for name in ("value", "best", "best_then", "share", "rises", "fresh", "halved"):
            setattr(self, name, getattr(self, name)[groups])

    def move(self, region: Region, step: int) -> Tensor:
        """Take one step; the first one, and the first one after going back, is a plain step."""
        x, threat = self.x, region.threat
        length = 2 * unit_length(threat) * by_row(self.share, x).to(x.dtype)
        plain = region.project(x + length * threat.direction(self.grad))
        if step == 0:
            return plain
        keep = self.momentum
        mixed = region.project(x + keep * (plain - x) + (1 - keep) * (x - self.before))
        return torch.where(by_row(self.fresh, x), plain, mixed) if self.looked_back else mixed


def checkpoints(steps: int) -> frozenset[int]:
    """Return the steps at which an adaptive run looks back.

    They are ``ceil(p_j * steps)`` with ``p_0 = 0``, ``p_1 = 0.22`` and
    ``p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)``, up to 1 (Croce and Hein 2020, section 3.1); in
    hundredths here, so that nothing is rounded.

    Examples
    --------
    >>> sorted(checkpoints(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    before, now, found = 0, 22, []
    while now <= 100:
        found.append(-(-now * steps // 100))
        before, now = now, now + max(now - before - 3, 6)
    return frozenset(found)


def unit_length(threat: Threat) -> float:
    """Return how often ``threat.direction`` must be taken to come from the centre to the surface."""
    return 1.0 if isinstance(threat, RowBall) else float(threat.eps)


def _any(values: Tensor) -> Tensor:
    return values.reshape(len(values), math.prod(values.shape[1:])).any(1)
