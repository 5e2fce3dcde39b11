"""Run the checks of a level and judge what they found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ...errors import InvalidArgument
from ...types import RetrievalTask, Search, Threat
from ..suite import EntryResult
from .examination import Examination
from .finding import Finding, Verdict
from .material import Level, Unavailable
from .table import CHECKS, Check
from .texts import skipped


def examine(
    task: RetrievalTask,
    results: Sequence[EntryResult] = (),
    *,
    search: Search,
    threat: Threat,
    level: Level = "quick",
    seed: int = 0,
    budget_seconds: float | None = None,
    on_finding: Callable[[Finding], None] | None = None,
    **material: Any,
) -> Verdict:
    """Examine the evaluation of an encoder.

    Parameters
    ----------
    task
        Queries and clean gallery, as they were evaluated.
    results
        From :func:`~holdfast.evaluation.run_suite` on that task; may be empty.
    search, threat
        Of the evaluation; the radius must be above 0.
    level
        ``"quick"`` checks on up to 200 queries and costs less than half of the ``ers`` suite; ``"full"`` adds
        restarts, step lengths, black-box and planted points, on up to 1000 queries.
    seed
        Of the sample of queries and of all draws.
    budget_seconds
        Begin no check after so many seconds; those left out count as warnings. Cheap ones go first.
    on_finding
        Called after every check.
    **material
        Other fields of :class:`Examination`: ``twin``, ``surrogates``, ``members``, ``index``,
        ``certificate``, ``claim``, ``train_x``, ``train_y``, ``gallery_x``, ``precision``, ``attack``,
        ``queries``, ``deployed_mode``.

    Returns
    -------
    Verdict
        With a finding for every check, in the order of the page.

    Raises
    ------
    InvalidArgument
        If task, results and material do not fit together. Whatever an encoder raises passes through, except
        that a search which refuses to climb becomes a finding of R4.
    """
    e = Examination(
        task=task, results=results, search=search, threat=threat, level=level, seed=seed, **material
    )
    return conduct(e, budget_seconds, on_finding)


def conduct(
    e: Examination,
    budget_seconds: float | None = None,
    on_finding: Callable[[Finding], None] | None = None,
) -> Verdict:
    """Run the checks of an examination; see :func:`examine`."""
    if budget_seconds is not None and not budget_seconds > 0:
        raise InvalidArgument("budget_seconds", "a number > 0, or None", budget_seconds)
    begin = time.perf_counter()
    if budget_seconds is not None:
        e = replace(e, deadline=begin + budget_seconds)
    findings: dict[str, Finding] = {}
    for check in sorted(CHECKS.values(), key=lambda check: check.cost):
        start = time.perf_counter()
        finding = replace(_run(check, e), seconds=time.perf_counter() - start)
        findings[check.id] = finding
        if on_finding is not None:
            on_finding(finding)
    return Verdict.of([findings[name] for name in CHECKS], seconds=time.perf_counter() - begin)


def _run(check: Check, e: Examination) -> Finding:
    if check.level == "full" and e.level == "quick":
        return skipped(check.id, "runs at level full")
    if e.late() and check.possible(e):
        return skipped(check.id, "the time was used up", owed=True)
    try:
        return check.run(e)
    except Unavailable as reason:
        return skipped(check.id, str(reason))
