"""The whole evaluation of a task: clean metrics, a suite, its scores, a verdict; as records in a folder."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..attacks import Outcome, hits
from ..attacks.indexed import AgainstIndex, Index, index_hits
from ..attacks.slices import queries_in
from ..errors import InvalidArgument
from ..files import read_json, write_json
from ..results import record
from ..results.record import UNCHECKED, Record
from ..rng import stream
from ..search import Precision
from ..search.precision import choose_precision
from ..threat import L2Threat, LinfThreat
from ..types import ClusterTask, Images, RetrievalTask, Search
from .clusters import (
    evaluate_clusters,
    farthest,
    measurable,
    of_labelled,
    set_scores,
    write_clusters,
    write_members,
)
from .exhibit import write_exhibits
from .maps import write_maps
from .resistance import resistance
from .retrieval import CUTS, evaluate_retrieval
from .score import score
from .smallest import robustness_curve
from .stats import Estimate, estimate
from .suite import Entry, EntryResult, Share, Suite, attack_again, run_suite, taken
from .union import UNION, union
from .verdict import CHECKS, Examination, Repaired, Verdict, conduct, repair
from .verdict.deployment import precision as precision_check
from .verdict.material import Unavailable

Level = Literal["off", "quick", "full"]
LEVELS: tuple[Level, ...] = ("off", "quick", "full")
DONE, VERDICT, MENDED = "done.json", "verdict.json", "repaired.json"
DEPLOYED, INDEXED = "recall@1:index", "INDEX"
"""The share of queries that the deployed index answers rightly, and the attack that aims at it."""
CHECKED = 1024
"""Queries that the checks compare with the gallery at once."""
TRIED = 256
"""Queries that a precision is tried on."""
WORTH = 8 * TRIED
"""Attacks of single queries from which trying a precision can save time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured and how; with the task it decides every number.

    Attributes
    ----------
    suite, search, threat
        Attacks, how they search, what is allowed.
    seed
        Of targets, random starts, k-means and bootstrap.
    precision
        Of the searches; ``"auto"`` has to be settled (:func:`settled`) before anything is measured.
    level
        How the evaluation is checked: ``"off"``, ``"quick"`` or ``"full"``.
    repair_seconds
        Time for mending what failed (:func:`~holdfast.evaluation.verdict.repair`); ``None`` mends nothing.
        What comes out is recorded as ``REPAIRED recall@1`` (of clusters ``flip``), on the sample that the
        checks looked at.
    labelled
        Whether labels mean anything; without them only measures that need none are taken.
    chunk
        Queries at a time; changes no result.
    share
        Compute a part only.
    memory
        Bytes for what is computed between queries and gallery, on top of embeddings, images and what the
        encoder needs; it changes results by rounding at most, but the checks look at so many queries only as
        they can compare with the gallery at once. ``None`` is no limit.
    index
        The deployed search: (n, e), k -> (n, k) gallery rows. Set by :func:`against`.
    evidence
        What some checks need besides, by the names of :class:`~holdfast.evaluation.verdict.Examination`.
    """

    suite: Suite
    search: Search
    threat: Any
    seed: int = 0
    precision: Precision = "fp32"
    level: Level = "quick"
    repair_seconds: float | None = None
    labelled: bool = True
    chunk: int = 128
    share: Share = field(default_factory=Share)
    memory: int | None = None
    index: Index | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InvalidArgument("level", "'off', 'quick' or 'full'", self.level)
        if self.memory is not None and self.memory < 1:
            raise InvalidArgument("memory", "bytes >= 1, or None", self.memory)


def against(plan: Plan, index: Index) -> Plan:
    """Put a deployed index into the loop of an evaluation.

    Beside every Recall@1 by exact search then stands ``recall@1:index``, what the index makes of the same
    embeddings; an attack ``INDEX`` (:class:`~holdfast.attacks.indexed.AgainstIndex`) aims at its answers; and
    check R29 compares the two.

    Raises
    ------
    InvalidArgument
        For a suite on clusters, or images without labels.
    """
    if plan.suite.clusters or not plan.labelled:
        raise InvalidArgument("index", "a suite on a gallery, and labels", plan.suite.name)
    flags = {"recall@1": True, DEPLOYED: True}
    entry = Entry(label=INDEXED, attack=AgainstIndex(index=index), higher_is_robust=flags)
    suite = replace(plan.suite, entries=(*plan.suite.entries, entry))
    return replace(plan, suite=suite, index=index, evidence={**plan.evidence, "index": index})


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an evaluation found.

    Attributes
    ----------
    records
        One for each number.
    results
        Per-query values of each attack; empty where the records were read back.
    verdict
        On the evaluation itself; ``None`` where it was not checked: not asked for, no labels, no attack, or a
        threat that is no l-inf or l2 ball.
    """

    records: list[Record]
    results: Sequence[EntryResult] = ()
    verdict: Verdict | None = None


