"""How many queries a black-box attack can send before a log notices it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import run
from ..errors import InvalidArgument
from ..evaluation.stats import Estimate, estimate
from ..types import Attack, Encoder, RetrievalTask, Search, Threat
from .evaluate import Broken, first_is_wrong
from .log import QueryLog


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What happened to each attacked query; numbers of queries count from 1, infinity means never.

    Attributes
    ----------
    sent
        (n,) queries that the whole attack sends.
    flagged_at
        (n,) number of the first query that the log flags.
    broken_at
        (n,) number of the first query that is inside the threat and whose retrieval is wrong.
    """

    sent: Tensor
    flagged_at: Tensor
    broken_at: Tensor

    @property
    def flagged_share(self) -> Estimate:
        """Share of attacks that are flagged at some time."""
        return estimate(self.flagged_at.isfinite())

    @property
    def broken_share(self) -> Estimate:
        """Share of attacks that would succeed if nobody watched."""
        return estimate(self.broken_at.isfinite())

    @property
    def escaped_share(self) -> Estimate:
        """Share of attacks that succeed with a query that is not flagged, nor any before it."""
        return estimate(self.broken_at < self.flagged_at)


class _Tapped(nn.Module):
    """An encoder whose every row is a query that goes through the log."""

    def __init__(
        self, encoder: Encoder, log: QueryLog, task: RetrievalTask, threat: Any, broken: Broken
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.log, self.task, self.threat, self.broken = log, task, threat, broken
        self.flagged_at = self.broken_at = float("inf")

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(x)
        before = self.log.seen
        flagged = self.log.flags(self.log.add(z))
        many = self.task.rows(torch.zeros(len(x), dtype=torch.int64))
        inside = self.threat.size(x, many.x) <= self.threat.eps * (1 + 1e-5) + 1e-7
        self.flagged_at = min(self.flagged_at, _first(flagged, before))
        self.broken_at = min(self.broken_at, _first(self.broken(z, many) & inside, before))
        return z


def queries_until_flagged(
    log: QueryLog,
    task: RetrievalTask,
    attack: Attack[RetrievalTask, Any],
    search: Search,
    threat: Threat,
    *,
    broken: Broken = first_is_wrong,
    seed: int = 0,
    label: str = "log",
) -> Watched:
    """Run a black-box attack on one query after the other, each watched by an empty log of its own.

    That is the view of a log that counts by client, where every attacker has one name. The attack does not
    stop when it is flagged, so that one run tells both when it would have been stopped and when it would
    have succeeded.

    Parameters
    ----------
    log
        Settings; it is not changed.
    task
        Queries to attack, not broken when clean.
    attack
        Its gain is computed by the attacker from the embeddings that come back.
    search
        One that needs no gradient: PGD with NES or SPSA, or a random search.
    threat
        A ball with a method ``size``.
    broken
        When retrieval counts as wrong; by default when the first result has another label.
    seed, label
        Name the random streams, as in :func:`holdfast.attacks.run`.

    Raises
    ------
    InvalidArgument
        If a query is broken when clean, or the search needs gradients.
    """
    if not hasattr(threat, "size"):
        raise InvalidArgument("threat", "one with a method size", type(threat).__name__)
    if len(task) == 0 or bool(broken(task.z, task).any()):
        raise InvalidArgument("task", "queries that are not broken when clean, at least one", len(task))
    columns = []
    for i in range(len(task)):
        one = task.rows(torch.tensor([i]))
        tapped = _Tapped(task.encoder, log.fresh(), one, threat, broken)
        run(replace(one, encoder=tapped), attack, search, threat, seed=seed, label=label)
        columns.append((float(tapped.log.seen), tapped.flagged_at, tapped.broken_at))
    sent, flagged_at, broken_at = torch.tensor(columns, dtype=torch.float64).unbind(1)
    return Watched(sent=sent, flagged_at=flagged_at, broken_at=broken_at)


def _first(which: Tensor, before: int) -> float:
    """Return the number, counted from 1, of the first marked row after ``before`` others."""
    rows = torch.nonzero(which)
    return before + 1.0 + float(rows[0]) if len(rows) else float("inf")
