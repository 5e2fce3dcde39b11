"""The one search loop of the library: projected gradient ascent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import Randomness
from ..schedules import Schedule, at
from ..types import Encoder, Gradient, Objective, Threat, rows_of
from .gradient import Autograd
from .modes import frozen


@dataclass(frozen=True, kw_only=True)
class PGD:
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
                    best_x, best_value = _merge(best_x, best_value, x, value)
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
        """Return the kept point of one run, and its value when somebody will compare it."""
        best_x, best_value = x, None
        work = _Moving(objective, len(x))
        for step in range(self.steps):
            value, grad = self.gradient(encoder, x[work.rows], work, generator)
            value = work.whole(value, step)
            if not bool(torch.isfinite(grad).all()):
                raise InvalidArgument("objective", "a finite gradient", f"NaN or infinity at step {step}")
            if self.keep == "best":
                best_x, best_value = _merge(best_x, best_value, x, value)
            if getattr(self.gradient, "exact", False):
                grad = work.rest(grad)
                if not len(grad):
                    break
            now = x[work.rows]
            length = at(self.alpha, step / self.steps)
            part = threat if work.all else rows_of(threat, work.rows)
            moved = part.project(now + length * part.direction(grad), x0[work.rows])
            x = moved if work.all else x.index_put((work.rows,), moved)
        if self.keep == "last" and self.restarts == 1:
            return x, None
        with torch.no_grad():
            value = objective(encoder(x))
        _check(value, len(x), self.steps)
        return (x, value) if self.keep == "last" else _merge(best_x, best_value, x, value)


class _Moving:
    """An objective of the groups that still move; the embeddings of the others are remembered.

    A group whose gradient is exactly zero stays where it is, and so does its gradient: groups do not depend
    on each other. Hinges make this common: triplets that are hard enough, queries that have arrived.
    """

    def __init__(self, objective: Objective, rows: int) -> None:
        self.objective = objective
        self.n = rows
        self.all = True
        self.rows: Any = slice(None)
        self.groups: Any = slice(None)
        self.z = self.value = torch.empty(0)

    def __call__(self, z: Tensor) -> Tensor:
        """Take the embeddings of the moving rows, return the values of the moving groups."""
        if self.all:
            self.z = z.detach()
            return self.objective(z)
        self.z = self.z.index_put((self.rows,), z.detach())
        return self.objective(self.z.index_put((self.rows,), z))[self.groups]

    def whole(self, value: Tensor, step: int) -> Tensor:
        """Return the values of all groups from those that still move."""
        _check(value, self.n if self.all else len(self.rows), step)
        self.value = value if self.all else self.value.index_put((self.groups,), value)
        return self.value

    def rest(self, grad: Tensor) -> Tensor:
        """Let groups without gradient rest; return the gradient of the others."""
        moves = (grad.flatten(1) != 0).any(1)
        before = len(self.value) if self.all else len(self.groups)
        groups = moves.reshape(-1, before).any(0)
        if bool(groups.all()):
            return grad
        kept = torch.nonzero(groups.repeat(len(grad) // before)).squeeze(1)
        self.groups = torch.nonzero(groups).squeeze(1) if self.all else self.groups[groups]
        self.rows = kept if self.all else self.rows[kept]
        self.all = False
        return grad[kept]


def _merge(best_x: Tensor, best_value: Tensor | None, x: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Take, group by group, whichever value is larger."""
    if best_value is None:
        return x, value
    better = value > best_value  # (g,)
    rows = better.repeat(len(x) // len(better)).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(rows, x, best_x), torch.where(better, value, best_value)


def _check(value: Tensor, rows: int, step: int) -> None:
    if value.ndim != 1 or len(value) == 0 or rows % len(value):
        raise InvalidArgument(
            "objective", f"values (g,) whose number divides {rows} rows", tuple(value.shape)
        )
    if not bool(torch.isfinite(value).all()):
        raise InvalidArgument(
            "objective", "finite values from the encoder", f"NaN or infinity at step {step}"
        )
