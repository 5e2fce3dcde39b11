"""A radius that grows from nothing: how a defense looks while its adversary is still weak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from ..errors import InvalidArgument
from ..types import Progress

D = TypeVar("D")


def check_ramp(ramp: float) -> None:
    """Refuse what is no share of training."""
    if not 0 <= ramp <= 1:
        raise InvalidArgument("ramp", "a share of training in [0, 1]", ramp)


def ramped(ramp: float, progress: Progress) -> float:
    """Return the factor of the radius: from 0 to 1 over the first ``ramp`` of the steps, then 1."""
    return 1.0 if ramp == 0 else min(1.0, (progress.step + 1) / (max(progress.steps, 1) * ramp))


def weakened(defense: D, share: float) -> D:
    """Return a defense with its radius, and the step length of its searches, multiplied by ``share``."""
    parts: Any = defense
    if share == 1.0 or parts.threat is None:
        return defense
    changed: dict[str, Any] = {"threat": replace(parts.threat, eps=parts.threat.eps * share)}
    for name in ("search", "monitor"):
        search: Any = getattr(parts, name, None)
        if isinstance(getattr(search, "alpha", None), float):
            changed[name] = replace(search, alpha=search.alpha * share)
    weaker: D = replace(parts, **changed)
    return weaker
