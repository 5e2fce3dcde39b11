"""An evaluation that checks itself: findings, a verdict, and the repair of what is too weak."""

from .controls import (
    CONTROLS,
    Collapsed,
    Control,
    ExtremeTemperature,
    GradientKiller,
    InputQuantiser,
    RandomInput,
)
from .examination import Certificate, Claim, Examination, MeanEmbedding, Unavailable
from .examine import conduct, examine
from .finding import WORDS, Finding, Verdict, judge
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
    "Finding",
    "GradientKiller",
    "InputQuantiser",
    "MeanEmbedding",
    "RandomInput",
    "Unavailable",
    "Verdict",
    "conduct",
    "examine",
    "judge",
]
