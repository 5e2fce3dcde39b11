"""All that a check may look at, and what the checks share: the sample of queries and the primary attack."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ...attacks import RankMargin, hits
from ...certify import Certificate
from ...errors import DataError, InvalidArgument
from ...functional.ranking import chunks
from ...rng import RowStreams, stream
from ...search import Precision, in_precision
from ...types import Attack, ClusterTask, Encoder, Gallery, Images, RetrievalTask, Search, Threat, rows_of
from ..cluster_transfer import members_of
from ..embed import embed, seen_by
from ..suite import EntryResult
from .compare import share
from .material import (
    EFFORT,
    Attacked,
    Claim,
    Effort,
    Level,
    MeanEmbedding,
    Unavailable,
    Watched,
    join,
)
from .searches import takes_start
from .texts import CLUSTERS, GALLERY, Words

BATCH = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Examination:
    """A task with its results, seen by the checks.

    In a :class:`~holdfast.types.ClusterTask` the gallery are the centroids of frozen clusters: a query is
    right as long as it is strictly nearest to its own. Other encoders see the same clusters through the
    references of the task. The score that is examined is the worst case over the attacks of the suite, query
    by query, not that of the primary attack alone.

    Attributes
    ----------
    task
        Queries and clean gallery, or clusters.
    results
        What a suite did on the same task; may be empty, or cover some of the queries.
    search, threat
        Of the evaluation.
    attack
        The primary attack: what all searches are compared on. Success is always that a query is not right any
        more (has left its cluster), ties against the defense.
    level
        ``"quick"`` or ``"full"``.
    seed
        Of the sample of queries and of all draws; with ``again`` other draws on the same sample.
    again
        Number of earlier examinations.
    queries
        Size of the sample. By default 200 at quick, fewer after a small suite so that the examination stays
        cheap against it, and 1000 at full.
    precision
        Of the suite's searches.
    passes
        The encoder decides by the mean embedding of so many passes.
    union
        The score is the union of all attacks seen, not the primary attack alone.
    deadline
        Value of :func:`time.perf_counter` after which no check begins.
    deployed_mode
        Mode of the encoder in use.
    gallery_x
        Images of the gallery; by default those of the task where its queries are the gallery.
    twin
        The same network trained without a defense.
    surrogates
        Other models to transfer from: an adversarially trained twin, members.
    members
        Encoders of which this one is the ensemble; by default those that an ensemble itself has.
    index
        The deployed search: (n, e) and k -> (n, k) gallery rows (or numbers of centroids), nearest first.
    certificate
        Certified radii.
    claim
        A claimed difference, for its spread over seeds.
    train_x, train_y
        Images and labels of training; labels only where they should not occur in the test. For clusters the
        labels of the test are ``task.truth``.
    found
        Every success that was seen on the sample, by name; the checks add to it.
    """

    task: RetrievalTask
    results: Sequence[EntryResult] = ()
    search: Search
    threat: Threat
    attack: Attack[RetrievalTask, Any] = field(default_factory=RankMargin)
    level: Level = "quick"
    seed: int = 0
    again: int = 0
    queries: int | None = None
    precision: Precision = "fp32"
    passes: int = 1
    union: bool = False
    deadline: float = math.inf
    deployed_mode: Literal["eval", "train"] = "eval"
    gallery_x: Images | None = None
    twin: Encoder | None = None
    surrogates: Mapping[str, Encoder] = field(default_factory=dict)
    members: Sequence[Encoder] = ()
    index: Callable[[Tensor, int], Tensor] | None = None
    certificate: Certificate | None = None
    claim: Claim | None = None
    train_x: Images | None = None
    train_y: Tensor | None = None
    found: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.level not in EFFORT:
            raise InvalidArgument("level", "'quick' or 'full'", self.level)
        if len(self.task) == 0:
            raise InvalidArgument("task", "at least one query", 0)
        if not self.threat.eps > 0:
            raise InvalidArgument("threat", "a radius > 0", self.threat.eps)
        if self.queries is not None and self.queries < 1:
            raise InvalidArgument("queries", "an integer >= 1, or None", self.queries)
        if self.passes < 1:
            raise InvalidArgument("passes", "an integer >= 1", self.passes)
        for label, rows, outcome in ((r.entry.label, r.rows, r.outcome) for r in self.results):
            if len(outcome.z) != (len(self.task) if rows is None else len(rows)):
                raise InvalidArgument("results", f"{len(self.task)} queries", f"{label}: {len(outcome.z)}")
        if self.certificate is not None and len(self.certificate) != len(self.task):
            n = len(self.certificate)
            raise InvalidArgument("certificate", f"a radius for each of {len(self.task)} queries", n)
        if self.certificate is not None and self.certificate.norm != 2:
            raise InvalidArgument("certificate", "l2 radii", f"radii in the norm {self.certificate.norm}")

    # --- the sample -------------------------------------------------------------------------------------

    @property
    def effort(self) -> Effort:
        """What this level may spend."""
        return EFFORT[self.level]

    @cached_property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.task.z.device

    @cached_property
    def right(self) -> Tensor:
        """(n,) bool: the query is right when clean."""
        parts = (self.task.rows(rows) for rows in chunks(len(self.task), 1024))
        return torch.cat([hits(part.z, part) > 0 for part in parts])

    @cached_property
    def rows(self) -> Tensor:
        """Rows of the sample: at most so many queries as the level allows, all right when clean."""
        n = self.queries or self.effort.queries
        if self.queries is None and self.level == "quick" and self.results:
            n = min(n, max(32, len(self.results[0].outcome.z) * len(self.results) // 18))
        able = torch.nonzero(self.right).squeeze(1)
        if self.results and (covered := self.results[0].rows) is not None:
            able = able[torch.isin(able.cpu(), covered.cpu()).to(able.device)]
        if not len(able):
            raise Unavailable("no query is right without an attack")
        order = torch.randperm(len(able), generator=stream(self.seed, "examination", "sample"))
        return able[order[:n].to(able.device)].sort().values

    @cached_property
    def part(self) -> RetrievalTask:
        """The sample as a task."""
        return self.task.rows(self.rows)

    @property
    def few(self) -> RetrievalTask:
        """The first queries of a random order of the sample."""
        n = len(self.part)
        order = torch.randperm(n, generator=stream(self.seed, "examination", "few"))[: self.effort.few]
        return self.part.rows(order.sort().values.to(self.device))

    @cached_property
    def chance(self) -> float:
        """Share of queries that a random answer would leave right.

        Of a gallery: Recall@1 of a random order. Of clusters: the share of queries that stay in their cluster
        when all are dealt out anew to clusters of the same sizes, the sum of the squared shares of the
        clusters among the queries; 1 / K where they are equally large.
        """
        y, gallery = self.task.y, self.task.gallery
        if self.clusters is not None:
            sizes = torch.bincount(self.clusters.cluster_of).double() / len(y)
            return float(sizes.square().sum())
        counts = Counter(gallery.y.tolist())
        own = torch.tensor([counts[label] for label in y.tolist()], dtype=torch.float64)
        inside = (self.task.self_index >= 0).double().cpu()
        return float(((own - inside) / (len(gallery.y) - inside).clamp_min(1)).mean())

    # --- material ---------------------------------------------------------------------------------------

    @property
    def clusters(self) -> ClusterTask | None:
        """The task, where queries are looked up among centroids."""
        return self.task if isinstance(self.task, ClusterTask) else None

    @property
    def words(self) -> Words:
        """What a score and a success are called."""
        return CLUSTERS if self.clusters is not None else GALLERY

    @cached_property
    def parts(self) -> tuple[Encoder, ...]:
        """The members that were handed in, or those that the encoder itself has."""
        return tuple(self.members or members_of(self.task.encoder))

    @cached_property
    def gallery_images(self) -> Images:
        """Images of the gallery, row by row."""
        if self.clusters is not None:
            raise Unavailable("the gallery are centroids, of which there are no images")
        if self.gallery_x is not None:
            return self.gallery_x
        at = torch.full((len(self.task.gallery.z),), -1, dtype=torch.int64, device=self.device)
        inside = torch.nonzero(self.task.self_index >= 0).squeeze(1)
        at[self.task.self_index[inside]] = inside
        if bool((at < 0).any()):
            raise Unavailable("hand in gallery_x, the images of the gallery")
        return self.task.x if torch.equal(at, torch.arange(len(at), device=at.device)) else self.task.x[at]

    @property
    def references(self) -> tuple[Images, Tensor]:
        """Images behind the centroids, and the cluster of each."""
        task = self.clusters
        if task is None or task.references is None or task.member_of is None:
            raise Unavailable("the task has no references, the images behind the centroids")
        return task.references, task.member_of.to(self.device)

    def under(self, encoder: Encoder, part: RetrievalTask) -> RetrievalTask:
        """Return queries as another encoder sees them and the gallery, or the same clusters.

        The queries' right answers stay what they are: under another encoder they need not be right.
        """
        z = self._seen.get(id(encoder), (encoder, None))[1]
        if z is None:
            if self.clusters is None:
                z = embed(encoder, self.gallery_images)
            else:
                _ = self.references
                try:
                    z = seen_by(self.clusters, encoder)
                except DataError as reason:  # a cluster without references
                    raise Unavailable(str(reason)) from reason
            self._seen[id(encoder)] = encoder, z
        gallery = Gallery(z, self.task.gallery.y, self.task.gallery.ids)
        seen = replace(part, encoder=encoder, z=embed(encoder, part.x), gallery=gallery)
        return replace(seen, images=None) if isinstance(seen, ClusterTask) else seen

    @cached_property
    def _seen(self) -> dict[int, tuple[Encoder, Tensor]]:
        """Galleries of other encoders; the encoders are kept so that their ids stay theirs."""
        return {}

    def near(self, part: RetrievalTask) -> Threat:
        """Return the threat of some queries of the task."""
        near: Threat = rows_of(self.threat, self.places(part))
        return near

    def places(self, part: RetrievalTask) -> Tensor:
        """Return which rows of the task some of its queries are, by their numbers: (k,)."""
        order = self.task.index.argsort()
        return order[torch.searchsorted(self.task.index[order], part.index)]

    def late(self) -> bool:
        """Whether the time is used up."""
        return time.perf_counter() > self.deadline

    def streams(self, purpose: str, part: RetrievalTask) -> RowStreams:
        """Return the random streams of queries for a purpose."""
        return RowStreams(self.seed, "examination", self.again, purpose, index=part.index)

    # --- attacks ----------------------------------------------------------------------------------------

    @cached_property
    def decides(self) -> Encoder:
        """The encoder whose embedding counts."""
        return self.task.encoder if self.passes == 1 else MeanEmbedding(self.task.encoder, self.passes)

    def broken(self, x: Tensor, part: RetrievalTask) -> Tensor:
        """Return whether images (n, *s) in place of the queries are not right: (n,) bool."""
        return hits(embed(self.decides, x, BATCH), part) == 0

    def strike(
        self,
        part: RetrievalTask,
        name: str,
        *,
        search: Search | None = None,
        threat: Threat | None = None,
        attack: Attack[RetrievalTask, Any] | None = None,
        encoder: Encoder | None = None,
        start: Tensor | None = None,
        watch: bool = False,
    ) -> Attacked:
        """Attack queries.

        Parameters
        ----------
        part
            Right queries.
        name
            Of the random streams.
        search, threat, attack, encoder
            Those of the examination unless given; ``encoder`` is what the search sees, while the task's own
            decides.
        start
            (n, *s) where a search that can do so begins.
        watch
            Keep what every iterate did.

        Raises
        ------
        Unavailable
            If the search refuses the encoder: no gradient, NaN.
        """
        search, threat = search or self.search, threat or self.near(part)
        attack = attack or self.attack
        seen = encoder or in_precision(part.encoder, self.precision)
        own = part.encoder is self.task.encoder
        parts = []
        for rows in chunks(len(part), BATCH):
            some = part.rows(rows)
            target = attack.target(some, self.streams(f"{name} target", some))
            objective = Watched(attack, target, some, watch)
            more = {} if start is None or not takes_start(search) else {"start": start[rows]}
            near = rows_of(threat, torch.arange(rows.start, rows.stop))
            try:
                x = search(seen, some.x, objective, near, self.streams(name, some), **more)
                z = embed(self.decides if own else part.encoder, x, BATCH)
            except InvalidArgument as error:
                raise Unavailable(f"the search cannot climb: {error}") from error
            with torch.no_grad():
                gain = attack.gain(z, target, some)
            parts.append(Attacked(x, z, gain, hits(z, some) == 0, objective.trace, objective.ever))
        return join(parts)

    @cached_property
    def primary(self) -> Attacked:
        """The primary attack on the sample, with the search of the evaluation, watched."""
        hit = self.strike(self.part, "primary", watch=True)
        self.found["primary"] = hit.success
        return hit

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        """Success of every attack of the suite on the sample, by label; (n,) bool each."""
        part, found = self.part, {}
        for entry, outcome, _, covered in self.results:
            at = self.rows
            if covered is not None:
                at = torch.searchsorted(covered.to(at.device), at)
            if self.passes > 1 and outcome.x.ndim == part.x.ndim:
                found[entry.label] = self.broken(outcome.x[at], part)
            elif self.passes == 1:
                found[entry.label] = hits(outcome.z[at], part) == 0
        self.found.update({f"suite {label}": success for label, success in found.items()})
        return found

    @property
    def everything(self) -> Tensor:
        """(n,) bool: some attack that was seen succeeded."""
        seen = [self.primary.success, *self.stored.values(), *self.found.values()]
        return torch.stack(seen).any(0)

    @property
    def joined(self) -> bool:
        """Whether the score counts more than the primary attack."""
        return self.union or (self.clusters is not None and bool(self.results))

    @property
    def scored(self) -> Tensor:
        """(n,) bool: the successes that the score counts."""
        if self.union:
            return self.everything
        suite = self.stored.values() if self.joined else ()
        return torch.stack([self.primary.success, *suite]).any(0)

    def added(self, name: str, missed: Tensor, success: Tensor) -> float:
        """Note successes on the missed queries of the sample; return how much they add, a share of it."""
        new = torch.zeros(len(self.part), dtype=torch.bool, device=self.device)
        new[missed] = success
        self.found[name] = new
        return share(new)
