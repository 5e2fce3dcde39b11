"""Clean retrieval quality of an encoder: Recall@k, mAP, MAP@R, NMI."""

from __future__ import annotations

from collections.abc import Sequence

from ..functional.clustering import kmeans, nmi
from ..functional.ranking import RetrievalScores, retrieval_scores, top_scores
from ..types import RetrievalTask
from .stats import Estimate, bootstrap, estimate

CUTS = (1, 2, 4, 8)


def evaluate_retrieval(
    task: RetrievalTask,
    cuts: Sequence[int] = CUTS,
    seed: int = 0,
    clusters: int | None = None,
    *,
    memory: int | None = None,
    ap: bool = True,
) -> dict[str, Estimate]:
    """Score the clean embeddings of a task.

    Parameters
    ----------
    task
        Queries and gallery.
    cuts
        The k of Recall@k.
    seed
        Of k-means and of the bootstrap.
    clusters
        Number of k-means clusters for NMI; by default the number of classes among the queries.
    memory
        Bytes of working memory for the ranking, on top of the embeddings; about 1 GiB by default.
    ap
        Whether to report ``map``; without it only the first places of every list are computed, which is
        faster where classes are small.

    Returns
    -------
    dict
        ``recall@k``, ``map`` (whole list), ``map@r`` (Musgrave et al. 2020: R is the number of relevant
        rows), ``map@10`` (R fixed to 10, which the published tables call mAP@R), ``nmi`` (arithmetic mean, of
        k-means on the query embeddings); each in [0, 1] with a 95 % interval over queries.
    """
    gallery = task.gallery
    rows = (task.z, task.y, gallery.z, gallery.y, task.distance, task.self_index)
    scores = (
        retrieval_scores(*rows, memory=memory)
        if ap
        else top_scores(*rows, depth=max((1, *cuts)), memory=memory)
    )
    found = {f"recall@{k}": estimate(scores.recall(k), seed) for k in cuts}
    if isinstance(scores, RetrievalScores):
        found["map"] = estimate(scores.average_precision, seed)
    found["map@r"] = estimate(scores.map_at_r, seed)
    found["map@10"] = estimate(scores.average_precision_10, seed)
    k = min(clusters or len(set(task.y.tolist())), len(task))
    assigned = kmeans(task.z, k, seed=seed).cluster_of
    value = nmi(task.y, assigned)
    low, high = bootstrap(lambda rows: nmi(task.y[rows], assigned[rows]), len(task), resamples=100, seed=seed)
    found["nmi"] = Estimate(value, min(low, value), max(high, value), len(task))
    return found
