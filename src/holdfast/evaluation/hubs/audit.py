"""Hubs of a gallery: rows that come back for too many queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ...errors import InvalidArgument
from ...functional.clustering import kmeans
from ...functional.distance import Euclidean
from ...functional.ranking import chunks, nearest
from ...rng import stream
from ...types import PairwiseDistance

BUDGET = 0.002
"""Share of the gallery that an audit flags: the smaller of the two published budgets."""
NORMAL = 1.4826
"""What makes the median absolute deviation of normal numbers their standard deviation."""
QUERIES = 10_000
"""Gallery rows that serve as queries where there are none."""
BLOCK = 4096
"""Queries that are looked at at once."""


def robust_z(counts: Tensor, least: float = 1.0) -> tuple[Tensor, float, float]:
    """Return ``(counts - median) / (1.4826 MAD)`` (m,), the median, and the MAD that was used.

    Parameters
    ----------
    counts
        (m,) numbers.
    least
        The MAD counts as at least this, by default one list, the unit of counts.

    Notes
    -----
    HubScan's code returns zeros where the MAD is 0, so that a hub in a gallery most of whose rows are never
    returned goes unseen; for sparse counts it has the least MAD of 1, which is used here throughout. Nothing
    is cut off at 100, which would put all large hubs on a par.

    References
    ----------
    Habler et al., *HubScan*, arXiv:2602.22427, and its code.

    Examples
    --------
    >>> robust_z(torch.tensor([1.0, 4.0, 6.0, 9.0, 30.0]))[1:]
    (6.0, 3.0)
    """
    values = counts.double()
    median = float(np.median(values.numpy(force=True)))
    mad = max(float(np.median((values - median).abs().numpy(force=True))), least)
    return (values - median) / (NORMAL * mad), median, mad


@dataclass(frozen=True, kw_only=True, eq=False)
class HubAudit:
    """How often each gallery row comes back.

    Attributes
    ----------
    counts
        (m,) int64 k-occurrences: queries among whose first k a row stands.
    z
        (m,) robust z-scores of the counts.
    spread
        (m,) how evenly the queries of a row come from all groups of queries: the entropy over groups, divided
        by its largest value, in [0, 1]; 0 where a row serves one group or none. A hub made to serve everybody
        serves many groups, a natural one mostly its own.
    flagged
        (f,) rows with the largest z, the evener spread first where z is equal; as many as the budget allows.
        They are flagged whether or not anything is wrong with them.
    k, queries, groups, median, mad
        Length of the lists, number of queries and of groups; of the counts.
    """

    counts: Tensor
    z: Tensor
    spread: Tensor
    flagged: Tensor
    k: int
    queries: int
    groups: int
    median: float
    mad: float

    def share(self) -> Tensor:
        """Return the counts as shares of the queries: (m,)."""
        return self.counts / self.queries

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON: figures of the gallery, and the flagged rows."""
        rows = [
            {
                "row": row,
                "count": int(self.counts[row]),
                "z": float(self.z[row]),
                "spread": float(self.spread[row]),
            }
            for row in self.flagged.tolist()
        ]
        return {
            "rows": len(self.counts), "queries": self.queries, "k": self.k, "groups": self.groups,
            "median": self.median, "mad": self.mad, "largest": int(self.counts.max()),
            "never": int((self.counts == 0).sum()), "flagged": rows,
        }  # fmt: skip


@torch.no_grad()
def audit_hubs(
    gallery: Tensor,
    queries: Tensor | None = None,
    *,
    k: int = 10,
    distance: PairwiseDistance | None = None,
    groups: Tensor | None = None,
    budget: float = BUDGET,
    sample: int = QUERIES,
    seed: int = 0,
    memory: int | None = None,
) -> HubAudit:
    """Count how often every gallery row comes back, and flag the rows that come back most.

    Parameters
    ----------
    gallery
        (m, e) embeddings.
    queries
        (q, e) embeddings of what is asked; by default a sample of gallery rows, each left out of its own
        list.
    k
        Length of the lists.
    distance
        Ranks; Euclidean by default.
    groups
        (q,) numbers of the queries' groups (their classes, say); by default clusters of k-means, as many as
        published: the least of 1024, a tenth of the queries and a hundredth of the gallery, at least 2.
    budget
        Share of the gallery to be flagged, in (0, 1]; at least one row.
    sample
        Gallery rows that serve as queries where there are none.
    seed
        Of the sample and of k-means.
    memory
        Bytes of working memory of the ranking; see :func:`~holdfast.functional.ranking.nearest`.

    References
    ----------
    Habler et al., *HubScan*, arXiv:2602.22427 (k-occurrences, their robust z-scores, spread over clusters).

    Examples
    --------
    >>> line = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    >>> audit_hubs(line, torch.tensor([[0.9], [1.2], [8.0]]), k=1, groups=torch.tensor([0, 0, 1])).counts
    tensor([0, 2, 0, 1])
    """
    gallery = embeddings_of("gallery", gallery)
    if not 0 < budget <= 1:
        raise InvalidArgument("budget", "a share in (0, 1]", budget)
    if queries is None:
        own = torch.randperm(len(gallery), generator=stream(seed, "hubs"))[:sample].sort().values
        own = own.to(gallery.device)
        queries = gallery[own]
    else:
        queries = embeddings_of("queries", queries)
        own = torch.full((len(queries),), -1, device=gallery.device)
    if groups is None:
        wanted = max(2, min(1024, len(queries) // 10, len(gallery) // 100))
        groups = kmeans(queries, min(wanted, len(queries)), seed=seed)[1]
    if groups.shape != (len(queries),):
        raise InvalidArgument("groups", f"one for each of {len(queries)} queries", tuple(groups.shape))
    member = torch.unique(groups, return_inverse=True)[1].cpu().numpy()
    several, m = int(member.max()) + 1, len(gallery)
    hits = sparse.csr_matrix((m, several), dtype=np.int64)
    for at in chunks(len(queries), BLOCK):
        _, rows = nearest(queries[at], gallery, k, distance or Euclidean(), own[at], memory=memory)
        listed = rows.cpu().numpy().ravel()
        pairs = (listed, member[at].repeat(k))
        hits += sparse.coo_matrix((np.ones(len(listed), np.int64), pairs), shape=(m, several)).tocsr()
    counts = torch.from_numpy(np.asarray(hits.sum(1)).ravel())
    z, median, mad = robust_z(counts)
    spread = _entropy(hits, counts, several)
    most = max(1, round(budget * m))
    order = np.lexsort((-spread.numpy(), -z.numpy()))
    return HubAudit(
        counts=counts, z=z, spread=spread, flagged=torch.from_numpy(order[:most].copy()), k=k,
        queries=len(queries), groups=several, median=median, mad=mad,
    )  # fmt: skip


def embeddings_of(argument: str, z: Tensor) -> Tensor:
    """Return embeddings, or say what is wrong with them."""
    if z.ndim != 2 or not len(z) or not all(bool(z[at].isfinite().all()) for at in chunks(len(z), 2**14)):
        raise InvalidArgument(argument, "finite embeddings (m, e), at least one row", tuple(z.shape))
    return z


def _entropy(hits: Any, counts: Tensor, groups: int) -> Tensor:
    """Return the entropy of the rows of a sparse matrix, as a share of ``log(groups)``: (m,)."""
    if groups < 2:
        return torch.zeros(len(counts), dtype=torch.float64)
    share = hits.multiply(1 / np.maximum(counts.numpy(), 1)[:, None]).tocsr()
    share.data = -share.data * np.log(share.data)
    return torch.from_numpy(np.asarray(share.sum(1)).ravel() / math.log(groups))