def measure(
    task: RetrievalTask,
    plan: Plan,
    shared: Mapping[str, Any],
    settings: Mapping[str, Any],
    folder: Path | None = None,
    *,
    gallery_images: Images | None = None,
    class_names: Sequence[str] = (),
    on_chunk: Callable[[str, int, int], None] | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Measured:
    """Evaluate a task.

    Parameters
    ----------
    task, plan
        What is evaluated and how. Of a :class:`~holdfast.types.ClusterTask` the records also hold the scores
        of :func:`~holdfast.evaluation.clusters.set_scores`, clean, under each attack and under their union;
        without class labels only what needs none.
    shared
        Fields that all records have: run, dataset, encoder, defense, ...
    settings
        Plain data that, hashed, tells this evaluation from all others.
    folder
        Gets ``records.jsonl``, ``evaluations/`` (per-query values, verdict, clusters), ``exhibits/`` and
        ``maps/``.
        Measured there before, :func:`read_back` gives the records; begun there before, finished chunks are
        not repeated.
    gallery_images
        For the exhibits; ``None`` writes none.
    class_names
        Name of label i at position i.
    on_chunk
        Called with attack, queries done and queries in all.
    on_step
        Called with what is done besides attacks, steps done and steps in all (0 where that is unknown),
        before and between these steps.
    """
    tell = on_step or _silent
    fingerprint = _fingerprint(settings, plan)
    path, store = (folder and folder / "records.jsonl"), (folder and folder / "evaluations" / fingerprint)
    if store is not None:
        write_json(store / "settings.json", settings)
    if isinstance(task, ClusterTask):
        plan = replace(plan, suite=measurable(plan.suite, task))
        if store is not None:
            write_clusters(store, task)
    results = run_suite(
        task, plan.suite, plan.search, plan.threat,
        seed=plan.seed, chunk=plan.chunk, precision=plan.precision, folder=store, on_chunk=on_chunk,
        share=plan.share, memory=plan.memory,
    )  # fmt: skip
    if plan.share.count > 1:  # one of several processes: whoever puts the shares together writes records
        return Measured(records=[], results=results)
    covered = results[0].rows if results else None
    part = task if covered is None else task.rows(covered.to(task.z.device))
    tell("clean queries", 0, 0)
    start = time.perf_counter()
    benign = _benign(part, plan)
    spent = time.perf_counter() - start
    verdict, repaired = None, None
    ball = isinstance(plan.threat, LinfThreat | L2Threat) and plan.threat.eps > 0
    able = plan.labelled or isinstance(task, ClusterTask)  # which cluster was its own, every query knows
    if plan.level != "off" and able and plan.suite.entries and ball:
        seen, looked_at, evidence = _examined(part, plan, results)
        examination = Examination(
            task=seen, results=looked_at, search=plan.search, threat=plan.threat, seed=plan.seed,
            level=cast(Any, plan.level), precision=plan.precision, **evidence,
        )  # fmt: skip
        steps = iter(range(1, len(CHECKS) + 1))
        tell("checks", 0, len(CHECKS))
        verdict = conduct(examination, on_finding=lambda _: tell("checks", next(steps), len(CHECKS)))
        if plan.repair_seconds is not None:
            tell("repairs", 0, 0)
            repaired = repair(examination, verdict, plan.repair_seconds)
    tell("scores and intervals", 0, 0)
    about = {**shared, "suite": plan.suite.name, "norm": plan.threat.norm, "fingerprint": fingerprint}
    about["precision"] = plan.precision
    about["verdict"] = UNCHECKED if verdict is None else verdict.word
    about["failed"] = () if verdict is None else verdict.failed
    records = [_record(about, "none", "clean", m, e, seconds=spent) for m, e in benign.items()]
    worst = farthest(part, results) if isinstance(part, ClusterTask) else None
    records += _attacked(plan, results, about, part, worst)
    if repaired is not None:
        records.append(_repaired(plan, repaired, part, about))
    if folder is not None:
        if isinstance(part, ClusterTask) and store is not None and results and covered is None:
            write_members(store, part, cast(Tensor, worst))
        if verdict is not None and store is not None:
            write_json(store / VERDICT, verdict.to_plain())
        if repaired is not None and store is not None:
            write_json(store / MENDED, {**repaired.verdict.to_plain(), "applied": dict(repaired.applied)})
        if gallery_images is not None and plan.suite.entries and part.x.ndim == 4:
            tell("examples", 0, 0)
            _exhibit(folder / "exhibits", task, plan, gallery_images, results, class_names)
            if not isinstance(task, ClusterTask):
                write_maps(
                    folder / "maps", folder / "exhibits", task, results, plan.threat, class_names, plan.seed
                )
    if path is not None and store is not None:
        record.append(path, records)
        complete = covered is None or plan.share.seconds is None
        write_json(
            store / DONE,
            {
                "level": plan.level,
                "seconds": plan.share.seconds,
                "complete": complete,
                "repaired": repaired is not None,
                "records": len(record.latest(records)),
            },
        )
    return Measured(records=records, results=results, verdict=verdict)


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def settled(task: RetrievalTask, plan: Plan, settings: Mapping[str, Any], folder: Path | None) -> Plan:
    """Replace precision ``"auto"`` by the one that is used: see :func:`~holdfast.search.choose_precision`.

    What speaks against bfloat16 is check R31 on a sample of the queries; where labels or a ball are missing
    nobody can tell, and float32 is used. So it is for the suite of the published code, which computes in
    float32, and where the suite makes less than ``WORTH`` attacks, as trying costs more than is saved. What
    was found for the same ``settings`` stands in the folder: processes that share a suite ask once.
    """
    if plan.precision != "auto":
        return plan
    by_queries = not hasattr(plan.search, "steps")  # no passes backwards to save
    if by_queries or plan.suite.batch_means is not None or len(task) * len(plan.suite.entries) < WORTH:
        return replace(plan, precision="fp32")
    path = folder and folder / "evaluations" / f"precision-{_fingerprint(settings, plan)}.json"
    if path is not None and path.exists():
        return replace(plan, precision=read_json(path)["precision"])
    ball = isinstance(plan.threat, LinfThreat | L2Threat) and plan.threat.eps > 0
    able = ball and (plan.labelled or isinstance(task, ClusterTask))

    def agrees() -> bool:
        some = sample(task, queries_in(plan.memory, task, TRIED), plan.seed)
        asked = Examination(
            task=some, search=plan.search, threat=plan.threat, seed=plan.seed, precision="bf16"
        )  # fmt: skip
        try:
            return precision_check(asked).status == "pass"
        except Unavailable:
            return False

    chosen = choose_precision(task.encoder, task.z.device, agrees=agrees if able else None)
    _log.info("precision of the searches: %s, as %s", chosen.precision, chosen.reason)
    if path is not None:
        write_json(path, chosen._asdict())
    return replace(plan, precision=chosen.precision)


def _examined(
    part: RetrievalTask, plan: Plan, results: Sequence[EntryResult]
) -> tuple[RetrievalTask, Sequence[EntryResult], Mapping[str, Any]]:
    """Return what the checks look at: all that is covered, or a random sample that memory allows."""
    whole = [result._replace(rows=None) for result in results]  # row i of an outcome is query i of ``part``
    fit = queries_in(plan.memory, part, CHECKED)
    if fit >= min(len(part), CHECKED):
        return part, whole, plan.evidence
    rows = torch.randperm(len(part), generator=stream(plan.seed, "checks"))[:fit].sort().values
    some = [r._replace(outcome=taken(r.outcome, rows)) for r in whole]
    evidence = {name: value for name, value in plan.evidence.items() if name != "certificate"}
    return part.rows(rows.to(part.z.device)), some, evidence


def _strength(plan: Plan) -> dict[str, Any]:
    """Return the fields of records that tell the strength of an evaluation."""
    alpha, steps = getattr(plan.search, "alpha", 0.0), getattr(plan.search, "steps", None)
    return {
        "eps": plan.threat.eps,
        "alpha": float(alpha) if isinstance(alpha, int | float) else 0.0,
        "steps": int(getattr(plan.search, "queries", 0) if steps is None else steps),
    }


def _repaired(plan: Plan, found: Repaired, task: RetrievalTask, about: Mapping[str, Any]) -> Record:
    """Return Recall@1 under the mended attacks; queries that are wrong when clean count as they are.

    Of clusters it is the flip rate. Steps and their length are those that the evaluation began with: the
    record stands beside its others.
    """
    right = float(hits(task.z, task).mean())
    held = estimate((~found.success).double(), plan.seed)
    scaled = Estimate(held.value * right, held.low * right, held.high * right, held.n)
    seen = {**about, "verdict": found.verdict.word, "failed": found.verdict.failed, **_strength(plan)}
    metric, higher = "recall@1", True
    if isinstance(task, ClusterTask):
        metric, higher = "flip", False
        scaled = Estimate(1 - scaled.value, 1 - scaled.high, 1 - scaled.low, scaled.n)
    more = {"higher_is_robust": higher, "seconds": found.seconds}
    return _record(seen, "REPAIRED", "attacked", metric, scaled, **more)


def read_back(folder: Path | None, settings: Mapping[str, Any], plan: Plan) -> Measured | None:
    """Return what :func:`measure` left in a folder, if it answers the plan; no image is looked at."""
    if folder is None or not (folder / "records.jsonl").exists():
        return None
    fingerprint = _fingerprint(settings, plan)
    path, store = folder / "records.jsonl", folder / "evaluations" / fingerprint
    records = record.latest(r for r in record.read(path) if r["fingerprint"] == fingerprint)
    if not (store / DONE).exists():  # stopped before or while its records were appended
        return None
    done = read_json(store / DONE)
    enough = LEVELS.index(done["level"]) >= LEVELS.index(plan.level)
    covers = done["complete"] or plan.share.seconds == done["seconds"]
    mended = plan.repair_seconds is None or done.get("repaired", False)
    whole = len(records) >= max(done.get("records", 1), 1)  # no line of them was torn
    if not (whole and enough and covers and mended):
        return None
    verdict = None
    if (store / VERDICT).exists():
        verdict = Verdict.from_plain(read_json(store / VERDICT))
    return Measured(records=records, verdict=verdict)


def _fingerprint(settings: Mapping[str, Any], plan: Plan) -> str:
    """Hash what decides per-query values, the order under a budget included; a level changes no value."""
    mixed = {} if plan.share.seconds is None else {"mixed": True}
    return hashlib.sha256(json.dumps({**settings, **mixed}, sort_keys=True).encode()).hexdigest()[:16]


def _benign(part: RetrievalTask, plan: Plan) -> dict[str, Estimate]:
    """Return what is known of the clean queries."""
    if isinstance(part, ClusterTask):
        return evaluate_clusters(part, plan.seed)
    cuts = [k for k in CUTS if k < len(part.gallery.z)]
    found = evaluate_retrieval(part, cuts, seed=plan.seed, memory=plan.memory) if plan.labelled else {}
    if plan.index is not None:
        found[DEPLOYED] = estimate(index_hits(plan.index, part.z, part), plan.seed)
    return found


def _attacked(
    plan: Plan,
    results: Sequence[EntryResult],
    about: Mapping[str, Any],
    part: RetrievalTask,
    worst: Tensor | None,
) -> list[Record]:
    """Return the records under attack; ``worst`` (n, e) are the embeddings of :func:`farthest`."""
    at = {**about, **_strength(plan)}
    records = []

    def measured(label: str, state: str, metric: str, values: Tensor, higher: bool, seconds: float) -> None:
        if isinstance(part, ClusterTask):
            values = of_labelled(values, metric, part)
        e = estimate(values, plan.seed)
        records.append(_record(at, label, state, metric, e, higher_is_robust=higher, seconds=seconds))

    for entry, outcome, seconds, _ in results:
        for state, measures in (("clean", outcome.clean), ("attacked", outcome.attacked)):
            for metric, higher in entry.higher_is_robust.items():
                measured(entry.label, state, metric, measures[metric], higher, seconds)
        if plan.index is not None and DEPLOYED not in outcome.attacked and "recall@1" in outcome.attacked:
            found_there = index_hits(plan.index, outcome.z, part)
            measured(entry.label, "attacked", DEPLOYED, found_there, True, seconds)
        if "radius" in outcome.attacked:
            points, median = robustness_curve(outcome, plan.threat.eps)
            for radius, e in points[:-1]:  # the last stands there already
                records.append(_record({**at, "eps": radius}, entry.label, "attacked", "recall@1", e))
            if math.isfinite(median.value) and math.isfinite(median.high):
                records.append(_record(at, entry.label, "attacked", "median radius", median))
        if isinstance(part, ClusterTask) and getattr(entry.attack, "moves_queries", True):
            found = set_scores(outcome.z, part, plan.seed)
            records += [_record(at, entry.label, "attacked", m, e, seconds=seconds) for m, e in found.items()]
    whole = sum(result.seconds for result in results)
    for state, values in zip(("clean", "attacked"), union(plan.suite, results), strict=True):
        for metric, v in values.items():
            measured(UNION, state, metric, v, plan.suite.union[metric], whole)
    if isinstance(part, ClusterTask) and worst is not None and plan.suite.union and results:
        found = set_scores(worst, part, plan.seed)
        records += [_record(at, UNION, "attacked", m, e, seconds=whole) for m, e in found.items()]
    if not plan.suite.items:
        return records
    overall = {**at, "seconds": whole}
    for name, scored in (
        ("ers", score(plan.suite, results, plan.seed)),
        ("resistance", resistance(plan.suite, results, plan.seed)),
    ):
        records.append(_record(overall, "all", "attacked", name, scored.total))
        records += [
            _record(overall, "all", "attacked", f"{item} of {name}", e) for item, e in scored.items.items()
        ]
    return records


def _exhibit(
    folder: Path,
    task: RetrievalTask,
    plan: Plan,
    images: Images,
    results: Sequence[EntryResult],
    class_names: Sequence[str],
) -> None:
    shown = task
    if isinstance(task, ClusterTask):  # people look at images, of which a centroid is none
        if task.images is None:
            return
        shown = task.images

    def again(entry: Entry, part: RetrievalTask) -> Outcome:
        if shown is not task:
            order = task.index.argsort()
            part = task.rows(order[torch.searchsorted(task.index[order], part.index)].to(task.z.device))
        return attack_again(
            part, entry, plan.search, plan.threat,
            seed=plan.seed, precision=plan.precision, memory=plan.memory,
        )  # fmt: skip

    write_exhibits(folder, shown, images, results, plan.threat, class_names, again=again)


def _record(
    shared: Mapping[str, Any], attack: str, state: str, metric: str, e: Estimate, **more: Any
) -> Record:
    fields = {**shared, **more}
    return record.make(
        attack=attack, state=state, metric=metric, value=e.value, n=e.n, ci=(e.low, e.high), **fields
    )


def sample(task: RetrievalTask, queries: int | None, seed: int) -> RetrievalTask:
    """Return the task for a random sample of its queries, in their order; all where there are no more."""
    if queries is None or queries >= len(task):
        return task
    if queries < 1:
        raise InvalidArgument("queries", "an integer >= 1, or None for all", queries)
    rows = torch.randperm(len(task), generator=stream(seed, "sample"))[:queries].sort().values
    return task.rows(rows.to(task.z.device))
