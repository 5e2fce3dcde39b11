"""How often attacks are noticed: one that ignores the guard, and one that knows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..attacks import run
from ..attacks.shift import first_is_right
from ..errors import InvalidArgument
from ..evaluation.stats import Estimate, estimate
from ..functional.ranking import chunks
from ..rng import Randomness
from ..types import Attack, RetrievalTask, Search, Threat
from .query import CalibratedGuard

Broken = Callable[[Tensor, RetrievalTask], Tensor]
"""From embeddings (n, e) and the task of the same rows to (n,) bool: is retrieval wrong for this query?"""
LAMS = (0.01, 0.03, 0.1, 0.3, 1.0)


def first_is_wrong(z: Tensor, task: RetrievalTask) -> Tensor:
    """Return whether the first result has another label than the query, (n,) bool; ties count as wrong."""
    return first_is_right(z, task) == 0


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What one kind of attack did to each query, and its shares with 95 % Wilson intervals.

    Attributes
    ----------
    x
        (n, c, h, w) attacked queries, inside the threat.
    broken, flagged
        (n,) bool: retrieval is wrong; the guard noticed.
    lam
        (n,) weight of the guard in the gain that led there; 0 is the attack without the guard.
    """

    x: Tensor
    broken: Tensor
    flagged: Tensor
    lam: Tensor

    @property
    def broken_share(self) -> Estimate:
        """Share of queries that are broken, noticed or not."""
        return estimate(self.broken)

    @property
    def escaped_share(self) -> Estimate:
        """Share of queries that are broken and not flagged: what the guard lets through."""
        return estimate(self.broken & ~self.flagged)

    @property
    def detected_share(self) -> Estimate | None:
        """Share of the broken queries that are flagged; ``None`` where none is broken."""
        return estimate(self.flagged[self.broken]) if bool(self.broken.any()) else None


@dataclass(frozen=True, kw_only=True)
class GuardReport:
    """Outcome of :func:`evaluate_guard`.

    Attributes
    ----------
    false_alarm
        Share of the task's clean queries that are flagged.
    rows
        (n,) queries of the task that were attacked: those that are not broken when clean.
    naive
        The attack as it is.
    adaptive
        The attack that knows the guard: for each query its best outcome over all weights, the naive included.
    """

    false_alarm: Estimate
    rows: Tensor
    naive: Attacked
    adaptive: Attacked


@dataclass(frozen=True, kw_only=True)
class _Evading:
    """An attack that loses ``lam`` for every unit of score above ``ceiling``, on wide embeddings."""

    attack: Attack[RetrievalTask, Any]
    guard: CalibratedGuard
    lam: float
    ceiling: float

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Any:
        return self.attack.target(task, generator)

    def gain(self, z: Tensor, target: Any, task: RetrievalTask) -> Tensor:
        excess = torch.relu(self.guard.score_of(z, task.self_index) - self.ceiling)
        return self.attack.gain(_queries(z, task), target, task) - self.lam * excess

    def measure(self, z: Tensor, target: Any, task: RetrievalTask) -> dict[str, Tensor]:
        return self.attack.measure(_queries(z, task), target, task)


