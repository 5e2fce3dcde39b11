"""Search along rays: an l-inf attack that is told nothing but whether an input is broken."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import Randomness
from ..threat import LinfThreat, RowBall
from ..types import Encoder, Objective, Threat
from .modes import frozen
from .moving import Moving


@dataclass(frozen=True, kw_only=True)
class RayS:
    """Find the direction of signs along which the decision changes soonest, by the sign of a gain.

    A direction holds -1 or +1 for every input value, +1 at first. Its signs are turned block by block,
    the whole input, then halves, quarters and so on; a direction is taken over when the input is broken
    nearer along it than along the best one so far. One query at the best radius tells whether it can be;
    only then a binary search looks for its own radius.

    Attributes
    ----------
    queries
        Passes of every input, >= 1, the clean one included.
    reach
        Radius at which rays begin, in input units, > 0; 1 reaches every corner of the box [0, 1].
    tolerance
        Length at which a binary search ends, in input units, > 0.

    Notes
    -----
    An input is broken where the objective is >= 0; nothing else of it is read, and no gradient. Inputs
    that are broken already stay as they are. An input is left alone once it is broken inside the threat;
    where the budget ends before, the best direction is cut to the threat; where no ray was broken at
    all, the input stays as it is. The rows of a group share one radius, and the threat's smallest for
    them.

    No random number is drawn, and no row depends on another. Built from the paper's description.
    Differences: rays are cut by the box, as images are; as long as no ray at all was broken, turned
    blocks stay turned, so that other directions are seen; every binary search tries the radius of the
    threat first, as that answers the question; after the blocks of single values the search begins again
    with the whole input.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.5, 0.5]])
    >>> broken = lambda z: (z[:, 0] - z[:, 1] > 0.4).float() - 1
    >>> RayS(queries=50)(torch.Tensor.detach, x, broken, LinfThreat(eps=0.25))
    tensor([[0.7500, 0.2500]])

    References
    ----------
    Chen and Gu, *RayS: A Ray Searching Method for Hard-label Adversarial Attack*, KDD 2020, algorithms 1
    to 3.
    """

    queries: int = 1000
    reach: float = 1.0
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise InvalidArgument("queries", "an integer >= 1", self.queries)
        for name in ("reach", "tolerance"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidArgument(name, "a finite number > 0", getattr(self, name))

    @torch.no_grad()
    def __call__(
        self,
        encoder: Encoder,
        x0: Tensor,
        objective: Objective,
        threat: Threat,
        generator: Randomness = None,
    ) -> Tensor:
        """Break ``objective`` inside ``threat`` by queries, leaving no trace in modes.

        Parameters
        ----------
        encoder
            Inputs to embeddings; need not be differentiable.
        x0
            (r*g, *s) clean inputs; row i belongs to group ``i mod g``.
        objective
            (r*g, e) -> (g,); >= 0 means broken.
        threat
            :class:`~holdfast.threat.LinfThreat`, or a :class:`~holdfast.threat.RowBall` of one.
        generator
            Not used: the search is deterministic.

        Returns
        -------
        Tensor
            Like ``x0``, inside the threat.

        Raises
        ------
        InvalidArgument
            If the threat is of another kind, the objective becomes NaN or infinite, or the groups do not
            divide the rows.
        """
        x0 = x0.detach()
        ball = threat.threat if isinstance(threat, RowBall) else threat
        if not isinstance(ball, LinfThreat):
            raise InvalidArgument("threat", "an l-inf ball", type(ball).__name__)
        work, number = Moving(objective, len(x0)), torch.arange(len(x0), device=x0.device)
        with frozen(encoder):
            kept = work.whole(work(encoder(x0)), 0) < 0  # (g,)
            rays = _Rays(x0, _smallest(threat, x0, len(kept)), self.reach, self.tolerance)
            rays.active = kept & (rays.eps > 0)
            for query in range(1, self.queries):
                work.rest(rays.active[number[work.rows] % len(kept)])
                if not work.all and not len(work.rows):
                    break
                tried = rays.points(rays.trial, rays.radius(), ball)[work.rows]
                rays.learn(work.whole(work(encoder(tried)), query) >= 0)
        x = rays.points(rays.best, torch.where(rays.found, rays.end, 0), ball)
        return threat.project(x, x0)


def _smallest(threat: Threat, x0: Tensor, groups: int) -> Tensor:
    """Return the smallest radius of every group: (g,)."""
    radii = threat.radii.to(x0) if isinstance(threat, RowBall) else x0.new_full((len(x0),), threat.eps)
    return radii.reshape(-1, groups).amin(0)


class _Rays:
    """Where every group stands: its best direction, the one on trial, and the ends of its binary search.

    Attributes
    ----------
    best, trial
        (r*g, v) signs.
    end, start
        (g,) radii: broken along the best direction (where ``found``), and not broken along the trial.
    found
        (g,) whether any ray was broken.
    halving
        (g,) whether the trial's own radius is being sought; otherwise the trial is tested at ``end``.
    level, block
        (g,) which block of signs the trial turned; at a level s blocks have ``2^-s`` of the values.
    """

    def __init__(self, x0: Tensor, eps: Tensor, reach: float, tolerance: float) -> None:
        self.x0, self.eps, self.tolerance = x0, eps, tolerance
        self.best = torch.ones_like(x0.flatten(1))
        self.trial = self.best
        self.end, self.start = eps.clamp_min(reach), torch.zeros_like(eps)
        self.found = torch.zeros_like(eps, dtype=torch.bool)
        self.active, self.halving = ~self.found, self.found
        self.level = torch.zeros_like(eps, dtype=torch.int64)
        self.block = self.level - 1
        n, v = self.best.shape
        first = torch.arange(n, device=x0.device)[:, None] // len(eps) * v
        self.place = first + torch.arange(v, device=x0.device)  # (r*g, v) in 0 to r*v - 1
        self.values = n // len(eps) * v

    def rows(self, of_groups: Tensor) -> Tensor:
        """Repeat (g,) for the rows: (r*g, 1)."""
        return of_groups.repeat(len(self.x0) // len(self.eps))[:, None]

    def radius(self) -> Tensor:
        """Return the radius to try, (g,): the threat's as long as it is open, else the middle."""
        middle = torch.where(self.start < self.eps, self.eps, (self.start + self.end) / 2)
        return torch.where(self.halving, middle, self.end)

    def points(self, signs: Tensor, radius: Tensor, ball: LinfThreat) -> Tensor:
        """Return the points of directions at radii (g,), inside the box."""
        r = self.rows(radius)
        x = self.x0 + (r * signs).reshape(self.x0.shape)
        return RowBall(threat=ball, radii=r[:, 0]).project(x, self.x0)

    def learn(self, broken: Tensor) -> None:
        """Take in what the query at :meth:`radius` said, (g,) bool."""
        broken, radius = broken & self.active, self.radius()
        better = broken & ((radius < self.end) | ~self.found)
        kept = better | (~broken & ~self.found)  # nothing is known yet: wander on
        self.best = torch.where(self.rows(kept), self.trial, self.best)
        self.found = self.found | better
        self.start = torch.where(self.halving & ~broken, radius, self.start)
        self.end = torch.where(better, radius, self.end)
        self.halving = self.halving | broken
        self.active = self.active & (~self.found | (self.end > self.eps))
        done = ~self.halving | (self.end - self.start <= self.tolerance)
        self._turn(self.active & done & ((self.start >= self.eps) | ~self.halving))

    def _turn(self, groups: Tensor) -> None:
        """Put the next direction on trial: the best one with another block turned."""
        size = -(-self.values // 2**self.level)
        over = (self.block + 1) * size >= self.values
        again = over & (size == 1)
        level = torch.where(again, 0, self.level + over.long())
        self.block = torch.where(groups, torch.where(over, 0, self.block + 1), self.block)
        self.level = torch.where(groups, level, self.level)
        size = -(-self.values // 2**self.level)
        turned = self.place // self.rows(size) == self.rows(self.block)
        trial = torch.where(turned, -self.best, self.best)
        self.trial = torch.where(self.rows(groups), trial, self.trial)
        self.start = torch.where(groups, 0, self.start)
        self.halving = self.halving & ~groups
