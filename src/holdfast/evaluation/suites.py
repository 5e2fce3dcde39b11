"""The suites by name: which attacks, and how their measures become one score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..attacks import ATTACKS, EmbeddingShift, GreedyMismatch, LearningToMismatch
from ..types import Attack, RetrievalTask
from .smallest import SmallestChange
from .suite import Entry, Item, Suite
from .worst_case import worst_case

UP, DOWN = {"rank": True}, {"rank": False}
ES = {"recall@1": True, "shift": False}
RECALL = {"recall@1": True}


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
"""
