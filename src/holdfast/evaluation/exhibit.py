"""Keep a few attacked queries with their neighbours before and after, for people to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attacks import Outcome
from ..errors import CorruptFile
from ..files import read_arrays, write_arrays
from ..functional.ranking import nearest
from ..types import Images, RetrievalTask
from .suite import Entry, EntryResult

NEIGHBOURS = 5
ANCHOR = "ES"
"""The attack by whose shift queries are chosen, where the suite has it: it aims at nothing else."""


def exhibit_name(label: str, eps: float) -> str:
    """Return the name of the file that holds the examples of one attack at one radius."""
    return f"{label}@{eps:.6g}.npz"


def label_of(stem: str) -> str:
    """Return the label of an attack from ``LABEL@EPS`` or ``LABEL``.

    Examples
    --------
    >>> label_of("CA+@0.2"), label_of("ES"), label_of("a@b")
    ('CA+', 'ES', 'a@b')
    """
    label, at, eps = stem.rpartition("@")
    try:
        return label if at and label and math.isfinite(float(eps)) else stem
    except ValueError:
        return stem


def choose_queries(task: RetrievalTask, after_z: Tensor, shift: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Choose ``k`` queries by what happened to them, and say whether each still finds its label.

    Only queries that were right when clean are shown, as far as there are enough. Among them every rank of
    shift is represented: the largest, the smallest and evenly spaced ones between, so that neither the worst
    nor the best case stands alone.

    Returns
    -------
    tuple of Tensor
        (k,) rows, (k,) bool.
    """
    before, after = (_top_label(task, z) == task.y for z in (task.z, after_z))
    shown = torch.nonzero(before).squeeze(1)
    if len(shown) < k:
        shown = torch.arange(len(task), device=task.z.device)
    order = shown[shift[shown].argsort(descending=True, stable=True)]
    places = torch.linspace(0, len(order) - 1, min(k, len(order))).round().long()
    rows = order[places]
    return rows, after[rows]


def _top_label(task: RetrievalTask, z: Tensor) -> Tensor:
    rows = nearest(z, task.gallery.z, 1, task.distance, task.self_index)[1]
    return task.gallery.y[rows[:, 0]]


def write_exhibits(
    folder: Path,
    task: RetrievalTask,
    images: Images,
    results: Sequence[EntryResult],
    threat: Any,
    class_names: Sequence[str] = (),
    k: int = 12,
    again: Callable[[Entry, RetrievalTask], Outcome] | None = None,
) -> None:
    """Write ``folder/LABEL@EPS.npz`` for every attack, of the same queries for all attacks and radii.

    The queries are chosen once, by how far :data:`ANCHOR` (else the first attack) moves them; those that the
    folder shows already are shown again.

    Parameters
    ----------
    folder
        Made if need be; files of the same name are replaced.
    task
        What was attacked.
    images
        (m, c, h, w) gallery images in [0, 1].
    results
        From :func:`~holdfast.evaluation.run_suite`.
    threat
        Its radius is stored.
    class_names
        Name of label i at position i.
    k
        Queries for each attack.
    again
        Attacks given queries again, where attacked images were not kept; without it such attacks are left
        out.
    """
    count = min(NEIGHBOURS, len(task.gallery.z) - 1)
    whole = [result for result in results if not result.entry.fewer_steps]  # else it stands there in full
    if not whole:
        return
    covered = whole[0].rows  # the same for all attacks
    queries = task if covered is None else task.rows(covered.to(task.z.device))
    rows = shown_queries(folder, queries, whole, k)
    part = queries.rows(rows)
    for entry, outcome, *_ in whole:
        attacked, after = outcome.x[rows], outcome.z[rows]
        if not attacked.numel():
            if again is None:
                continue
            made = again(entry, part)
            attacked, after = made.x, made.z
        arrays: dict[str, Tensor] = {"query": part.x, "attacked": attacked, "query_y": part.y}
        for name, z in (("before", part.z), ("after", after)):
            d, neighbours = nearest(z, task.gallery.z, count, task.distance, part.self_index)
            arrays |= {f"{name}_x": images[neighbours], f"{name}_y": task.gallery.y[neighbours]}
            arrays |= {f"{name}_d": d, f"{name}_ids": neighbours}
        arrays |= {"held": arrays["after_y"][:, 0] == part.y, "ids": part.index}
        extra = {
            "eps": np.array(threat.eps), "norm": np.array(threat.norm),
            "class_names": np.array(list(class_names), dtype=np.str_),
        }  # fmt: skip
        stored = {name: value.cpu().numpy() for name, value in arrays.items()}
        write_arrays(folder / exhibit_name(entry.label, threat.eps), {**stored, **extra})


def shown_queries(
    folder: Path, queries: RetrievalTask, results: Sequence[EntryResult], k: int = 12
) -> Tensor:
    """Return the rows (k,) of the queries to show: those of earlier radii, else by :func:`choose_queries`."""
    order = queries.index.argsort()
    for path in sorted(folder.glob("*@*.npz")) if folder.is_dir() else ():
        try:
            there = read_arrays(path)
            ids, x = torch.as_tensor(there["ids"]).to(order.device), torch.as_tensor(there["query"])
        except (CorruptFile, KeyError, TypeError):
            continue
        if ids.ndim != 1:
            continue
        places = torch.searchsorted(queries.index[order], ids).clamp(max=len(order) - 1)
        rows = order[places]
        if len(ids) == min(k, len(order)) and bool((queries.index[rows] == ids).all()):
            shown = queries.x[rows].cpu()
            if shown.shape == x.shape and bool(torch.equal(shown, x)):
                return rows
    anchor = next((r for r in results if r.entry.label == ANCHOR), results[0]).outcome
    return choose_queries(queries, anchor.z, queries.distance.rowwise(anchor.z, queries.z), k)[0]
