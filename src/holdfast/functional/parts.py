"""Deal a batch of pairs into parts: what each of several processes takes of it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..errors import DataError


class Part(NamedTuple):
    """One of the parts that a batch is dealt into: its number, and which rows of the batch it holds."""

    number: int
    rows: slice


def deal(rows: int, count: int) -> tuple[Part, ...]:
    """Deal the pairs of a batch of ``rows`` rows, in order, into ``count`` parts as even as can be.

    Raises
    ------
    DataError
        If a part would have fewer than two pairs.

    Examples
    --------
    >>> [(part.rows.start, part.rows.stop) for part in deal(14, 3)]
    [(0, 4), (4, 8), (8, 14)]
    """
    if count == 1:
        return (Part(0, slice(0, rows)),)
    pairs = rows // 2
    if pairs < 2 * count:
        raise DataError(f"batch: need at least two pairs for each of {count} parts, got {pairs}")
    ends = [2 * (pairs * i // count) for i in range(count + 1)]
    return tuple(Part(i, slice(ends[i], ends[i + 1])) for i in range(count))


def own(parts: tuple[Part, ...], rank: int, world: int) -> tuple[Part, ...]:
    """Return the parts that process ``rank`` of ``world`` computes; ``world`` divides their number."""
    each = len(parts) // world
    return parts[rank * each : (rank + 1) * each]


def mix(batch: Tensor, y: Tensor, count: int) -> Tensor:
    """Exchange pairs of a batch so that each of its parts holds two classes, where that can be.

    Parameters
    ----------
    batch
        (2b,) rows.
    y
        (n,) labels of all images.
    count
        Parts of the batch, as for :func:`deal`.

    Returns
    -------
    Tensor
        (2b,) the same pairs; in the same order where every part holds two classes already. A part of a
        single class gives its last pair for the first pair of another class whose own part can spare it.

    Examples
    --------
    >>> import torch
    >>> y = torch.tensor([0, 0, 1, 1])
    >>> mix(torch.tensor([0, 1, 0, 1, 2, 3, 2, 3]), y, 2).tolist()
    [0, 1, 2, 3, 0, 1, 2, 3]
    """
    if count == 1:
        return batch
    pairs = batch.reshape(-1, 2).clone()
    labels = y[pairs[:, 0]].tolist()
    parts = [range(part.rows.start // 2, part.rows.stop // 2) for part in deal(len(batch), count)]
    for part in parts:
        if len({labels[i] for i in part}) > 1:
            continue
        mine = part[-1]
        for other in parts:
            place = next((i for i in other if _spared(i, mine, other, labels)), None)
            if place is not None:
                pairs[[mine, place]] = pairs[[place, mine]]
                labels[mine], labels[place] = labels[place], labels[mine]
                break
    return pairs.reshape(-1)


def _spared(place: int, mine: int, part: range, labels: list[int]) -> bool:
    """Whether a part keeps two classes when the pair at ``place`` goes and the one at ``mine`` comes."""
    if labels[place] == labels[mine]:
        return False
    rest = {labels[i] for i in part if i != place}
    return len(rest | {labels[mine]}) > 1
