"""Read a run folder: settings, log, records and stored examples. No model is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFile, RunError
from ..evaluation.certified import SUITE
from ..evaluation.exhibit import label_of
from ..files import UNREADABLE, read_json, read_lines, weigh
from ..results import Record, latest, read
from .certificates import Certified, read_certified
from .certify_file import LARGEST
from .cluster_files import CLUSTER_SUITES, Clustering, read_clustering
from .words import texts

RUN_SCHEMA = 1
_IMAGES = ("query", "attacked", "before_x", "after_x")
_ROWS = ("query_y", "before_y", "before_d", "after_y", "after_d", "held", "ids")
_ONE = ("eps", "class_names")
_ROWS_MOST = 1 << 16
"""Most rows of a map, and most neighbours of all examples of an attack [D]; a hundredth is written."""
_TEXTS = {"class_names", "norm", "distance"}
_LATER = ("norm", "before_ids", "after_ids")
"""What examples of earlier versions lack."""


@dataclass(frozen=True, eq=False)
class Exhibit:
    """Stored examples of one attack: ``k`` moved images with their five nearest before and after.

    ``x`` holds the image arrays and ``rows`` the arrays with one row for each example, by their names in the
    file. ``attack`` is the label alone, without the radius that the name of the file may hold.
    """

    attack: str
    x: Mapping[str, NDArray[np.float32]]
    rows: Mapping[str, NDArray[Any]]
    eps: float
    class_names: tuple[str, ...]
    norm: str = "linf"

    def __len__(self) -> int:
        return len(self.x["query"])

    def class_name(self, y: int) -> str:
        """Return the name of a class, or its number where no name was stored."""
        return self.class_names[y] if 0 <= y < len(self.class_names) else str(y)


@dataclass(frozen=True, eq=False)
class Moved:
    """Where one attack at one strength moved the embeddings of the queries of a map.

    ``z`` is (q, e); the row of a query that the attack did not see is NaN.
    """

    attack: str
    norm: str
    eps: float
    z: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Stored embeddings of a part of the gallery and of some queries, before and after attacks.

    Attributes
    ----------
    gallery_z, gallery_y, gallery_ids
        (m, e), (m,), (m,).
    query_z, query_y, ids
        (q, e), (q,), (q,) of the unattacked queries.
    distance
        Name of the distance, such as ``"Euclidean"``.
    class_names
        Name of label i at position i; may be empty.
    moved
        The same queries under attack, in the order of the file names.
    """

    gallery_z: NDArray[np.float32]
    gallery_y: NDArray[np.int64]
    gallery_ids: NDArray[np.int64]
    query_z: NDArray[np.float32]
    query_y: NDArray[np.int64]
    ids: NDArray[np.int64]
    distance: str
    class_names: tuple[str, ...]
    moved: tuple[Moved, ...] = ()


@dataclass(frozen=True, eq=False)
class RunFolder:
    """What one run folder holds; absent parts are empty.

    ``notes`` says what could not be read, ``map_notes`` what of the maps. Records about clusters stand in
    ``clustering`` and not among ``records``. The keys of ``exhibits`` are file names without their ending.
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
    path: Path | None = None
    maps: EmbeddingMap | None = None
    map_notes: Sequence[str] = ()

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
    map_notes: list[str] = []
    maps = _map(path / "maps", map_notes)
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
        exhibits=_newest(exhibits),
        verdicts=verdicts,
        notes=notes,
        certified=certified,
        clustering=read_clustering(path, [r for r in own if r["suite"] in CLUSTER_SUITES], names),
        path=path,
        maps=maps,
        map_notes=map_notes,
    )


def _newest(exhibits: Mapping[str, Exhibit]) -> dict[str, Exhibit]:
    """Leave out files without a radius in their name where one with it holds the same attack and strength."""
    named = {(e.attack, e.norm, f"{e.eps:.4g}") for stem, e in exhibits.items() if stem != e.attack}
    return {
        stem: e
        for stem, e in exhibits.items()
        if stem != e.attack or (e.attack, e.norm, f"{e.eps:.4g}") not in named
    }


def _arrays(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Read the named arrays of a file; what is not asked for is not read."""
    try:
        with path.open("rb") as handle:
            weigh(handle)
            with np.load(handle, allow_pickle=False) as file:
                a = {name: np.asarray(file[name]) for name in (*names, *optional) if name in file.files}
        for name in _TEXTS & set(a):
            texts(a[name])
    except UNREADABLE as error:
        raise CorruptFile(path.name, None, str(error)) from error
    missing = [name for name in names if name not in a]
    if missing:
        raise CorruptFile(path.name, None, f"it lacks {', '.join(missing)}")
    return a


