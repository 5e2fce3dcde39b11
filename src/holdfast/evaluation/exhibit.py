"""Keep a few attacked queries with their neighbours before and after, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..attacks import Outcome
from ..files import write_arrays
from ..functional.ranking import nearest
from ..types import Images, RetrievalTask, Threat
from .suite import Entry, EntryResult

NEIGHBOURS = 5


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
    threat: Threat,
    class_names: Sequence[str] = (),
    k: int = 12,
    again: Callable[[Entry, RetrievalTask], Outcome] | None = None,
) -> None:
    """Write ``folder/LABEL.npz`` for every attack.

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
    for entry, outcome, _, covered in results:
        if entry.fewer_steps:  # the same attack stands in the suite in full
            continue
        queries = task if covered is None else task.rows(covered.to(task.z.device))
        shift = task.distance.rowwise(outcome.z, queries.z)
        rows, held = choose_queries(queries, outcome.z, shift, k)
        part = queries.rows(rows)
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
            arrays[f"{name}_d"] = d
        arrays |= {"held": held, "ids": part.index}
        extra = {"eps": np.array(threat.eps), "class_names": np.array(list(class_names), dtype=np.str_)}
        stored = {name: value.cpu().numpy() for name, value in arrays.items()}
        write_arrays(folder / f"{entry.label}.npz", {**stored, **extra})
