"""Evaluation attacks: target, gain, measure; the table maps published names to values."""

from collections.abc import Mapping
from typing import Any

from ..types import Attack, RetrievalTask
from .candidate import CandidateAttack
from .match import GreedyMismatch, GreedyTopTranslocation, LearningToMismatch, TargetedMismatch
from .query import QueryAttack
from .run import Outcome, run
from .shift import EmbeddingShift

ATTACKS: Mapping[str, Attack[RetrievalTask, Any]] = {
    "CA+": CandidateAttack(direction="up"),
    "CA-": CandidateAttack(direction="down"),
    "QA+": QueryAttack(direction="up"),
    "QA-": QueryAttack(direction="down"),
    "TMA": TargetedMismatch(),
    "ES": EmbeddingShift(),
    "LTM": LearningToMismatch(),
    "GTM": GreedyMismatch(),
    "GTT": GreedyTopTranslocation(),
}

__all__ = [
    "ATTACKS",
    "CandidateAttack",
    "EmbeddingShift",
    "GreedyMismatch",
    "GreedyTopTranslocation",
    "LearningToMismatch",
    "Outcome",
    "QueryAttack",
    "TargetedMismatch",
    "run",
]
