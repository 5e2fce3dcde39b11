"""The smallest change that breaks each query: one run gives the whole robustness curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attacks.margin import RankMargin
from ..errors import InvalidArgument
from ..functional.ranking import chunks
from ..rng import RowStreams
from ..schedules import HalfCosine
from ..search import PGD, frozen
from ..threat import L2Threat, LinfThreat, RowBall
from ..types import Attack, RetrievalTask


@dataclass(frozen=True, kw_only=True)
class MinimumNorm:
    """How little breaks every query, as far as the search found.

    Attributes
    ----------
    radius
        (n,) float64, in input units: the size of the smallest change found that breaks the query (takes it
        out of its cluster), 0 where it is wrong when clean, infinity where nothing up to ``eps`` broke it. An
        upper bound of the true smallest change, as a point of that size was seen to break the query; no
        certificate.
    x
        (n, c, h, w) the broken points; the clean input where the radius is 0 or infinite.
    norm
        ``"linf"`` or ``"l2"``.
    eps
        The largest radius that was tried.
    """

    radius: Tensor
    x: Tensor
    norm: str
    eps: float

    def robust_at(self, eps: float) -> Tensor:
        """Return whether a query holds at a radius: (n,) bool. Broken once is broken at all larger radii.

        Raises
        ------
        InvalidArgument
            If ``eps`` lies outside [0, the largest radius tried]: nothing is known there.
        """
        if not 0 <= eps <= self.eps:
            raise InvalidArgument("eps", f"a radius in [0, {self.eps:g}], the range searched", eps)
        return self.radius > eps

    def accuracy_at(self, eps: float) -> float:
        """Return the share of queries that hold at a radius, in [0, 1]."""
        return float(self.robust_at(eps).double().mean())


def minimum_norm(
    task: RetrievalTask,
    attack: Attack[RetrievalTask, Any] | None,
    threat: LinfThreat | L2Threat,
    *,
    steps: int = 40,
    gamma: float = 0.5,
    bisections: int = 8,
    search_steps: int = 20,
    metric: str = "recall@1",
    seed: int = 0,
    label: str = "minimum",
    chunk: int = 128,
) -> MinimumNorm:
    """Search for the smallest change that breaks each query.

    First every query's radius shrinks by ``1 - gamma`` after a step that broke it and grows by ``1 + gamma``
    after one that did not, while the point keeps climbing; gamma and the step length fall along half a
    cosine. Then the radius is bisected between 0 and the best found, each time with a full search; by turns
    it starts at the best point and at the clean input, from where it may find a border that is nearer.

    Parameters
    ----------
    task
        Queries and clean gallery, or clusters.
    attack
        What is climbed and measured; ``None`` is :class:`~holdfast.attacks.margin.RankMargin` with ``k=1``. A
        gain that says nothing about the border where the measure turns 0 (minus the distance to one chosen
        image, say) finds larger radii than the margin does.
    threat
        Norm and box; its ``eps`` is the largest radius tried.
    steps
        Of the first stage, >= 0.
    gamma
        Largest relative change of a radius in one step, in (0, 1).
    bisections
        Rounds of the second stage, >= 0: the radius is resolved to its ``2 ** -bisections`` th part.
    search_steps
        Steps of each search of the second stage, >= 0.
    metric
        Measure of the attack, 1 for a query that holds and 0 for a broken one; ``"flip"`` is the other way
        round.
    seed, label
        Name the random streams of the targets, together with each query's own number.
    chunk
        Queries at a time; does not change results.

    Raises
    ------
    InvalidArgument
        If the threat is no ball, or the attack has no such measure of zeros and ones.

    Notes
    -----
    Unlike the papers, step lengths are shares of the query's radius and both norms share one schedule. A
    size that exceeds ``threat.eps`` by rounding counts as ``threat.eps``.

    References
    ----------
    Rony et al., *Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and
    Defenses*, CVPR 2019, algorithm 1; Pintor et al., *Fast Minimum-norm Adversarial Attacks through Adaptive
    Norm Constraints*, NeurIPS 2021, algorithm 1.
    """
    if not isinstance(threat, LinfThreat | L2Threat):
        raise InvalidArgument("threat", "an l-inf or l2 ball", threat)
    for name, value in (("steps", steps), ("bisections", bisections), ("search_steps", search_steps)):
        if value < 0:
            raise InvalidArgument(name, "an integer >= 0", value)
    if not 0 < gamma < 1:
        raise InvalidArgument("gamma", "a number in (0, 1)", gamma)
    if len(task) == 0:
        raise InvalidArgument("task", "at least one query", 0)
    hunt = _Hunt(
        attack=RankMargin(k=1) if attack is None else attack,
        threat=threat,
        metric=metric,
        seed=seed,
        label=label,
        steps=steps,
        gamma=gamma,
        bisections=bisections,
        full=PGD(steps=search_steps, alpha=2.5 / max(search_steps, 1), keep="best"),
    )
    found = [hunt(task.rows(rows)) for rows in chunks(len(task), chunk)]
    radius, x = (torch.cat(column) for column in zip(*found, strict=True))
    return MinimumNorm(radius=radius, x=x, norm=threat.norm, eps=threat.eps)


@dataclass(frozen=True, kw_only=True)
class _Hunt:
    """The two stages, for a chunk of queries at a time."""

    attack: Attack[RetrievalTask, Any]
    threat: LinfThreat | L2Threat
    metric: str
    seed: int
    label: str
    steps: int
    gamma: float
    bisections: int
    full: PGD

    def __call__(self, task: RetrievalTask) -> tuple[Tensor, Tensor]:
        """Return radii (n,) and points (n, *s)."""
        x, holds = task.x.clone(), self._holds(task.z, task, self._target(task))
        radius = torch.zeros(len(task), dtype=torch.float64, device=x.device)
        rows = torch.nonzero(holds).squeeze(1)
        if len(rows):
            radius[rows], x[rows] = self._smallest(task.rows(rows))
        return radius, x

    def _smallest(self, task: RetrievalTask) -> tuple[Tensor, Tensor]:
        """Return radii and points of queries that are right when clean."""
        target, eps = self._target(task), self.threat.eps
        radius = torch.full((len(task),), torch.inf, dtype=torch.float64, device=task.x.device)
        x = best = task.x
        tried = radius.clamp(max=eps)
        for step in range(self.steps):
            alpha, gamma = (HalfCosine(start=v, stop=v / 20)(step / self.steps) for v in (1.0, self.gamma))
            x = self._climb(PGD(steps=1, alpha=alpha), task, target, tried, x)
            size = self._size(x, task, target)
            best, radius = _smaller(best, radius, x, size)
            grown = torch.minimum(tried * (1 + gamma), radius).clamp(max=eps)
            tried = torch.where(size.isinf(), grown, torch.minimum(tried, radius) * (1 - gamma))
        low = torch.zeros_like(radius)  # no promise, only where a search failed
        for turn in range(self.bisections):  # what never broke tries its luck at the largest radius
            low = torch.where(low < radius, low, 0.0)
            tried = torch.where(radius.isinf(), eps, (low + radius) / 2)
            x = self._climb(self.full, task, target, tried, task.x if turn % 2 else best)
            size = self._size(x, task, target)
            best, radius = _smaller(best, radius, x, size)
            low = torch.where(size.isinf() & radius.isfinite(), tried, low)
        return radius, torch.where(_like(radius.isinf(), x), task.x, best)

    def _target(self, task: RetrievalTask) -> Any:
        return self.attack.target(task, RowStreams(self.seed, self.label, "target", index=task.index))

    def _climb(self, search: PGD, task: RetrievalTask, target: Any, radii: Tensor, start: Tensor) -> Tensor:
        ball = RowBall(threat=self.threat, radii=radii)
        return search(task.encoder, task.x, lambda z: self.attack.gain(z, target, task), ball, start=start)

    def _size(self, x: Tensor, task: RetrievalTask, target: Any) -> Tensor:
        """Return the size of a change that breaks the query, infinity where the query holds: (n,)."""
        with frozen(task.encoder), torch.no_grad():
            holds = self._holds(task.encoder(x), task, target)
        size = self.threat.size(x.double(), task.x.double()).clamp(max=self.threat.eps)
        return torch.where(holds, torch.inf, size)

    def _holds(self, z: Tensor, task: RetrievalTask, target: Any) -> Tensor:
        """Return whether the queries with embeddings ``z`` hold: (n,) bool."""
        measured = self.attack.measure(z, target, task)
        if self.metric not in measured:
            raise InvalidArgument("metric", f"one of {', '.join(measured)}", self.metric)
        value = measured[self.metric]
        if not bool(((value == 0) | (value == 1)).all()):
            raise InvalidArgument("metric", "a measure of zeros and ones", self.metric)
        return value == (0 if self.metric == "flip" else 1)


def _smaller(best: Tensor, radius: Tensor, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Take a smaller broken point; where none is known yet, the newest point, to go on from there."""
    better = (size < radius) | radius.isinf()
    return torch.where(_like(better, x), x, best), torch.minimum(size, radius)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (x.ndim - 1))
