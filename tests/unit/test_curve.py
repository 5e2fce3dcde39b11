"""Robustness curves from minimal radii and from evaluations."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from holdfast.errors import InvalidArgument
from holdfast.evaluation import (
    Estimate,
    area_under_curve,
    curve,
    median_radius,
    radii_from_evaluations,
    wilson,
)

INF = math.inf
RADII = [0.1, 0.2, 0.2, INF, 0.3, 0.0]
RIGHT = [1, 1, 1, 1, 0, 0]


def test_the_curve_by_hand() -> None:
    found = curve(RADII, RIGHT, [0.0, 0.05, 0.1, 0.2, 5.0])
    right = [4, 4, 3, 1, 1]
    assert found == [Estimate(k / 6, *wilson(k, 6), 6) for k in right]
    assert curve(torch.tensor(RADII, dtype=torch.float64), np.array(RIGHT, bool), [0.1]) == found[2:3]
    assert curve(RADII, RIGHT, []) == []


def test_a_curve_falls_and_begins_at_the_clean_share() -> None:
    rng = np.random.default_rng(0)
    radii, right = rng.exponential(0.1, 200) + 1e-9, rng.random(200) < 0.9
    values = [e.value for e in curve(radii, right, np.linspace(0, 1, 50).tolist())]
    assert values[0] == right.mean()
    assert all(a >= b for a, b in pairwise(values))
    assert values[-1] < 0.02


@pytest.mark.parametrize(
    ("radii", "right", "median"),
    [
        ([0.3, 0.1, 0.2], [1, 1, 1], 0.2),
        ([0.3, 0.1, 0.2], [1, 0, 0], 0.0),
        ([0.1, INF], [1, 1], 0.1),  # of two the lower: at 0.1 half are broken
        ([0.4, 0.1, INF, 0.2], [1, 1, 1, 1], 0.2),
        ([INF, INF, 0.1], [1, 1, 1], INF),
    ],
)
def test_the_median_is_where_half_are_broken(radii: list[float], right: list[int], median: float) -> None:
    found = median_radius(radii, right)
    assert found.value == median
    assert found.low <= found.value <= found.high
    if math.isfinite(median):
        assert curve(radii, right, [median])[0].value <= 0.5
        if median > 0:
            assert curve(radii, right, [median * (1 - 1e-9)])[0].value > 0.5


@pytest.mark.parametrize("n", [1, 5, 6, 9, 40, 400])
def test_the_interval_of_the_median_is_that_of_order_statistics(n: int) -> None:
    radii = np.arange(1.0, n + 1)
    found = median_radius(np.random.default_rng(0).permutation(radii), np.ones(n))
    j, k = int(found.low), int(found.high)
    assert j + k == n + 1

    def covers(j: int) -> float:
        return float(1 - 2 * stats.binom.cdf(j - 1, n, 0.5))

    assert covers(j) >= 0.95 or (n < 6 and j == 1)
    assert covers(j + 1) < 0.95


def test_the_area_is_the_mean_of_the_curve() -> None:
    # Up to 0.4 the effective radii are 0.1, 0.2, 0.2, 0.4, 0, 0.
    found = area_under_curve(RADII, RIGHT, 0.4)
    assert found.value == pytest.approx(0.9 / 6 / 0.4)
    assert found.low < found.value < found.high
    assert area_under_curve([INF, INF], [1, 1], 3.0).value == 1.0
    assert area_under_curve([INF, INF], [0, 0], 3.0).value == 0.0
    grid = np.linspace(0, 0.4, 4001)[:-1] + 5e-5
    assert np.mean([e.value for e in curve(RADII, RIGHT, grid.tolist())]) == pytest.approx(found.value)
    many = np.random.default_rng(0).random(99)
    assert area_under_curve(many, np.ones(99), 0.4) != area_under_curve(many, np.ones(99), 0.4, seed=3)


def test_evaluations_at_several_radii_make_one_curve() -> None:
    right = {0.2: [0, 1, 1, 0], 0.0: [1, 1, 1, 0], 0.1: [1, 0, 1, 0]}  # query 1 was missed at 0.2
    radii = radii_from_evaluations(right)
    assert radii.tolist() == [0.2, 0.1, INF, 0.0]
    values = [e.value for e in curve(radii, right[0.0], sorted(right))]
    assert values == [0.75, 0.5, 0.25]
    single = {0.1: torch.tensor([True, False])}
    assert radii_from_evaluations(single).tolist() == [INF, 0.1]


@pytest.mark.parametrize(
    ("radii", "right", "message"),
    [
        ([0.1, -0.1], [1, 1], "radii: need numbers >= 0"),
        ([0.1, math.nan], [1, 1], "radii: need at least one number"),
        ([], [], "radii: need"),
        ([0.1, 0.2], [1], "clean_right: need 0 or 1 for each of 2"),
        ([0.1, 0.2], [1, 0.5], "clean_right: need 0 or 1"),
    ],
)
def test_what_makes_no_curve_is_refused(radii: list[float], right: list[float], message: str) -> None:
    for call in (lambda: curve(radii, right, [0.1]), lambda: median_radius(radii, right)):
        with pytest.raises(InvalidArgument, match=message):
            call()


def test_radii_must_be_radii() -> None:
    for bad in (-0.1, INF, math.nan):
        with pytest.raises(InvalidArgument, match="eps"):
            curve(RADII, RIGHT, [bad])
    for bad in (0.0, -1.0, INF):
        with pytest.raises(InvalidArgument, match="eps_max"):
            area_under_curve(RADII, RIGHT, bad)
    for wrong in ({}, {-0.1: [1, 0]}, {0.1: [1, 0], 0.2: [1]}, {0.1: [0.5, 1]}):
        with pytest.raises(InvalidArgument, match="right"):
            radii_from_evaluations(wrong)
