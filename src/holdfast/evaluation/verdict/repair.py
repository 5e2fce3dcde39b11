"""Mend what an examination found too weak, once, and examine again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ...search import APGD, Averaged, Square
from ...types import Gallery, Search
from ..embed import embed
from .examination import BATCH, Examination
from .examine import conduct
from .finding import Verdict
from .material import ENOUGH_PASSES, SQUARE, MeanEmbedding, Unavailable
from .searches import changed, takes_start

MOST_STEPS = 1000
RESTARTS = 10
SHARE_OF_TIME = 0.6
"""Of the budget, for repairs; the rest is for the second examination."""

USELESS = 0.5
"""Share of queries without a gradient from which Square takes the place of the search."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Repaired:
    """What is left after the repairs.

    Attributes
    ----------
    rows
        (k,) rows of the task: the queries of the sample, all right when clean before the repair.
    success
        (k,) bool: some attack that was seen broke the query.
    search
        The search with its repairs.
    verdict
        Of the second examination; of the first where nothing could be repaired.
    applied
        Ids of the checks that were answered, with what was done.
    seconds
        Time spent.
    """

    rows: Tensor
    success: Tensor
    search: Search
    verdict: Verdict
    applied: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def repair(e: Examination, verdict: Verdict, budget_seconds: float | None = None) -> Repaired:
    """Apply the repairs that a verdict asks for, once, and examine again.

    R1: gradients averaged over 20 passes, and decisions by the mean embedding of 20. R4, R5, R14: Square is
    added, or takes the place of a search that finds no gradient for most queries. R23, R13: the best iterate
    is kept. R9, R10: steps are doubled until nothing is added, up to 1000. R11: ten restarts. R12: APGD with
    as many steps. R8, R16 to R20, R35, and after Square or APGD: the score is the union of all attacks seen.
    What only a person can mend (a mode, an index, too few queries) is left alone. The second examination
    draws anew on the same queries.

    Parameters
    ----------
    e
        The examination that led to the verdict. What its checks found is counted.
    verdict
        Its verdict.
    budget_seconds
        For repairs and second examination together; no repair begins after 60 % of it.

    Raises
    ------
    InvalidArgument
        For a budget that is not above 0.
    Unavailable
        If no query is right without an attack.
    """
    if budget_seconds is not None and not budget_seconds > 0:
        raise InvalidArgument("budget_seconds", "a number > 0, or None", budget_seconds)
    begin = time.perf_counter()
    budget = math.inf if budget_seconds is None else budget_seconds
    before = {f"before, {name}": success for name, success in e.found.items()}
    work = _Work(
        replace(e, deadline=begin + SHARE_OF_TIME * budget, again=e.again + 1, found=before), verdict
    )
    for name, mend in REPAIRS.items():
        if name in verdict.failed and not work.e.late() and (done := mend(work)) is not None:
            work.applied[name] = done
    final = replace(work.e, deadline=begin + budget)
    if work.applied:
        verdict = conduct(final)
    return Repaired(
        rows=final.rows,
        success=_union(final),
        search=final.search,
        verdict=verdict,
        applied=work.applied,
        seconds=time.perf_counter() - begin,
    )


def _union(e: Examination) -> Tensor:
    """Return the success of all attacks seen on the sample: (n,) bool."""
    none = torch.zeros(len(e.part), dtype=torch.bool, device=e.device)
    return torch.stack([none, *e.stored.values(), *e.found.values()]).any(0)


class _Work:
    """An examination under repair."""

    def __init__(self, e: Examination, verdict: Verdict) -> None:
        self.e = e
        self.verdict = verdict
        self.applied: dict[str, str] = {}

    @property
    def search(self) -> Any:
        """The search as it is now."""
        return self.e.search

    def change(self, **fields: Any) -> None:
        """Go on with other fields."""
        self.e = replace(self.e, **fields)


