"""The vocabulary that all layers share: protocols and plain values, nothing else.

Letters are fixed: ``x`` inputs in [0, 1], ``y`` labels, ``z`` embeddings, ``d`` distances; sizes ``n`` rows,
``m`` gallery rows, ``t`` triplets, ``e`` embedding width, ``g`` groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from .rng import Randomness

Encoder = Callable[[Tensor], Tensor]
"""Any callable (n, *s) -> (n, e). Inputs lie in [0, 1]; all normalisation lives inside."""


class Images(Protocol):
    """Images behind an index: a tensor (n, c, h, w), or files that are decoded when they are indexed."""

    @property
    def device(self) -> torch.device:
        """Where the indexed images are."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Tensor:
        """Return images in [0, 1], shaped like ``rows`` and then (c, h, w)."""
        ...


Objective = Callable[[Tensor], Tensor]
"""(r*g, e) -> (g,): what a search climbs. Row i belongs to group ``i mod g``."""


@runtime_checkable
class PairwiseDistance(Protocol):
    """A distance between embeddings."""

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (m, e) -> (n, m)."""
        ...

    def rowwise(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, e), (n, e) -> (n,)."""
        ...


class Triplets(NamedTuple):
    """Rows of a batch: anchor, positive, negative; each (t,) int64."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


class Roles(NamedTuple):
    """Embeddings (or images) of the three roles; each (t, ...)."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


class Miner(Protocol):
    """Chooses triplets from a batch of embeddings."""

    def __call__(
        self, z: Tensor, y: Tensor, distance: PairwiseDistance, generator: torch.Generator | None = None
    ) -> Triplets:
        """(n, e), (n,) -> rows of the batch."""
        ...


class TripletLoss(Protocol):
    """A loss on triplets, one value for each."""

    def __call__(self, z: Roles, distance: PairwiseDistance) -> Tensor:
        """Three (t, e) -> (t,)."""
        ...


class BatchLoss(Protocol):
    """A loss on a labelled batch, one value for each row."""

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """(n, e), (n,) -> (n,)."""
        ...


class Threat(Protocol):
    """What an adversary may do to an input; owns the geometry."""

    @property
    def eps(self) -> float:
        """Radius in input units, >= 0."""
        ...

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the nearest allowed point to ``x`` around ``x0``."""
        ...

    def direction(self, grad: Tensor) -> Tensor:
        """Return the steepest ascent direction of unit length in this geometry."""
        ...

    def noise(self, x0: Tensor, generator: Randomness) -> Tensor:
        """Return random allowed points around ``x0``."""
        ...


def rows_of(part: Any, which: Tensor) -> Any:
    """Return what belongs to some rows: of parts with a method ``rows`` that part, of all others themselves.

    A threat with a radius or a place for every row, and random streams, are such parts.
    """
    rows = getattr(part, "rows", None)
    return part if rows is None else rows(which)


class Gradient(Protocol):
    """Where a search gets value and gradient from: back-propagation, NES, SPSA."""

    def __call__(
        self, encoder: Encoder, x: Tensor, objective: Objective, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """Return the value (g,) and the gradient shaped like ``x``."""
        ...


class Search(Protocol):
    """How the allowed set is explored; the objective is always climbed."""

    def __call__(
        self,
        encoder: Encoder,
        x0: Tensor,
        objective: Objective,
        threat: Threat,
        generator: Randomness = None,
    ) -> Tensor:
        """Return allowed inputs shaped like ``x0``."""
        ...


class Progress(NamedTuple):
    """Where a training run stands; all counts start at 0."""

    step: int = 0
    steps: int = 1
    epoch: int = 0
    epochs: int = 1

    @property
    def fraction(self) -> float:
        """Share of the steps that are done, in [0, 1)."""
        return self.step / max(self.steps, 1)


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a defense may look at while it builds the losses of one batch.

    Attributes
    ----------
    encoder
        The module to train; may be wrapped for several processes.
    bare
        The same module without any wrapper; searches use it.
    x, y, index
        (n, c, h, w) images in [0, 1], (n,) labels, (n,) sample numbers.
    learnable
        What ``Defense.setup`` returned: proxies and the like.
    distance
        The distance of the run.
    progress
        Step and epoch.
    signal
        The defense's small memory (plain floats); the trainer stores it in checkpoints.
    generator
        Stream of this step.
    """

    encoder: nn.Module
    bare: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    distance: PairwiseDistance
    learnable: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    progress: Progress = field(default_factory=Progress)
    signal: MutableMapping[str, float] = field(default_factory=dict)
    generator: torch.Generator | None = None


class TripletView(NamedTuple):
    """What a triplet adversary sees: embeddings now and before, and its own target if it set one."""

    now: Roles
    clean: Roles
    target: Tensor | None = None


class BatchView(NamedTuple):
    """What an adversary that moves every row sees."""

    now: Tensor
    clean: Tensor
    y: Tensor
    target: Tensor | None = None


View = TypeVar("View", TripletView, BatchView, contravariant=True)


