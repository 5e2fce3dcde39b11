"""One measured number with everything needed to read it again, kept as one JSON line.

Shares (``recall@k``, ``map``, ``map@r``, ``nmi``, ``rank``) are fractions in [0, 1], never percent; scores
whose name ends in ``ers`` or ``ars`` are in [0, 100]; distances (``shift``) are in units of the distance.
Of clusters ``flip``, ``accuracy``, ``majority``, ``purity`` and ``nmi`` are fractions, ``ami`` and ``ari``
are corrected for chance and may be below 0; a name that ends in ``-t`` is of queries that were clustered
anew, and its ``ci`` is the mean minus and plus the standard deviation over the seeds of k-means.
Files only grow: measuring again appends, and :func:`latest` says which line counts.
"""

from __future__ import annotations

import datetime
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from .._version import __version__
from ..errors import CorruptFile, InvalidArgument, RunError
from ..files import append_lines, read_lines

SCHEMA = 1
_LARGEST = sys.float_info.max
_SHARE = re.compile(
    r"(recall|precision|retain)@\d+|map|map@(r|\d+)|rank|hub|flip( from .+)?|majority|"
    r"(nmi|purity|accuracy)(-t)?"
)


class Record(TypedDict):
    """One number that an evaluation produced; see :func:`make` for the fields."""

    schema: int
    time: str
    run: str
    dataset: str
    protocol: str
    encoder: str
    defense: str
    suite: str
    attack: str
    state: str
    norm: str
    eps: float
    alpha: float
    steps: int
    metric: str
    value: float
    n: int
    ci: list[float] | None
    higher_is_robust: bool
    seed: int
    seconds: float
    version: str
    fingerprint: str
    verdict: str
    failed: list[str]
    precision: str


MOST = 2**53
"""Whole numbers beyond it are no counts or seeds, and not exact in JSON elsewhere."""
LONGEST = 4096
"""Characters of a text field, at most."""
UNCHECKED = "UNCHECKED"
"""Verdict of a number whose evaluation was not examined."""

PRECISIONS = ("fp32", "bf16")
"""What searches compute in."""

_LATER: Mapping[str, Any] = {"verdict": UNCHECKED, "failed": [], "precision": "fp32"}
"""Fields that records of earlier versions lack, and what they then mean."""

_KINDS: Mapping[str, tuple[type, ...]] = {
    name: {int: (int,), float: (int, float), str: (str,), bool: (bool,)}.get(kind, (list, type(None)))
    for name, kind in {
        **dict.fromkeys(("schema", "steps", "n", "seed"), int),
        **dict.fromkeys(("eps", "alpha", "value", "seconds"), float),
        **dict.fromkeys(("time", "run", "dataset", "protocol", "encoder", "defense", "suite"), str),
        **dict.fromkeys(("attack", "state", "norm", "metric", "version", "fingerprint"), str),
        **dict.fromkeys(("verdict", "precision"), str),
        "higher_is_robust": bool,
        "ci": list,
    }.items()
}


