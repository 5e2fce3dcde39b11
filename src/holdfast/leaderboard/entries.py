"""One file for each run: settings, hashes of data and weights, records, and a hash over all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import flatten
from ..errors import CorruptFile, RunError
from ..files import read_json, read_lines, write_text
from ..results import Record, latest, read
from ..results.record import validated
from ..runs import open_run

SCHEMA = 1
LOCAL = ("root",)
"""Settings that tell where data lie on one machine, and that change no number."""


@dataclass(frozen=True)
class Entry:
    """One run on the leaderboard.

    Attributes
    ----------
    path
        The file.
    name, track, recipe, seed
        Of the run; runs of one recipe on one track that differ in the seed alone are one row.
    content
        The whole file.
    records
        What was measured.
    """

    path: Path
    content: Mapping[str, Any]
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """Name of the entry."""
        return str(self.content["name"])

    @property
    def track(self) -> str:
        """Name of the track that it was run for, or nothing."""
        return str(self.content.get("track", ""))

    @property
    def recipe(self) -> str:
        """Name of the recipe, with the settings that were changed."""
        return str(self.content["recipe"])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.content["seed"])

    @property
    def seconds(self) -> float:
        """Seconds of training on the machine of the run."""
        return float(self.content["training_seconds"])


def signature(content: Mapping[str, Any]) -> str:
    """Return the hash over everything but the hash itself.

    It tells that a file is what :func:`add` wrote: a number that was edited by hand, or lost in a merge, no
    longer fits. It is no proof of who ran what; whoever doubts a row repeats its commands.
    """
    rest = {name: value for name, value in content.items() if name != "sha256"}
    plain = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def add(run: str | Path, folder: str | Path, *, track: str = "") -> Path:
    """Write the entry of an evaluated run into a folder of results.

    Parameters
    ----------
    run
        A finished run folder with records of an evaluation that was checked.
    folder
        Made if need be. An entry of the same recipe, settings and seed is replaced.
    track
        Name of the track that the run belongs to.

    Returns
    -------
    Path
        The file, ``DATASET-RECIPE-SEED.json``.

    Raises
    ------
    RunError
        If the run is not finished, holds no record under attack, or none whose evaluation was checked.
    """
    opened = open_run(run)
    if not opened.finished:
        raise RunError(f"{opened.path}: training is not finished; go on with --resume")
    records = latest(read(opened.path / "records.jsonl"))
    attacked = [r for r in records if r["state"] == "attacked"]
    if not attacked:
        raise RunError(f"{opened.path}: no record under attack; first: holdfast evaluate {opened.path}")
    if all(r["verdict"] == "UNCHECKED" for r in attacked):
        raise RunError(
            f"{opened.path}: no evaluation of it was checked; a leaderboard needs verdicts: "
            f"holdfast evaluate {opened.path} --check quick"
        )
    meta, seed = opened.meta, opened.run.seed
    changes = _changes(meta["defaults"], meta["run"])
    recipe = " ".join([opened.run.name, *changes])
    name = _named(records[0]["dataset"], recipe, seed)
    commands = _commands(opened.path, opened.run.name, changes, seed, name)
    if track:
        commands = [track_command(track, recipe, seed)]
    facts = {
        "commands": commands,
        "version": meta["version"],
        "machine": meta["machine"],
        "created": meta["created"],
        "data": meta["data_fingerprint"],
        "weights": opened.weights(),
        "training_seconds": _seconds(opened.path / "log.jsonl"),
        "run": _scrubbed(meta["run"]),
    }
    return write_entry(folder, name, track=track, recipe=recipe, seed=seed, records=records, **facts)


def track_command(track: str, entry: str, seed: int) -> str:
    """Return the command that makes one entry of a track again."""
    return f"holdfast leaderboard run {track} --entries '{entry}' --seeds {seed}"


def write_entry(
    folder: str | Path,
    name: str,
    *,
    track: str,
    recipe: str,
    seed: int,
    records: Sequence[Record],
    **facts: Any,
) -> Path:
    """Write ``NAME.json``: what tells the entry, its facts, its records, and the hash over all of it."""
    told = {"track": track} if track else {}
    content: dict[str, Any] = {
        "schema": SCHEMA, "name": name, **told, "recipe": recipe, "seed": seed, **facts, **_packed(records),
    }  # fmt: skip
    path = Path(folder) / f"{name}.json"
    write_text(path, _text({**content, "sha256": signature(content)}))
    return path


def _named(dataset: str, recipe: str, seed: int) -> str:
    parts = (dataset, recipe, f"seed{seed}")
    return "-".join("".join(c if c.isalnum() or c in "-." else "-" for c in part) for part in parts)


def read_entries(folder: str | Path) -> list[Entry]:
    """Read every ``*.json`` of a folder of results and of the folders in it, ordered by name.

    Raises
    ------
    RunError
        If there is no such folder or nothing in it, or a file has another schema.
    CorruptFile
        If a file is no entry, its hash does not fit, or a record cannot be a measurement.
    """
    folder = Path(folder)
    paths = sorted(folder.rglob("*.json")) if folder.is_dir() else []
    if not paths:
        raise RunError(f"{folder}: no results there; add a run with: holdfast leaderboard {folder} --add RUN")
    return [_entry(path) for path in paths]


def _entry(path: Path) -> Entry:
    content = read_json(path)
    if not isinstance(content, dict) or not {*_KINDS, "records"} <= set(content):
        raise CorruptFile(path, None, f"need an entry with {', '.join(_KINDS)} and records")
    if content.get("schema") != SCHEMA:
        raise RunError(f"{path}: schema {content.get('schema')!r}, expected {SCHEMA}")
    for name, kind in _KINDS.items():
        if not isinstance(content[name], kind) or isinstance(content[name], bool):
            raise CorruptFile(path, None, f"need an entry whose {name} is {_words(kind)}")
    if not isinstance(content.get("track", ""), str):
        raise CorruptFile(path, None, "need an entry whose track is text")
    if content.get("sha256") != signature(content):
        raise CorruptFile(path, None, "its hash does not fit: it was changed after it was written")
    shared, rows = content.get("shared"), content["records"]
    if not isinstance(shared, dict) or not isinstance(rows, list):
        raise CorruptFile(path, None, "need records as a list, and the fields they share")
    try:
        records = tuple(validated({**shared, **row}, path, i) for i, row in enumerate(rows, start=1))
    except TypeError as error:
        raise CorruptFile(path, None, f"need records as objects ({error})") from error
    return Entry(path, content, records)


_KINDS: Mapping[str, Any] = {
    "name": str, "recipe": str, "seed": int, "training_seconds": int | float,
}  # fmt: skip


def _words(kind: Any) -> str:
    return "text" if kind is str else "a number"


def _packed(records: Sequence[Record]) -> dict[str, Any]:
    """Return records with the fields that all of them share stored once."""
    first: dict[str, Any] = dict(records[0])
    shared = {k: v for k, v in first.items() if all(dict(r)[k] == v for r in records)}
    return {"shared": shared, "records": [{k: v for k, v in r.items() if k not in shared} for r in records]}


def _text(content: Mapping[str, Any]) -> str:
    """Return JSON with one line for each record, so that changes can be read line by line."""
    head = {name: value for name, value in content.items() if name != "records"}
    rows = ",\n    ".join(json.dumps(row, allow_nan=False) for row in content["records"])
    text = json.dumps(head, indent=2, allow_nan=False)
    return f'{text[: text.rindex("}")].rstrip()},\n  "records": [\n    {rows}\n  ]\n}}\n'


def _changes(defaults: Any, run: Any) -> list[str]:
    """Return the settings that differ from the recipe's, seed and places of data aside."""
    was, now = flatten(defaults), flatten(run)
    paths = [p for p in {**was, **now} if was.get(p) != now.get(p)]
    return [f"{p}={now.get(p)}" for p in sorted(paths) if p != "seed" and p.rpartition(".")[2] not in LOCAL]