def _map(folder: Path, notes: list[str]) -> EmbeddingMap | None:
    """Read the stored embeddings; what cannot be read is noted."""
    if not (folder / "clean.npz").is_file():
        return None
    names = ("gallery_z", "gallery_y", "gallery_ids", "query_z", "query_y", "ids")
    try:
        a = _arrays(folder / "clean.npz", names, ("distance", "class_names"))
        wrong = [n for n in ("gallery_z", "query_z") if a[n].ndim != 2 or a[n].dtype.kind != "f"]
        wrong += [n for n in ("gallery_y", "gallery_ids") if a[n].shape != a["gallery_z"].shape[:1]]
        wrong += [n for n in ("query_y", "ids") if a[n].shape != a["query_z"].shape[:1]]
        wrong += [n for n in ("gallery_y", "gallery_ids", "query_y", "ids") if a[n].dtype.kind not in "iu"]
        if max(len(a[n]) for n in a if n.endswith("_z") and a[n].ndim) > _ROWS_MOST:
            raise CorruptFile("clean.npz", None, f"more than {_ROWS_MOST} rows")
        if wrong or a["gallery_z"].shape[1:] != a["query_z"].shape[1:]:
            raise CorruptFile("clean.npz", None, f"unexpected shape of {', '.join(wrong or ['query_z'])}")
    except CorruptFile as error:
        notes.append(f"Embedding map left out: {error}")
        return None
    moved, stale = [], 0
    for file in sorted(folder.glob("*.npz")):
        if file.name == "clean.npz":
            continue
        try:
            b = _arrays(file, ("attacked_z", "eps"), ("norm",))
            if b["attacked_z"].ndim != 2 or b["attacked_z"].dtype.kind != "f":
                raise CorruptFile(file.name, None, "unexpected shape of attacked_z")
            eps = _eps(file, b["eps"])
        except CorruptFile as error:
            notes.append(f"Arrows of the map left out: {error}")
            continue
        if b["attacked_z"].shape != a["query_z"].shape:
            stale += 1
            continue
        norm, z = str(b.get("norm", "linf")), b["attacked_z"].astype(np.float32)
        z[~np.isfinite(z).all(1)] = np.nan
        moved.append(Moved(label_of(file.stem), norm, eps, z))
    if stale:
        notes.append(f"Arrows of the map left out: {stale} files are of another sample of queries")
    return EmbeddingMap(
        gallery_z=np.nan_to_num(a["gallery_z"].astype(np.float32)),
        gallery_y=a["gallery_y"].astype(np.int64),
        gallery_ids=a["gallery_ids"].astype(np.int64),
        query_z=np.nan_to_num(a["query_z"].astype(np.float32)),
        query_y=a["query_y"].astype(np.int64),
        ids=a["ids"].astype(np.int64),
        distance=str(a.get("distance", "")),
        class_names=texts(a["class_names"]) if "class_names" in a else (),
        moved=tuple(moved),
    )


def _eps(path: Path, eps: NDArray[Any]) -> float:
    """Return a radius of a file."""
    if eps.shape != () or eps.dtype.kind not in "iuf" or not 0 <= float(eps) <= LARGEST:
        raise CorruptFile(path.name, None, "need eps, a finite number >= 0")
    return float(eps)


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
    a = _arrays(path, (*_IMAGES, *_ROWS, *_ONE), _LATER)
    shape = a["query"].shape
    k = shape[0] if len(shape) == 4 else -1
    near = a["before_y"].shape[1] if a["before_y"].ndim == 2 else -1
    wanted: dict[str, tuple[int, ...]] = {"query": shape, "attacked": shape, "eps": ()}
    wanted |= dict.fromkeys(("before_x", "after_x"), (k, near, *shape[1:]))
    wanted |= dict.fromkeys(("before_y", "before_d", "after_y", "after_d"), (k, near))
    wanted |= dict.fromkeys(("query_y", "held", "ids"), (k,))
    near_ids: dict[str, tuple[int, ...]] = {
        name: (k, near) for name in ("before_ids", "after_ids") if name in a
    }
    wanted |= near_ids
    whole = {"query_y", "before_y", "after_y", "ids", *near_ids}
    kinds = dict.fromkeys(whole, "iu")
    wrong = [
        name
        for name, size in wanted.items()
        if a[name].shape != size or a[name].dtype.kind not in kinds.get(name, "biuf")
    ]
    wrong += [
        name for name in ("before_d", "after_d") if name not in wrong and not np.isfinite(a[name]).all()
    ]
    if len(shape) != 4 or shape[1] not in (1, 3) or min(shape) < 1 or near < 1 or k * near > _ROWS_MOST:
        wrong.append("query")
    if wrong:
        raise CorruptFile(path.name, None, f"unexpected shape of {', '.join(sorted(set(wrong)))}")
    return Exhibit(
        attack=label_of(path.stem),
        x={name: np.nan_to_num(a[name].astype(np.float32)).clip(0.0, 1.0) for name in _IMAGES},
        rows={name: a[name] for name in (*_ROWS, *near_ids)},
        eps=_eps(path, a["eps"]),
        class_names=texts(a["class_names"]),
        norm=str(a.get("norm", "linf")),
    )
