"""Who trains together: one process here, several in ``fabric``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ..errors import HoldfastError, RunError
from ..types import Step

T = TypeVar("T")


class PeerLost(RunError):
    """Another process of the run went away."""


class Alone:
    """One process that trains by itself; what :class:`FabricGroup` does for several.

    Attributes
    ----------
    rank, world
        Number of this process, and how many there are.
    device
        Where it computes; ``None`` leaves the choice to the run.
    """

    rank = 0
    world = 1
    device: torch.device | None = None

    def first(self, make: Callable[[], T]) -> T:
        """Return what process 0 makes; an error of its is raised in all."""
        return make()

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order."""
        return [value]

    def agree(self, step: Step | None, failed: HoldfastError | None) -> Step | None:
        """Return the step with the mean of all logs; raise what went wrong in any process, and name it."""
        if failed is not None:
            raise failed
        return step

    def average(self, modules: nn.Module) -> None:
        """Make the gradients of all processes their mean."""

    def level(self, modules: nn.Module) -> None:
        """Make floating-point buffers, such as statistics of batch normalisation, their mean."""

    def begin(self, modules: nn.Module) -> None:
        """Give all processes the weights and buffers of process 0."""
