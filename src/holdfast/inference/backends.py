"""Centroids of many rows by scikit-learn, by its mini-batches, or by FAISS."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidArgument, MissingExtra, UnknownName
from ..functional.clustering import kmeans, spherical_kmeans
from ..functional.ranking import chunks

Array = NDArray[Any]
BACKENDS = ("auto", "sklearn", "minibatch", "faiss")
LARGE = 200_000
"""Rows from which ``"auto"`` leaves scikit-learn's full k-means."""
CHUNK = 8192
"""Rows that are read at a time."""
EPOCHS = 20
"""Passes of mini-batch k-means at most."""
STILL = 1e-4
"""Mini-batches end after a pass that moves no centroid by more than this share of the data's spread."""


def backend_for(name: str, rows: int, mapped: bool) -> str:
    """Return what ``"auto"`` means: mini-batches for memory-mapped rows, FAISS or mini-batches for many."""
    if name not in BACKENDS:
        raise UnknownName("backend", name, BACKENDS)
    if name != "auto":
        return name
    if mapped:
        return "minibatch"
    if rows < LARGE:
        return "sklearn"
    return "faiss" if find_spec("faiss") is not None else "minibatch"


def find_centroids(z: Array, k: int, *, backend: str, spherical: bool, seed: int, n_init: int) -> Array:
    """Return centroids (k, e) of rows (n, e), of length 1 if ``spherical``.

    Raises
    ------
    MissingExtra
        If ``backend`` is ``"faiss"`` and FAISS is not installed.
    """
    if spherical and not all(z[rows].any(1).all() for rows in chunks(len(z), CHUNK)):
        raise InvalidArgument("X", "rows of length > 0, for directions are clustered", "a row of zeros")
    if backend == "faiss":
        return _faiss(z, k, spherical, seed, n_init)
    if backend == "minibatch":
        return _minibatch(z, k, spherical, seed, n_init)
    return _full(z, k, spherical, seed, n_init)


def _full(z: Array, k: int, spherical: bool, seed: int, n_init: int) -> Array:
    cluster = spherical_kmeans if spherical else kmeans
    writable = np.require(z, requirements=["C", "W"])  # torch warns of memory that it may not write
    return cluster(torch.from_numpy(writable), k, seed, n_init).centroids.numpy()


def _unit(z: Array) -> Array:
    out: Array = z / np.linalg.norm(z, axis=1, keepdims=True)
    return out


def _minibatch(z: Array, k: int, spherical: bool, seed: int, n_init: int) -> Array:
    """Start from full k-means on rows drawn from everywhere, then read chunk by chunk in random order.

    Centroids without many members are not drawn anew (``reassignment_ratio``): rows often stand class by
    class, and then a chunk without a cluster's members says nothing about it. Unit centroids are divided by
    their length after every chunk (Zhong, Efficient online spherical k-means clustering, IJCNN 2005).
    """
    from sklearn.cluster import MiniBatchKMeans

    generator = np.random.default_rng(seed)
    drawn = np.sort(generator.choice(len(z), min(len(z), max(CHUNK, 20 * k)), replace=False))
    sample = z[drawn]
    start = _full(sample, k, spherical, seed, n_init)
    spread = float(np.sqrt((_unit(sample) if spherical else sample).var(0).sum()))
    model = MiniBatchKMeans(k, init=start, n_init=1, reassignment_ratio=0.0, random_state=seed)
    before = start
    for _ in range(EPOCHS):
        for rows in _shuffled(len(z), max(CHUNK, k), generator):
            model.partial_fit(_unit(z[rows]) if spherical else z[rows])
            if spherical:
                model.cluster_centers_ = _unit(model.cluster_centers_)
        after = model.cluster_centers_.copy()
        if np.linalg.norm(after - before, axis=1).max() <= STILL * spread:
            break
        before = after
    out: Array = model.cluster_centers_
    return out


def _shuffled(n: int, size: int, generator: np.random.Generator) -> Iterator[slice]:
    """Cut ``range(n)`` into slices of at least ``size``, in random order."""
    edges = np.linspace(0, n, max(1, n // size) + 1).astype(int)
    for i in generator.permutation(len(edges) - 1):
        yield slice(int(edges[i]), int(edges[i + 1]))


def _faiss(z: Array, k: int, spherical: bool, seed: int, n_init: int) -> Array:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss", "faiss", "k-means of FAISS") from error
    rows = np.ascontiguousarray(_unit(z) if spherical else z, dtype=np.float32)
    model: Any = faiss.Kmeans(
        rows.shape[1], k, niter=100, nredo=n_init, seed=seed, spherical=spherical,
        min_points_per_centroid=1, max_points_per_centroid=len(rows),  # it would draw 256 k of the rows
    )  # fmt: skip
    model.train(rows)
    out: Array = model.centroids.astype(z.dtype)
    return out
