"""Measure an encoder: clean retrieval, suites of attacks, intervals; per-query values are kept."""

from .cluster_transfer import Surrogate, TransferredClusters
from .cluster_worst import ClusterWorstCase, cluster_worst_case
from .clusters import evaluate_clusters, read_clusters, set_scores
from .curve import area_under_curve, curve, median_radius, radii_from_evaluations
from .embed import embed, retrieval_task
from .exhibit import write_exhibits
from .minimum import MinimumNorm, minimum_norm
from .paired import Comparison, SeedComparison, compare, compare_seeds, mcnemar, tolerance
from .resistance import resistance
from .retrieval import evaluate_retrieval
from .score import Score, score
from .stats import Estimate, bootstrap, enough_queries, estimate, half_width, wilson
from .stored import read_values
from .suite import Entry, EntryResult, Item, Share, Suite, WithSearch, run_suite
from .suites import SUITES
from .union import union
from .universal import Universal, universal

__all__ = [
    "SUITES",
    "ClusterWorstCase",
    "Comparison",
    "Entry",
    "EntryResult",
    "Estimate",
    "Item",
    "MinimumNorm",
    "Score",
    "SeedComparison",
    "Share",
    "Suite",
    "Surrogate",
    "TransferredClusters",
    "Universal",
    "WithSearch",
    "area_under_curve",
    "bootstrap",
    "cluster_worst_case",
    "compare",
    "compare_seeds",
    "curve",
    "embed",
    "enough_queries",
    "estimate",
    "evaluate_clusters",
    "evaluate_retrieval",
    "half_width",
    "mcnemar",
    "median_radius",
    "minimum_norm",
    "radii_from_evaluations",
    "read_clusters",
    "read_values",
    "resistance",
    "retrieval_task",
    "run_suite",
    "score",
    "set_scores",
    "tolerance",
    "union",
    "universal",
    "wilson",
    "write_exhibits",
]
