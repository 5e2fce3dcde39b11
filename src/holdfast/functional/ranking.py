"""Ranks, Recall@k and average precision, in tiles of queries by gallery rows so that memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, InvalidArgument
from ..types import PairwiseDistance
from .order import Below, before, first_of, keep_first, pack, unpack
from .screening import MOST, Screen, pays, plan_screen
from .tiles import BUDGET, FEW, Tiles, by_parts, distance_tiles, plan_tiles, sort_rows

SAMPLED, LEAST_SAMPLED = 32, 8192
"""One gallery row in so many is sampled where lists are long; galleries from which that pays."""


class RetrievalScores(NamedTuple):
    """Per-query retrieval quality; every field is (n,).

    Attributes
    ----------
    first_match
        0-based rank of the first gallery row with the query's label; the gallery size where there is none.
    average_precision
        Over the whole ranked list.
    map_at_r
        Musgrave's MAP@R: R is the number of gallery rows that share the query's label.
    average_precision_10
        The variant of the published robustness tables, which they call mAP@R: R is 10 for every query.
    """

    first_match: Tensor
    average_precision: Tensor
    map_at_r: Tensor
    average_precision_10: Tensor

    def recall(self, k: int) -> Tensor:
        """Return whether a match stands among the first ``k``: (n,) bool; never where there is none."""
        if k < 1:
            raise InvalidArgument("k", "an integer >= 1", k)
        return (self.first_match < k) & (self.average_precision > 0)


def chunks(n: int, size: int) -> Iterable[slice]:
    """Cut ``range(n)`` into slices of at most ``size``."""
    if size < 1:
        raise InvalidArgument("size", "an integer >= 1", size)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def without_self(d: Tensor, self_index: Tensor) -> Tensor:
    """Set the distance of each query to itself to infinity.

    Parameters
    ----------
    d
        (n, m) distances; a changed copy is returned.
    self_index
        (n,) gallery row that is the query itself, -1 where there is none. Found by index and never by
        smallest distance, which breaks on duplicates.
    """
    d = d.clone()
    rows = torch.nonzero(self_index >= 0).squeeze(1)
    d[rows, self_index[rows]] = torch.inf
    return d


class TopScores(NamedTuple):
    """Retrieval quality that the first places of the list decide; every tensor is (n,).

    Attributes
    ----------
    first_match
        0-based rank of the first gallery row with the query's label; ``max(m, depth)`` where none stands
        among the first ``depth``.
    map_at_r, average_precision_10
        As in :class:`RetrievalScores`.
    depth
        Largest k that :meth:`recall` knows.
    """

    first_match: Tensor
    map_at_r: Tensor
    average_precision_10: Tensor
    depth: int

    def recall(self, k: int) -> Tensor:
        """Return whether a match stands among the first ``k``: (n,) bool."""
        if not 1 <= k <= self.depth:
            raise InvalidArgument("k", f"1 to {self.depth}, the depth that was asked for", k)
        return self.first_match < k


class _Relevant:
    """The gallery rows of each query's label, in the order of the gallery."""

    def __init__(self, y: Tensor, gallery_y: Tensor, own: Tensor) -> None:
        self.rows = gallery_y.argsort(stable=True)
        labels = gallery_y[self.rows]
        self.start = torch.searchsorted(labels, y.contiguous())
        self.listed = torch.searchsorted(labels, y.contiguous(), right=True) - self.start
        with_self = (own >= 0) & (gallery_y[own.clamp_min(0)] == y)
        self.total = self.listed - with_self.long()  # R

    def of(self, which: Tensor) -> Tensor:
        """Return (r, w) rows, the query itself included; the gallery size where there are fewer."""
        w = torch.arange(int(self.listed[which].max()), device=which.device)
        place = (self.start[which, None] + w).clamp_max(len(self.rows) - 1)
        return torch.where(w < self.listed[which, None], self.rows[place], len(self.rows))


