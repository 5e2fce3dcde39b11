"""Who moves during training, and why: one file for each idea."""

from collections.abc import Mapping
from typing import Any

from ..losses import MultiSimilarity
from ..types import Adversary
from .body import AnchoredCollapse, BodyCollapse
from .collapse import Collapse
from .combine import Alternate, Ramp, at_moment
from .decoupled import AnchorPerturbation, CandidatePerturbation
from .hardness import Fixed, Gradual, HardnessManipulation, Mined, MixedBoundary
from .logits import CrossEntropyClimb, DivergenceClimb
from .loss_climb import LossClimb
from .minmax import MinMax
from .shift import Shift

# AnchoredCollapse is not listed: its gain changes by chance from step to step, so "it rises" cannot be asked.
# Nor are CrossEntropyClimb and DivergenceClimb: they need a loss with proxies.
ADVERSARIES: Mapping[str, Adversary[Any]] = {
    "shift": Shift(),
    "collapse": Collapse(),
    "minmax": MinMax(),
    "hardness": HardnessManipulation(),
    "candidate": CandidatePerturbation(),
    "anchor": AnchorPerturbation(),
    "body": BodyCollapse(),
    "loss": LossClimb(loss=MultiSimilarity()),
}

__all__ = [
    "ADVERSARIES",
    "Alternate",
    "AnchorPerturbation",
    "AnchoredCollapse",
    "BodyCollapse",
    "CandidatePerturbation",
    "Collapse",
    "CrossEntropyClimb",
    "DivergenceClimb",
    "Fixed",
    "Gradual",
    "HardnessManipulation",
    "LossClimb",
    "MinMax",
    "Mined",
    "MixedBoundary",
    "Ramp",
    "Shift",
    "at_moment",
]
