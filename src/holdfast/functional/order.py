"""The order of a gallery for a query: nearest first, equal distances in the order of the gallery.

A float32 distance and its row number pack into one int64 key that sorts in this order, so that no two keys
are equal and plain sorting, partitioning and binary search are exact. Other precisions sort stably.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tiles import FEW, by_parts, sort_rows, true_per_row


def pack(d: Tensor, row: Tensor) -> Tensor:
    """Pack float32 distances and gallery rows (below 2^32) into keys of the same order, int64."""
    bits = (d + 0.0).view(torch.int32)  # + 0.0 makes -0.0 and 0.0 one number
    if bool((bits < 0).any()):  # rounding below zero, as in 1 - cos
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits.to(torch.int64).bitwise_left_shift_(32).bitwise_or_(row)


def unpack(key: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances and rows of keys."""
    bits = (key >> 32).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32), key & 0xFFFFFFFF


def before(d: Tensor, start: int, limit: Tensor, row: Tensor) -> Tensor:
    """Count the entries of a tile that stand before given entries of the whole list.

    Parameters
    ----------
    d
        (r, c) distances to gallery rows ``start`` to ``start + c - 1``.
    limit, row
        (r, w) distances, with the values that their tile had, and the gallery rows they belong to.

    Returns
    -------
    Tensor
        (r, w) int64: entries that are closer, or as close and earlier in the gallery.
    """
    if not limit.shape[1]:
        return torch.zeros_like(row)
    if limit.shape[1] <= FEW:
        return _before_few(d, start, limit, row)
    if d.dtype == torch.float32:
        keys = sort_rows(pack(d, torch.arange(start, start + d.shape[1], device=d.device)))
        return torch.searchsorted(keys, pack(limit, row))
    values, order = d.sort(dim=1, stable=True)
    count = torch.searchsorted(values, limit)
    count = torch.where(row >= start + d.shape[1], torch.searchsorted(values, limit, right=True), count)
    inside = (row >= start) & (row < start + d.shape[1])
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(d.shape[1], device=d.device).expand_as(order)
    )
    return torch.where(inside, place.gather(1, (row - start).clamp(0, d.shape[1] - 1)), count)


def _before_few(d: Tensor, start: int, limit: Tensor, row: Tensor) -> Tensor:
    stop = start + d.shape[1]
    # an entry as close as the limit counts in tiles that lie before the limit's row
    edge = torch.where(row >= stop, torch.nextafter(limit, torch.full_like(limit, torch.inf)), limit)
    columns = torch.arange(start, stop, device=d.device)
    found = []
    for k in range(limit.shape[1]):
        count = true_per_row(d < edge[:, k : k + 1])
        here = torch.nonzero((row[:, k] >= start) & (row[:, k] < stop)).squeeze(1)
        if len(here):
            equal = (d[here] == limit[here, k : k + 1]) & (columns < row[here, k : k + 1])
            count[here] += true_per_row(equal)
        found.append(count)
    return torch.stack(found, 1)


def first_of(d: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first ``k`` of (r, c) distances, and their columns, in order: (r, k) each."""
    c = d.shape[1]
    if k >= c:
        return d.sort(dim=1, stable=True)
    values, columns = d.topk(k + 1, dim=1, largest=False)
    tied = torch.nonzero(values[:, k] == values[:, k - 1]).squeeze(1)  # which of the equal ones is arbitrary
    columns, turn = columns[:, :k].sort(dim=1)
    values, again = values[:, :k].gather(1, turn).sort(dim=1, stable=True)
    columns = columns.gather(1, again)
    if len(tied):
        full = d[tied].sort(dim=1, stable=True)
        values = values.index_copy(0, tied, full.values[:, :k])
        columns = columns.index_copy(0, tied, full.indices[:, :k])
    return values, columns


def keep_first(keys: Tensor, k: int) -> Tensor:
    """Return the ``k`` smallest keys of every row in any order; on a CPU ``keys`` is rearranged."""
    if keys.shape[1] <= k:
        return keys
    if keys.device.type != "cpu":
        return keys.topk(k, dim=1, largest=False, sorted=False).values
    by_parts(lambda part: part.partition(k - 1, axis=1), keys)
    return keys[:, :k].clone()


class Below:
    """The keys of the gallery rows no farther than an edge of each query, gathered tile by tile.

    Where a query has at least ``k`` such rows, its first ``k`` are among them, whatever the edge.

    Parameters
    ----------
    edge
        (r,) float32 distances; changed.
    keys
        (r, w) int64 that are written over: at most w are kept for a query.
    """

    def __init__(self, edge: Tensor, keys: Tensor) -> None:
        self.edge, self.keys = edge, keys.fill_(torch.iinfo(torch.int64).max)
        self.count = torch.zeros(len(edge), dtype=torch.int64)

    def add(self, start: int, d: Tensor) -> None:
        """Gather from (r, c) distances to gallery rows ``start`` to ``start + c - 1``, on a CPU."""
        by_parts(lambda *part: _gather(start, *part), d, self.edge, self.keys, self.count)

    def first(self, k: int) -> tuple[Tensor, Tensor]:
        """Return (r, k) sorted keys, and (r,) whether these are the first; the rest are filled up."""
        used = max(k, int(self.count.max()))
        return sort_rows(self.keys[:, :used])[:, :k], self.count >= k


def _gather(start: int, *parts: np.ndarray[Any, Any]) -> None:
    d, edge, keys, count = parts
    r, c = d.shape
    while True:
        place = np.flatnonzero(d <= edge[:, None])
        bounds = np.searchsorted(place, np.arange(r + 1) * c)
        new = np.diff(bounds)
        full = new > keys.shape[1] - count
        if not full.any():
            break
        edge[full], count[full] = -np.inf, -(2**62)  # too many: not known
    bits = (d.reshape(-1)[place] + np.float32(0)).view(
        np.int32
    )  # as in pack; PyTorch would start threads here
    if (bits < 0).any():
        bits ^= (bits >> 31) & 0x7FFFFFFF
    place -= np.repeat(np.arange(r) * c - start, new)
    more = bits.astype(np.int64) << 32 | place
    for i in np.flatnonzero(new):
        keys[i, count[i] : count[i] + new[i]] = more[bounds[i] : bounds[i + 1]]
    count += new