def _commands(run: Path, recipe: str, changes: Sequence[str], seed: int, name: str) -> list[str]:
    """Return the commands that give these numbers again."""
    sets = "".join(f" --set {change}" for change in changes)
    evaluated = []
    for path in sorted(run.glob("evaluations/*/settings.json")):
        told = read_json(path)
        threat, search = told["threat"], told["search"]
        words = {
            "suite": told["suite"], "norm": "l2" if threat["type"] == "L2Threat" else "linf",
            "eps": f"{threat['eps']:.9g}", "steps": search.get("steps"), "alpha": search.get("alpha"),
            "seed": told["seed"] or None, "precision": told["precision"], "queries": told.get("queries"),
        }  # fmt: skip
        given = " ".join(f"--{word} {value}" for word, value in words.items() if value is not None)
        evaluated.append(f"holdfast evaluate runs/{name} {given}")
    return [f"holdfast train {recipe} --seed {seed}{sets} --out runs/{name}", *sorted(evaluated)]


def _scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: None if k in LOCAL else _scrubbed(v) for k, v in value.items()}
    return [_scrubbed(v) for v in value] if isinstance(value, list) else value


def _seconds(log: Path) -> float:
    """Return what the clock of the training log showed last."""
    lines = read_lines(log) if log.is_file() else []
    return max((float(line["seconds"]) for line in lines if "seconds" in line), default=0.0)
