"""Projected gradient ascent that finds its step length by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import InvalidArgument
from ..types import Gradient
from .gradient import Autograd
from .pgd import Ascent
from .rules import Adaptive


@dataclass(frozen=True, kw_only=True)
class APGD(Ascent):
    """Auto-PGD: momentum, and for every group a step length that starts at ``2 * eps`` and is halved.

    A step goes three quarters of the way of a plain step and repeats a quarter of the step before. At
    checkpoints, which come ever more often, a group that has made no progress halves its step and goes on
    from its best point. The best point visited is returned, the start included.

    Attributes
    ----------
    steps
        Number of updates, >= 0.
    restarts
        Independent runs, >= 1; all but the first start at random. The best point of each group wins.
    random_start
        Start the first run at a random point of the threat too; needed where the gain is flat at the clean
        input.
    gradient
        Source of gradients.
    rho
        Share of the steps between two checkpoints that must rise for the step length to stay, in (0, 1].

    Notes
    -----
    Decisions are made for each group and never for the batch. Two things differ from the paper: the first run
    starts at the clean input unless ``random_start`` is set, and a group that goes back to its best point
    starts from there without momentum, as at the start of the run. A group rests, with the same result, when
    gradient and momentum are exactly zero and it stands on its best point.

    Examples
    --------
    >>> import torch
    >>> from holdfast.threat import LinfThreat
    >>> x = torch.tensor([[0.5, 0.5]])
    >>> APGD(steps=10)(lambda x: x, x, lambda z: z[:, 0] - z[:, 1], LinfThreat(eps=0.25))
    tensor([[0.7500, 0.2500]])

    References
    ----------
    Croce and Hein, *Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks*, ICML 2020, algorithm 1.
    """

    steps: int = 100
    restarts: int = 1
    random_start: bool = False
    gradient: Gradient = field(default_factory=Autograd)
    rho: float = 0.75
    momentum: ClassVar[float] = 0.75

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InvalidArgument("steps", "an integer >= 0", self.steps)
        if self.restarts < 1:
            raise InvalidArgument("restarts", "an integer >= 1", self.restarts)
        if not 0 < self.rho <= 1:
            raise InvalidArgument("rho", "a number in (0, 1]", self.rho)

    def _rule(self) -> Adaptive:
        """Return an adaptive rule for one run."""
        return Adaptive(self.steps, self.rho, self.momentum)
