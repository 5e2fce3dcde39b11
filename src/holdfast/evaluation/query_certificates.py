"""Certify the queries of a retrieval task: at once by a Lipschitz constant, one by one by sampling.

A cluster task is certified in the same ways, with its centroids as gallery: its certificates say that a query
stays in its own cluster, and those of :func:`by_class` that the name of its cluster stays right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..certify import (
    Certificate,
    LipschitzCertifier,
    Smoothing,
    certify_lipschitz,
    certify_recall,
    certify_votes,
    lipschitz_constant,
)
from ..certify.lipschitz import embed_as, is_proven, rounding_error
from ..errors import InvalidArgument, UnknownName
from ..functional.distance import Cosine, Euclidean, SquaredEuclidean
from ..functional.ranking import without_self
from ..search import frozen
from ..types import ClusterNames, ClusterTask, Encoder, Gallery, PairwiseDistance, RetrievalTask
from .certified import read_certificate, write_certificate

Way = Literal["lipschitz", "smoothing", "votes"]
WAYS: tuple[Way, ...] = ("lipschitz", "smoothing", "votes")
KEEP_EVERY = 5.0
"""Seconds between savings of what is certified so far."""


def proves(encoder: Encoder, distance: PairwiseDistance, *, clusters: bool = False) -> bool:
    """Return whether :func:`certify_task` can certify: the constant is proven, the distance Euclidean.

    ``clusters`` tells that the task is one of clusters; these may be compared by the cosine as well.
    """
    allowed = (Euclidean, SquaredEuclidean, Cosine) if clusters else (Euclidean, SquaredEuclidean)
    return is_proven(encoder) and isinstance(distance, allowed)


def choose_way(by: str, encoder: Encoder, distance: PairwiseDistance, k: int = 1) -> Way:
    """Return how to certify, for ``"auto"`` the first of ``WAYS`` that an encoder allows.

    Raises
    ------
    UnknownName
        For anything but ``"auto"`` and a way.
    InvalidArgument
        If the encoder, its distance or ``k`` does not allow the way.
    """
    if by != "auto" and by not in WAYS:
        raise UnknownName("by", by, ("auto", *WAYS))
    known = proves(encoder, distance)
    unit = bool(getattr(encoder, "normalize", False))
    first: Way = "lipschitz" if known else "smoothing" if unit else "votes"
    way = next((w for w in WAYS if w == by), first)
    name = type(getattr(encoder, "spec", encoder)).__name__
    if way == "lipschitz" and not known:
        proven = hasattr(encoder, "lipschitz_constant")
        why = "a Euclidean distance" if proven else "an encoder with a proven Lipschitz constant"
        got = type(distance).__name__ if proven else name
        raise InvalidArgument("by", f"smoothing or votes; lipschitz needs {why}", got)
    if way == "smoothing" and not unit:
        raise InvalidArgument(
            "by", "votes; smoothing needs a normalised encoder, of embeddings of length 1", name
        )
    if way == "votes" and k != 1:
        raise InvalidArgument("k", "1 for votes, which are about the first result", k)
    return way


def certify_task(task: RetrievalTask, part: RetrievalTask | None = None, *, k: int = 1) -> Certificate:
    """Certify Recall@k by the Lipschitz constant of the encoder.

    See :func:`~holdfast.certify.certify_lipschitz`.

    Parameters
    ----------
    task
        Whose queries are the gallery, row by row; or a task of clusters, whose centroids are taken as they
        are: with ``k = 1`` what is certified is that no other centroid comes as near as the query's own.
    part
        Some of its queries; by default all.
    k
        Places that count.

    Returns
    -------
    Certificate
        One radius for each query, about a system that embeds in float32, as runs do (without TF32).
    """
    asked: Any = task if part is None else part
    encoder: Any = task.encoder
    if isinstance(asked, ClusterTask):
        return _among_centroids(asked, k)
    found = certify_lipschitz(
        encoder, asked.x, asked.y, gallery=task.x, gallery_y=task.gallery.y, self_index=asked.self_index, k=k,
        dtype=torch.float32,
    )  # fmt: skip
    return found.cpu()


def _among_centroids(task: ClusterTask, k: int) -> Certificate:
    """Certify queries among centroids, see :func:`certify_task`.

    The nearest by cosine is the nearest to the centroids divided by their lengths: of the query only the
    direction counts, so that its length needs no bound.
    """
    encoder: Any = task.encoder
    centroids = task.gallery.z.double()
    if isinstance(task.distance, Cosine):
        centroids = F.normalize(centroids, dim=1)
    elif not isinstance(task.distance, Euclidean | SquaredEuclidean):
        raise InvalidArgument("distance", "Euclidean, its square, or cosine", task.distance)
    slack = rounding_error(encoder, torch.float64) + rounding_error(encoder, torch.float32)
    certifier = LipschitzCertifier(constant=lipschitz_constant(encoder), slack=slack)
    z = embed_as(encoder, task.x, torch.float64)
    return certifier.recall(z, task.y.to(z.device), centroids, task.gallery.y.to(z.device), k=k).cpu()


Naming = Literal["hungarian", "majority"]


def by_class(task: ClusterTask, naming: Naming = "hungarian") -> ClusterTask:
    """Return a task in which a query is right when its cluster bears the name of its class.

    Labels of centroids are the names of the clusters, those of queries their classes, so that Recall@1,
    attacks on it and its certificates are those of the accuracy of clustering-based inference. A query of
    unknown class, or one of whose class no cluster bears the name, is never right.

    Parameters
    ----------
    task
        With ``names``.
    naming
        ``"hungarian"``, one-to-one; or ``"majority"``, where a query may pass between clusters of one name.

    Raises
    ------
    InvalidArgument
        If the clusters have no names.
    UnknownName
        For another naming.
    """
    if naming not in ClusterNames._fields:
        raise UnknownName("naming", naming, ClusterNames._fields)
    if task.names is None:
        raise InvalidArgument("names", "a task whose clusters have names", None)
    names: Tensor = getattr(task.names, naming).to(task.gallery.y.device)
    truth = task.truth.to(task.y.device)
    gallery = Gallery(task.gallery.z, names, task.gallery.ids)
    return replace(task, y=torch.where(truth < 0, _UNKNOWN, truth), gallery=gallery)


_UNKNOWN = -2
"""Label of queries of unknown class: that of no cluster, not even of one without a name (-1)."""


def first_label(query: RetrievalTask) -> Callable[[Tensor], Tensor]:
    """Return a search for one query: copies (b, *s) -> (b,) labels of the nearest rows, itself left out."""
    own = query.self_index

    def answer(copies: Tensor) -> Tensor:
        d = query.distance.matrix(query.encoder(copies), query.gallery.z)
        return query.gallery.y[without_self(d, own.expand(len(copies))).argmin(1)]

    return answer


def certify_queries(
    task: RetrievalTask,
    smoothing: Smoothing,
    way: Way,
    *,
    k: int = 1,
    kept: Path | None = None,
    on_query: Callable[[int, float], None] | None = None,
) -> tuple[Certificate, float]:
    """Certify query by query.

    Parameters
    ----------
    task
        The queries to certify, and the gallery.
    smoothing
        Noise, samples and alpha.
    way
        ``"smoothing"``: :func:`~holdfast.certify.certify_recall`. ``"votes"``:
        :func:`~holdfast.certify.certify_votes` around the label of the nearest row.
    k
        Places that count; votes are about the first alone.
    kept
        A file that gets what is done every few seconds; a call that finds it goes on from there. Whoever
        calls removes it when all is stored.
    on_query
        Called after each query with queries done and seconds for each.

    Returns
    -------
    tuple of Certificate and float
        The certificate of all queries, and seconds, those of a stopped call included.
    """
    done: list[Certificate] = []
    before = 0.0
    if kept is not None and kept.is_file():
        certificate, before = read_certificate(kept, 2.0)
        done = [certificate]
    first = sum(map(len, done))
    start = saved = time.perf_counter()
    for number in range(first, len(task)):
        query = task.rows(slice(number, number + 1))
        if way != "votes":
            made = certify_recall(query, smoothing, k=k)
        else:
            with frozen(query.encoder):
                made = certify_votes(first_label(query), query.x, smoothing, y=query.y, index=query.index)
        done.append(made.cpu())
        now = time.perf_counter()
        if kept is not None and now - saved > KEEP_EVERY and number + 1 < len(task):
            write_certificate(kept, pooled(done), before + now - start)
            saved = now
        if on_query is not None:
            on_query(number + 1, (now - start) / (number + 1 - first))
    return pooled(done), before + time.perf_counter() - start


def pooled(parts: Sequence[Certificate]) -> Certificate:
    """Put certificates of queries together: radii, what is right, and answers where all have them."""
    answers = [c.answer for c in parts if c.answer is not None and c.answer.ndim == 1]
    return Certificate(
        radius=torch.cat([c.radius for c in parts]),
        correct=torch.cat([c.correct for c in parts]),
        alpha=max(c.alpha for c in parts),
        method=parts[0].method,
        answer=torch.cat(answers) if len(answers) == len(parts) else None,
    )