def evaluate_guard(
    guard: CalibratedGuard,
    task: RetrievalTask,
    attack: Attack[RetrievalTask, Any],
    search: Search,
    threat: Threat,
    *,
    lams: Sequence[float] = LAMS,
    slack: float = 0.25,
    attacker_seed: int | None = None,
    broken: Broken = first_is_wrong,
    seed: int = 0,
    label: str = "guard",
    batch_size: int = 128,
) -> GuardReport:
    """Measure a guard on clean queries, against an attack, and against the same attack knowing the guard.

    The adaptive attack climbs ``gain - lam * relu(score - threshold + slack)`` with the same search, the
    changed copies embedded anew at every step. For each query it keeps, among all ``lam`` and the naive
    attack, a point that is broken and not flagged; if there is none a broken one; if there is none the naive.

    Parameters
    ----------
    guard
        Calibrated with the task's encoder and gallery, on other queries than the task's.
    task
        Held-out clean queries.
    attack, search, threat
        What is wanted, how it is sought, what is allowed. An attack that moves a query and has one gain
        for each.
    lams
        Weights of the guard, > 0, in units of the gain for each clean standard deviation. They are tried one
        after the other; the cost of each is ``1 + count`` times that of the naive attack.
    slack
        How far below the threshold the adaptive attack aims, in clean standard deviations, >= 0.
    attacker_seed
        Seed of the copies that the attack computes. ``None``: the guard's own, so it knows everything.
        Another number: it knows the method, its threshold and scales, but not the draws.
    broken
        When retrieval counts as wrong; by default when the first result has another label.
    seed, label
        Name the random streams, as in :func:`holdfast.attacks.run`.
    batch_size
        Queries at a time; does not change results.

    Raises
    ------
    InvalidArgument
        If guard and task do not belong together, or every clean query is broken already.

    Notes
    -----
    What the adaptive attack reaches is a lower bound: a better one may exist. Choosing the best point with
    the guard's answers assumes an attacker who can compute or ask for them.

    References
    ----------
    Carlini and Wagner, *Adversarial Examples Are Not Easily Detected*, AISec 2017; Tramer et al., *On
    Adaptive Attacks to Adversarial Example Defenses*, NeurIPS 2020.
    """
    if task.encoder is not guard.encoder:
        raise InvalidArgument("task", "the encoder that the guard was calibrated with", "another")
    if guard.gallery.shape != task.gallery.z.shape:
        got = tuple(task.gallery.z.shape)
        raise InvalidArgument("task", f"the guard's gallery {tuple(guard.gallery.shape)}", got)
    if not lams or not all(math.isfinite(lam) and lam > 0 for lam in lams):
        raise InvalidArgument("lams", "at least one finite number > 0", tuple(lams))
    if not (math.isfinite(slack) and slack >= 0):
        raise InvalidArgument("slack", "a finite number >= 0", slack)
    alarms = guard.flags(task.x, task.self_index, batch_size)
    rows = torch.nonzero(~_chunked(broken, task.z, task, batch_size)).squeeze(1).cpu()
    if len(rows) == 0:
        raise InvalidArgument("task", "at least one query that is not broken when clean", 0)
    part = task.rows(rows)

    def attacked(lam: float) -> Attacked:
        tried, encoder = attack, task.encoder
        if lam:
            known = guard if attacker_seed is None else _with_seed(guard, attacker_seed)
            encoder = known.wide
            ceiling = guard.threshold - slack
            tried = _Evading(attack=attack, guard=known, lam=lam, ceiling=ceiling)
        there = replace(part, encoder=encoder)
        outcome = run(there, tried, search, threat, seed=seed, label=label, batch_size=batch_size)
        return Attacked(
            x=outcome.x,
            broken=_chunked(broken, _queries(outcome.z, part), part, batch_size),
            flagged=guard.flags(outcome.x, part.self_index, batch_size),
            lam=torch.full((len(part),), lam),
        )

    naive = best = attacked(0.0)
    for lam in lams:
        best = _better(best, attacked(lam))
    return GuardReport(false_alarm=estimate(alarms), rows=rows, naive=naive, adaptive=best)


def _queries(z: Tensor, task: RetrievalTask) -> Tensor:
    """Return the queries' own embeddings from wide ones; others stay as they are."""
    return z[:, : task.z.shape[1]]


def _with_seed(guard: CalibratedGuard, seed: int) -> CalibratedGuard:
    """Return the guard with other draws, all else equal."""
    settings = guard.calibration.settings
    settings = replace(settings, copies=replace(settings.copies, seed=seed))
    return replace(guard, calibration=replace(guard.calibration, settings=settings))


def _chunked(broken: Broken, z: Tensor, task: RetrievalTask, batch_size: int) -> Tensor:
    """Apply a criterion in batches, as it may need a distance to every gallery row."""
    return torch.cat([broken(z[rows], task.rows(rows)) for rows in chunks(len(task), batch_size)])


def _better(old: Attacked, new: Attacked) -> Attacked:
    """Take, query by query, the better point for the attacker; the older one where they are equal."""

    def worth(a: Attacked) -> Tensor:
        return a.broken.int() + (a.broken & ~a.flagged).int()

    take = worth(new) > worth(old)
    wide = take.reshape(-1, *[1] * (old.x.ndim - 1))
    return Attacked(
        x=torch.where(wide, new.x, old.x),
        broken=torch.where(take, new.broken, old.broken),
        flagged=torch.where(take, new.flagged, old.flagged),
        lam=torch.where(take, new.lam.to(take.device), old.lam.to(take.device)),
    )