def _averaged(work: _Work) -> str:
    e, search = work.e, work.search
    gradient = getattr(search, "gradient", None)
    if gradient is not None and not isinstance(gradient, Averaged):
        search = changed(search, gradient=Averaged(gradient=gradient, samples=ENOUGH_PASSES))
    mean = MeanEmbedding(e.task.encoder, ENOUGH_PASSES)
    z, gallery = embed(mean, e.task.x, BATCH), e.task.gallery
    try:
        if e.clusters is not None:
            gallery = e.under(mean, e.part).gallery
        else:
            images = e.gallery_images
            known = z if images is e.task.x else embed(mean, images, BATCH)
            gallery = Gallery(known, gallery.y, gallery.ids)
    except Unavailable:  # then the gallery stays that of one pass
        pass
    task = replace(e.task, z=z, gallery=gallery)
    work.change(task=task, search=search, passes=ENOUGH_PASSES, found={})  # successes were those of one pass
    return f"gradients and decisions are means of {ENOUGH_PASSES} passes"


def _keep_best(work: _Work) -> str | None:
    if getattr(work.search, "keep", None) != "last":
        return None
    work.change(search=changed(work.search, keep="best"))
    return "keep='best'"


def _double_steps(work: _Work) -> str | None:
    e, steps = work.e, getattr(work.search, "steps", None)
    if not isinstance(steps, int) or not 1 <= steps < MOST_STEPS or "R9" in work.applied:
        return None
    success, x, total = e.primary.success.clone(), e.primary.x, steps
    while total < MOST_STEPS and not e.late():
        left = torch.nonzero(~success).squeeze(1)
        if not len(left):
            break
        more = min(total, MOST_STEPS - total)
        total += more
        warm = takes_start(e.search)
        search = changed(e.search, steps=more, restarts=1) if warm else changed(e.search, steps=total)
        start = x[left] if warm else None
        longer = e.strike(e.part.rows(left), f"steps {total}", search=search, start=start)
        x = x.index_put((left,), longer.x)
        success[left] |= longer.success
        if int(longer.success.sum()) <= 0.01 * len(success):
            break
    e.found["doubled steps"] = success
    work.change(search=changed(e.search, steps=total))
    return f"{total} steps"


def _restarts(work: _Work) -> str | None:
    if not hasattr(work.search, "restarts"):
        return None
    work.change(search=changed(work.search, restarts=RESTARTS, keep="best"), union=True)
    return f"{RESTARTS} restarts"


def _apgd(work: _Work) -> str | None:
    search = work.search
    if isinstance(search, APGD) or not hasattr(search, "gradient"):
        return None
    fields = {"restarts": getattr(search, "restarts", 1), "gradient": search.gradient}
    better = APGD(steps=max(search.steps, 1), random_start=getattr(search, "random_start", False), **fields)
    work.change(search=better, union=True)
    return f"APGD with {better.steps} steps; the union is the score"


def _square(work: _Work) -> str | None:
    if SQUARE in work.e.found:
        return None
    square = Square(queries=work.e.effort.calls, stop_at=0.0)
    dead = [f for f in work.verdict.findings if f.id == "R4" and f.status == "fail"]
    if dead and (dead[0].value or 0.0) >= USELESS:
        work.change(search=square, union=True)
        return f"Square with {square.queries} queries in place of the gradients"
    left = torch.nonzero(~_union(work.e)).squeeze(1)
    if len(left):
        hit = work.e.strike(work.e.part.rows(left), SQUARE, search=square)
        work.e.added(SQUARE, left, hit.success)
    else:
        work.e.found[SQUARE] = torch.zeros(len(work.e.part), dtype=torch.bool, device=work.e.device)
    work.change(union=True)
    return f"Square with {square.queries} queries; the union is the score"


def _take_union(work: _Work) -> str | None:
    work.change(union=True)
    return "the union of all attacks seen is the score"


REPAIRS: Mapping[str, Callable[[_Work], str | None]] = {
    "R1": _averaged,
    "R4": _square,
    "R5": _square,
    "R14": _square,
    "R23": _keep_best,
    "R13": _keep_best,
    "R9": _double_steps,
    "R10": _double_steps,
    "R11": _restarts,
    "R12": _apgd,
    **dict.fromkeys(("R8", "R16", "R17", "R18", "R19", "R20", "R35"), _take_union),
}
"""What is done about each failure, in this order."""
