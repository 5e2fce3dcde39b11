"""Measure an encoder: clean retrieval, suites of attacks, intervals; per-query values are kept."""

from .embed import embed, retrieval_task
from .exhibit import write_exhibits
from .retrieval import evaluate_retrieval
from .score import Score, score
from .stats import Estimate, bootstrap, estimate, wilson
from .suite import Entry, EntryResult, Item, Share, Suite, run_suite
from .suites import SUITES

__all__ = [
    "SUITES",
    "Entry",
    "EntryResult",
    "Estimate",
    "Item",
    "Score",
    "Share",
    "Suite",
    "bootstrap",
    "embed",
    "estimate",
    "evaluate_retrieval",
    "retrieval_task",
    "run_suite",
    "score",
    "wilson",
    "write_exhibits",
]
