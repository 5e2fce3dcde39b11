"""Train several members together: ensemble adversarial training and what it is made of."""

from .distilled import Distilled
from .diversity import GradientAlignment, GradientDiversity, LogDet, ResidualDiversity
from .statistics import TransferStatistics, split_weights
from .training import EnsembleTraining
from .view import Diversity, EnsembleView

__all__ = [
    "Distilled",
    "Diversity",
    "EnsembleTraining",
    "EnsembleView",
    "GradientAlignment",
    "GradientDiversity",
    "LogDet",
    "ResidualDiversity",
    "TransferStatistics",
    "split_weights",
]
