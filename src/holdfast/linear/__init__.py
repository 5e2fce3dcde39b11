"""Linear metrics: learners, certified nearest neighbours under them."""

from __future__ import annotations

from .arml import ARML
from .base import ESTIMATORS, MahalanobisMixin
from .knn import RobustKNeighborsClassifier

__all__ = ["ARML", "ESTIMATORS", "MahalanobisMixin", "RobustKNeighborsClassifier"]
