"""Linear metrics: learners, certified nearest neighbours under them."""

from __future__ import annotations

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
