"""Run a suite of attacks; finished chunks are kept, so a killed evaluation goes on where it stopped."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..attacks import Outcome, run
from ..attacks.run import join
from ..attacks.slices import columns, cost, within
from ..errors import InvalidArgument
from ..files import read_arrays, write_arrays
from ..functional.memory import enough
from ..functional.ranking import chunks
from ..rng import stream
from ..search import Precision, uses_gradients
from ..types import ClusterTask, RetrievalTask, Search, Threat
from .audit import made_by, refuse_outside

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One attack of a suite.

    Attributes
    ----------
    label
        The name people cite, which also names the random streams.
    attack
        Target, gain, measure; or a composite that has a method ``run`` like
        :func:`holdfast.attacks.run` without its ``attack``.
    higher_is_robust
        For each measure, whether a high value after the attack means a robust encoder; measures that do not
        stand here are kept for each query but not reported.
    fewer_steps
        Steps that the search does less for this entry.
    """

    label: str
    attack: Any
    higher_is_robust: Mapping[str, bool]
    fewer_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class WithSearch:
    """An attack of a suite that is not run with the suite's search as it is.

    Attributes
    ----------
    attack
        Target, gain, measure.
    search
        What searches instead; ``None`` keeps the suite's.
    random_start
        Begin at a random point of the threat where the search can: needed where the gain is flat at the
        clean input, as a squared shift is.
    """

    attack: Any
    search: Search | None = None
    random_start: bool = False

    def run(
        self,
        task: RetrievalTask,
        search: Search,
        threat: Threat,
        *,
        seed: int = 0,
        label: str = "attack",
        precision: Precision = "fp32",
        memory: int | None = None,
    ) -> Outcome:
        """Attack every query at once; see :func:`holdfast.attacks.run`."""
        used: Any = self.search or search
        if self.random_start and hasattr(used, "random_start"):
            used = replace(used, random_start=True)
        return run(
            task, self.attack, used, threat,
            seed=seed, label=label, batch_size=len(task), precision=precision, memory=memory,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Item:
    """One summand of a score: a measure of an entry, mapped to [0, 100] by ``scale * value + offset``.

    Attributes
    ----------
    name
        As in the published tables: ``ES:D``.
    label, metric
        The entry and its measure.
    scale, offset
        The map.
    worst
        Value of the measure, before the map, at which the encoder has nothing left to lose; ``None`` where
        there is no such value. Read by :func:`~holdfast.evaluation.resistance` alone.
    """

    name: str
    label: str
    metric: str
    scale: float
    offset: float = 0.0
    worst: float | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Named attacks that are run with one search under one threat.

    Attributes
    ----------
    name
        Stands in every record; numbers of different suites belong into different tables.
    entries
        The attacks.
    items
        What the suite's score is the mean of; empty where a suite has no score.
    batch_means
        ``None``, or the published habit: means over batches of this many queries, then the mean of those, so
        that a short last batch weighs more.
    union
        Measures whose per-query worst case over all entries is reported too, as attack ``UNION``, and for
        each whether a high value means a robust encoder; see :func:`~holdfast.evaluation.union`.
    clusters
        Whether queries are looked up among centroids: the task has to be a
        :class:`~holdfast.types.ClusterTask`.
    """

    name: str
    entries: tuple[Entry, ...]
    items: tuple[Item, ...] = ()
    batch_means: int | None = None
    union: Mapping[str, bool] = field(default_factory=dict)
    clusters: bool = False


class EntryResult(NamedTuple):
    """What one attack of a suite did, and the seconds it took (those of earlier tries included).

    ``rows`` are the queries that it covers, ascending row numbers of the task; ``None`` means all. With a
    budget or a shard they may be fewer, but they are the same for all attacks of a suite.
    """

    entry: Entry
    outcome: Outcome
    seconds: float
    rows: Tensor | None = None


KEEP_BYTES = 2**25
"""Attacked images of one attack are kept up to this size (32 MiB)."""
LEAST = 16
"""Fewer queries than these are attacked together with copies of themselves: matrix products with few rows are
added up in another order, and a short last chunk would differ in its last bits. Not so for searches without
gradients, whose questions may cost money."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of a suite one call computes.

    Attributes
    ----------
    index, count
        Of ``count`` processes this is number ``index``: it computes every ``count``-th chunk of queries. All
        write into one folder; a later call without a share finds everything there.
    seconds
        Begin no chunk after so many seconds; chunks are then drawn at random, so that what is covered is a
        random sample of the queries. ``None`` computes everything, in order.
    """

    index: int = 0
    count: int = 1
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InvalidArgument("share", "0 <= index < count", (self.index, self.count))
        if self.seconds is not None and not self.seconds > 0:
            raise InvalidArgument("seconds", "a number > 0, or None", self.seconds)


def run_suite(
    task: RetrievalTask,
    suite: Suite,
    search: Search,
    threat: Threat,
    *,
    seed: int = 0,
    chunk: int = 128,
    precision: Precision = "fp32",
    folder: Path | None = None,
    on_chunk: Callable[[str, int, int], None] | None = None,
    share: Share | None = None,
    keep_images: bool | None = None,
    memory: int | None = None,
) -> list[EntryResult]:
    """Run every attack of a suite on every query.

    Where memory runs out in a chunk, the chunk is halved until it fits. Every image that an attack returns is
    looked at (:mod:`holdfast.evaluation.audit`), those that are not kept as well.

    Parameters
    ----------
    task
        Queries and clean gallery.
    suite, search, threat
        What is run, how, and what is allowed.
    seed
        Of targets and random starts; results do not depend on ``chunk``.
    chunk
        Queries attacked at once and stored together.
    precision
        Of the searches; measures are always in the encoder's own.
    folder
        Where finished chunks are kept. The caller gives every setting a folder of its own; ``None`` keeps
        nothing.
    on_chunk
        Called with the label, queries done and queries in all.
    share
        Compute only a part of the queries.
    keep_images
        Keep attacked images in the results and in the folder; by default where those of one attack take no
        more than 32 MiB. Elsewhere ``outcome.x`` is empty, (n, 0): :func:`~holdfast.attacks.run` on chosen
        rows makes the same images again.
    memory
        Bytes for what attacks compute between queries and gallery, see :func:`~holdfast.attacks.run`; it
        changes results by rounding at most. ``None`` is no limit.

    Raises
    ------
    InvalidArgument
        If an attack needs more for a single query; before any begins.
    HoldfastError
        If an attack returns an image that the threat does not allow.
    """
    if chunk < 1:
        raise InvalidArgument("chunk", "an integer >= 1", chunk)
    if suite.clusters and not isinstance(task, ClusterTask):
        raise InvalidArgument("task", f"a ClusterTask for suite {suite.name}", type(task).__name__)
    for entry in suite.entries:
        queries_within(entry, task, memory, chunk)
    share = share or Share()
    if keep_images is None:
        keep_images = len(task) * task.x[:1].numel() * 4 <= KEEP_BYTES
    plan = [torch.arange(rows.start, rows.stop) for rows in chunks(len(task), chunk)]
    names = [f"{int(rows[0]):08d}-{int(rows[-1]) + 1:08d}" for rows in plan]
    if share.seconds is not None:
        mixed = torch.randperm(len(task), generator=stream(seed, "share"))
        plan = [part.sort().values for part in torch.split(mixed, chunk)]
        names = [f"mixed-{seed}-{chunk}-{number:08d}" for number in range(len(plan))]
    budget = None if share.seconds is None else time.monotonic() + share.seconds
    done: dict[str, list[tuple[Outcome, float]]] = {entry.label: [] for entry in suite.entries}
    covered: list[Tensor] = []
    for number in range(share.index, len(plan), share.count):
        if budget is not None and covered and time.monotonic() > budget:
            break
        rows = plan[number]
        covered.append(rows)
        seen = sum(map(len, covered))
        for entry in suite.entries:
            if on_chunk is not None and len(covered) == 1:
                on_chunk(entry.label, 0, len(task))
            path = folder and folder / f"{_file_name(entry.label)}-{names[number]}.npz"
            job = _Job(
                entry, _shortened(search, entry.fewer_steps), threat, seed, precision, keep_images, memory
            )  # fmt: skip
            done[entry.label].append(job.chunk(task, rows, path))
            if on_chunk is not None:
                on_chunk(entry.label, seen, len(task))
    if not covered:
        return []
    together = torch.cat(covered)
    back = together.argsort()
    some = None if len(together) == len(task) else together[back]
    return [
        EntryResult(
            entry,
            taken(join([outcome for outcome, _ in done[entry.label]]), back),
            sum(seconds for _, seconds in done[entry.label]),
            some,
        )
        for entry in suite.entries
    ]


def attack_again(
    part: RetrievalTask,
    entry: Entry,
    search: Search,
    threat: Threat,
    *,
    seed: int = 0,
    precision: Precision = "fp32",
    memory: int | None = None,
) -> Outcome:
    """Attack some queries as :func:`run_suite` does; the same images come out, up to rounding."""
    job = _Job(entry, _shortened(search, entry.fewer_steps), threat, seed, precision, True, memory)
    return job.halving(part)


def queries_within(entry: Entry, task: RetrievalTask, memory: int | None, chunk: int) -> int:
    """Return how many queries of an attack are carried out at once: ``chunk``, or what memory allows.

    An attack with a method ``run`` that knows nothing of memory gets fewer queries at a time; of all others
    the targets, gains and measures are cut instead (:func:`~holdfast.attacks.run`).

    Raises
    ------
    InvalidArgument
        If one query does not fit; names what would be enough.
    """
    if memory is None:
        return chunk
    attack = getattr(entry.attack, "attack", entry.attack) if _knows_memory(entry.attack) else entry.attack
    if not hasattr(attack, "run"):
        within(attack, task, memory, chunk, entry.label)
        return chunk
    needed = sum(cost(attack, task)[:2])
    enough(memory, needed, f"{entry.label} on one query against {columns(task)} rows")
    return min(chunk, memory // needed)


def _knows_memory(attack: Any) -> bool:
    return hasattr(attack, "run") and "memory" in inspect.signature(attack.run).parameters


def taken(outcome: Outcome, rows: Tensor) -> Outcome:
    """Return some queries of an outcome, or all in another order."""
    if len(rows) == len(outcome.z) and torch.equal(rows, torch.arange(len(rows))):
        return outcome
    at = rows.to(outcome.z.device)
    return Outcome(
        x=outcome.x[at],
        z=outcome.z[at],
        clean={name: values[at] for name, values in outcome.clean.items()},
        attacked={name: values[at] for name, values in outcome.attacked.items()},
    )


class _Job(NamedTuple):
    """One attack with all that it needs but the queries."""

    entry: Entry
    search: Search
    threat: Threat
    seed: int
    precision: Precision
    keep_images: bool
    memory: int | None = None

    def chunk(self, task: RetrievalTask, rows: Tensor, path: Path | None) -> tuple[Outcome, float]:
        """Read a chunk, or compute and store it."""
        if path is not None and path.exists():
            return _load(path, task.z.device)
        start = time.perf_counter()
        outcome = self.halving(task.rows(rows.to(task.z.device)))
        seconds = time.perf_counter() - start
        if not self.keep_images:
            outcome = replace(outcome, x=outcome.x.new_empty(len(rows), 0))
        if path is not None:
            _save(path, outcome, seconds)
        return outcome, seconds

    def halving(self, part: RetrievalTask) -> Outcome:
        """Attack some queries at once, or in halves where memory does not suffice."""
        try:
            return self.attack(part)
        except (MemoryError, RuntimeError) as error:
            if len(part) == 1 or not out_of_memory(error):
                raise
        _log.warning("%s: out of memory with %d queries, going on with halves", self.entry.label, len(part))
        if part.z.is_cuda:
            torch.cuda.empty_cache()
        middle = len(part) // 2
        return join([self.halving(part.rows(slice(0, middle))), self.halving(part.rows(slice(middle, None)))])

    def attack(self, part: RetrievalTask) -> Outcome:
        """Attack some queries at once, and look at what comes back."""
        n = len(part)
        padded = self.memory is None and n < LEAST and uses_gradients(self.search)
        together = torch.arange(LEAST, device=part.z.device) % n if padded else None
        try:
            outcome = self.strike(part if together is None else part.rows(together))
        except (MemoryError, RuntimeError) as error:
            if together is None or not out_of_memory(error):
                raise
            outcome = self.strike(part)
        if len(outcome.z) > n:
            outcome = taken(outcome, torch.arange(n))
        placed = getattr(self.threat, "for_rows", None)  # a patch has a place for every query
        limit = self.threat if placed is None else placed(part.index, self.seed, part.x.shape)
        refuse_outside(self.entry.label, outcome.x, part.x, limit)
        return outcome

    def strike(self, part: RetrievalTask) -> Outcome:
        """Attack some queries at once."""
        attack = self.entry.attack
        names: dict[str, Any] = {"seed": self.seed, "label": self.entry.label, "precision": self.precision}
        if not hasattr(attack, "run"):
            names["batch_size"] = len(part)
            return run(part, attack, self.search, self.threat, memory=self.memory, **names)
        if self.memory is not None and _knows_memory(attack):
            names["memory"] = self.memory
        few = queries_within(self.entry, part, self.memory, len(part))
        several = chunks(len(part), few)
        return join([attack.run(part.rows(rows), self.search, self.threat, **names) for rows in several])


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or elsewhere."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _save(path: Path, outcome: Outcome, seconds: float) -> None:
    arrays = {"x": outcome.x, "z": outcome.z}
    arrays |= {f"clean.{k}": v for k, v in outcome.clean.items()}
    arrays |= {f"attacked.{k}": v for k, v in outcome.attacked.items()}
    facts = {"seconds": np.array(seconds), "made_by": np.array(made_by(outcome.z.device))}
    write_arrays(path, {**facts, **{k: v.cpu().numpy() for k, v in arrays.items()}})


def _load(path: Path, device: torch.device) -> tuple[Outcome, float]:
    stored = read_arrays(path)
    seconds = float(stored.pop("seconds"))
    stored.pop("made_by", None)  # files of earlier versions lack it
    arrays = {name: torch.from_numpy(values).to(device) for name, values in stored.items()}
    measures: dict[str, dict[str, torch.Tensor]] = {"clean": {}, "attacked": {}}
    for name, values in arrays.items():
        state, dot, metric = name.partition(".")
        if dot:
            measures[state][metric] = values
    return Outcome(x=arrays["x"], z=arrays["z"], **measures), seconds


def _shortened(search: Any, fewer: int) -> Any:
    if fewer == 0:
        return search
    if not isinstance(getattr(search, "steps", None), int):
        raise InvalidArgument("search", "a search with a number of steps, as the suite shortens it", search)
    return replace(search, steps=max(0, search.steps - fewer))


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "+-" else "_" for c in label)
