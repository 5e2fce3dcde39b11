"""Evaluation attacks: target, gain, measure; the table maps published names to values."""

from collections.abc import Mapping
from typing import Any

from ..types import Attack, RetrievalTask
from .candidate import CandidateAttack
from .keep import PreservingQueryAttack
from .lists import ListMismatch
from .margin import CentroidGain, FirstPlaceMargin, RankMargin, TargetedNeighbour, TripletGain
from .match import GreedyMismatch, GreedyTopTranslocation, LearningToMismatch, TargetedMismatch
from .order import OrderAttack
from .places import hits
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
    "SPQA+": PreservingQueryAttack(query=QueryAttack(direction="up")),
    "SPQA-": PreservingQueryAttack(query=QueryAttack(direction="down")),
    "FOA2": OrderAttack(m=2),
    "FOA5": OrderAttack(m=5),
    "SPFOA5": OrderAttack(m=5, keep=4e4),
    "RANK": RankMargin(),
    "TARGET1": TargetedNeighbour(),
    "TRIPLET": TripletGain(),
    "CENTROID": CentroidGain(),
    "FIRST": FirstPlaceMargin(),
    "LIST": ListMismatch(),
}

__all__ = [
    "ATTACKS",
    "CandidateAttack",
    "CentroidGain",
    "EmbeddingShift",
    "FirstPlaceMargin",
    "GreedyMismatch",
    "GreedyTopTranslocation",
    "LearningToMismatch",
    "ListMismatch",
    "OrderAttack",
    "Outcome",
    "PreservingQueryAttack",
    "QueryAttack",
    "RankMargin",
    "TargetedMismatch",
    "TargetedNeighbour",
    "TripletGain",
    "hits",
    "run",
]
