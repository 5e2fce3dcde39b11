"""Evaluation attacks: target, gain, measure; the table maps published names to values."""

from collections.abc import Mapping
from typing import Any

from ..types import Attack, RetrievalTask
from .candidate import CandidateAttack
from .run import Outcome, run
from .shift import EmbeddingShift

ATTACKS: Mapping[str, Attack[RetrievalTask, Any]] = {
    "CA+": CandidateAttack(direction="up"),
    "CA-": CandidateAttack(direction="down"),
    "ES": EmbeddingShift(),
}

__all__ = ["ATTACKS", "CandidateAttack", "EmbeddingShift", "Outcome", "run"]
