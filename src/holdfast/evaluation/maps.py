"""Keep embeddings before and after attacks, for a map of the space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CorruptFile
from ..files import read_arrays, write_arrays
from ..rng import stream
from ..types import RetrievalTask
from .exhibit import exhibit_name, shown_queries
from .suite import EntryResult

QUERIES, ROWS = 200, 1000
"""Queries whose attacked embeddings are kept, and gallery rows that are kept, at most."""
CLEAN = "clean.npz"


def write_maps(
    folder: Path,
    exhibits: Path,
    task: RetrievalTask,
    results: Sequence[EntryResult],
    threat: Any,
    class_names: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Write ``folder/clean.npz`` and, for every attack, ``folder/LABEL@EPS.npz``.

    Parameters
    ----------
    folder
        Made if need be; files of the same name are replaced.
    exhibits
        Folder of :func:`~holdfast.evaluation.exhibit.write_exhibits`, whose queries are on the map.
    task
        What was attacked.
    results
        From :func:`~holdfast.evaluation.run_suite`.
    threat
        Its radius and norm are stored.
    class_names
        Name of label i at position i.
    seed
        Of the sample of queries and gallery rows, the same for all radii.

    Notes
    -----
    ``clean.npz`` holds ``gallery_z`` (at most 1000, e), ``gallery_y``, ``gallery_ids``, ``query_z`` (at most
    200, e), ``query_y``, ``ids`` (sample numbers), ``distance`` and ``class_names``; an attack's file
    ``attacked_z`` (the same queries), ``eps`` and ``norm``. Of queries that an attack did not see the row is
    NaN: evaluations of other samples of the queries add to the map instead of replacing it. All rows are the
    embeddings as they are; drawing them in two dimensions is the reader's affair.
    """
    whole = [result for result in results if not result.entry.fewer_steps]
    if not whole:
        return
    covered = whole[0].rows
    queries = task if covered is None else task.rows(covered.to(task.z.device))
    shown = shown_queries(exhibits, queries, whole)
    rows = _some(len(queries), QUERIES, seed, "map queries", shown.cpu()).to(task.z.device)
    gallery = task.gallery
    kept = _some(len(gallery.z), ROWS, seed, "map gallery").to(gallery.z.device)
    part = queries.rows(rows)
    now = {"query_z": _plain(part.z), "query_y": _plain(part.y), "ids": _plain(part.index)}
    arrays = {
        "gallery_z": gallery.z[kept], "gallery_y": gallery.y[kept.to(gallery.y.device)], "gallery_ids": kept,
    }  # fmt: skip
    words = {
        "distance": np.array(type(task.distance).__name__),
        "class_names": np.array(list(class_names), dtype=np.str_),
    }
    drawn = _together(folder, now)
    write_arrays(folder / CLEAN, {**{n: _plain(v) for n, v in arrays.items()}, **drawn, **words})
    order = queries.index.argsort()
    ids = torch.as_tensor(drawn["ids"]).to(order.device)
    places = order[torch.searchsorted(queries.index[order], ids).clamp(max=len(order) - 1)]
    seen = queries.index[places] == ids
    for entry, outcome, *_ in whole:
        z = torch.where(seen[:, None], outcome.z[places], torch.nan)
        at = {"eps": np.array(threat.eps), "norm": np.array(threat.norm)}
        write_arrays(folder / exhibit_name(entry.label, threat.eps), {"attacked_z": _plain(z), **at})


def _together(folder: Path, now: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the queries of the map in the folder and, after them, those of now, up to ``QUERIES``.

    What attacks did is written anew where queries are added. A map of other embeddings is replaced whole.
    """
    try:
        there = read_arrays(folder / CLEAN)
        same = _same(there, now)
    except (CorruptFile, KeyError, IndexError, FileNotFoundError):
        same = False
    files = [path for path in sorted(folder.glob("*@*.npz")) if folder.is_dir()]
    if not same:
        for path in files:
            path.unlink()
        return dict(now)
    new = np.flatnonzero(~np.isin(now["ids"], there["ids"]))[: max(0, QUERIES - len(there["ids"]))]
    for path in files if len(new) else ():
        try:
            stored = read_arrays(path)
            pad = np.full((len(new), stored["attacked_z"].shape[1]), np.nan, dtype=np.float32)
            write_arrays(path, {**stored, "attacked_z": np.concatenate([stored["attacked_z"], pad])})
        except (CorruptFile, KeyError, IndexError):
            path.unlink()
    return {name: np.concatenate([there[name], value[new]]) for name, value in now.items()}


def _same(there: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> bool:
    """Whether queries that both maps hold have the same embeddings, and there are such queries."""
    _, a, b = np.intersect1d(there["ids"], now["ids"], return_indices=True)
    z, new = there["query_z"][a], now["query_z"][b]
    return bool(len(a)) and z.shape == new.shape and bool(np.allclose(z, new, atol=1e-4))


def _some(n: int, most: int, seed: int, name: str, first: Tensor | None = None) -> Tensor:
    """Return at most so many of n rows, ascending: the given ones, and others drawn at random."""
    drawn = torch.randperm(n, generator=stream(seed, name))
    if first is not None:
        drawn = torch.cat([first, drawn[~torch.isin(drawn, first)]])
    return drawn[:most].sort().values


def _plain(value: Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy()
    return array.astype(np.float32) if array.dtype.kind == "f" else array