def _fault(record: Mapping[str, Any]) -> tuple[str, str, Any] | None:
    """Return (field, what it needs, what came) for the first thing that is wrong, or None."""
    for name, kinds in _KINDS.items():
        value = record.get(name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            return name, " or ".join("null" if k is type(None) else k.__name__ for k in kinds), value
        if isinstance(value, int) and not -MOST <= value <= MOST:
            return name, "a number of at most 2^53", "a larger one"
        if isinstance(value, str) and len(value) > LONGEST:
            return name, f"at most {LONGEST} characters", f"{len(value)}"
    for name in ("eps", "alpha", "seconds", "value"):
        if not math.isfinite(record[name]) or (name != "value" and record[name] < 0):
            return name, "a finite number" + ("" if name == "value" else " >= 0"), record[name]
    if record["n"] < 1:
        return "n", "at least 1 query", record["n"]
    if record["precision"] not in PRECISIONS:
        return "precision", " or ".join(PRECISIONS), record["precision"]
    if record["state"] not in ("clean", "attacked"):
        return "state", "'clean' or 'attacked'", record["state"]
    if _SHARE.fullmatch(record["metric"]) and not -1e-6 <= record["value"] <= 1 + 1e-6:
        return "value", f"a fraction in [0, 1] for the metric {record['metric']!r}", record["value"]
    failed = record.get("failed")
    if not isinstance(failed, list) or not all(isinstance(f, str) and len(f) <= LONGEST for f in failed):
        return "failed", "a list of names", failed
    ci = record["ci"]
    if ci is not None and (
        len(ci) != 2
        or not all(isinstance(c, int | float) and abs(c) <= _LARGEST for c in ci)
        or not ci[0] <= ci[1]
    ):
        return "ci", "two finite numbers, low <= high, or null", ci
    return None


def make(
    *,
    run: str,
    metric: str,
    value: float,
    n: int,
    ci: Sequence[float] | None = None,
    dataset: str = "digits",
    protocol: str = "closed",
    encoder: str = "",
    defense: str = "",
    suite: str = "core",
    attack: str = "none",
    state: str = "clean",
    norm: str = "linf",
    eps: float = 0.0,
    alpha: float = 0.0,
    steps: int = 0,
    higher_is_robust: bool = True,
    seed: int = 0,
    seconds: float = 0.0,
    fingerprint: str = "",
    verdict: str = UNCHECKED,
    failed: Sequence[str] = (),
    precision: str = "fp32",
    time: str | None = None,
) -> Record:
    """Make a record: fill in schema, time and version, and refuse what cannot be a measurement.

    Parameters
    ----------
    run
        Name of the run folder.
    metric, value
        ``"recall@1"``, ``"recall@2"``, ``"map"``, ``"map@r"``, ``"nmi"``, ``"rank"``, ``"flip"``,
        ``"accuracy"``, ``"purity"`` as fractions in [0, 1]; ``"shift"`` as a distance.
    n
        Number of queries, >= 1.
    ci
        95 % interval ``[low, high]`` of the value, or ``None`` where none was computed.
    dataset, protocol, encoder, defense, suite
        Names: ``"digits"``; ``"closed"`` or ``"zero-shot"``; ``"small-cnn"``; ``"hm-ics"``; ``"core"``.
    attack, state
        ``"none"`` for benign metrics, else the attack's label; ``"clean"`` before it, ``"attacked"`` after.
    norm, eps, alpha, steps
        Threat and search: radius and step length in input units, 0 for benign metrics.
    higher_is_robust
        Whether a larger value is better for the defender.
    seed, seconds
        Seed of the training that made the encoder; seconds that the whole attack (or the benign evaluation)
        took.
    fingerprint
        Hash of the settings.
    verdict, failed
        Word of the verdict on the evaluation (``"TRUSTWORTHY"``, ...), and the checks that failed.
    precision
        Of the search, ``"fp32"`` or ``"bf16"``; the value itself is always measured in float32.
    time
        ISO 8601 in UTC; now, if ``None``.

    Raises
    ------
    InvalidArgument
        Naming the field, what it needs and what came.

    Examples
    --------
    >>> make(run="plain", metric="recall@1", value=0.98, n=360, ci=[0.96, 0.99])["schema"]
    1
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = Record(
        schema=SCHEMA,
        time=now if time is None else time,
        run=run,
        dataset=dataset,
        protocol=protocol,
        encoder=encoder,
        defense=defense,
        suite=suite,
        attack=attack,
        state=state,
        norm=norm,
        eps=float(eps),
        alpha=float(alpha),
        steps=int(steps),
        metric=metric,
        value=float(value),
        n=int(n),
        ci=None if ci is None else [float(c) for c in ci],
        higher_is_robust=bool(higher_is_robust),
        seed=int(seed),
        seconds=float(seconds),
        version=__version__,
        fingerprint=fingerprint,
        verdict=verdict,
        failed=list(failed),
        precision=precision,
    )
    fault = _fault(record)
    if fault is not None:
        raise InvalidArgument(*fault)
    return record


def append(path: str | Path, records: Iterable[Record]) -> None:
    """Append records to a JSONL file in one write; nothing that stands there is changed."""
    append_lines(path, [dict(record) for record in records])


def read(path: str | Path) -> list[Record]:
    """Read all records of a file in the order in which they were written; a torn line is skipped.

    Raises
    ------
    RunError
        If the file is missing, or a record has another schema than this version writes.
    CorruptFile
        If a record lacks a field or holds something that cannot be a measurement.
    """
    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path}: no such file of records; has the run been evaluated?")
    return [validated(line, path, number) for number, line in enumerate(read_lines(path), start=1)]


def validated(line: Mapping[str, Any], path: str | Path, number: int) -> Record:
    """Return what stands in a file as a record, or say what is wrong with it.

    Raises
    ------
    RunError
        If it has another schema than this version writes.
    CorruptFile
        If it lacks a field or holds something that cannot be a measurement.
    """
    line = {**_LATER, **line} if "schema" in line else line
    if "schema" in line and line["schema"] != SCHEMA:
        raise RunError(f"{path}: record {number} has schema {line['schema']!r}, expected {SCHEMA}")
    missing = [name for name in Record.__annotations__ if name not in line]
    if missing:
        raise CorruptFile(path, None, f"record {number} lacks {', '.join(missing)}")
    fault = _fault(line)
    if fault is not None:
        raise CorruptFile(path, None, f"record {number}, {fault[0]}: need {fault[1]}, got {fault[2]!r}")
    return cast(Record, line)


def latest(records: Iterable[Record]) -> list[Record]:
    """Keep the last record of each measurement, in the order of first sight.

    A measurement is told by run, data set, protocol, seed, suite, attack, state, metric, norm, eps, alpha and
    steps: a shorter search does not replace a longer one. Neither does a sample of the queries replace more
    of them.
    """
    where = ("run", "dataset", "protocol", "seed", "suite", "attack", "state", "metric")
    told_by = (*where, "norm", "eps", "alpha", "steps")
    kept: dict[tuple[Any, ...], Record] = {}
    for r in records:
        fields: dict[str, Any] = dict(r)
        key = tuple(fields[name] for name in told_by)
        if key not in kept or kept[key]["n"] <= r["n"]:
            kept[key] = r
    return list(kept.values())