def _own(y: Tensor, gallery_z: Tensor, self_index: Tensor | None) -> Tensor:
    if len(y) == 0:
        raise DataError("queries: need at least one, got 0")
    own = torch.full_like(y, -1, dtype=torch.int64) if self_index is None else self_index
    if len(gallery_z) < 1 + int((own >= 0).any()):
        raise DataError(f"gallery: need at least one row besides the query, got {len(gallery_z)}")
    return own


@torch.no_grad()
def retrieval_scores(
    z: Tensor,
    y: Tensor,
    gallery_z: Tensor,
    gallery_y: Tensor,
    distance: PairwiseDistance,
    self_index: Tensor | None = None,
    chunk: int = 1024,
    *,
    memory: int | None = None,
) -> RetrievalScores:
    """Rank the gallery for every query and score the list.

    The rank of every relevant row is counted tile by tile; the list itself is never sorted. Where the
    average precision of the whole list is not needed, :func:`top_scores` is faster.

    Parameters
    ----------
    z, y
        (n, e) query embeddings and (n,) labels.
    gallery_z, gallery_y
        (m, e) and (m,).
    distance
        Ranks by ``distance.matrix``; equal distances keep the order of the gallery.
    self_index
        (n,) gallery row that is the query itself, -1 where there is none; it is left out of the list.
    chunk
        Queries at a time, at most.
    memory
        Bytes of working memory on top of the embeddings; about 1 GiB by default. Neither it nor ``chunk``
        changes results, up to the rounding of a product in tiles of other sizes.

    Raises
    ------
    DataError
        If there is no query, or the gallery has no row left to rank.
    InvalidArgument
        If ``memory`` is too small for one query; names the smallest amount that works.
    """
    own = _own(y, gallery_z, self_index)
    if chunk < 1:
        raise InvalidArgument("chunk", "an integer >= 1", chunk)
    relevant = _Relevant(y, gallery_y, own)
    tiles, keep = _plan_ranks(z, gallery_z, int(relevant.listed.max()), chunk, memory)
    order = relevant.listed.argsort(stable=True)  # queries with lists of like length together
    parts = []
    for at in chunks(len(order), tiles.rows):
        which = order[at]
        found = _Strip(distance, z[which], gallery_z, own[which], tiles.columns, keep)
        parts.append(_score_ranks(found, relevant.of(which), relevant.total[which], len(gallery_z)))
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return RetrievalScores(*(torch.cat(column)[back] for column in zip(*parts, strict=True)))


def _plan_ranks(z: Tensor, gallery_z: Tensor, w: int, chunk: int, memory: int | None) -> tuple[Tiles, bool]:
    """Choose tiles, and whether the distances of a block of queries are kept between the two passes."""
    n, m, size = len(z), len(gallery_z), z.element_size()
    few = w <= FEW
    most = Tiles(min(chunk, 256 if few else 128), 4096 if few else 2**17)
    settings: dict[str, Any] = {
        "itemsize": size,
        "copies": 3.0 if few else 7.0,
        "fixed": 24.0 * m + 24.0 * n,
        "what": f"ranking one query against {m} rows",
    }
    per_row = w * (6.0 * 8 + 3 * size)
    budget = BUDGET if memory is None else memory
    try:
        kept = plan_tiles(n, m, z.shape[1], budget, per_row=per_row + m * size, most=most, **settings)
    except InvalidArgument:
        kept = Tiles(0, 0)
    if kept.rows >= min(n, most.rows, 64):
        return kept, True
    return plan_tiles(n, m, z.shape[1], memory, per_row=per_row, most=most, **settings), False


class _Strip:
    """The distances of some queries to the whole gallery, in tiles, kept or computed again for every pass."""

    def __init__(
        self, distance: PairwiseDistance, z: Tensor, gallery_z: Tensor, own: Tensor, columns: int, keep: bool
    ) -> None:
        self.parts = (distance, z, gallery_z, columns, own)
        self.kept = list(distance_tiles(*self.parts)) if keep else None

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        return distance_tiles(*self.parts) if self.kept is None else iter(self.kept)


