"""Evaluation attacks: target, gain, measure; the tables map published names to values."""

from collections.abc import Mapping
from typing import Any

from ..functional.distance import Euclidean
from ..types import Attack, ClusterTask, RetrievalTask
from .candidate import CandidateAttack
from .cluster import CentroidRepel, HardLabel, OnClusters, ProxyGain, SoftAssignment, cluster_measures
from .hub import HubAttack
from .keep import PreservingQueryAttack
from .lists import ListMismatch
from .margin import CentroidGain, FirstPlaceMargin, RankMargin, TargetedNeighbour, TripletGain
from .match import GreedyMismatch, GreedyTopTranslocation, LearningToMismatch, TargetedMismatch
from .order import OrderAttack
from .places import hits
from .poison import GalleryPoisoning, Poisoning, PoisonTask, Refits, poison
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
    "HUB": HubAttack(),
}

CLUSTER_ATTACKS: Mapping[str, Attack[ClusterTask, Any]] = {
    "A1": OnClusters(RankMargin()),
    "A2": SoftAssignment(),
    "A3.1": OnClusters(TargetedNeighbour(j=1)),
    "A3.2": OnClusters(TargetedNeighbour(j=2)),
    "A3.3": OnClusters(TargetedNeighbour(j=3)),
    "A4": CentroidRepel(),
    "A5": OnClusters(EmbeddingShift(), distance=Euclidean()),
    "A6": ProxyGain(),
    "A7-label": HardLabel(),
    "G1": GalleryPoisoning(),
}
"""Attacks on clustering-based inference; G1, on references, is carried out by :func:`poison`."""

__all__ = [
    "ATTACKS",
    "CLUSTER_ATTACKS",
    "CandidateAttack",
    "CentroidGain",
    "CentroidRepel",
    "EmbeddingShift",
    "FirstPlaceMargin",
    "GalleryPoisoning",
    "GreedyMismatch",
    "GreedyTopTranslocation",
    "HardLabel",
    "HubAttack",
    "LearningToMismatch",
    "ListMismatch",
    "OnClusters",
    "OrderAttack",
    "Outcome",
    "PoisonTask",
    "Poisoning",
    "PreservingQueryAttack",
    "ProxyGain",
    "QueryAttack",
    "RankMargin",
    "Refits",
    "SoftAssignment",
    "TargetedMismatch",
    "TargetedNeighbour",
    "TripletGain",
    "cluster_measures",
    "hits",
    "poison",
    "run",
]
