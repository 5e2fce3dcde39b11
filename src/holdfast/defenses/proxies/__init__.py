"""Defenses of classifiers, adapted to embeddings by a softmax over proxies."""

from .awp import WeightPerturbation
from .mart import BoostedCrossEntropy, MisclassifiedDivergence
from .mixup import Mixup
from .sources import StaticSources
from .start import NoisyStart
from .terms import CleanCrossEntropy, CleanLoss, Divergence, LogitPairing, ProxyTerm
from .training import ProxyTraining

__all__ = [
    "BoostedCrossEntropy",
    "CleanCrossEntropy",
    "CleanLoss",
    "Divergence",
    "LogitPairing",
    "MisclassifiedDivergence",
    "Mixup",
    "NoisyStart",
    "ProxyTerm",
    "ProxyTraining",
    "StaticSources",
    "WeightPerturbation",
]
