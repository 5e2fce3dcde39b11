"""Read a run folder: settings, log, records and stored examples. No model is loaded."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFile, RunError
from ..evaluation.certified import SUITE
from ..files import read_json, read_lines
from ..results import Record, latest, read
from .certificates import Certified, read_certified
from .cluster_files import CLUSTER_SUITES, Clustering, read_clustering

RUN_SCHEMA = 1
_IMAGES = ("query", "attacked", "before_x", "after_x")
_ROWS = ("query_y", "before_y", "before_d", "after_y", "after_d", "held", "ids")
_ONE = ("eps", "class_names")


@dataclass(frozen=True, eq=False)
class Exhibit:
    """Stored examples of one attack: ``k`` moved images with their five nearest before and after.

    ``x`` holds the image arrays and ``rows`` the arrays with one row for each example, by their file names.
    """

    attack: str
    x: Mapping[str, NDArray[np.float32]]
    rows: Mapping[str, NDArray[Any]]
    eps: float
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.x["query"])

    def class_name(self, y: int) -> str:
        """Return the name of a class, or its number where no name was stored."""
        return self.class_names[y] if 0 <= y < len(self.class_names) else str(y)


@dataclass(frozen=True, eq=False)
class RunFolder:
    """What one run folder holds; absent parts are empty, and ``notes`` says what could not be read.

    Records about clusters stand in ``clustering`` and not among ``records``.
    """

    label: str
    info: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()
    epochs: Sequence[Mapping[str, Any]] = ()
    guards: Sequence[Mapping[str, Any]] = ()
    records: Sequence[Record] = ()
    exhibits: Mapping[str, Exhibit] = field(default_factory=dict)
    verdicts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    certified: Certified | None = None
    clustering: Clustering | None = None

    @property
    def training_seconds(self) -> float | None:
        """Seconds of training: what the clock of the log showed last, validation not included."""
        if self.certified is not None and not self.certified.of_run and not self.steps:
            return self.certified.training_seconds
        shown = [number(line, "seconds") for line in (*self.steps, *self.epochs)]
        return max((seconds for seconds in shown if seconds is not None), default=None)

    @property
    def evaluation_seconds(self) -> float | None:
        """Seconds of evaluation: every attack counted once, though it has several metrics.

        The clean side of an attack is part of its cost, and a score (attack ``all``) or a worst case
        (``UNION``) is made of the others.
        """
        cost: dict[tuple[Any, ...], float] = {}
        whole = set()
        of_clusters = self.clustering.records if self.clustering else ()
        for r in (*self.records, *of_clusters):
            if r["attack"] in ("all", "UNION"):
                continue
            attack = (r["run"], r["suite"], r["attack"], r["norm"], r["seed"])
            search = (r["eps"], r["steps"], r["alpha"]) if r["state"] == "attacked" else ()
            if search:
                whole.add(attack)
            key = (*attack, *search)
            cost[key] = max(cost.get(key, 0.0), r["seconds"])
        return sum(s for key, s in cost.items() if len(key) > 5 or key not in whole) if cost else None


def number(line: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number of a log line, or None."""
    value = line.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def load_runs(paths: Sequence[str | Path]) -> list[RunFolder]:
    """Read run folders; labels are the folder names, with the parent's name where two would be equal.

    Raises
    ------
    RunError
        If there is no folder, one is missing or holds nothing of a run, or a file has another schema.
    """
    resolved = [Path(path).resolve() for path in paths]
    if not resolved:
        raise RunError("a report needs at least one run folder")
    names = [path.name for path in resolved]
    labels = [
        path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}" for path in resolved
    ]
    labels = [name if labels.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(labels, start=1)]
    return [_load(path, label) for path, label in zip(resolved, labels, strict=True)]


