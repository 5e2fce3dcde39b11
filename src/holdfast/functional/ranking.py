"""Ranks, Recall@k and average precision, in chunks of queries so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, InvalidArgument
from ..types import PairwiseDistance


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


def retrieval_scores(
    z: Tensor,
    y: Tensor,
    gallery_z: Tensor,
    gallery_y: Tensor,
    distance: PairwiseDistance,
    self_index: Tensor | None = None,
    chunk: int = 1024,
) -> RetrievalScores:
    """Rank the gallery for every query and score the list.

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
        Queries at a time; memory grows with ``chunk * m``. Does not change results.

    Raises
    ------
    DataError
        If there is no query, or the gallery has no row left to rank.
    """
    if len(z) == 0:
        raise DataError("queries: need at least one, got 0")
    if self_index is None:
        self_index = torch.full_like(y, -1, dtype=torch.int64)
    if len(gallery_z) < 1 + int((self_index >= 0).any()):
        raise DataError(f"gallery: need at least one row besides the query, got {len(gallery_z)}")
    parts = [
        _score_chunk(distance.matrix(z[rows], gallery_z), y[rows], gallery_y, self_index[rows])
        for rows in chunks(len(z), chunk)
    ]
    return RetrievalScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _score_chunk(d: Tensor, y: Tensor, gallery_y: Tensor, self_index: Tensor) -> RetrievalScores:
    dtype = d.dtype if d.dtype == torch.float64 else torch.float32
    order = without_self(d, self_index).argsort(dim=1, stable=True)  # (c, m)
    listed = order != self_index[:, None]  # self stands last, at distance infinity
    relevant = (gallery_y[order] == y[:, None]) & listed  # (c, m)
    total = relevant.sum(1)  # (c,)
    m = relevant.shape[1]
    place = torch.arange(1, m + 1, device=d.device)
    precision = relevant.cumsum(1).to(dtype) / place * relevant  # (c, m): P(i) * rel(i)
    first = torch.where(total > 0, relevant.int().argmax(1), torch.full_like(total, m))
    inside_r = place[None, :] <= total[:, None]
    safe = total.clamp_min(1)
    return RetrievalScores(
        first,
        precision.sum(1) / safe,
        (precision * inside_r).sum(1) / safe,
        precision[:, :10].sum(1) / 10,
    )


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
    z: Tensor, gallery_z: Tensor, k: int, distance: PairwiseDistance, self_index: Tensor, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Return distances and rows of the ``k`` nearest gallery rows, without the query itself.

    Parameters
    ----------
    z, gallery_z
        (n, e) and (m, e).
    k
        At most the gallery size, less one where a query is in the gallery.
    self_index
        (n,), -1 where the query is not in the gallery.

    Returns
    -------
    tuple of Tensor
        (n, k) distances and (n, k) int64 rows, nearest first.
    """
    limit = len(gallery_z) - int(bool((self_index >= 0).any()))
    if not 1 <= k <= limit:
        raise InvalidArgument("k", f"1 to {limit}, the gallery rows to choose from", k)
    found = [
        without_self(distance.matrix(z[rows], gallery_z), self_index[rows]).topk(k, dim=1, largest=False)
        for rows in chunks(len(z), chunk)
    ]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
