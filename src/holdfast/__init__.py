"""Holdfast: adversarially robust metric learning.

Train, attack, score, certify and report on models that turn images into embeddings.

>>> import holdfast
>>> run = holdfast.recipe("hm-ics")
>>> run.threat
LinfThreat(eps=0.2, bounds=(0.0, 1.0))
"""

from typing import TYPE_CHECKING, Any

from . import adapters
from ._version import __version__
from .certification import certify_table
from .comparison import compare_runs
from .defenses import AdversarialTraining
from .demonstration import demonstrate
from .errors import HoldfastError
from .evaluation import embed, evaluate_retrieval, retrieval_task, run_suite
from .export import OnnxEncoder, audit_run, export_onnx, export_run
from .quickstart import quickstart
from .recipes import RECIPES, recipe
from .report import write_report
from .run_certificates import certify_run
from .runs import evaluate_run, open_run, train_run
from .scorecard import ScoreCard, evaluate
from .search import PGD
from .threat import L2Threat, LinfThreat
from .training import Run, train

if TYPE_CHECKING:
    from .estimator import DeepMetricLearner

__all__ = [
    "PGD",
    "RECIPES",
    "AdversarialTraining",
    "DeepMetricLearner",
    "HoldfastError",
    "L2Threat",
    "LinfThreat",
    "OnnxEncoder",
    "Run",
    "ScoreCard",
    "__version__",
    "adapters",
    "audit_run",
    "certify_run",
    "certify_table",
    "compare_runs",
    "demonstrate",
    "embed",
    "evaluate",
    "evaluate_retrieval",
    "evaluate_run",
    "export_onnx",
    "export_run",
    "open_run",
    "quickstart",
    "recipe",
    "retrieval_task",
    "run_suite",
    "train",
    "train_run",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Load the estimator when it is asked for: scikit-learn takes longer than all else."""
    if name == "DeepMetricLearner":
        from .estimator import DeepMetricLearner

        return DeepMetricLearner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
