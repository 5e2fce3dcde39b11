"""A gate for new rows of a gallery: those that would come back for too many queries stay out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ...functional.conformal import conformal_place, scores_needed
from ...functional.distance import Euclidean
from ...functional.ranking import chunks, nearest
from ...rng import stream
from ...types import PairwiseDistance
from .audit import QUERIES, embeddings_of

NUMBERS = 2**22
"""Distances that are looked at at once."""


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
    (split conformal prediction). Of rows that an attacker makes this says nothing, and rows of the gallery
    itself are no new rows: one that is also a query finds itself.

    It stops the careless alone. On digits (``plain``, l-inf 0.2, rate 0.01) 33 of 400 moved images became
    hubs, of which it refused 23; of the 21 that an attacker who knows it made, it refused none.

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
            As for :func:`~holdfast.evaluation.hubs.audit_hubs`.
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
        gallery = embeddings_of("gallery", gallery)
        if not 0 < rate < 1:
            raise InvalidArgument("rate", "a number in (0, 1)", rate)
        if not 0 < softness < math.inf:
            raise InvalidArgument("softness", "a finite number > 0", softness)
        least = 2 * max(scores_needed(rate), k + 1)
        if len(gallery) < least:
            raise InvalidArgument("gallery", f"at least {least} rows for k and this rate", len(gallery))
        ranks = distance or Euclidean()
        order = torch.randperm(len(gallery), generator=stream(seed, "hub gate")).to(gallery.device)
        kept, others = (rows.sort().values for rows in order.tensor_split(2))
        if queries is None:
            own = torch.arange(min(sample, len(kept)), device=gallery.device)
            asked = gallery[kept[own]]
        else:
            asked = embeddings_of("queries", queries)
            own = torch.full((len(asked),), -1, device=gallery.device)
        with torch.no_grad():
            radius = nearest(asked, gallery[kept], k, ranks, own, memory=memory)[0][:, -1]
            width = max(softness * float(radius.mean()), torch.finfo(radius.dtype).tiny)
            gate = cls(
                queries=asked, radius=radius, width=width, limit=math.inf, rate=rate, k=k, distance=ranks,
                scores=radius[:0],
            )  # fmt: skip
            scores = gate.score(gallery[others]).sort().values
        place = conformal_place(len(scores), rate)
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
