"""Figures that were measured elsewhere, as data, and the yardsticks that bring them to this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import nn

from ..encoders import C2F2
from ..rng import stream
from .harness import Spread, interleaved


@cache
def recorded() -> Mapping[str, Any]:
    """Return the figures of ``recorded.json``."""
    text = resources.files(__package__).joinpath("recorded.json").read_text(encoding="utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found


def _c2f2(small: bool) -> tuple[Callable[[], Any], float]:
    """Pass the network as it was when the figures were recorded: ReLU before pooling, default layout."""
    encoder = C2F2().build((1, 28, 28), 0).requires_grad_(False)
    layers = list(encoder.trunk.children())
    for pool, relu in ((1, 2), (4, 5)):
        layers[pool], layers[relu] = layers[relu], layers[pool]
    encoder.trunk = nn.Sequential(*layers)
    encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    n = 8 if small else 128
    x = torch.rand(n, 1, 28, 28, generator=stream(0, "yardstick")).requires_grad_(True)
    return lambda: torch.autograd.grad(encoder(x).square().sum(), x), n


def _matmul(small: bool) -> tuple[Callable[[], Any], float]:
    n, m, e = (64, 256, 32) if small else (1024, 60000, 512)
    a, b = (torch.rand(rows, e, generator=stream(0, "yardstick")) for rows in (n, m))
    return lambda: a @ b.T, 2e-9 * n * m * e


Yardstick = Callable[[bool], tuple[Callable[[], Any], float]]
"""Small or not -> the bare work, and its units."""
YARDSTICKS: Mapping[str, Yardstick] = {"c2f2": _c2f2, "matmul": _matmul}


def measure(
    name: str, rounds: int = 7, small: bool = False, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return how fast this machine does the bare work of a yardstick, in the unit of the figures."""
    work, units = YARDSTICKS[name](small)
    return units / interleaved({name: work}, rounds, warm_up=2, clock=clock)[name].spread.median


def expected(figure: Mapping[str, Any], here: Mapping[str, float]) -> Spread:
    """Return the rate that a recorded figure would have on this machine.

    Parameters
    ----------
    figure
        One of ``recorded()["figures"]``; its rate is a range.
    here
        What :func:`measure` found, by yardstick; a figure without a yardstick is not scaled.
    """
    yardstick = figure["yardstick"]
    factor = 1.0 if yardstick is None else here[yardstick] / recorded()["yardsticks"][yardstick]["rate"]
    low, high = figure["rate"]
    return Spread((low + high) / 2, low, high, 1).times(factor)
