"""Keep embeddings before and after attacks, for a map of the space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import write_arrays
from ..rng import stream
from ..types import RetrievalTask, Threat
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
    threat: Threat,
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
    ``attacked_z`` (the same queries), ``eps`` and ``norm``. All rows are the embeddings as they are; drawing
    them in two dimensions is the reader's affair.
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
    arrays = {
        "gallery_z": gallery.z[kept], "gallery_y": gallery.y[kept.to(gallery.y.device)], "gallery_ids": kept,
        "query_z": part.z, "query_y": part.y, "ids": part.index,
    }  # fmt: skip
    words = {
        "distance": np.array(type(task.distance).__name__),
        "class_names": np.array(list(class_names), dtype=np.str_),
    }
    write_arrays(folder / CLEAN, {**{name: _plain(value) for name, value in arrays.items()}, **words})
    for entry, outcome, *_ in whole:
        file = folder / exhibit_name(entry.label, threat.eps)
        at = {"eps": np.array(threat.eps), "norm": np.array(threat.norm)}
        write_arrays(file, {"attacked_z": _plain(outcome.z[rows]), **at})


def _some(n: int, most: int, seed: int, name: str, first: Tensor | None = None) -> Tensor:
    """Return at most so many of n rows, ascending: the given ones, and others drawn at random."""
    drawn = torch.randperm(n, generator=stream(seed, name))
    if first is not None:
        drawn = torch.cat([first, drawn[~torch.isin(drawn, first)]])
    return drawn[:most].sort().values


def _plain(value: Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy()
    return array.astype(np.float32) if array.dtype.kind == "f" else array
