"""Embed images in one pass, set up queries against a gallery, and see clusters through other encoders."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, InvalidArgument
from ..functional.distance import Euclidean
from ..functional.ranking import chunks
from ..search.modes import frozen
from ..types import ClusterTask, Encoder, Gallery, Images, PairwiseDistance, RetrievalTask


def embed(encoder: Encoder, x: Images, batch_size: int = 256) -> Tensor:
    """Embed images without gradient and in evaluation mode.

    Parameters
    ----------
    encoder
        (n, c, h, w) in [0, 1] -> (n, e).
    x
        Images.
    batch_size
        Images at a time.

    Returns
    -------
    Tensor
        (n, e).

    Raises
    ------
    InvalidArgument
        If the encoder returns another shape, or NaN or infinity.
    """
    if len(x) == 0:
        raise DataError("images: need at least one image, got 0")
    parts = []
    with frozen(encoder), torch.no_grad():
        for rows in chunks(len(x), batch_size):
            z = encoder(x[rows])
            if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != rows.stop - rows.start:
                got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
                raise InvalidArgument("encoder", f"embeddings ({rows.stop - rows.start}, e)", got)
            if not bool(torch.isfinite(z).all()):
                raise InvalidArgument("encoder", "finite embeddings", "NaN or infinity")
            parts.append(z)
    return torch.cat(parts)


def retrieval_task(
    encoder: Encoder,
    x: Images,
    y: Tensor,
    distance: PairwiseDistance | None = None,
    batch_size: int = 256,
    *,
    gallery: Images | Tensor | None = None,
    gallery_y: Tensor | None = None,
    self_index: Tensor | None = None,
) -> RetrievalTask:
    """Make every image a query against all the others, or against a gallery of its own.

    Parameters
    ----------
    encoder
        (n, c, h, w) in [0, 1] -> (n, e).
    x, y
        Images and labels; at least two images where they are their own gallery.
    distance
        Euclidean by default.
    batch_size
        Images at a time.
    gallery, gallery_y
        Gallery images, or embeddings (m, e) that are there already, and their labels (m,).
    self_index
        (n,) gallery row that is the query itself, -1 where there is none; by default no query stands in a
        gallery of its own.
    """
    if len(x) != len(y):
        raise DataError(f"labels: need one for each of {len(x)} images, got {len(y)}")
    if gallery is None:
        if len(x) < 2:
            raise DataError(f"images: need at least two, so that a query has something to find, got {len(x)}")
        if gallery_y is not None or self_index is not None:
            raise InvalidArgument("gallery", "a gallery beside gallery_y and self_index", None)
    z = embed(encoder, x, batch_size)
    ids = torch.arange(len(x), device=x.device)
    if gallery is None:
        rows, places = Gallery(z, y, ids), ids
    else:
        rows = _gallery(encoder, gallery, gallery_y, z, batch_size)
        places = _places(self_index, len(z), len(rows.z)).to(ids.device)
    return RetrievalTask(
        encoder=encoder,
        x=cast(Tensor, x),  # rows() makes a tensor of files
        y=y,
        z=z,
        gallery=rows,
        self_index=places,
        index=torch.arange(len(x)),
        distance=distance or Euclidean(),
    )


def _gallery(
    encoder: Encoder, gallery: Images | Tensor, y: Tensor | None, z: Tensor, batch_size: int
) -> Gallery:
    if isinstance(gallery, Tensor) and gallery.ndim == 2 and z.shape[1:] == gallery.shape[1:]:
        g = gallery.to(z)
        if not all(bool(g[rows].isfinite().all()) for rows in chunks(len(g), 2**14)):
            raise InvalidArgument("gallery", "finite embeddings", "NaN or infinity")
    elif isinstance(gallery, Tensor) and gallery.ndim == 2:
        raise InvalidArgument("gallery", f"embeddings (m, {z.shape[1]})", tuple(gallery.shape))
    else:
        g = embed(encoder, gallery, batch_size)
    if y is None or len(y) != len(g):
        got = 0 if y is None else len(y)
        raise DataError(f"gallery labels: need one for each of {len(g)} rows, got {got}")
    return Gallery(g, y.to(z.device), torch.arange(len(g), device=z.device))


def _places(self_index: Tensor | None, n: int, m: int) -> Tensor:
    places = torch.full((n,), -1) if self_index is None else self_index.long()
    if tuple(places.shape) != (n,) or int(places.min()) < -1 or int(places.max()) >= m:
        raise InvalidArgument("self_index", f"({n},) rows in [-1, {m})", tuple(places.shape))
    if m < 1 + int((places >= 0).any()):
        raise DataError(f"gallery: need at least one row besides the query, got {m}")
    return places


def cluster_means(z: Tensor, member_of: Tensor, k: int, spherical: bool = False) -> Tensor:
    """Return the mean embedding of each cluster: (m, e), (m,) -> (k, e), summed in float64.

    Parameters
    ----------
    z, member_of
        Embeddings and the cluster of each, 0 to k - 1.
    k
        Number of clusters.
    spherical
        Divide every mean by its length; a mean of 0 stays 0.

    Raises
    ------
    DataError
        If a cluster has no member, or the numbers do not fit.
    """
    if member_of.shape != (len(z),):
        raise DataError(f"clusters: need one for each of {len(z)} references, got {tuple(member_of.shape)}")
    member = member_of.to(z.device).long()
    if int(member.min()) < 0 or int(member.max()) >= k:
        span = f"{int(member.min())} to {int(member.max())}"
        raise DataError(f"clusters: need numbers from 0 to {k - 1}, got {span}")
    counts = torch.bincount(member, minlength=k)
    if bool((counts == 0).any()):
        empty = torch.nonzero(counts == 0).squeeze(1)[:5].tolist()
        raise DataError(f"clusters: need a reference in each, got none in {empty}")
    sums = z.new_zeros(k, z.shape[1], dtype=torch.float64).index_add_(0, member, z.double())
    means = sums / counts[:, None]
    return (F.normalize(means, dim=1) if spherical else means).to(z.dtype)


def seen_by(task: ClusterTask, encoder: Encoder, batch_size: int = 256) -> Tensor:
    """Return the centroids of the same clusters in the space of another encoder.

    Parameters
    ----------
    task
        With references and the cluster of each; the clusters stay those of the task.
    encoder
        (n, c, h, w) in [0, 1] -> (n, e').
    batch_size
        Images at a time.

    Returns
    -------
    Tensor
        (K, e'): mean embeddings of the references of each cluster, of length 1 where the task is spherical.

    Raises
    ------
    InvalidArgument
        If the task has no references.
    DataError
        If a cluster has none.
    """
    if task.references is None or task.member_of is None:
        raise InvalidArgument("references", "the images behind the centroids, and their clusters", None)
    z = embed(encoder, task.references, batch_size)
    return cluster_means(z, task.member_of, len(task.gallery.z), task.spherical)


def under_clusters(
    task: ClusterTask, encoder: Encoder, batch_size: int = 256, *, centroids: Tensor | None = None
) -> ClusterTask:
    """Return a task as another encoder sees it: its embeddings of the queries, among its own centroids.

    The clusters, and which of them is a query's own, stay those of the task: under another encoder a query
    need not be nearest to its own centroid. ``images``, embeddings of the former encoder, are left out.

    Parameters
    ----------
    task, encoder, batch_size
        See :func:`seen_by`.
    centroids
        What :func:`seen_by` returned before; by default it is called.
    """
    seen = seen_by(task, encoder, batch_size) if centroids is None else centroids
    return replace(
        task,
        encoder=encoder,
        z=embed(encoder, task.x, batch_size),
        gallery=Gallery(seen, task.gallery.y, task.gallery.ids),
        images=None,
    )
