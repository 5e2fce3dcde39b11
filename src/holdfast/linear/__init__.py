"""Linear metrics: learners, certified nearest neighbours under them.

Names are imported when they are asked for: scikit-learn takes longer to load than most commands need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arml import ARML
    from .arml_scoring import CertifiedRadiusScorer, certified_radius_scorer
    from .base import ESTIMATORS, MahalanobisMixin
    from .knn import RobustKNeighborsClassifier
    from .prototypes import RobustPrototypes

__all__ = [
    "ARML",
    "ESTIMATORS",
    "CertifiedRadiusScorer",
    "MahalanobisMixin",
    "RobustKNeighborsClassifier",
    "RobustPrototypes",
    "certified_radius_scorer",
]

_MODULES = {
    "ARML": "arml",
    "ESTIMATORS": "base",
    "CertifiedRadiusScorer": "arml_scoring",
    "MahalanobisMixin": "base",
    "RobustKNeighborsClassifier": "knn",
    "RobustPrototypes": "prototypes",
    "certified_radius_scorer": "arml_scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