class Adversary(Protocol[View]):
    """Who moves during training, and why.

    ``moves`` is a subset of ``"apn"`` (triplet roles), or ``"x"`` for every row of the batch.
    """

    @property
    def moves(self) -> str:
        """Which inputs move."""
        ...

    def target(self, z: Tensor, y: Tensor, triplets: Triplets | None, ctx: Context) -> Tensor | None:
        """Set, once for each batch, what :meth:`gain` aims at, from the clean embeddings (n, e)."""
        return None

    def gain(self, z: View, ctx: Context) -> Tensor:
        """Return what the adversary climbs: (t,), (n,), or (1,) when the batch is coupled."""
        ...


class Members(Protocol):
    """An encoder made of members, whose joint embedding can be taken apart again."""

    widths: tuple[int, ...]

    def __call__(self, x: Tensor, /) -> Tensor:
        """(n, *s) -> (n, e), e the sum of the widths."""
        ...

    def __len__(self) -> int: ...

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the members' embeddings, M times (n, e_m), out of joint ones."""
        ...

    def member(self, m: int) -> nn.Module:
        """Return one member as an encoder of its own, sharing weights."""
        ...


class Step(NamedTuple):
    """One optimiser step that a defense asks for."""

    loss: Tensor
    logs: dict[str, float]


class Defense(Protocol):
    """A generator of losses; the trainer owns optimiser, precision and processes."""

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return learnable parts such as proxies, usually empty; called once, before the first batch.

        ``encoder`` (with ``embedding_dim``) is what will be trained; ``y`` (N,) are the labels of all
        training samples, 0 to c - 1, each of which occurs: row i is sample number i of ``Context.index``.
        """
        ...

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the losses of one batch; after each ``yield`` the optimiser has stepped."""
        ...


class Gallery(NamedTuple):
    """Reference embeddings: z (m, e), labels y (m,), ids (m,) sample numbers."""

    z: Tensor
    y: Tensor
    ids: Tensor


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Queries against a gallery.

    Attributes
    ----------
    encoder
        The encoder under attack.
    x, y
        Queries (n, c, h, w) in [0, 1] and their labels (n,). Over a whole test set ``x`` may be any
        :class:`Images`; :meth:`rows` makes it a tensor.
    z
        Clean embeddings of the queries (n, e).
    gallery
        The clean gallery.
    self_index
        (n,) row of the gallery that is the query itself, -1 where there is none.
    index
        (n,) sample numbers that name the random streams.
    distance
        The distance that ranks.
    """

    encoder: Encoder
    x: Tensor
    y: Tensor
    z: Tensor
    gallery: Gallery
    self_index: Tensor
    index: Tensor
    distance: PairwiseDistance

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, which: slice | Tensor) -> RetrievalTask:
        """Return the task for some of the queries."""
        return replace(
            self,
            x=self.x[which],
            y=self.y[which],
            z=self.z[which],
            self_index=self.self_index[which],
            index=self.index[which],
        )


class ClusterNames(NamedTuple):
    """What each cluster is called, each (K,) int64 labels of classes, -1 for none.

    Attributes
    ----------
    hungarian
        The one-to-one assignment of clusters to classes with the most agreement; -1 for clusters without
        labelled members, and where there are more clusters than classes.
    majority
        The commonest class of each cluster, -1 for those without labelled members; two may share one.
    """

    hungarian: Tensor
    majority: Tensor


@dataclass(frozen=True, kw_only=True)
class ClusterTask(RetrievalTask):
    """Queries against frozen clusters: a retrieval task whose gallery are the K centroids.

    The label of a centroid is its number and the label ``y`` of a query the number of the nearest centroid
    when it is clean, so "right" means "still in its own cluster": every attack, margin and check of retrieval
    is one of clustering-based inference as well.

    Attributes
    ----------
    cluster_of
        (n,) the clean nearest centroid of every query, the same as ``y`` here.
    truth
        (n,) class labels of the queries, -1 where unknown.
    names
        Class labels of the clusters, ``None`` where the references have none.
    images
        The same queries against a gallery of embeddings, for Recall@1 and MAP@R; ``None`` leaves them out.
    references, member_of
        Images that the centroids were fitted on, and the cluster of each (m,); they let other encoders see
        the same clusters. ``None`` where only embeddings were given.
    spherical
        Whether centroids are divided by their length.
    """

    cluster_of: Tensor
    truth: Tensor
    names: ClusterNames | None = None
    images: RetrievalTask | None = None
    references: Images | None = None
    member_of: Tensor | None = None
    spherical: bool = False

    def rows(self, which: slice | Tensor) -> ClusterTask:
        """Return the task for some of the queries."""
        part = super().rows(which)
        assert isinstance(part, ClusterTask)
        return replace(
            part,
            cluster_of=self.cluster_of[which],
            truth=self.truth[which],
            images=None if self.images is None else self.images.rows(which),
        )


Task = TypeVar("Task", contravariant=True)
Target = TypeVar("Target")


class Attack(Protocol[Task, Target]):
    """An evaluation attack: choose targets, say what to climb, say what happened to each query."""

    def target(self, task: Task, generator: Randomness = None) -> Target:
        """Choose targets on clean embeddings."""
        ...

    def gain(self, z: Tensor, target: Target, task: Task) -> Tensor:
        """(n, e) -> (n,), climbed by the search."""
        ...

    def measure(self, z: Tensor, target: Target, task: Task) -> dict[str, Tensor]:
        """Return named per-query values (n,); called on clean and on attacked embeddings."""
        ...


Table = Mapping[str, Any]
"""A public name -> object table; greppable, typed, without hidden registration."""
