"""The one search loop of the library: projected gradient ascent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import Randomness
from ..schedules import Schedule
from ..types import Encoder, Gradient, Objective, Threat
from .gradient import Autograd, value_of
from .modes import frozen
from .moving import Best, Moving, check, merge, peaks
from .region import around
from .rules import Fixed, Rule


class Ascent:
    """The loop itself; the subclasses say by which rule a run moves."""

    steps: int
    random_start: bool
    restarts: int
    gradient: Gradient

    def _rule(self) -> Rule:
        """Return a new update rule for one run."""
        raise NotImplementedError

    @property
    def _best(self) -> bool:
        """Whether the best point visited is kept, or the last."""
        return True

    def __call__(
        self,
        encoder: Encoder,
        x0: Tensor,
        objective: Objective,
        threat: Threat,
        generator: Randomness = None,
        *,
        start: Tensor | None = None,
    ) -> Tensor:
        """Climb ``objective`` inside ``threat``, leaving no trace in modes, ``.grad`` or global RNG.

        Parameters
        ----------
        encoder
            Inputs to embeddings.
        x0
            (r*g, *s) clean inputs; row i belongs to group ``i mod g``.
        objective
            (r*g, e) -> (g,), climbed.
        threat
            The allowed set around every row.
        generator
            For random starts and sampled gradients; ``None`` draws them from PyTorch's global generator.
        start
            Where the first run begins, inside the threat (a point found before, say); overrules
            ``random_start`` for that run.

        Returns
        -------
        Tensor
            Like ``x0``, inside the threat.

        Raises
        ------
        InvalidArgument
            If the objective or its gradient becomes NaN or infinite (such an attack would silently stand
            still), or the groups do not divide the rows.
        """
        x0 = x0.detach()
        best_x, best_value = x0.clone(), None
        with frozen(encoder):
            for restart in range(self.restarts):
                if start is not None and not restart:
                    begin = threat.project(start.detach(), x0)
                else:
                    begin = threat.noise(x0, generator) if self.random_start or restart else x0.clone()
                x, value = self._climb(encoder, begin, x0, objective, threat, generator)
                if best_value is None or value is None:
                    best_x, best_value = x, value
                else:
                    best_x, best_value = merge(best_x, best_value, x, value)
        return best_x

    def _climb(
        self,
        encoder: Encoder,
        x: Tensor,
        x0: Tensor,
        objective: Objective,
        threat: Threat,
        generator: Randomness,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the kept point of one run, and its value when somebody will compare it.

        ``now``, the gradient, rule, region and best points hold the rows that still move and no others; ``x``
        takes in the rest when it leaves.
        """
        exact = getattr(self.gradient, "exact", False)
        work, rule, region = Moving(objective, len(x)), self._rule(), around(threat, x0)
        best, now = Best(work, x), x
        for step in range(self.steps):
            value, grad = self.gradient(encoder, now, work, generator)
            work.whole(value, step)
            peak = peaks(grad)
            if not bool(torch.isfinite(peak).all()):
                raise InvalidArgument("objective", "a finite gradient", f"NaN or infinity at step {step}")
            if self._best:
                best.see(now, value)
            rule.see(now, value, grad, step)
            left = work.leaving(rule.moving(peak != 0)) if exact else None
            if left is not None:
                x = work.put_rows(x, now)
                best.cut(*left)
                work.leave(*left)
                now = now[left.rows]
                if not len(now):
                    break
                rule.cut(*left)
                region = region.rows(left.rows)
            now = rule.move(region, step)
        x = work.put_rows(x, now)
        if not self._best and self.restarts == 1:
            return x, None
        value = value_of(self.gradient, encoder, x, objective)
        check(value, len(x), self.steps)
        return merge(*best.whole(), x, value) if self._best else (x, value)


@dataclass(frozen=True, kw_only=True)
class PGD(Ascent):
    """Projected gradient ascent on an objective of embeddings.

    From a start, repeat ``x <- project(x + alpha * direction(gradient))``. Whatever is attacked or hardened
    in this library goes through this loop; what differs is the objective.

    Attributes
    ----------
    steps
        Number of updates, >= 0.
    alpha
        Step length in input units, or a schedule over the fraction of steps done.
    random_start
        Start at a random point of the threat instead of the clean input.
    restarts
        Independent runs, >= 1; all but the first start at random. The best final point of each group wins.
    keep
        ``"last"`` returns the last iterate, as the ranking literature does; ``"best"`` the best one visited,
        the start included: then more steps never give less.
    gradient
        Source of gradients.

    Notes
    -----
    A group whose exact gradient is zero can never move again: it is left out of all later passes, and the
    loop ends when no group is left, with the same result. A gain that is flat at the clean input (a distance
    to itself under :class:`~holdfast.functional.distance.Cosine`) needs ``random_start``.

    Examples
    --------
    >>> import torch
    >>> from holdfast.threat import LinfThreat
    >>> x = torch.tensor([[0.5, 0.5]])
    >>> PGD(steps=10, alpha=0.05)(lambda x: x, x, lambda z: z[:, 0] - z[:, 1], LinfThreat(eps=0.25))
    tensor([[0.7500, 0.2500]])

    References
    ----------
    Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018, section 2.1.
    """

    steps: int = 32
    alpha: float | Schedule = 1 / 255
    random_start: bool = False
    restarts: int = 1
    keep: Literal["last", "best"] = "last"
    gradient: Gradient = field(default_factory=Autograd)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InvalidArgument("steps", "an integer >= 0", self.steps)
        if self.restarts < 1:
            raise InvalidArgument("restarts", "an integer >= 1", self.restarts)
        if not callable(self.alpha) and not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise InvalidArgument("alpha", "a finite number >= 0 or a schedule", self.alpha)
        if self.keep not in ("last", "best"):
            raise InvalidArgument("keep", "'last' or 'best'", self.keep)

    def _rule(self) -> Fixed:
        """Return steps of length ``alpha``."""
        return Fixed(self.alpha, self.steps)

    @property
    def _best(self) -> bool:
        return self.keep == "best"