def _score_ranks(found: _Strip, row: Tensor, total: Tensor, m: int) -> RetrievalScores:
    limit: Tensor | None = None
    for start, d in found:
        inside = (row >= start) & (row < start + d.shape[1])
        if limit is None:
            limit = d.new_full(row.shape, torch.inf)
        limit = torch.where(inside, d.gather(1, (row - start).clamp(0, d.shape[1] - 1)), limit)
    assert limit is not None
    limit, turn = limit.sort(dim=1, stable=True)  # nearest first; the query itself is last, at infinity
    row = row.gather(1, turn)
    rank = torch.zeros_like(row)
    for start, d in found:
        rank += before(d, start, limit, row)
    return _from_ranks(rank, total, m, torch.float64 if limit.dtype == torch.float64 else torch.float32)


def _from_ranks(rank: Tensor, total: Tensor, m: int, dtype: torch.dtype) -> RetrievalScores:
    """Score (r, w) ascending ranks, of which the first ``total`` (r,) count."""
    if not rank.shape[1]:
        none = torch.zeros(len(rank), dtype=dtype, device=rank.device)
        return RetrievalScores(torch.full_like(total, m), none, none, none)
    place = torch.arange(1, rank.shape[1] + 1, device=rank.device)
    precision = place.double() / (rank + 1) * (place <= total[:, None])  # sums of any width round alike
    safe = total.clamp_min(1)
    return RetrievalScores(
        torch.where(total > 0, rank[:, 0], torch.full_like(total, m)),
        (precision.sum(1) / safe).to(dtype),
        ((precision * (rank < total[:, None])).sum(1) / safe).to(dtype),
        ((precision * (rank < 10)).sum(1) / 10).to(dtype),
    )


@torch.no_grad()
def top_scores(
    z: Tensor,
    y: Tensor,
    gallery_z: Tensor,
    gallery_y: Tensor,
    distance: PairwiseDistance,
    self_index: Tensor | None = None,
    *,
    depth: int = 10,
    memory: int | None = None,
) -> TopScores:
    """Score what the first places of every list decide: Recall@k up to ``depth``, MAP@R and mAP@10.

    Parameters
    ----------
    z, y, gallery_z, gallery_y, distance, self_index, memory
        As for :func:`retrieval_scores`.
    depth
        Largest k of Recall@k that is asked for.

    Notes
    -----
    Where every list is short, float32 embeddings on a processor with bfloat16 instructions are screened first
    (:mod:`~holdfast.functional.screening`); the lists are those of float32 distances all the same, up to
    distances that are equal to within the rounding of a float32 product. Of long lists only the rows within
    an edge that a sample of the gallery gives are sorted, which changes nothing.
    """
    own = _own(y, gallery_z, self_index)
    if depth < 1:
        raise InvalidArgument("depth", "an integer >= 1", depth)
    m = len(gallery_z)
    total = _Relevant(y, gallery_y, own).total
    length = total.clamp_min(max(depth, 10)).clamp_max(m)
    bits = (length.double() - 0.5).log2().ceil()  # lists of like length together, to a factor of two
    parts, numbers = [], []
    for level in sorted(set(bits.tolist())):
        which = torch.nonzero(bits == level).squeeze(1)
        k = int(length[which].max())
        for rows, d, listed in _lists(z[which], gallery_z, k, distance, own[which], 1024, memory):
            here = which[rows]
            match = gallery_y[listed] == y[here, None]  # (r, k)
            if bool(d[:, -1].isinf().any()):  # the query itself is listed
                match &= listed != own[here, None]
            parts.append(_score_list(match, total[here], max(m, depth), depth, z.dtype))
            numbers.append(here)
    back = torch.empty_like(total)
    back[torch.cat(numbers)] = torch.arange(len(total), device=total.device)
    first, at_r, at_10 = (torch.cat(column)[back] for column in zip(*parts, strict=True))
    return TopScores(first, at_r, at_10, depth)


