"""Run a suite of attacks; finished chunks are kept, so a killed evaluation goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..attacks import Outcome, run
from ..attacks.run import join
from ..errors import InvalidArgument
from ..files import read_arrays, write_arrays
from ..functional.ranking import chunks
from ..search import Precision
from ..types import Attack, RetrievalTask, Search, Threat


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One attack of a suite.

    Attributes
    ----------
    label
        The name people cite, which also names the random streams.
    attack
        Target, gain, measure.
    higher_is_robust
        For each measure, whether a high value after the attack means a robust encoder.
    fewer_steps
        Steps that the search does less for this entry.
    """

    label: str
    attack: Attack[RetrievalTask, Any]
    higher_is_robust: Mapping[str, bool]
    fewer_steps: int = 0


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
    """

    name: str
    label: str
    metric: str
    scale: float
    offset: float = 0.0


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
    """

    name: str
    entries: tuple[Entry, ...]
    items: tuple[Item, ...] = ()
    batch_means: int | None = None


class EntryResult(NamedTuple):
    """What one attack of a suite did, and the seconds it took (those of earlier tries included)."""

    entry: Entry
    outcome: Outcome
    seconds: float


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
) -> list[EntryResult]:
    """Run every attack of a suite on every query.

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
    """
    if chunk < 1:
        raise InvalidArgument("chunk", "an integer >= 1", chunk)
    results = []
    for entry in suite.entries:
        entry_search = _shortened(search, entry.fewer_steps)
        parts: list[Outcome] = []
        seconds = 0.0
        for rows in chunks(len(task), chunk):
            name = f"{_file_name(entry.label)}-{rows.start:08d}-{rows.stop:08d}.npz"
            path = folder and folder / name
            part, spent = _chunk(task.rows(rows), entry, entry_search, threat, seed, precision, path)
            parts.append(part)
            seconds += spent
            if on_chunk is not None:
                on_chunk(entry.label, rows.stop, len(task))
        results.append(EntryResult(entry, join(parts), seconds))
    return results


def _chunk(
    part: RetrievalTask,
    entry: Entry,
    search: Search,
    threat: Threat,
    seed: int,
    precision: Precision,
    path: Path | None,
) -> tuple[Outcome, float]:
    if path is not None and path.exists():
        return _load(path, part.x.device)
    start = time.perf_counter()
    outcome = run(
        part,
        entry.attack,
        search,
        threat,
        seed=seed,
        label=entry.label,
        batch_size=len(part),
        precision=precision,
    )
    seconds = time.perf_counter() - start
    if path is not None:
        _save(path, outcome, seconds)
    return outcome, seconds


def _save(path: Path, outcome: Outcome, seconds: float) -> None:
    arrays = {"x": outcome.x, "z": outcome.z}
    arrays |= {f"clean.{k}": v for k, v in outcome.clean.items()}
    arrays |= {f"attacked.{k}": v for k, v in outcome.attacked.items()}
    write_arrays(path, {"seconds": np.array(seconds), **{k: v.cpu().numpy() for k, v in arrays.items()}})


def _load(path: Path, device: torch.device) -> tuple[Outcome, float]:
    stored = read_arrays(path)
    seconds = float(stored.pop("seconds"))
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
