"""Read the per-query values of a stored evaluation, without its images and embeddings."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..errors import CorruptFile, RunError
from ..files import UNREADABLE, weigh
from .suite import _file_name

State = Literal["clean", "attacked"]
StoredValues = dict[str, dict[State, dict[str, np.ndarray]]]
"""Attack -> clean or attacked -> measure -> (n,) values in the order of the chunks."""
_ORDERED = re.compile(r"(?P<label>.+)-(?P<chunk>(?P<start>\d{8})-(?P<stop>\d{8}))\.npz")
_MIXED = re.compile(r"(?P<label>.+)-(?P<chunk>mixed-\d+-\d+-\d{8})\.npz")


class Chunk(NamedTuple):
    """A stored piece of an attack: its name without the attack's, its file, and its rows if consecutive."""

    name: str
    path: Path
    rows: range | None


def stored_name(label: str) -> str:
    """Return the name of an attack as it stands in file names: ``ES_D`` for ``ES:D``."""
    return _file_name(label)


def stored_chunks(folder: str | Path) -> dict[str, tuple[Chunk, ...]]:
    """List the chunks that together hold every covered query of each attack once.

    Parameters
    ----------
    folder
        What :func:`~holdfast.evaluation.run_suite` was given: ``RUN/evaluations/FINGERPRINT``.

    Returns
    -------
    dict
        By :func:`stored_name` of the attack. Consecutive chunks from query 0 on where there are any; else
        those of an evaluation with a budget, drawn at random.

    Raises
    ------
    RunError
        If there is no such folder, or queries are missing between the chunks of an attack.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such evaluation; its per-query values are not there")
    ordered: dict[str, list[Chunk]] = {}
    mixed: dict[str, list[Chunk]] = {}
    for path in sorted(folder.glob("*.npz")):
        if match := _MIXED.fullmatch(path.name):
            mixed.setdefault(match["label"], []).append(Chunk(match["chunk"], path, None))
        elif match := _ORDERED.fullmatch(path.name):
            rows = range(int(match["start"]), int(match["stop"]))
            ordered.setdefault(match["label"], []).append(Chunk(match["chunk"], path, rows))
    found = {label: tuple(parts) for label, parts in mixed.items()}
    return found | {label: _consecutive(folder, label, parts) for label, parts in ordered.items()}


def read_values(folder: str | Path, chunks: Container[str] | None = None) -> StoredValues:
    """Read the measures of every query before and after each attack.

    Parameters
    ----------
    folder
        As for :func:`stored_chunks`.
    chunks
        Names of the chunks to read; all by default.

    Returns
    -------
    dict
        By attack as in :func:`stored_chunks`, ``"clean"`` or ``"attacked"``, and measure: (n,). Row i of all
        of them is the same query: the i-th of the data set, unless the evaluation had a budget. Empty where
        nothing was attacked.

    Raises
    ------
    RunError
        As for :func:`stored_chunks`.
    CorruptFile
        If a chunk cannot be read, or does not hold one finite number for each of its queries.
    """
    wanted = {
        label: [part for part in parts if chunks is None or part.name in chunks]
        for label, parts in stored_chunks(folder).items()
    }
    return {label: _joined(parts) for label, parts in wanted.items() if parts}


def _consecutive(folder: Path, label: str, parts: Iterable[Chunk]) -> tuple[Chunk, ...]:
    """Return chunks that join from query 0 to the last; those of two sizes may lie side by side."""
    ways: dict[int, tuple[Chunk, ...]] = {0: ()}
    last = 0
    for part in sorted(parts):
        assert part.rows is not None
        last = max(last, part.rows.stop)
        if part.rows.start in ways:
            ways.setdefault(part.rows.stop, (*ways[part.rows.start], part))
    if last not in ways:
        reached = max(ways)
        raise RunError(
            f"{folder}: {label} lacks the queries from {reached} on; the evaluation is not finished"
        )
    return ways[last]


def _joined(parts: Iterable[Chunk]) -> dict[State, dict[str, np.ndarray]]:
    """Return the values of the chunks of one attack, one after the other."""
    read: list[Mapping[str, np.ndarray]] = []
    for part in parts:
        read.append(_measures(part))
        if read[-1].keys() != read[0].keys():
            raise CorruptFile(part.path, None, f"need the measures {sorted(read[0])}, got {sorted(read[-1])}")
    values: dict[State, dict[str, np.ndarray]] = {"clean": {}, "attacked": {}}
    for name in read[0]:
        state, _, metric = name.partition(".")
        values["clean" if state == "clean" else "attacked"][metric] = np.concatenate([r[name] for r in read])
    return values


def _measures(part: Chunk) -> dict[str, np.ndarray]:
    """Return the arrays ``clean.METRIC`` and ``attacked.METRIC`` of one chunk; nothing else is loaded."""
    with part.path.open("rb") as handle:
        try:
            weigh(handle)
            with np.load(handle, allow_pickle=False) as file:
                names = [name for name in file.files if name.startswith(("clean.", "attacked."))]
                arrays = {name: np.asarray(file[name]) for name in names}
                n = next((len(v) for v in arrays.values()), 0) if part.rows is None else len(part.rows)
                sound = all(v.shape == (n,) and bool(np.isfinite(v).all()) for v in arrays.values())
        except UNREADABLE as error:
            raise CorruptFile(part.path, None, f"need an .npz archive of plain arrays ({error})") from error
    if not arrays or not sound:
        raise CorruptFile(part.path, None, "need measures of one finite number for each query")
    return arrays
