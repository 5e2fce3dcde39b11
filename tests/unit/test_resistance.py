"""Relative resistance: hand numbers, clipping, items with nothing to lose, weights of batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.attacks import Outcome
from holdfast.errors import InvalidArgument
from holdfast.evaluation import SUITES, EntryResult, Suite, resistance, retrieval_task, run_suite, score
from holdfast.search import PGD
from holdfast.threat import LinfThreat

Pair = tuple[float | list[float], float | list[float]]
"""A measure before and after."""
STILL: dict[str, Pair] = {
    "CA+": (0.5, 0.5), "CA-": (0.1, 0.1), "QA+": (0.5, 0.5), "QA-": (0.1, 0.1), "TMA": (0.2, 0.2),
    "ES:D": (0.0, 0.0), "ES:R": (0.8, 0.8), "LTM": (0.8, 0.8), "GTM": (0.8, 0.8), "GTT": (1.0, 1.0),
}  # fmt: skip


def results(suite: Suite, n: int = 4, **changes: Pair) -> list[EntryResult]:
    """Make results in which every item is still, but for the changes (``_`` stands for the colon)."""
    table = {**STILL, **{name.replace("_", ":"): pair for name, pair in changes.items()}}
    states: tuple[dict[str, dict[str, Tensor]], ...] = ({}, {})
    for item in suite.items:
        for state, value in zip(states, table[item.name], strict=True):
            row = torch.tensor(value, dtype=torch.float64)
            state.setdefault(item.label, {})[item.metric] = row.expand(n) if row.ndim == 0 else row
    empty = torch.zeros(n, 0)
    return [
        EntryResult(e, Outcome(x=empty, z=empty, clean=states[0][e.label], attacked=states[1][e.label]), 0.0)
        for e in suite.entries
    ]


@pytest.mark.parametrize("name", ["ers", "ers-robrank"])
def test_every_item_by_hand(name: str) -> None:
    changes: dict[str, Pair] = {
        "CA+": (0.5, 0.1),  # worst 0: 0.4 of 0.5 lost
        "CA-": (0.1, 0.55),  # worst 1: 0.45 of 0.9
        "QA+": (0.4, 0.3),  # 0.1 of 0.4
        "QA-": (0.2, 0.4),  # 0.2 of 0.8
        "TMA": (0.2, 0.6),  # worst 1: 0.4 of 0.8
        "ES_D": (0.0, 0.5),  # worst 2: 0.5 of 2
        "ES_R": (0.8, 0.2),  # 0.6 of 0.8
        "LTM": (0.8, 0.0),  # all
        "GTM": (0.8, 0.8),  # nothing
        "GTT": (1.0, 0.4),  # 0.6 of 1
    }
    found = resistance(SUITES[name], results(SUITES[name], **changes))
    expected = [20, 50, 75, 75, 50, 75, 25, 0, 100, 40]
    assert [e.value for e in found.items.values()] == pytest.approx(expected)
    assert found.total.value == pytest.approx(np.mean(expected))
    assert list(found.items) == [item.name for item in SUITES[name].items]
    assert found.nothing_to_lose == ()
    assert all((e.low, e.high) == pytest.approx((e.value, e.value)) for e in found.items.values())


def test_an_attack_that_changes_nothing_leaves_everything() -> None:
    found = resistance(SUITES["ers"], results(SUITES["ers"]))
    assert found.total.value == pytest.approx(100)
    assert score(SUITES["ers"], results(SUITES["ers"])).total.value == pytest.approx(90)  # not so the ERS


def test_more_than_all_is_clipped_and_a_change_for_the_better_counts_too() -> None:
    suite = SUITES["ers"]
    found = resistance(suite, results(suite, ES_D=(0.0, 7.0), TMA=(0.2, -0.9), ES_R=(0.4, 0.5)))
    assert found.items["ES:D"].value == 0  # embeddings off the sphere
    assert found.items["TMA"].value == 0  # moved by 1.1, of 0.8
    assert found.items["ES:R"].value == pytest.approx(75)


def test_an_item_with_nothing_to_lose_counts_zero_and_is_named() -> None:
    suite = SUITES["ers"]
    found = resistance(suite, results(suite, ES_R=(0.0, 0.0), LTM=(0.0, 0.3), TMA=(1 - 1e-8, 0.0)))
    assert found.nothing_to_lose == ("TMA", "ES:R", "LTM")
    assert [found.items[name].value for name in found.nothing_to_lose] == [0, 0, 0]
    assert found.total.value == pytest.approx(70)


def test_an_encoder_that_maps_everything_to_one_point_is_not_resistant() -> None:
    def point(x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(0 * x.flatten(1) + 1)

    x = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = retrieval_task(point, x, torch.arange(12) % 3)
    found = resistance(
        SUITES["ers"], run_suite(task, SUITES["ers"], PGD(steps=1, alpha=0.1), LinfThreat(eps=0.1))
    )
    kept = {name for name, e in found.items.items() if e.value > 0}
    assert kept == {"CA-", "QA-", "ES:D", "GTT"}
    assert set(found.nothing_to_lose) == set(found.items) - kept  # left out, the mean would be 100
    assert found.total.value == pytest.approx(40)


def test_ratios_are_of_means_and_not_means_of_ratios() -> None:
    suite = SUITES["ers"]
    clean, attacked = [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    found = resistance(suite, results(suite, ES_R=(clean, attacked)))
    assert found.items["ES:R"].value == pytest.approx(50)
    assert found.items["ES:R"].low == 0  # among them resamples without a right query
    assert found.items["ES:R"].high == 100


def test_intervals_cover_what_larger_samples_give() -> None:
    suite, covered = SUITES["ers"], 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        right = (rng.random(100) < 0.8).astype(float)
        held = right * (rng.random(100) < 0.5)
        found = resistance(suite, results(suite, 100, LTM=(right.tolist(), held.tolist())), seed=seed)
        item = found.items["LTM"]
        covered += item.low <= 50 <= item.high
        assert found.total.low == pytest.approx(90 + item.low / 10)  # the others are still
    assert 17 <= covered <= 20
    again = resistance(suite, results(suite, 100, LTM=(right.tolist(), held.tolist())), seed=seed)
    assert again == found


def test_the_published_habit_weighs_batches_alike() -> None:
    n = 130  # a batch of 128, and one of 2
    clean, attacked = torch.ones(n).tolist(), [1.0] * 128 + [0.0] * 2
    by_batch, by_query = (
        resistance(SUITES[name], results(SUITES[name], n, LTM=(clean, attacked))).items["LTM"].value
        for name in ("ers-robrank", "ers")
    )
    assert by_batch == pytest.approx(50)
    assert by_query == pytest.approx(100 * 128 / 130)


def test_suites_without_worst_values_and_missing_entries_are_refused() -> None:
    suite = SUITES["ers"]
    with pytest.raises(InvalidArgument, match="suite: need a suite whose items all have a worst value"):
        resistance(SUITES["core"], [])
    unknown = replace(suite, items=(*suite.items[:-1], replace(suite.items[-1], worst=None)))
    with pytest.raises(InvalidArgument, match="worst value"):
        resistance(unknown, results(suite))
    with pytest.raises(InvalidArgument, match="results: need all entries of ers, got 'none of GTT, QA-'"):
        resistance(suite, [r for r in results(suite) if r.entry.label not in ("QA-", "GTT")])
