"""How training is hardened: a defense yields losses, the trainer steps on them."""

from .free import FreeTraining
from .mixture import Mixture
from .noise import NoiseTraining
from .processes import Processes
from .proxies import (
    BoostedCrossEntropy,
    CleanLoss,
    Divergence,
    LogitPairing,
    MisclassifiedDivergence,
    Mixup,
    NoisyStart,
    ProxyTraining,
    StaticSources,
    WeightPerturbation,
)
from .training import AdversarialTraining

__all__ = [
    "AdversarialTraining",
    "BoostedCrossEntropy",
    "CleanLoss",
    "Divergence",
    "FreeTraining",
    "LogitPairing",
    "MisclassifiedDivergence",
    "Mixture",
    "Mixup",
    "NoiseTraining",
    "NoisyStart",
    "Processes",
    "ProxyTraining",
    "StaticSources",
    "WeightPerturbation",
]
