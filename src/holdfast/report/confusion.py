"""Which clusters the attacked queries come from and go to, and which classes the clusters then hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cluster_files import Moved, StoredClusters
from .matrix import heat_map
from .parts import data_table, figure, missing
from .plots import CLEAN
from .words import percent, short

MOST = 12
"""Most rows or columns of a matrix; of more, the most confused are shown and the rest is summed up."""
_LISTED = 30


class Counts(NamedTuple):
    """A matrix of counts with the numbers of its rows and columns; ``None`` stands for all others."""

    counts: NDArray[np.int64]
    rows: list[int | None]
    columns: list[int | None]


def flows(stored: StoredClusters, moved: Moved) -> NDArray[np.int64]:
    """Return how many queries of each cluster ended in each cluster: (K, K)."""
    k = len(stored.centroids)
    return np.bincount(stored.cluster_of * k + moved.cluster, minlength=k * k).reshape(k, k)


def most_confused(counts: NDArray[np.int64], most: int = MOST) -> list[int]:
    """Return all clusters, or of many those of the commonest moves from one to another, in their order."""
    k = len(counts)
    if k <= most:
        return list(range(k))
    moves = np.where(np.eye(k, dtype=bool), 0, counts)
    busy = moves.sum(0) + moves.sum(1)
    order = np.lexsort((-(busy[:, None] + busy).ravel(), -moves.ravel()))
    ends = np.stack(np.unravel_index(order[: k * most], moves.shape), 1).ravel()
    _, first = np.unique(ends, return_index=True)
    return sorted(ends[np.sort(first)][: most - 1].tolist())


def folded(counts: NDArray[np.int64], rows: Sequence[int], columns: Sequence[int]) -> Counts:
    """Return the chosen rows and columns; what is left is summed up in a last row and column."""
    table, rest = counts, [i for i in range(counts.shape[0]) if i not in set(rows)]
    table = np.concatenate([table[list(rows)], table[rest].sum(0, keepdims=True)[: bool(rest)]])
    rest_c = [j for j in range(counts.shape[1]) if j not in set(columns)]
    table = np.concatenate(
        [table[:, list(columns)], table[:, rest_c].sum(1, keepdims=True)[:, : bool(rest_c)]], 1
    )
    return Counts(table, [*rows, *[None] * bool(rest)], [*columns, *[None] * bool(rest_c)])


def confusion(stored: StoredClusters, moved: Moved, prefix: str) -> str:
    """Return the matrix of clusters before and after, and those of classes and clusters."""
    counts = flows(stored, moved)
    shown = sorted(most_confused(counts), key=lambda k: (int(stored.named[k]), k))
    table = folded(counts, shown, shown)
    others = len(counts) - len(shown)
    lost = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    name = stored.cluster_name
    order = np.argsort(-lost, axis=None, kind="stable")[:_LISTED]
    pairs = [
        (int(i), int(j)) for i, j in zip(*np.unravel_index(order, lost.shape), strict=True) if lost[i, j]
    ]
    if pairs:
        i, j = pairs[0]
        title = (
            f"The commonest way out is from cluster {name(i)} to {name(j)}: {counts[i, j]} of "
            f"{counts[i].sum()} pictures"
        )
    else:
        title = "No picture left its cluster"
    labels = [_name(stored, k, others) for k in table.rows]
    share = _shares(table)
    svg = heat_map(
        share,
        labels,
        labels,
        lambda r, c: str(table.counts[r, c]) if table.counts[r, c] else "",
        ("cluster without an attack", "cluster under the worst attack"),
        title,
        f"{prefix}-moves",
        framed=[(i, i) for i, k in enumerate(table.rows) if k is not None],
        framed_colour=CLEAN,
        width=6.6,
    )
    caption = (
        "Numbers of pictures. Each row: where the pictures of one cluster end up under the attack that is "
        "worst for each; framed and blue: still in their own. The deeper the colour, the larger the share of "
        "the row."
    )
    caption += " Clusters are called by the class they stand for." * bool((stored.named >= 0).any())
    if others:
        caption += f" Shown are the {len(shown)} clusters of the commonest moves; the other {others} are one."
    rows = [[f"{name(i, 40)} → {name(j, 40)}", counts[i, j], percent(counts[i, j] / counts[i].sum())]
            for i, j in pairs]  # fmt: skip
    listed = data_table(["from → to", "pictures", "share of the cluster"], rows, "Commonest moves")
    return figure(title, svg, caption, listed) + _classes(stored, moved, prefix)


def _shares(table: Counts) -> NDArray[np.float64]:
    """Return counts as shares of their rows; the row of all others has none: it mixes right and wrong."""
    share: NDArray[np.float64] = table.counts / np.maximum(table.counts.sum(1, keepdims=True), 1)
    share[[k is None for k in table.rows]] = np.nan
    return share


def _name(stored: StoredClusters, k: int | None, others: int = 0) -> str:
    return f"{others} others" if k is None else stored.cluster_name(k)


def _classes(stored: StoredClusters, moved: Moved, prefix: str) -> str:
    """Return class x cluster, clean and attacked side by side, clusters in the order of their classes."""
    known = stored.truth >= 0
    if not known.any():
        return missing("No class labels were stored, so classes and clusters are not compared.")
    classes, row = np.unique(stored.truth[known], return_inverse=True)
    k = len(stored.centroids)

    def table(cluster: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(row * k + cluster[known], minlength=len(classes) * k).reshape(-1, k)

    before, after = table(stored.cluster_of), table(moved.cluster)
    own = np.asarray(stored.named)[None, :] == classes[:, None]  # (classes, K)
    lost = ((before - after) * own).sum(1)
    rows = list(range(len(classes)))
    if len(rows) > MOST:
        rows = sorted(np.lexsort((np.arange(len(rows)), -lost))[: MOST - 1].tolist())
    changed = np.abs(after - before)[rows].sum(0)
    place = {int(classes[i]): n for n, i in enumerate(rows)}
    by_class = np.array([place.get(int(c), len(place)) for c in stored.named])
    columns = np.lexsort((np.arange(k), -changed, by_class))
    columns = columns[: MOST - 1 if k > MOST else k]
    spare_rows, spare_columns = len(classes) - len(rows), k - len(columns)
    charts = []
    for when, counts in (("without an attack", before), ("under attack", after)):
        shown = folded(counts, rows, columns.tolist())
        right = int((counts * own).sum())
        title = f"Classes and clusters {when}: {right} of {int(known.sum())} pictures with their class"
        charts.append(_one(stored, classes, shown, (spare_rows, spare_columns), when, title, prefix))
    return f'<div class="curves">{"".join(charts)}</div>'


def _one(
    stored: StoredClusters,
    classes: NDArray[np.int64],
    shown: Counts,
    spare: tuple[int, int],
    when: str,
    title: str,
    prefix: str,
) -> str:
    share = _shares(shown)
    names = [
        f"{spare[0]} others" if i is None else short(stored.class_name(int(classes[i])), 14)
        for i in shown.rows
    ]
    columns = [_name(stored, k, spare[1]) for k in shown.columns]
    framed = [
        (r, c)
        for r, i in enumerate(shown.rows)
        for c, k in enumerate(shown.columns)
        if i is not None and k is not None and stored.named[k] == classes[i]
    ]
    svg = heat_map(
        share,
        names,
        columns,
        lambda r, c: str(shown.counts[r, c]) if shown.counts[r, c] else "",
        ("class", "cluster"),
        title,
        f"{prefix}-{'after' if when == 'under attack' else 'before'}",
        framed=framed,
        framed_colour=CLEAN,
    )
    caption = "Rows: the pictures of one class. Framed and blue: the cluster that stands for it."
    if when == "under attack":
        caption += " A picture that was wrong and moved there by the attack counts here, in the table not."
    if any(spare):
        caption += " Shown are the classes that lose most and the clusters that change most."
    rows = [[name, *line] for name, line in zip(names, shown.counts.tolist(), strict=True)]
    return figure(title, svg, caption, data_table(["class", *columns], rows))
