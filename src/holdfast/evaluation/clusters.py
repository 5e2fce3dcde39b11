"""Scores of whole sets of queries under clustering-based inference, and what is kept about the clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attacks import RankMargin
from ..attacks.cluster import cluster_measures
from ..errors import CorruptFile
from ..files import read_arrays, write_arrays
from ..functional.clustering import ami, ari, assign, nmi, purity, reclustered
from ..types import ClusterTask
from .agreement import contingency, resampled_agreement
from .cluster_transfer import members_of
from .retrieval import CUTS, evaluate_retrieval
from .stats import Estimate, estimate
from .suite import EntryResult, Suite

SEEDS = (0, 1, 2, 3, 4)
"""Of the k-means runs of re-clustered scores."""
OF_TRUTH = ("accuracy", "majority")
OF_IMAGES = ("recall@1", "map@r")
SET_SCORES = {"purity": purity, "nmi": nmi, "ami": ami, "ari": ari}
FILE, MEMBERS = "clusters.npz", "members.npz"


def known(task: ClusterTask) -> Tensor:
    """Return which queries have a class label: (n,) bool."""
    return task.truth >= 0


def measurable(suite: Suite, task: ClusterTask) -> Suite:
    """Return a suite without the measures for which a task has no labels: what is left is ``flip``."""
    absent: set[str] = set()
    if task.names is None or not bool(known(task).any()):
        absent |= set(OF_TRUTH)
    if task.images is None or not bool(known(task).any()):
        absent |= set(OF_IMAGES)
    if not absent:
        return suite

    def left(flags: Mapping[str, bool]) -> dict[str, bool]:
        return {metric: higher for metric, higher in flags.items() if metric not in absent}

    entries = tuple(replace(e, higher_is_robust=left(e.higher_is_robust)) for e in suite.entries)
    return replace(suite, entries=entries, union=left(suite.union))


def of_labelled(values: Tensor, metric: str, task: ClusterTask) -> Tensor:
    """Return the values of a measure (n,) of the queries that it is defined for."""
    return values[known(task)] if metric in (*OF_TRUTH, *OF_IMAGES) else values


def set_scores(z: Tensor, task: ClusterTask, seed: int = 0, resamples: int = 100) -> dict[str, Estimate]:
    """Score what the queries of a task are assigned to, against their class labels.

    Parameters
    ----------
    z
        (n, e) embeddings of the queries, clean or attacked.
    task
        The queries. Those without a label are clustered again with the others, and count in no score.
    seed, resamples
        Of the bootstrap.

    Returns
    -------
    dict
        Empty without labels. ``purity``, ``nmi``, ``ami``, ``ari`` of the nearest frozen centroids
        (inductive), each with a 95 % bootstrap interval over queries. The same with ``-t``, and
        ``accuracy-t``, of k-means run again on ``z`` with as many clusters
        (:func:`~holdfast.functional.clustering.reclustered`, transductive): the mean over the five seeds 0 to
        4, and in place of the interval the mean minus and plus the standard deviation over these seeds:
        k-means is random, and this is how much. Accuracy by majority is the purity there.

    Notes
    -----
    NMI has the arithmetic mean; AMI and ARI are corrected for chance and may be below 0. Resampling repeats
    queries, which by itself raises agreement a little; the intervals always hold the value.
    """
    some = known(task)
    if not bool(some.any()):
        return {}
    truth, given = task.truth[some].cpu(), assign(z[some], task.gallery.z, task.distance).cpu()
    drawn = resampled_agreement(contingency(truth, given), resamples, seed)
    lows, highs = np.percentile(drawn, [2.5, 97.5], axis=0)
    found: dict[str, Estimate] = {}
    for (name, score), low, high in zip(SET_SCORES.items(), lows, highs, strict=True):
        value = score(truth, given)
        found[name] = Estimate(value, min(float(low), value), max(float(high), value), len(truth))
    k = min(len(task.gallery.z), len(z))
    again = reclustered(z, task.truth.to(z.device), k, seeds=SEEDS, spherical=task.spherical)
    for name in (*SET_SCORES, "accuracy"):
        mean, sd = again[name]
        found[f"{name}-t"] = Estimate(mean, mean - sd, min(mean + sd, 1.0), len(truth))
    return found


def evaluate_clusters(task: ClusterTask, seed: int = 0) -> dict[str, Estimate]:
    """Score the clean queries of a task.

    Parameters
    ----------
    task
        Queries and clusters.
    seed
        Of the bootstrap.

    Returns
    -------
    dict
        Empty without labels. ``accuracy`` and ``majority`` (share of queries whose cluster has their class
        label by one-to-one and by majority naming), what :func:`set_scores` gives, and, where the images
        behind the centroids are known, the retrieval scores of
        :func:`~holdfast.evaluation.evaluate_retrieval` against these images but for its NMI.
    """
    some = known(task)
    if not bool(some.any()):
        return {}
    measures = cluster_measures(task.z, task)
    found = {
        name: estimate(of_labelled(measures[name], name, task), seed) for name in OF_TRUTH if name in measures
    }
    found |= set_scores(task.z, task, seed)
    if task.images is not None:
        images = task.images.rows(torch.nonzero(some).squeeze(1))
        cuts = [k for k in CUTS if k < len(images.gallery.z)]
        found |= {name: e for name, e in evaluate_retrieval(images, cuts, seed=seed).items() if name != "nmi"}
    return found


def farthest(task: ClusterTask, results: Sequence[EntryResult]) -> Tensor:
    """Return for each query the embedding, of its clean one and all attacked ones, with the largest margin.

    The margin is that of A1: at 0 or above, the query has left its cluster. So these embeddings are the set
    that the union of the attacks comes to: (n, e).
    """
    margin = RankMargin()
    z, best = task.z.clone(), margin.gain(task.z, None, task)
    for result in results:
        value = margin.gain(result.outcome.z, None, task)
        worse = value > best
        z[worse], best[worse] = result.outcome.z[worse], value[worse]
    return z


def write_clusters(folder: Path, task: ClusterTask) -> None:
    """Write ``clusters.npz``: what the clusters are and where the clean queries stand.

    ``centroids`` (K, e), ``cluster_of`` (n,), ``truth`` (n,), ``hungarian`` (K,), ``majority`` (K,), ``z``
    (n, e) and ``index`` (n,), the queries' sample numbers. Names are -1 where the references have no labels.
    """
    none = torch.full((len(task.gallery.z),), -1, dtype=torch.int64)
    names = (none, none) if task.names is None else tuple(task.names)
    arrays = {
        "centroids": task.gallery.z, "cluster_of": task.cluster_of, "truth": task.truth,
        "hungarian": names[0], "majority": names[1], "z": task.z, "index": task.index,
    }  # fmt: skip
    write_arrays(folder / FILE, {name: v.numpy(force=True) for name, v in arrays.items()})


def write_members(folder: Path, task: ClusterTask, attacked: Tensor) -> None:
    """Write ``members.npz`` for an ensemble: which cluster each member would assign; else nothing.

    ``assigned`` and ``attacked``, (M, n): of the clean queries and of the same queries where they were
    attacked. A member's centroids are its part of the joint ones, which are the means of its embeddings.

    Parameters
    ----------
    folder
        Of the evaluation.
    task
        Whose encoder may be an ensemble: of at least two members, with a method ``split``.
    attacked
        (n, e) joint embeddings, as :func:`farthest` gives them.
    """
    encoder: Any = task.encoder
    if not members_of(encoder):
        return
    centroids = encoder.split(task.gallery.z)
    found = {
        name: [assign(own, c, task.distance) for own, c in zip(encoder.split(z), centroids, strict=True)]
        for name, z in (("assigned", task.z), ("attacked", attacked))
    }
    write_arrays(folder / MEMBERS, {name: torch.stack(v).numpy(force=True) for name, v in found.items()})


def read_clusters(folder: str | Path) -> dict[str, np.ndarray]:
    """Read ``clusters.npz`` of an evaluation folder.

    Raises
    ------
    CorruptFile
        If it lacks an array, or they do not fit together.
    """
    path = Path(folder) / FILE
    arrays = read_arrays(path)
    missing = {"centroids", "cluster_of", "truth", "hungarian", "majority", "z", "index"} - arrays.keys()
    if missing:
        raise CorruptFile(path, None, f"need the arrays {', '.join(sorted(missing))}")
    k, n = len(arrays["centroids"]), len(arrays["z"])
    sizes = {
        **dict.fromkeys(("cluster_of", "truth", "index"), n),
        **dict.fromkeys(("hungarian", "majority"), k),
    }
    wrong = [name for name, size in sizes.items() if arrays[name].shape != (size,)]
    if wrong:
        raise CorruptFile(path, None, f"need one number for each query or cluster in {', '.join(wrong)}")
    return arrays