def _score_list(
    match: Tensor, total: Tensor, none: int, depth: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = dtype if dtype == torch.float64 else torch.float32
    place = torch.arange(1, match.shape[1] + 1, device=match.device)
    hit = match[:, :depth]
    first = torch.where(hit.any(1), hit.int().argmax(1), torch.full_like(total, none))
    at_10 = (match[:, :10].cumsum(1) / place[:10].double() * match[:, :10]).sum(1) / 10
    match = match & (place[None, :] <= total[:, None])
    matches = match.cumsum(1, dtype=torch.int32).mul_(match)  # up to and with a match, else 0
    at_r = (matches.double() @ place.double().reciprocal()) / total.clamp_min(1)
    return first, at_r.to(dtype), at_10.to(dtype)


def fraction_closer(d: Tensor, gallery_d: Tensor) -> Tensor:
    """Return the normalised rank of a distance: the share of the gallery that is strictly closer.

    Parameters
    ----------
    d
        (n, w) distances of an item to ``w`` reference points.
    gallery_d
        (n, w, m) distances of the gallery rows to the same points.

    Returns
    -------
    Tensor
        (n, w) in [0, 1]; 0 is the first place.
    """
    return (gallery_d < d[..., None]).to(d.dtype).mean(-1)


def nearest(
    z: Tensor,
    gallery_z: Tensor,
    k: int,
    distance: PairwiseDistance,
    self_index: Tensor,
    chunk: int = 1024,
    *,
    memory: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return distances and rows of the ``k`` nearest gallery rows, without the query itself.

    Parameters
    ----------
    z, gallery_z
        (n, e) and (m, e).
    k
        At most the gallery size, less one where a query is in the gallery.
    distance
        Ranks by ``distance.matrix``; equal distances keep the order of the gallery. Large float32 galleries
        may be screened as in :func:`top_scores`.
    self_index
        (n,), -1 where the query is not in the gallery.
    chunk
        Queries at a time, at most.
    memory
        Bytes of working memory on top of the embeddings and the result; about 1 GiB by default.

    Returns
    -------
    tuple of Tensor
        (n, k) distances and (n, k) int64 rows, nearest first.
    """
    limit = len(gallery_z) - int(bool((self_index >= 0).any()))
    if not 1 <= k <= limit:
        raise InvalidArgument("k", f"1 to {limit}, the gallery rows to choose from", k)
    if chunk < 1:
        raise InvalidArgument("chunk", "an integer >= 1", chunk)
    found = list(_lists(z, gallery_z, k, distance, self_index, chunk, memory))
    return torch.cat([d for _, d, _ in found]), torch.cat([rows for _, _, rows in found])


def _lists(
    z: Tensor,
    gallery_z: Tensor,
    k: int,
    distance: PairwiseDistance,
    own: Tensor,
    chunk: int,
    memory: int | None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield slices of the queries with (r, k) distances and rows of their nearest, in order."""
    n, m, e = len(z), len(gallery_z), z.shape[1]
    large = k > MOST and z.dtype == torch.float32 and not (z.requires_grad or gallery_z.requires_grad)
    tiles = plan_tiles(
        n,
        m,
        e,
        memory,
        itemsize=z.element_size(),
        copies=8.0 if large else 3.0,
        per_row=k * (48.0 if large else 64.0),
        most=Tiles(min(chunk, 128), 2**17) if large else Tiles(min(chunk, 512), 8192),
        what=f"ranking one query against {m} rows",
    )
    exact = _first_by_keys if large else _first

    def first(at: Tensor | slice) -> tuple[Tensor, Tensor]:
        return exact(distance_tiles(distance, z[at], gallery_z, tiles.columns, own[at]), k)

    quick: _Sampled | Screen | None = None
    screened = plan_screen(n, m, e, k, memory) if pays(z, gallery_z, k, distance) else None
    if screened is not None:
        quick = Screen(gallery_z, distance, *screened)
    elif large and z.device.type == gallery_z.device.type == "cpu":
        quick = _Sampled.planned(distance, n, gallery_z, k, chunk, memory)
    done = 0
    if quick is not None:
        for rows, d, listed, sound in _found(quick, z, k, own, chunk):
            rest = torch.nonzero(~sound).squeeze(1)
            for some in chunks(len(rest), tiles.rows):
                part = rest[some]
                d[part], listed[part] = first(part + rows.start)
            yield rows, d, listed
            done = rows.stop
            if len(rest) > len(sound) // 2:  # it cannot tell these embeddings apart
                break
        del quick
    for some in chunks(n - done, tiles.rows):
        rows = slice(some.start + done, some.stop + done)
        yield rows, *first(rows)


def _found(
    quick: Screen | _Sampled, z: Tensor, k: int, own: Tensor, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    for rows in chunks(len(z), min(chunk, quick.tiles.rows)):
        if isinstance(quick, Screen):
            yield rows, *quick.nearest(z[rows], k, own[rows])
            continue
        keys, known = quick.keys(z[rows], k, own[rows])
        for part in chunks(len(keys), 64):
            at = slice(rows.start + part.start, rows.start + part.stop)
            yield at, *unpack(keys[part]), known[part]


class _Sampled:
    """Long lists: a sample of the gallery tells how far a query's k-th nearest is at most, most likely.

    The rows up to there are gathered and sorted, and no others. Where they are fewer than k, or many more
    than expected, the list is not known.
    """

    def __init__(self, distance: PairwiseDistance, gallery_z: Tensor, k: int) -> None:
        m = len(gallery_z)
        self.distance, self.gallery_z = distance, gallery_z
        self.size = min(max(m // SAMPLED, 1024), 8192, m)
        share = k / m * self.size
        self.place = math.ceil(share + 3 * math.sqrt(share)) + 1  # of the edge among the sample
        self.room = min(m, math.ceil(self.place / self.size * m * (1 + 6 / math.sqrt(self.place))))
        self.tiles, self.sample = Tiles(0, 0), gallery_z[:0]
        self.buffer = torch.empty(0, dtype=torch.int64)  # one for all queries: its pages are costly to get

    @classmethod
    def planned(
        cls, distance: PairwiseDistance, n: int, gallery_z: Tensor, k: int, chunk: int, memory: int | None
    ) -> _Sampled | None:
        """Return one that keeps within the budget, if that is possible and likely to be quicker."""
        m, e = gallery_z.shape
        made = cls(distance, gallery_z, k)
        if m < LEAST_SAMPLED or made.room > m // 2:
            return None
        try:
            made.tiles = plan_tiles(
                n,
                m,
                e,
                memory,
                copies=5.0,
                per_row=made.room * 20.0 + made.size * 12.0 + k * 16.0,
                fixed=made.size * e * 8.0 + 64 * 80.0 * k,
                most=Tiles(min(chunk, 512), 5120),
            )
        except InvalidArgument:
            return None
        if made.tiles.rows < min(n, 64) or made.tiles.columns < min(m, 4096):
            return None
        generator = torch.Generator().manual_seed(0)  # decides no result
        made.sample = gallery_z[torch.randperm(m, generator=generator)[: made.size]]
        made.buffer = torch.empty(made.tiles.rows, made.room, dtype=torch.int64)
        return made

    def keys(self, z: Tensor, k: int, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return (r, k) keys of the nearest, in order, and (r,) whether they are known to be the nearest."""
        sample = self.distance.matrix(z, self.sample)
        by_parts(lambda part: part.partition(self.place - 1, axis=1), sample)
        found = Below(sample[:, self.place - 1].clone(), self.buffer[: len(z)])
        del sample
        for start, d in distance_tiles(self.distance, z, self.gallery_z, self.tiles.columns, own):
            found.add(start, d)
        return found.first(k)


def _first(tiles: Iterator[tuple[int, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    _, d = next(tiles)
    best, rows = first_of(d, k)
    for start, d in tiles:
        more, columns = first_of(d, k)
        both, turn = torch.cat([best, more], 1).sort(dim=1, stable=True)  # earlier rows stand first
        best, rows = both[:, :k], torch.cat([rows, columns + start], 1).gather(1, turn[:, :k])
    return best, rows


def _first_by_keys(tiles: Iterator[tuple[int, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    keys: Tensor | None = None
    for start, d in tiles:
        more = pack(d, torch.arange(start, start + d.shape[1], device=d.device))
        keys = keep_first(more if keys is None else torch.cat([keys, more], 1), k)
    assert keys is not None
    return unpack(sort_rows(keys))
