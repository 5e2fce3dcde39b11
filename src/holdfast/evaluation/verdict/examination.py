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
from ...errors import InvalidArgument
from ...functional.ranking import chunks
from ...rng import RowStreams, stream
from ...search import Precision, in_precision
from ...types import Attack, Encoder, Gallery, Images, RetrievalTask, Search, Threat, rows_of
from ..embed import embed
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

BATCH = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Examination:
    """A task with its results, seen by the checks.

    Attributes
    ----------
    task
        Queries and clean gallery.
    results
        What a suite did on the same task; may be empty, or cover some of the queries.
    search, threat
        Of the evaluation.
    attack
        The primary attack: what all searches are compared on. Success is always that a query is not right any
        more, ties against the defense.
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
        Encoders of which this one is the ensemble.
    index
        The deployed search: (n, e) and k -> (n, k) gallery rows, nearest first.
    certificate
        Certified radii.
    claim
        A claimed difference, for its spread over seeds.
    train_x, train_y
        Images and labels of training; labels only where they should not occur in the test.
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
        """Recall@1 of a random order of the gallery."""
        y, gallery = self.task.y, self.task.gallery
        counts = Counter(gallery.y.tolist())
        own = torch.tensor([counts[label] for label in y.tolist()], dtype=torch.float64)
        inside = (self.task.self_index >= 0).double().cpu()
        return float(((own - inside) / (len(gallery.y) - inside).clamp_min(1)).mean())

    # --- material ---------------------------------------------------------------------------------------

    @cached_property
    def gallery_images(self) -> Images:
        """Images of the gallery, row by row."""
        if self.gallery_x is not None:
            return self.gallery_x
        at = torch.full((len(self.task.gallery.z),), -1, dtype=torch.int64, device=self.device)
        inside = torch.nonzero(self.task.self_index >= 0).squeeze(1)
        at[self.task.self_index[inside]] = inside
        if bool((at < 0).any()):
            raise Unavailable("hand in gallery_x, the images of the gallery")
        return self.task.x if torch.equal(at, torch.arange(len(at), device=at.device)) else self.task.x[at]

    def under(self, encoder: Encoder, part: RetrievalTask) -> RetrievalTask:
        """Return queries as another encoder sees them and the gallery."""
        z = embed(encoder, self.gallery_images)
        gallery = Gallery(z, self.task.gallery.y, self.task.gallery.ids)
        return replace(part, encoder=encoder, z=embed(encoder, part.x), gallery=gallery)

    def near(self, part: RetrievalTask) -> Threat:
        """Return the threat of some queries of the task."""
        order = self.task.index.argsort()
        places = order[torch.searchsorted(self.task.index[order], part.index)]
        near: Threat = rows_of(self.threat, places)
        return near

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
    def scored(self) -> Tensor:
        """(n,) bool: the successes that the score counts."""
        return self.everything if self.union else self.primary.success

    def added(self, name: str, missed: Tensor, success: Tensor) -> float:
        """Note successes on the missed queries of the sample; return how much they add, a share of it."""
        new = torch.zeros(len(self.part), dtype=torch.bool, device=self.device)
        new[missed] = success
        self.found[name] = new
        return share(new)