def _load(path: Path, label: str) -> RunFolder:
    if not path.is_dir():
        raise RunError(f"{path}: no such run folder")
    files = {name: path / name for name in ("run.json", "log.jsonl", "records.jsonl")}
    if not any(file.is_file() for file in files.values()):
        raise RunError(f"{path}: not a run folder: it holds none of {', '.join(files)}")
    info: Any = read_json(files["run.json"]) if files["run.json"].is_file() else {}
    if not isinstance(info, dict):
        raise CorruptFile(files["run.json"], 0, f"need a JSON object, got {type(info).__name__}")
    if info and info.get("schema") != RUN_SCHEMA:
        raise RunError(f"{files['run.json']}: schema {info.get('schema')!r}, expected {RUN_SCHEMA}")
    certified = read_certified(path)
    if certified is not None and not info:
        info = dict(certified.meta)
    log = read_lines(files["log.jsonl"]) if files["log.jsonl"].is_file() else []
    exhibits: dict[str, Exhibit] = {}
    notes: list[str] = []
    folder = path / "exhibits"
    for file in sorted(folder.glob("*.npz")) if folder.is_dir() else []:
        try:
            exhibits[file.stem] = _exhibit(file)
        except CorruptFile as error:
            notes.append(f"Stored examples left out: {error}")
    records = read(files["records.jsonl"]) if files["records.jsonl"].is_file() else []
    verdicts: dict[str, Mapping[str, Any]] = {}
    for file in sorted((path / "evaluations").glob("*/*.json")):
        if file.name not in ("verdict.json", "repaired.json"):
            continue
        mended = "/REPAIRED" if file.name == "repaired.json" else ""
        try:
            verdicts[file.parent.name + mended] = _verdict(file)
        except CorruptFile as error:
            notes.append(f"Checks left out: {error}")
    own = latest(r for r in records if r["suite"] != SUITE)  # certified ones stand in certify.json
    names = next((e.class_names for e in exhibits.values()), ())
    return RunFolder(
        label=label,
        info=info,
        steps=[line for line in log if line.get("kind") == "step"],
        epochs=[line for line in log if line.get("kind") == "epoch"],
        guards=[line for line in log if line.get("kind") == "guard"],
        records=[r for r in own if r["suite"] not in CLUSTER_SUITES],
        exhibits=exhibits,
        verdicts=verdicts,
        notes=notes,
        certified=certified,
        clustering=read_clustering(path, [r for r in own if r["suite"] in CLUSTER_SUITES], names),
    )


def _verdict(path: Path) -> Mapping[str, Any]:
    """Read what the checks of an evaluation found: ``verdict``, and ``findings`` of plain fields."""
    found: Any = read_json(path)
    findings = found.get("findings") if isinstance(found, dict) else None
    words = ("id", "name", "status", "threshold", "detail", "remedy")
    if not isinstance(findings, list) or not all(
        isinstance(f, dict) and all(isinstance(f.get(name), str) for name in words) for f in findings
    ):
        raise CorruptFile(path, None, "need a verdict with findings")
    applied = found.get("applied", {})
    if not isinstance(applied, dict) or not all(isinstance(done, str) for done in applied.values()):
        raise CorruptFile(path, None, "need what was applied, as text")
    return {"verdict": str(found.get("verdict")), "findings": findings, "applied": applied}


def _exhibit(path: Path) -> Exhibit:
    """Read the examples of one attack and check every shape, so that what draws them need not."""
    try:
        with np.load(path, allow_pickle=False) as file:
            a = {name: np.asarray(file[name]) for name in (*_IMAGES, *_ROWS, *_ONE) if name in file.files}
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise CorruptFile(path.name, None, str(error)) from error
    missing = [name for name in (*_IMAGES, *_ROWS, *_ONE) if name not in a]
    if missing:
        raise CorruptFile(path.name, None, f"it lacks {', '.join(missing)}")
    shape = a["query"].shape
    k = shape[0] if len(shape) == 4 else -1
    near = a["before_y"].shape[1] if a["before_y"].ndim == 2 else -1
    wanted: dict[str, tuple[int, ...]] = {"query": shape, "attacked": shape, "eps": ()}
    wanted |= dict.fromkeys(("before_x", "after_x"), (k, near, *shape[1:]))
    wanted |= dict.fromkeys(("before_y", "before_d", "after_y", "after_d"), (k, near))
    wanted |= dict.fromkeys(("query_y", "held", "ids"), (k,))
    wrong = [
        name for name, size in wanted.items() if a[name].shape != size or a[name].dtype.kind not in "biuf"
    ]
    if len(shape) != 4 or shape[1] not in (1, 3) or min(shape) < 1 or near < 1:
        wrong.append("query")
    if wrong:
        raise CorruptFile(path.name, None, f"unexpected shape of {', '.join(sorted(set(wrong)))}")
    return Exhibit(
        attack=path.stem,
        x={name: np.nan_to_num(a[name].astype(np.float32)).clip(0.0, 1.0) for name in _IMAGES},
        rows={name: a[name] for name in _ROWS},
        eps=float(a["eps"]),
        class_names=tuple(str(name) for name in a["class_names"].reshape(-1)),
    )
