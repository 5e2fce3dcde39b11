"""Who moves during training, and why: one file for each idea."""

from collections.abc import Mapping
from typing import Any

from ..types import Adversary
from .collapse import Collapse
from .hardness import Fixed, Gradual, HardnessManipulation, Mined, MixedBoundary
from .minmax import MinMax
from .shift import Shift

ADVERSARIES: Mapping[str, Adversary[Any]] = {
    "shift": Shift(),
    "collapse": Collapse(),
    "minmax": MinMax(),
    "hardness": HardnessManipulation(),
}

__all__ = [
    "ADVERSARIES",
    "Collapse",
    "Fixed",
    "Gradual",
    "HardnessManipulation",
    "MinMax",
    "Mined",
    "MixedBoundary",
    "Shift",
]
