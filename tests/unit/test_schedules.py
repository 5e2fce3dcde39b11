"""Schedules on hand numbers."""

from __future__ import annotations

import math

import pytest

from holdfast.errors import InvalidArgument
from holdfast.schedules import Constant, Cycle, HalfCosine, Linear, at


def test_constant() -> None:
    assert [Constant(value=3.0)(f) for f in (0.0, 0.3, 1.0)] == [3.0, 3.0, 3.0]


def test_linear_falls_and_rises() -> None:
    down = Linear(start=4.0, stop=2.0)
    assert [down(f) for f in (0.0, 0.25, 0.5, 1.0)] == [4.0, 3.5, 3.0, 2.0]
    assert Linear(start=-1.0, stop=1.0)(0.75) == 0.5


def test_half_cosine_by_hand() -> None:
    wave = HalfCosine(start=4.0, stop=2.0)
    expected = [4.0, 3 + math.sqrt(0.5), 3.0, 3 - math.sqrt(0.5), 2.0]
    assert [wave(f) for f in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(expected)
    slow_start = (wave(0.0) - wave(0.01), wave(0.99) - wave(1.0))
    assert max(slow_start) < 0.001  # flat at both ends; a straight line would fall by 0.02


def test_cycle_gives_equal_shares() -> None:
    three = Cycle(values=(1.0, 2.0, 3.0))
    assert [three(step / 6) for step in range(7)] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0]
    with pytest.raises(InvalidArgument, match="values"):
        Cycle(values=())


def test_at_reads_numbers_and_schedules() -> None:
    assert at(0.5, 0.9) == 0.5
    assert at(Linear(start=0.0, stop=1.0), 0.9) == 0.9
