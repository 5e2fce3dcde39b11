"""How training is hardened: a defense yields losses, the trainer steps on them."""

from .ensemble import (
    Distilled,
    EnsembleTraining,
    GradientAlignment,
    GradientDiversity,
    LogDet,
    ResidualDiversity,
)
from .free import FreeTraining
from .mixture import Mixture
from .noise import NoiseTraining
from .processes import Processes
from .proxies import (
    BoostedCrossEntropy,
    CleanCrossEntropy,
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
    "CleanCrossEntropy",
    "CleanLoss",
    "Distilled",
    "Divergence",
    "EnsembleTraining",
    "FreeTraining",
    "GradientAlignment",
    "GradientDiversity",
    "LogDet",
    "LogitPairing",
    "MisclassifiedDivergence",
    "Mixture",
    "Mixup",
    "NoiseTraining",
    "NoisyStart",
    "Processes",
    "ProxyTraining",
    "ResidualDiversity",
    "StaticSources",
    "WeightPerturbation",
]
