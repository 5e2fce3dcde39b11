"""Attack what is deployed: the answer of an approximate index, not that of exact search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import Randomness
from ..types import RetrievalTask
from .margin import Pair, TripletGain, _where_defined
from .places import hits

Index = Callable[[Tensor, int], Tensor]
"""The deployed search: (n, e) embeddings and k -> (n, k) gallery rows, nearest first, -1 for none."""


def index_hits(index: Index, z: Tensor, task: RetrievalTask) -> Tensor:
    """Return 1 where the first row that an index returns is of the query's class: (n,), 0 or 1.

    Parameters
    ----------
    index
        The deployed search.
    z
        (n, e) embeddings of the queries, clean or attacked.
    task
        Queries and gallery. The query's own clean image is left out, by index.

    Notes
    -----
    An index that returns nothing besides the query itself is wrong. Among rows at equal distance the index's
    own order decides: it is what is deployed. :func:`~holdfast.attacks.hits` counts ties against the defense.
    """
    inside = bool((task.self_index >= 0).any())
    rows, listed = _returned(index, z, task, 1 + inside)
    first = _first(rows, listed)
    right = task.gallery.y[first.clamp_min(0)] == task.y
    return (right & (first >= 0)).to(z.dtype)


@dataclass(frozen=True, kw_only=True)
class AgainstIndex:
    """Climb the margin of a query among the first ``k`` rows that an index returns for it (INDEX).

    ``d(z, first row of the own class) - d(z, nearest known row of another class)``: known are the first that
    the index returns and the nearest to the clean query. The index is asked anew at every step, without
    gradient; of the gallery a step reads three rows for each query, so that it costs what the index costs and
    not O(m).

    Attributes
    ----------
    index
        The deployed search, such as :meth:`holdfast.evaluation.indexes.GalleryIndex.search`.
    k
        Rows asked for, >= 2; the gallery's size where it is smaller. The query itself is left out, by index.

    Notes
    -----
    Our design. Where the index returns no row of the own class, the clean query's exact nearest one
    stands in, so that there is something to climb. The sign of the gain is that of the index's answer: >=
    0 exactly where its first row is of another class; where distances say otherwise the gain is shifted,
    with its gradient. With an exact index and ``k`` the gallery's size this is
    :class:`~holdfast.attacks.RankMargin`, up to rounding and ties, which the index's own order decides.
    Queries without a row of their class, or a gallery without another class: as there.
    """

    index: Index
    k: int = 32

    def __post_init__(self) -> None:
        if self.k < 2:
            raise InvalidArgument("k", "an integer >= 2", self.k)

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Pair:
        """Return the clean nearest row of the own class and of another, by exact search."""
        return TripletGain().target(task, generator)

    def gain(self, z: Tensor, target: Pair, task: RetrievalTask) -> Tensor:
        """Return the margin (n,), in units of the distance."""
        rows, listed = _returned(self.index, z, task, self.k)
        own = listed & (task.gallery.y[rows.clamp_min(0)] == task.y[:, None])
        first, rival = _first(rows, own), _first(rows, listed & ~own)
        near = _distance(z, first.where(first >= 0, target.positive), task)
        far = torch.minimum(
            _distance(z, rival.where(rival >= 0, target.negative), task), _distance(z, target.negative, task)
        )
        margin = near - far
        # What was not returned says nothing of the order: keep the gradient, take the sign of the answer.
        right = (first >= 0) & (_first(rows, listed) == first)
        above, below = margin.detach().clamp_min(0), margin.detach().clamp_max(0)
        margin = torch.where(right, margin - above - torch.finfo(z.dtype).tiny, margin - below)
        return _where_defined(margin, target.positive >= 0, target.negative >= 0, z)

    def measure(self, z: Tensor, target: Pair, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``recall@1`` by exact search and ``recall@1:index`` by the index; each (n,), 0 or 1."""
        return {"recall@1": hits(z, task), "recall@1:index": index_hits(self.index, z, task)}


def _returned(index: Index, z: Tensor, task: RetrievalTask, k: int) -> tuple[Tensor, Tensor]:
    """Return rows (n, k) of the index, and which of them are rows besides the query itself: (n, k) bool."""
    m = len(task.gallery.z)
    k = min(k, m)
    rows = index(z.detach(), k).to(device=z.device, dtype=torch.int64)
    if rows.shape != (len(z), k) or int(rows.max()) >= m:
        raise InvalidArgument("index", f"({len(z)}, {k}) rows below {m}", tuple(rows.shape))
    return rows, (rows >= 0) & (rows != task.self_index[:, None])


def _distance(z: Tensor, row: Tensor, task: RetrievalTask) -> Tensor:
    return task.distance.rowwise(z, task.gallery.z[row.clamp_min(0)])


def _first(rows: Tensor, allowed: Tensor) -> Tensor:
    """Return the first allowed entry of every list, -1 where there is none: (n,)."""
    place = allowed.int().argmax(1, keepdim=True)
    return rows.gather(1, place)[:, 0].where(allowed.any(1), -1)
