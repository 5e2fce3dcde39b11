"""An evaluation that checks itself: findings, a verdict, and the repair of what is too weak."""

from ...certify import Certificate
from .controls import (
    CONTROLS,
    Collapsed,
    Control,
    ExtremeTemperature,
    GradientKiller,
    InputQuantiser,
    RandomInput,
)
from .examination import Examination
from .examine import conduct, examine
from .falsify import Falsified, falsify
from .finding import WORDS, Finding, Verdict, judge
from .material import Claim, MeanEmbedding, Unavailable
from .repair import Repaired, repair
from .table import CHECKS, Check

__all__ = [
    "CHECKS",
    "CONTROLS",
    "WORDS",
    "Certificate",
    "Check",
    "Claim",
    "Collapsed",
    "Control",
    "Examination",
    "ExtremeTemperature",
    "Falsified",
    "Finding",
    "GradientKiller",
    "InputQuantiser",
    "MeanEmbedding",
    "RandomInput",
    "Repaired",
    "Unavailable",
    "Verdict",
    "conduct",
    "examine",
    "falsify",
    "judge",
    "repair",
]
