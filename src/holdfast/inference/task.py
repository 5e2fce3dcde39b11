"""Set up queries against the clusters of references."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from warnings import warn

import torch
from torch import Tensor

from ..errors import DataError, HoldfastWarning, InvalidArgument
from ..evaluation.embed import retrieval_task
from ..functional.clustering import assign, name_clusters
from ..functional.distance import Cosine
from ..functional.ranking import chunks
from ..types import ClusterNames, ClusterTask, Encoder, Gallery, Images

if TYPE_CHECKING:
    from .index import ClusterIndex


def cluster_task(
    encoder: Encoder,
    x: Images,
    truth: Tensor | None = None,
    *,
    references: Images | Tensor,
    reference_labels: Tensor | None = None,
    index: ClusterIndex | None = None,
    batch_size: int = 256,
) -> ClusterTask:
    """Cluster references, and make every image a query for its nearest centroid.

    Our design: an attacker owns one query; the centroids are those of clean references and do not move.

    Parameters
    ----------
    encoder
        (n, c, h, w) in [0, 1] -> (n, e).
    x
        Queries (n, c, h, w) in [0, 1].
    truth
        (n,) class labels of the queries, negative where unknown; None: all unknown.
    references
        Images, or embeddings (m, e) that are there already. The very object ``x`` makes the queries
        themselves the references; then their labels are ``truth``, and retrieval leaves out a query's own
        image.
    reference_labels
        (m,) class labels of the references, negative where unknown. Without labels there are no names, and
        ``index`` must say how many clusters there are.
    index
        How to cluster, ``ClusterIndex()`` by default: k-means with as many clusters as classes. A fitted
        index is used as it is; otherwise a clone is fitted.
    batch_size
        Images at a time.

    Returns
    -------
    ClusterTask
        With ``images`` where all queries and some references have labels.

    Raises
    ------
    DataError
        If labels do not fit the images.
    InvalidArgument
        From :meth:`ClusterIndex.fit`; or if embeddings or the fitted index are of another width than those
        of ``encoder``.

    Warns
    -----
    HoldfastWarning
        If a fitted index was built from other embeddings than these references.
    """
    own = references is x
    if own and reference_labels is None:
        reference_labels = truth
    known = torch.full((len(x),), -1) if truth is None else truth
    labels = torch.full((len(references),), -1) if reference_labels is None else reference_labels
    if len(labels) != len(references):
        raise DataError(f"reference_labels: need one for each of {len(references)}, got {len(labels)}")
    if own:
        images = retrieval_task(encoder, x, known, batch_size=batch_size)
        images = replace(images, gallery=images.gallery._replace(y=labels.to(images.z.device)))
    else:
        images = retrieval_task(
            encoder, x, known, batch_size=batch_size, gallery=references, gallery_y=labels
        )
    z, rows = images.z, images.gallery.z

    fitted = _fitted(index, rows, labels)
    centroids, distance = torch.from_numpy(fitted.cluster_centers_).to(z), fitted.distance
    cluster_of = torch.cat([assign(z[part], centroids, distance) for part in chunks(len(z), batch_size)])
    member_of = torch.from_numpy(fitted.predict(rows))
    names = fitted.names_
    if names is None and bool((labels >= 0).any()):
        names = name_clusters(labels.cpu(), member_of, len(centroids))
    ranked = bool((known >= 0).all()) and bool((labels >= 0).any())
    embedded = not own and isinstance(references, Tensor) and references.ndim == 2
    return ClusterTask(
        encoder=encoder,
        x=images.x,
        y=cluster_of,
        z=z,
        gallery=Gallery(centroids, *(torch.arange(len(centroids), device=z.device) for _ in range(2))),
        self_index=torch.full_like(images.self_index, -1),
        index=images.index,
        distance=distance,
        cluster_of=cluster_of,
        truth=known.to(z.device),
        names=None if names is None else ClusterNames(*(name.to(z.device) for name in names)),
        images=(replace(images, distance=Cosine()) if fitted.spherical else images) if ranked else None,
        references=None if embedded else references,
        member_of=None if embedded else member_of.to(z.device),
        spherical=fitted.spherical,
    )


def _fitted(index: ClusterIndex | None, z: Tensor, labels: Tensor) -> ClusterIndex:
    """Return a fitted index as it is, and otherwise a fitted clone."""
    from sklearn.base import clone  # slow to import
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    from .index import ClusterIndex

    index = ClusterIndex() if index is None else index
    try:
        check_is_fitted(index)
    except NotFittedError:
        fresh: ClusterIndex = clone(index).fit(z, labels)
        return fresh
    if index.n_features_in_ != z.shape[1]:
        raise InvalidArgument("index", f"centroids of width {z.shape[1]}", index.n_features_in_)
    if index.fingerprint_ and not index.fitted_on(z, exact=False):
        warn("index: was fitted on other embeddings than these references", HoldfastWarning, stacklevel=3)
    return index
