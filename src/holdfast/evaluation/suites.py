"""The suites by name: which attacks, and how their measures become one score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..attacks import ATTACKS, EmbeddingShift, GreedyMismatch, LearningToMismatch
from ..types import Attack, RetrievalTask
from .suite import Entry, Item, Suite

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
    """Return the ten summands of the score; see the formula in :data:`SUITES`."""
    return (
        Item(name="CA+", label="CA+", metric="rank", scale=200),
        Item(name="CA-", label="CA-", metric="rank", scale=-100, offset=100),
        Item(name="QA+", label="QA+", metric="rank", scale=200),
        Item(name="QA-", label="QA-", metric="rank", scale=-100, offset=100),
        Item(name="TMA", label="TMA", metric="cosine", scale=-100, offset=100),
        Item(name="ES:D", label=shift_from, metric="shift", scale=-50, offset=100),
        Item(name="ES:R", label="ES", metric="recall@1", scale=100),
        Item(name="LTM", label="LTM", metric="recall@1", scale=100),
        Item(name="GTM", label="GTM", metric="recall@1", scale=100),
        Item(name="GTT", label="GTT", metric="retain@4", scale=100),
    )


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
}
"""Suites by name.

``ers`` is the empirical robustness score of Zhou et al. (TPAMI 2024), in [0, 100] for embeddings on the unit
sphere, with the faults of the published code mended: a tenth of ``2 CA+ + (100 - CA-) + 2 QA+ + (100 - QA-)
+ 100 (1 - TMA) + 50 (2 - ES:D) + ES:R + LTM + GTM + GTT``, ranks and recalls in percent. ``ers-robrank``
repeats the published faults (own image kept in LTM, index of GTM, shift one step early, mean of batch means);
the two never stand in one table.
"""
