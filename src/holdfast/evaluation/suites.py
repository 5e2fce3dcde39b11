"""The suites by name: which attacks, and how their measures become one score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..attacks import ATTACKS, CLUSTER_ATTACKS, EmbeddingShift, GreedyMismatch, LearningToMismatch
from ..search import Square
from ..types import Attack, RetrievalTask
from .cluster_worst import FLAT_AT_CLEAN, WHITE_BOX, HardLabelQueries, cluster_worst_case
from .smallest import SmallestChange
from .suite import Entry, Item, Suite, WithSearch
from .worst_case import worst_case

UP, DOWN = {"rank": True}, {"rank": False}
ES = {"recall@1": True, "shift": False}
RECALL = {"recall@1": True}
OF_CLUSTERS = {"flip": False, "accuracy": True, "majority": True, "recall@1": True, "map@r": True}


def _entries(**other: Attack[RetrievalTask, Any]) -> tuple[Entry, ...]:
    """Return the nine attack runs of the empirical robustness score, some attacks replaced."""
    flags: dict[str, Mapping[str, bool]] = {
        "CA+": UP,
        "CA-": DOWN,
        "QA+": UP,
        "QA-": DOWN,
        "TMA": {"cosine": False},
        "ES": ES,
        "LTM": RECALL,
        "GTM": RECALL,
        "GTT": {"retain@4": True},
    }
    table = {**ATTACKS, **other}
    return tuple(Entry(label=k, attack=table[k], higher_is_robust=v) for k, v in flags.items())


def _items(shift_from: str) -> tuple[Item, ...]:
    """Return the ten summands of the score; see the formula in :data:`SUITES`.

    The worst values hold for embeddings on the unit sphere.
    """
    return (
        Item(name="CA+", label="CA+", metric="rank", scale=200, worst=0),
        Item(name="CA-", label="CA-", metric="rank", scale=-100, offset=100, worst=1),
        Item(name="QA+", label="QA+", metric="rank", scale=200, worst=0),
        Item(name="QA-", label="QA-", metric="rank", scale=-100, offset=100, worst=1),
        Item(name="TMA", label="TMA", metric="cosine", scale=-100, offset=100, worst=1),
        Item(name="ES:D", label=shift_from, metric="shift", scale=-50, offset=100, worst=2),
        Item(name="ES:R", label="ES", metric="recall@1", scale=100, worst=0),
        Item(name="LTM", label="LTM", metric="recall@1", scale=100, worst=0),
        Item(name="GTM", label="GTM", metric="recall@1", scale=100, worst=0),
        Item(name="GTT", label="GTT", metric="retain@4", scale=100, worst=0),
    )


def _worst(name: str, k: int) -> Suite:
    return Suite(
        name=name,
        entries=(Entry(label="WORST", attack=worst_case(k), higher_is_robust={f"recall@{k}": True}),),
    )


def _unlabelled() -> tuple[Entry, ...]:
    """Return the attacks of the score that need no labels, with those of their measures that need none."""
    kept = [e for e in _entries() if e.label not in ("LTM", "GTM", "ES")]
    shift = Entry(label="ES", attack=ATTACKS["ES"], higher_is_robust={"shift": False})
    first = Entry(label="FIRST", attack=ATTACKS["FIRST"], higher_is_robust={"retain@1": True})
    return (*kept, shift, first)


def _on_clusters(queries: int) -> tuple[Entry, ...]:
    """Return A1 to A7; the two without gradient have so many queries."""
    margin, hard = CLUSTER_ATTACKS["A1"], CLUSTER_ATTACKS["A7-label"]
    attacks: dict[str, Any] = {name: CLUSTER_ATTACKS[name] for name in WHITE_BOX}
    attacks |= {name: WithSearch(attack=attacks[name], random_start=True) for name in FLAT_AT_CLEAN}
    attacks["A7"] = WithSearch(attack=margin, search=Square(queries=queries, stop_at=0.0))
    attacks["A7-label"] = WithSearch(attack=hard, search=HardLabelQueries(queries=queries))
    return tuple(Entry(label=k, attack=v, higher_is_robust=OF_CLUSTERS) for k, v in attacks.items())


SUITES: Mapping[str, Suite] = {
    "benign": Suite(name="benign", entries=()),
    "core": Suite(
        name="core",
        entries=(
            Entry(label="CA+", attack=ATTACKS["CA+"], higher_is_robust=UP),
            Entry(label="CA-", attack=ATTACKS["CA-"], higher_is_robust=DOWN),
            Entry(label="ES", attack=ATTACKS["ES"], higher_is_robust=ES),
        ),
    ),
    "ers": Suite(name="ers", entries=_entries(), items=_items("ES")),
    "ers-robrank": Suite(
        name="ers-robrank",
        entries=(
            *_entries(LTM=LearningToMismatch(exclude_self=False), GTM=GreedyMismatch(published_index=True)),
            Entry(label="ES:D", attack=EmbeddingShift(), higher_is_robust=ES, fewer_steps=1),
        ),
        items=_items("ES:D"),
        batch_means=128,
    ),
    "worst-case": _worst("worst-case", 1),
    "worst-case@4": _worst("worst-case@4", 4),
    "minimum-norm": Suite(
        name="minimum-norm",
        entries=(Entry(label="MIN", attack=SmallestChange(), higher_is_robust=RECALL),),
    ),
    "unlabelled": Suite(name="unlabelled", entries=_unlabelled()),
    "clustering": Suite(
        name="clustering", entries=_on_clusters(queries=500), union=OF_CLUSTERS, clusters=True
    ),
    "clustering-worst": Suite(
        name="clustering-worst",
        entries=(Entry(label="WORST", attack=cluster_worst_case(), higher_is_robust=OF_CLUSTERS),),
        clusters=True,
    ),
    "poisoning": Suite(name="poisoning", entries=(), clusters=True),
}
"""Suites by name.

``ers`` is the empirical robustness score of Zhou et al. (TPAMI 2024), in [0, 100] for embeddings on the unit
sphere, with the faults of the published code mended: a tenth of ``2 CA+ + (100 - CA-) + 2 QA+ + (100 - QA-)
+ 100 (1 - TMA) + 50 (2 - ES:D) + ES:R + LTM + GTM + GTT``, ranks and recalls in percent. ``ers-robrank``
repeats the published faults (own image kept in LTM, index of GTM, shift one step early, mean of batch means);
the two never stand in one table. ``worst-case`` gives the share of queries that no attack of a
diverse set breaks (:func:`~holdfast.evaluation.worst_case.worst_case`), for Recall@1 and ``@4``.
``minimum-norm`` searches the smallest change for each query and gives the whole curve over the radius.
``unlabelled`` holds what can be measured without labels; ``FIRST retain@1`` is one minus the flip rate.

The last three are about clustering-based inference, our own design; they need a
:class:`~holdfast.types.ClusterTask`. ``clustering`` runs A1 to A7 on every query and gives their union;
``clustering-worst`` is the staged worst case of
:func:`~holdfast.evaluation.cluster_worst.cluster_worst_case` alone. Both get A8 where there are other
encoders (:func:`~holdfast.evaluation.cluster_transfer.with_transfer`). ``flip`` is the share of queries that
left their cluster. ``accuracy`` is the share that is assigned to the cluster of its class by one-to-one
names; in the union a query counts only if it is right when clean and under every attack, which with
one-to-one names is the same as right when clean and never flipped. ``poisoning`` changes references instead
of queries; its entries are made by :func:`~holdfast.evaluation.cluster_poison.poisoning`.
"""
