"""Where one run may go: a threat around its clean inputs, with what never changes computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..functional.projection import box
from ..threat import LinfThreat, RowBall
from ..types import Threat, rows_of


class Region(Protocol):
    """The allowed set around every row that still moves."""

    @property
    def threat(self) -> Threat:
        """The threat of these rows."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """Return the allowed points; ``x`` is overwritten or left alone, so it has to be the caller's own."""
        ...

    def step(self, x: Tensor, grad: Tensor, length: float) -> Tensor:
        """Return ``project(x + length * direction(grad))``; neither ``x`` nor ``grad`` is changed."""
        ...

    def rows(self, kept: Tensor) -> Region:
        """Return the region of some of the rows, given as numbers."""
        ...


@dataclass(frozen=True, eq=False)
class Around:
    """Any threat: its own projection, around inputs that are carried along."""

    threat: Threat
    x0: Tensor

    def project(self, x: Tensor) -> Tensor:
        """Return ``threat.project(x, x0)``."""
        return self.threat.project(x, self.x0)

    def step(self, x: Tensor, grad: Tensor, length: float) -> Tensor:
        """Take a step and project it."""
        return self.project(x + length * self.threat.direction(grad))

    def rows(self, kept: Tensor) -> Around:
        """Return the region of some of the rows."""
        return Around(rows_of(self.threat, kept), self.x0[kept])


@dataclass(frozen=True, eq=False)
class Interval:
    """Lowest and highest allowed values, both shaped like the inputs: projecting is one clamp in place.

    Clamping to the ball and then to the box is clamping to the two ends of the ball, both put into the box.
    Minimum, maximum and ``length`` times a sign do not round, so in float32 and float64 nothing differs from
    ``threat.project(x + length * threat.direction(grad), x0)``, to the bit.
    """

    threat: LinfThreat | RowBall
    low: Tensor
    high: Tensor

    def project(self, x: Tensor) -> Tensor:
        """Clamp ``x`` in place and return it."""
        return torch.clamp(x, self.low, self.high, out=x)

    def step(self, x: Tensor, grad: Tensor, length: float) -> Tensor:
        """Take a step along the signs of the gradient and clamp it."""
        if isinstance(self.threat, RowBall):  # whose steps are as long as the row's radius
            return self.project(x + length * self.threat.direction(grad))
        return self.project(torch.add(x, grad.sign(), alpha=length))

    def rows(self, kept: Tensor) -> Interval:
        """Return the region of some of the rows."""
        return Interval(rows_of(self.threat, kept), self.low[kept], self.high[kept])


def around(threat: Threat, x0: Tensor) -> Region:
    """Return the region of a threat around inputs (n, *s).

    The l-inf balls of the library are intervals; every other threat (a subclass may project in its own way)
    is asked for its projection at each step.
    """
    if type(threat) is LinfThreat:
        return _interval(threat, x0, threat.eps, threat.bounds)
    if type(threat) is RowBall and type(threat.threat) is LinfThreat:
        return _interval(threat, x0, threat.radius(x0), threat.threat.bounds)
    return Around(threat, x0)


def _interval(
    threat: LinfThreat | RowBall, x0: Tensor, radius: float | Tensor, bounds: tuple[float, float] | None
) -> Interval:
    return Interval(threat, box(x0 - radius, bounds), box(x0 + radius, bounds))
