"""Watch for collapse during training and step back before the model is lost."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from .checkpoint import copy_state, restore_state


@dataclass(frozen=True, kw_only=True)
class CollapseGuard:
    """Back off when embeddings collapse: weaken the adversary, and go back to the last healthy weights.

    The radius of the adversary is multiplied by ``ease``, which starts at 1. A collapse multiplies it by
    ``factor`` and restores the weights of the last healthy check, if there was one; every healthy check
    multiplies it by ``regain``, up to 1.

    Attributes
    ----------
    max_cosine
        Collapsed when the mean cosine between different images is above this.
    min_rank
        Collapsed when the effective rank of the embeddings is below this.
    every
        Steps between checks.
    grace
        Steps before the first check that may act: random weights look collapsed too.
    factor, regain
        How fast the radius falls and comes back.
    """

    max_cosine: float = 0.97
    min_rank: float = 2.0
    every: int = 8
    grace: int = 32
    factor: float = 0.5
    regain: float = 1.1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InvalidArgument("every", "an integer >= 1", self.every)
        if not 0 < self.factor < 1 <= self.regain:
            raise InvalidArgument("factor, regain", "0 < factor < 1 <= regain", (self.factor, self.regain))

    def collapsed(self, measures: Mapping[str, float]) -> bool:
        """Say whether measures of :func:`~holdfast.functional.spread.spread` show a collapse."""
        return measures["mean_cosine"] > self.max_cosine or measures["effective_rank"] < self.min_rank

    def ease(self, now: float, collapsed: bool) -> float:
        """Return the next factor of the radius, in (0, 1]."""
        return now * self.factor if collapsed else min(1.0, now * self.regain)


class Watch:
    """The changing side of a guard: the last healthy state.

    Parameters
    ----------
    guard
        What it does; ``None`` watches nothing.
    """

    def __init__(self, guard: CollapseGuard | None) -> None:
        self.guard = guard
        self.healthy: dict[str, Tensor] = {}

    def look(
        self,
        measures: Mapping[str, float],
        step: int,
        signal: MutableMapping[str, float],
        modules: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> bool:
        """Judge measures after ``step`` steps; set ``signal["ease"]``, keep or restore the state.

        Returns
        -------
        bool
            Whether it stepped back.
        """
        assert self.guard is not None
        ease = signal.get("ease", 1.0)
        collapsed = self.guard.collapsed(measures)
        if collapsed and step < self.guard.grace:
            signal["ease"] = ease
            return False
        signal["ease"] = self.guard.ease(ease, collapsed)
        if not collapsed:
            self.healthy = copy_state(modules, optimizer)
        elif self.healthy:
            restore_state(self.healthy, modules, optimizer)
        return collapsed
