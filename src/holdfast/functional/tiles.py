"""Distances in tiles of queries by gallery rows, so that working memory keeps within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..types import PairwiseDistance
from .memory import enough

BUDGET = 2**30
"""Bytes of working memory where the caller gives no limit."""

FEW = 48
"""Up to this many limits per query are counted one by one; more are looked up in a sorted tile."""


class Tiles(NamedTuple):
    """Queries and gallery rows that are compared at a time."""

    rows: int
    columns: int


LARGEST = Tiles(1024, 16384)
"""The largest tile worth choosing: 64 MiB of float32 distances."""


def plan_tiles(
    n: int,
    m: int,
    width: int,
    memory: int | None = None,
    *,
    itemsize: int = 4,
    copies: float = 4.0,
    per_row: float = 0.0,
    fixed: float = 0.0,
    most: Tiles = LARGEST,
    what: str | None = None,
) -> Tiles:
    """Choose the largest tile that a budget holds.

    Parameters
    ----------
    n, m, width
        Queries, gallery rows, embedding width.
    memory
        Bytes on top of the embeddings; by default :data:`BUDGET`.
    itemsize
        Bytes of a number.
    copies
        Matrices of the size of a tile that the work holds at once.
    per_row, fixed
        Bytes that the work holds for each query of a tile, and however small the tile is.
    most
        The largest tile worth choosing.
    what
        What an error calls the work.

    Raises
    ------
    InvalidArgument
        If not even one query by 256 gallery rows fits, naming the smallest ``memory`` that works.

    Examples
    --------
    >>> plan_tiles(100, 300, 8), plan_tiles(10**6, 10**6, 512, 2**24)
    (Tiles(rows=100, columns=300), Tiles(rows=512, columns=1024))
    """

    def need(r: int, c: int) -> float:
        return fixed + r * per_row + itemsize * (r * c * copies + (r + 2 * c) * width)

    least = Tiles(1, min(m, 256))
    enough(memory, need(*least), what or f"comparing one query with {m} rows")
    budget = BUDGET if memory is None else memory
    r, c = min(n, most.rows), min(m, most.columns)
    while need(r, c) > budget and (r, c) != least:
        if c > 1024 and c > r:
            c = max(1024, _half(c, 64))
        elif r > 16:
            r = max(16, _half(r, 16))
        elif c > least.columns:
            c = max(least.columns, _half(c, 64))
        else:
            r = max(1, r // 2)
    return Tiles(r, c)


def _half(size: int, step: int) -> int:
    return -(-size // (2 * step)) * step


def distance_tiles(
    distance: PairwiseDistance, z: Tensor, gallery_z: Tensor, columns: int, self_index: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the first gallery row and the (n, c) distances of every tile, in the order of the gallery.

    The distance of a query to itself, ``self_index`` (n,) with -1 where there is none, is infinite.
    """
    for start in range(0, len(gallery_z), columns):
        d = distance.matrix(z, gallery_z[start : start + columns])
        if self_index is not None:
            here = torch.nonzero((self_index >= start) & (self_index < start + d.shape[1])).squeeze(1)
            if len(here):
                d = d.clone() if d.requires_grad else d
                d[here, self_index[here] - start] = torch.inf
        yield start, d


def true_per_row(mask: Tensor) -> Tensor:
    """Count what is true in each row: (r, c) bool -> (r,) int64."""
    if mask.device.type == "cpu":  # NumPy counts bytes; PyTorch widens each to eight first, ten times slower
        return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1)).reshape(-1)
    return mask.sum(1)


def by_parts(work: Callable[..., object], *rows: Tensor) -> None:
    """Run a NumPy routine in place on the rows of CPU tensors, over as many threads as PyTorch uses."""
    parts = min(torch.get_num_threads(), max(len(rows[0]), 1))
    if parts == 1:
        work(*(x.numpy() for x in rows))
        return
    with ThreadPoolExecutor(parts) as pool:  # sorting releases the interpreter lock
        list(pool.map(work, *(np.array_split(x.numpy(), parts) for x in rows)))


def sort_rows(rows: Tensor) -> Tensor:
    """Sort every row of a tensor that nobody else needs; on a CPU in place."""
    if rows.device.type == "cpu":
        by_parts(lambda part: part.sort(axis=1), rows)
        return rows
    return rows.sort(dim=1).values


def count_closer(
    distance: PairwiseDistance,
    z: Tensor,
    gallery_z: Tensor,
    limit: Tensor,
    self_index: Tensor | None = None,
    *,
    memory: int | None = None,
) -> Tensor:
    """Count, for every query and limit, the gallery rows strictly closer than the limit.

    Parameters
    ----------
    distance
        Its ``matrix`` measures.
    z, gallery_z
        (n, e) and (m, e).
    limit
        (n, w) distances.
    self_index
        (n,) gallery row that is the query itself and never counts, -1 where there is none.
    memory
        Bytes of working memory on top of the embeddings; about 1 GiB by default. Changes no result.

    Returns
    -------
    Tensor
        (n, w) int64.

    Raises
    ------
    InvalidArgument
        If ``memory`` is too small for one query; names the smallest amount that works.
    """
    n, w = limit.shape
    found = torch.zeros((n, w), dtype=torch.int64, device=limit.device)
    if not (n and w and len(gallery_z)):
        return found
    tiles = plan_tiles(
        n, len(gallery_z), z.shape[1], memory, itemsize=z.element_size(), per_row=w * 24.0
    )  # fmt: skip
    with torch.no_grad():
        for first in range(0, n, tiles.rows):
            rows = slice(first, first + tiles.rows)
            own = None if self_index is None else self_index[rows]
            for _, d in distance_tiles(distance, z[rows], gallery_z, tiles.columns, own):
                found[rows] += _closer(d, limit[rows].contiguous())
    return found


def _closer(d: Tensor, limit: Tensor) -> Tensor:
    if limit.shape[1] <= FEW:
        return torch.stack([true_per_row(d < limit[:, k : k + 1]) for k in range(limit.shape[1])], 1)
    return torch.searchsorted(sort_rows(d), limit)
