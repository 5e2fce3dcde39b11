"""Holdfast: adversarially robust metric learning.

Train, attack, score and report on models that turn images into embeddings.

>>> import holdfast
>>> run = holdfast.recipe("hm-ics")
>>> run.threat
LinfThreat(eps=0.2, bounds=(0.0, 1.0))
"""

from ._version import __version__
from .defenses import AdversarialTraining
from .errors import HoldfastError
from .evaluation import embed, evaluate_retrieval, retrieval_task, run_suite
from .quickstart import quickstart
from .recipes import RECIPES, recipe
from .report import write_report
from .runs import evaluate_run, open_run, train_run
from .search import PGD
from .threat import L2Threat, LinfThreat
from .training import Run, train

__all__ = [
    "PGD",
    "RECIPES",
    "AdversarialTraining",
    "HoldfastError",
    "L2Threat",
    "LinfThreat",
    "Run",
    "__version__",
    "embed",
    "evaluate_retrieval",
    "evaluate_run",
    "open_run",
    "quickstart",
    "recipe",
    "retrieval_task",
    "run_suite",
    "train",
    "train_run",
    "write_report",
]
