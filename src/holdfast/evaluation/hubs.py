"""Hubs of a gallery: rows that come back for too many queries, a gate for new rows, and attacks on both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..attacks import run
from ..attacks.hub import HubAttack, reach
from ..errors import InvalidArgument
from ..functional.clustering import kmeans
from ..functional.distance import Euclidean
from ..functional.ranking import chunks, nearest
from ..rng import stream
from ..types import Gallery, PairwiseDistance, RetrievalTask, Search, Threat

BUDGET = 0.002
"""Share of the gallery that an audit flags: the smaller of the two published budgets."""
NORMAL = 1.4826
"""What makes the median absolute deviation of normal numbers their standard deviation."""
QUERIES = 10_000
"""Gallery rows that serve as queries where there are none."""
BLOCK = 4096
NUMBERS = 2**22
"""Queries, and distances, that are looked at at once."""


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
    >>> robust_z(torch.tensor([0.0, 0.0, 0.0, 0.0, 14.826]))[0].tolist()
    [0.0, 0.0, 0.0, 0.0, 10.0]
    """
    values = counts.double()
    median = torch.quantile(values, 0.5) if len(values) < 2**24 else torch.tensor(np.median(values.numpy()))
    mad = max(float(np.median((values - median).abs().numpy())), least)
    return (values - median) / (NORMAL * mad), float(median), mad


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
    gallery = _embeddings("gallery", gallery)
    if not 0 < budget <= 1:
        raise InvalidArgument("budget", "a share in (0, 1]", budget)
    if queries is None:
        own = torch.randperm(len(gallery), generator=stream(seed, "hubs"))[:sample].sort().values
        own = own.to(gallery.device)
        queries = gallery[own]
    else:
        queries = _embeddings("queries", queries)
        own = torch.full((len(queries),), -1, device=gallery.device)
    if groups is None:
        wanted = max(2, min(1024, len(queries) // 10, len(gallery) // 100))
        groups = kmeans(queries, min(wanted, len(queries)), seed=seed)[1]
    if groups.shape != (len(queries),):
        raise InvalidArgument("groups", f"one for each of {len(queries)} queries", tuple(groups.shape))
    member = groups.unique(return_inverse=True)[1].cpu().numpy()
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


def _embeddings(argument: str, z: Tensor) -> Tensor:
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


@dataclass(frozen=True, kw_only=True, eq=False)
class HubGate:
    """Lets a new row into a gallery unless it would come back for unusually many queries.

    Made by :meth:`fit`. The score of a row is the mean over known queries of
    ``sigmoid((r - d) / width)``, with the distance d to the query and the distance r from the query to its
    k-th nearest row: a smooth share of the lists that would hold it.

    Attributes
    ----------
    queries, radius
        (q, e) embeddings and (q,) distances r.
    width
        Softness of the count, in units of the distance.
    limit
        Largest score that is admitted.
    rate
        Share of honest rows that are refused, at most, on average over calibrations.
    k, distance
        Length of the lists, and what ranks.
    scores
        (c,) scores of the rows that set the limit, ascending.

    Notes
    -----
    This library's own design. Half of the gallery, drawn at random, sets the radii (and serves as queries
    where there are none); the other half sets the limit, its ``ceil((c + 1) (1 - rate))``-th smallest score.
    An honest new row is exchangeable with these, so that it is refused with probability at most ``rate``
    (split conformal prediction). Of rows that an attacker makes this says nothing.

    References
    ----------
    Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005, chapter 4.
    """

    queries: Tensor = field(repr=False)
    radius: Tensor = field(repr=False)
    width: float
    limit: float
    rate: float
    k: int
    distance: PairwiseDistance
    scores: Tensor = field(repr=False)

    @classmethod
    def fit(
        cls,
        gallery: Tensor,
        queries: Tensor | None = None,
        *,
        k: int = 10,
        rate: float = 0.01,
        distance: PairwiseDistance | None = None,
        softness: float = 0.25,
        sample: int = QUERIES,
        seed: int = 0,
        memory: int | None = None,
    ) -> HubGate:
        """Calibrate a gate on a gallery that is trusted.

        Parameters
        ----------
        gallery, queries, k, distance, sample, memory
            As for :func:`audit_hubs`.
        rate
            False alarms, in (0, 1).
        softness
            Width of the score's step, in units of the mean radius.
        seed
            Of the halves and the sample.

        Raises
        ------
        InvalidArgument
            If the gallery is too small for the rate or for k; names the rows needed.
        """
        gallery = _embeddings("gallery", gallery)
        if not 0 < rate < 1:
            raise InvalidArgument("rate", "a number in (0, 1)", rate)
        if not 0 < softness < math.inf:
            raise InvalidArgument("softness", "a finite number > 0", softness)
        least = 2 * max(math.ceil(1 / Fraction(str(float(rate)))) - 1, k + 1)
        if len(gallery) < least:
            raise InvalidArgument("gallery", f"at least {least} rows for k and this rate", len(gallery))
        ranks = distance or Euclidean()
        order = torch.randperm(len(gallery), generator=stream(seed, "hub gate")).to(gallery.device)
        kept, others = (rows.sort().values for rows in order.tensor_split(2))
        if queries is None:
            own = torch.arange(min(sample, len(kept)), device=gallery.device)
            asked = gallery[kept[own]]
        else:
            asked = _embeddings("queries", queries)
            own = torch.full((len(asked),), -1, device=gallery.device)
        with torch.no_grad():
            radius = nearest(asked, gallery[kept], k, ranks, own, memory=memory)[0][:, -1]
            width = max(softness * float(radius.mean()), torch.finfo(radius.dtype).tiny)
            gate = cls(
                queries=asked, radius=radius, width=width, limit=math.inf, rate=rate, k=k, distance=ranks,
                scores=radius[:0],
            )  # fmt: skip
            scores = gate.score(gallery[others]).sort().values
        place = math.ceil((len(scores) + 1) * (1 - Fraction(str(float(rate)))))
        return replace(gate, limit=float(scores[place - 1]), scores=scores)

    def score(self, z: Tensor) -> Tensor:
        """Return the smooth share of known queries that would list each row, in [0, 1]: (n, e) -> (n,)."""
        at_once = max(1, NUMBERS // len(self.queries))
        parts = [
            torch.sigmoid((self.radius - self.distance.matrix(z[at], self.queries)) / self.width).mean(1)
            for at in chunks(len(z), at_once)
        ]
        return torch.cat(parts) if parts else z.new_zeros(0)

    @torch.no_grad()
    def admits(self, z: Tensor) -> Tensor:
        """Return which rows may come in: (n, e) -> (n,) bool; embeddings that are not finite may not."""
        return self.score(z) <= self.limit


@torch.no_grad()
def occurrence(
    z: Tensor,
    stands_for: Tensor,
    queries: Tensor,
    gallery: Tensor,
    *,
    k: int = 10,
    distance: PairwiseDistance | None = None,
    own: Tensor | None = None,
) -> Tensor:
    """Return the share of queries that would list each candidate, put into the gallery by itself.

    Parameters
    ----------
    z, stands_for
        (n, e) candidates, and the gallery row (n,) that each stands in for, -1 where it is added.
    queries, own
        (q, e), and the gallery row (q,) that each is itself, by default none is. A query that is the
        candidate's own row is left out.
    gallery
        (m, e).
    k, distance
        Length of the lists, and what ranks.

    Returns
    -------
    Tensor
        (n,) float64 in [0, 1]; ties count for the candidate.
    """
    own = torch.full((len(queries),), -1, device=gallery.device) if own is None else own
    ranks, rows = distance or Euclidean(), torch.arange(len(gallery), device=gallery.device)
    whole = Gallery(gallery, rows, rows)
    hits, asked = (torch.zeros(len(z), dtype=torch.float64, device=z.device) for _ in range(2))
    for at in chunks(len(queries), max(1, NUMBERS // max(len(gallery), len(z)))):
        others = (own[at][None] != stands_for[:, None]) | (own[at][None] < 0)  # (n, q)
        radius = reach(queries[at], own[at], whole, k, ranks, stands_for)
        near = ranks.matrix(queries[at], z).T <= radius
        hits += (near & others).sum(1)
        asked += others.sum(1)
    return hits / asked.clamp_min(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class HubOutcome:
    """What became of images that were to be made hubs.

    Attributes
    ----------
    x, z
        (n, c, h, w) images inside the threat, and their embeddings (n, e).
    before, after
        (n,) share of queries, which the attacker did not see, that list the image.
    admitted_before, admitted
        (n,) bool: what the gate says of clean and of moved images; all True without a gate.
    """

    x: Tensor
    z: Tensor
    before: Tensor
    after: Tensor
    admitted_before: Tensor
    admitted: Tensor

    def hubs(self, level: float) -> Tensor:
        """Return which moved images come back for more than a share ``level`` of the queries: (n,) bool."""
        return self.after > level

    def to_plain(self, level: float) -> dict[str, Any]:
        """Return plain data: means, and how many became hubs above ``level``, were refused, or got through."""
        hubs = self.hubs(level)
        return {
            "images": len(self.after), "before": float(self.before.mean()), "after": float(self.after.mean()),
            "largest": float(self.after.max()), "level": level,
            "hubs_before": int((self.before > level).sum()), "hubs": int(hubs.sum()),
            "refused": int((~self.admitted).sum()), "hubs_refused": int((hubs & ~self.admitted).sum()),
            "hubs_admitted": int((hubs & self.admitted).sum()),
            "admitted_after": float(self.after[self.admitted].mean()) if bool(self.admitted.any()) else 0.0,
        }  # fmt: skip


def attack_hubs(
    task: RetrievalTask,
    queries: Tensor,
    search: Search,
    threat: Threat,
    *,
    own: Tensor | None = None,
    attack: HubAttack | None = None,
    gate: HubGate | None = None,
    adaptive: bool = False,
    seed: int = 0,
    batch_size: int = 128,
) -> HubOutcome:
    """Move images so that they become hubs, and count on queries that the attacker did not see.

    An image whose moved form serves fewer of the attacker's own queries than the clean one (or, adaptively,
    is refused where the clean one is admitted) stays as it is.

    Parameters
    ----------
    task
        The images to be moved, as queries of a task whose ``self_index`` are their rows in the gallery.
    queries, own
        (q, e) clean embeddings on which the result is counted, and their rows in the gallery; see
        :func:`occurrence`.
    search, threat
        How images are moved, and how far.
    attack
        By default :class:`~holdfast.attacks.hub.HubAttack` with lists as long as the gate's, or 10.
    gate
        Judges the images.
    adaptive
        The attacker knows the gate and pays for a score above its limit.
    seed, batch_size
        See :func:`holdfast.attacks.run`.
    """
    chosen = attack or HubAttack(k=10 if gate is None else gate.k)
    if adaptive:
        if gate is None:
            raise InvalidArgument("gate", "the gate that the attacker knows", None)
        chosen = replace(chosen, score=gate.score, limit=0.95 * gate.limit)
    found = run(task, chosen, search, threat, seed=seed, label="HUB", batch_size=batch_size)
    every = torch.ones(len(task), dtype=torch.bool, device=task.z.device)
    clean = every if gate is None else gate.admits(task.z)
    moved = every if gate is None else gate.admits(found.z)
    worse = found.attacked["hub"] < found.clean["hub"]
    if adaptive:
        worse = (worse & (moved | ~clean)) | (clean & ~moved)
    x = torch.where(worse.reshape(-1, *[1] * (task.x.ndim - 1)), task.x, found.x)
    z = torch.where(worse[:, None], task.z, found.z)

    def counted(rows: Tensor) -> Tensor:
        return occurrence(
            rows, task.self_index, queries, task.gallery.z, k=chosen.k, distance=task.distance, own=own
        )

    return HubOutcome(
        x=x, z=z, before=counted(task.z), after=counted(z), admitted_before=clean,
        admitted=torch.where(worse, clean, moved),
    )  # fmt: skip
