"""Measure an encoder: clean retrieval, suites of attacks, intervals; per-query values are kept."""

from .embed import embed, retrieval_task
from .exhibit import write_exhibits
from .retrieval import evaluate_retrieval
from .stats import Estimate, bootstrap, estimate, wilson
from .suite import SUITES, Entry, EntryResult, Suite, run_suite

__all__ = [
    "SUITES",
    "Entry",
    "EntryResult",
    "Estimate",
    "Suite",
    "bootstrap",
    "embed",
    "estimate",
    "evaluate_retrieval",
    "retrieval_task",
    "run_suite",
    "wilson",
    "write_exhibits",
]
