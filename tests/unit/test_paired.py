"""Paired comparison, seeds, tolerance and the number of queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from holdfast.errors import InvalidArgument
from holdfast.evaluation import (
    Comparison,
    compare,
    compare_seeds,
    enough_queries,
    half_width,
    mcnemar,
    tolerance,
    wilson,
)


def pairs(only_a: int, only_b: int, both: int = 0, none: int = 0) -> tuple[np.ndarray, np.ndarray]:
    a = [1] * only_a + [0] * only_b + [1] * both + [0] * none
    b = [0] * only_a + [1] * only_b + [1] * both + [0] * none
    return np.array(a, float), np.array(b, float)


# --- McNemar -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_a", "only_b", "two", "greater", "less"),
    [
        (1, 9, 22 / 1024, 11 / 1024, 1023 / 1024),
        (9, 1, 22 / 1024, 1023 / 1024, 11 / 1024),
        (0, 5, 2 / 32, 1 / 32, 1.0),
        (3, 3, 1.0, 42 / 64, 42 / 64),
        (0, 1, 1.0, 0.5, 1.0),
        (0, 0, 1.0, 1.0, 1.0),
    ],
)
@pytest.mark.parametrize("rest", [(0, 0), (40, 7)])
def test_mcnemar_by_hand(
    only_a: int, only_b: int, two: float, greater: float, less: float, rest: tuple[int, int]
) -> None:
    if only_a + only_b + sum(rest) == 0:
        return
    a, b = pairs(only_a, only_b, *rest)
    assert mcnemar(a, b) == pytest.approx(two)
    assert mcnemar(a, b, "greater") == pytest.approx(greater)
    assert mcnemar(a, b, "less") == pytest.approx(less)
    assert compare(a, b).p_value == pytest.approx(two)
    assert compare(a, b).discordant == (only_a, only_b)


def test_mcnemar_wants_zeros_and_ones() -> None:
    with pytest.raises(InvalidArgument, match="0 or 1"):
        mcnemar([0.5, 1], [0, 1])
    with pytest.raises(InvalidArgument, match="alternative"):
        mcnemar([0, 1], [0, 1], "more")  # type: ignore[arg-type]


# --- Comparison --------------------------------------------------------------------------------------------


def test_a_clear_difference_is_claimed_and_said_from_both_sides() -> None:
    a, b = pairs(10, 40, both=100, none=50)
    found = compare(a, b)
    assert found.difference == pytest.approx(0.15)
    assert found.n == 200
    up, down = 41 / 202, 11 / 202  # Bonett and Price
    half = 1.959964 * np.sqrt((up + down - (up - down) ** 2) / 202)
    assert (found.low, found.high) == pytest.approx((up - down - half, up - down + half))
    assert found.supported
    interval = f"(95 % interval {100 * found.low:.1f} to {100 * found.high:.1f}, p < 0.001)"
    assert found.words() == f"B is 15.0 points higher than A {interval}"
    turned = compare(b, a)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.words("plain", "act") == f"act is 15.0 points lower than plain {interval}"


def test_identical_values_are_within_noise_and_not_certain() -> None:
    a, _ = pairs(0, 0, both=60, none=40)
    found = compare(a, a)
    assert (found.difference, found.p_value, found.discordant) == (0.0, 1.0, (0, 0))
    assert found.low == pytest.approx(-found.high)
    assert 0.02 < found.high < 0.04  # about three in a hundred may still differ
    assert found.words().startswith("within noise: B - A is 0.0 points (95 % interval -")
    values = np.linspace(0, 2, 50)
    other = compare(values, values)
    assert (other.difference, other.low, other.high, other.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert other.words(points=False) == ("within noise: B - A is 0.000 (95 % interval 0.000 to 0.000, p = 1)")


def test_words_of_small_numbers_have_no_minus_before_zero_and_keep_their_sign() -> None:
    noise = Comparison(difference=-0.0004, low=-0.05, high=0.0003, p_value=0.04, n=9, discordant=(1, 0))
    assert not noise.supported  # the interval holds 0
    assert noise.words() == "within noise: B - A is 0.0 points (95 % interval -5.0 to 0.0, p = 0.04)"
    assert noise.words(points=False).startswith("within noise: B - A is 0.000 (95 % interval -0.050 to 0.000")
    assert not Comparison(difference=0.1, low=0.01, high=0.2, p_value=0.06, n=9, discordant=(1, 5)).supported
    more = Comparison(difference=0.1, low=-0.01, high=0.2, p_value=0.06, n=9, discordant=(1, 5))
    assert "B - A is +10.0 points" in more.words()


def test_other_values_are_compared_by_query() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=200) * 10  # queries differ much more than the two
    b = a + 0.4 + rng.normal(size=200)
    found = compare(a, b)
    assert found.difference == pytest.approx((b - a).mean())
    half = 1.96 * (b - a).std() / np.sqrt(200)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert found.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)
    assert found.supported
    shuffled = compare(a, rng.permutation(b))
    assert not shuffled.supported
    assert compare(torch.from_numpy(a), b.tolist()) == found
    assert compare(a, b, seed=1) != found


def test_few_queries_are_never_enough() -> None:
    assert compare([0.1], [0.9]).p_value == 1.0
    assert not compare([0.1, 0.2, 0.3], [0.9, 0.8, 0.7]).supported  # at best 2 of 8 sign patterns
    assert compare([0.1, 0.2, 0.3], [0.9, 0.8, 0.7]).p_value == pytest.approx(0.25, abs=0.05)
    assert not compare([0, 0, 0], [1, 1, 1]).supported


@pytest.mark.parametrize("binary", [True, False])
def test_intervals_cover_and_no_difference_is_rarely_claimed(binary: bool) -> None:
    rng, covered, claimed = np.random.default_rng(5), 0, 0
    for seed in range(150):
        a, b = rng.random((2, 60)) < [[0.3], [0.3]] if binary else rng.exponential(size=(2, 60))
        found = compare(a.astype(float), b.astype(float), seed=seed, resamples=200)
        covered += found.low <= 0 <= found.high
        claimed += found.supported
    assert 0.88 <= covered / 150 <= 1.0
    assert claimed / 150 <= 0.09


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 0], [1, 0, 1], "b: need a value for each of the 2 queries of a, got 3"),
        ([], [], "a: need at least one finite number"),
        ([1.0, np.nan], [1, 0], "a: need at least one finite number"),
        ([1, 0], [np.inf, 0], "b: need at least one finite number"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "a: need"),
    ],
)
def test_what_are_no_pairs_is_refused(a: list[float], b: list[float], message: str) -> None:
    for call in (compare, mcnemar):
        with pytest.raises(InvalidArgument, match=message):
            call(a, b)


# --- Seeds -------------------------------------------------------------------------------------------------


def test_seeds_are_compared_as_welch_does() -> None:
    a, b = [0.30, 0.32, 0.31, 0.33], [0.40, 0.44, 0.42]
    found = compare_seeds(a, b)
    welch = stats.ttest_ind(b, a, equal_var=False)
    assert found.p_value == pytest.approx(welch.pvalue)
    low, high = welch.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.difference == pytest.approx(0.42 - 0.315)
    assert found.sd == pytest.approx(np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2))
    assert found.supported
    assert found.words().startswith("B is 10.5 points higher than A (95 % interval ")
    assert found.seeds == (4, 3)


def test_a_difference_of_seeds_needs_two_sd_and_a_small_p() -> None:
    a = [0.0, 0.1, 0.2] * 10  # sd 0.083
    near = compare_seeds(a, [v + 0.12 for v in a])
    assert near.p_value is not None
    assert near.p_value < 1e-5
    assert not near.supported  # but less than 2 sd
    assert compare_seeds(a, [v + 0.2 for v in a]).supported
    few = compare_seeds([0.0, 0.1, 0.2], [0.21, 0.31, 0.41])  # 2.1 sd
    assert few.sd is not None
    assert abs(few.difference) > 2 * few.sd
    assert not few.supported
    assert few.words().startswith("within noise")


@pytest.mark.parametrize(("a", "b"), [([0.1, 0.2], [0.5, 0.6, 0.7]), ([0.1, 0.2, 0.3], [0.9])])
def test_three_seeds_of_each_are_needed(a: list[float], b: list[float]) -> None:
    found = compare_seeds(a, b)
    assert not found.enough
    assert not found.supported
    assert (found.sd, found.low, found.high, found.p_value) == (None, None, None, None)
    assert found.words("plain", "act") == (
        f"not enough seeds: {len(a)} of plain, {len(b)} of act, need 3 of each"
    )
    with pytest.raises(InvalidArgument, match="a: need"):
        compare_seeds([], b)


def test_seeds_without_any_spread() -> None:
    same = compare_seeds([0.5] * 3, [0.5] * 3)
    assert (same.p_value, same.supported) == (1.0, False)
    other = compare_seeds([0.5] * 3, [0.75] * 3)
    assert (other.p_value, other.low, other.high, other.supported) == (0.0, 0.25, 0.25, True)


# --- Tolerance and power -----------------------------------------------------------------------------------


def test_tolerance_is_a_point_or_the_noise() -> None:
    assert tolerance(0.5, 100) == pytest.approx(0.082)
    assert tolerance(0.0, 10) == 0.01
    assert tolerance(1.0, 10) == 0.01
    assert tolerance(0.5, 10**6) == 0.01
    for bad in ((-0.1, 5), (1.1, 5), (0.5, 0)):
        with pytest.raises(InvalidArgument):
            tolerance(*bad)


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (5, 10), (30, 100), (20, 20), (600, 1000)])
def test_half_width_is_that_of_the_wilson_interval(successes: int, n: int) -> None:
    low, high = wilson(successes, n)
    assert half_width(successes / n, n) == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("p", [0.0, 0.03, 0.3, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("width", [0.5, 0.2, 0.04, 0.02, 0.005])
def test_enough_queries_is_the_least_number(p: float, width: float) -> None:
    n = enough_queries(p, width)
    assert half_width(p, n) <= width * (1 + 1e-9)
    assert n == 1 or half_width(p, n - 1) > width
    for bad in ((1.5, 0.1), (0.5, 0.0), (0.5, 0.7)):
        with pytest.raises(InvalidArgument):
            enough_queries(*bad)
    with pytest.raises(InvalidArgument):
        half_width(0.5, 0)
