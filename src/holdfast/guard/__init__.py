"""Watch queries online: a calibrated score for each query, and a log of near-duplicates.

Not to be confused with :class:`holdfast.training.CollapseGuard`, which watches a training run.
"""

from .blackbox import Watched, queries_until_flagged
from .copies import Copies, WithCopies
from .evaluate import Attacked, GuardReport, evaluate_guard, first_is_wrong
from .log import QueryLog, near_duplicate_radius
from .query import CalibratedGuard, Calibration, QueryGuard

__all__ = [
    "Attacked",
    "CalibratedGuard",
    "Calibration",
    "Copies",
    "GuardReport",
    "QueryGuard",
    "QueryLog",
    "Watched",
    "WithCopies",
    "evaluate_guard",
    "first_is_wrong",
    "near_duplicate_radius",
    "queries_until_flagged",
]
