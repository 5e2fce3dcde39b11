"""Numbers that change with progress: pure functions of a fraction in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from .errors import InvalidArgument


class Schedule(Protocol):
    """A number for every fraction of the way, 0 at the start and 1 at the end."""

    def __call__(self, fraction: float) -> float:
        """[0, 1] -> number."""
        ...


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Always ``value``."""

    value: float

    def __call__(self, fraction: float) -> float:
        """Return the value."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear:
    """From ``start`` to ``stop`` on a straight line.

    Examples
    --------
    >>> Linear(start=0.0, stop=1.0)(0.25)
    0.25
    """

    start: float
    stop: float

    def __call__(self, fraction: float) -> float:
        """Return the value at a fraction of the way."""
        return self.start + (self.stop - self.start) * fraction


@dataclass(frozen=True, kw_only=True)
class HalfCosine:
    """From ``start`` to ``stop`` on half a cosine wave, flat at both ends."""

    start: float
    stop: float

    def __call__(self, fraction: float) -> float:
        """Return the value at a fraction of the way."""
        return self.stop + (self.start - self.stop) * (1 + math.cos(math.pi * fraction)) / 2


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """Each of ``values`` for an equal share of the way.

    Examples
    --------
    >>> [Cycle(values=(1.0, 2.0))(f) for f in (0.0, 0.49, 0.5, 1.0)]
    [1.0, 1.0, 2.0, 2.0]
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise InvalidArgument("values", "at least one number", self.values)

    def __call__(self, fraction: float) -> float:
        """Return the value at a fraction of the way."""
        return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]


def at(value: float | Schedule, fraction: float) -> float:
    """Return a number, or a schedule's number at ``fraction``."""
    return value(fraction) if callable(value) else value
