"""Adversaries and searches that change with the step of training: taking turns, and ramps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import InvalidArgument
from ..schedules import Schedule
from ..types import Adversary, Progress


@dataclass(frozen=True, kw_only=True)
class Alternate:
    """One adversary after the other, by the number of the step; nothing else decides whose turn it is.

    Attributes
    ----------
    parts
        The adversaries; step 0 takes the first.

    Examples
    --------
    >>> from holdfast.adversaries import MinMax
    >>> tride = Alternate(parts=(MinMax(moves="pn"), MinMax(moves="a")))
    >>> [tride.at(Progress(step=s)).moves for s in range(3)]
    ['pn', 'a', 'pn']
    """

    parts: tuple[Adversary[Any], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InvalidArgument("parts", "at least one adversary", self.parts)

    def at(self, progress: Progress) -> Adversary[Any]:
        """Return the adversary of a step."""
        return self.parts[progress.step % len(self.parts)]


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A part with a number that changes over training: the step length of a search, the radius of a threat.

    Attributes
    ----------
    part
        A search or a threat.
    field
        The number's name: ``alpha``, ``eps``.
    schedule
        Factor over the fraction of the way.
    by
        ``"epoch"``: the fraction is epoch / epochs, constant within an epoch (the published ramp of CA-TRIDE,
        whose first epoch is unperturbed). ``"step"``: step / steps.
    """

    part: Any
    field: str
    schedule: Schedule
    by: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        if not isinstance(getattr(self.part, self.field, None), int | float):
            raise InvalidArgument("field", f"a number of {type(self.part).__name__}", self.field)
        if self.by not in ("epoch", "step"):
            raise InvalidArgument("by", "'epoch' or 'step'", self.by)

    def at(self, progress: Progress) -> Any:
        """Return the part as it is at a moment."""
        way = progress.epoch / max(progress.epochs, 1) if self.by == "epoch" else progress.fraction
        return replace(self.part, **{self.field: getattr(self.part, self.field) * self.schedule(way)})


def at_moment(part: Any, progress: Progress) -> Any:
    """Return a part as it is at a moment: parts with a method ``at`` change, all others stay."""
    at = getattr(part, "at", None)
    return part if at is None else at_moment(at(progress), progress)
