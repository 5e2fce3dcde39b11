"""The collapse guard, weight averaging, and the measures of spread."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from holdfast import config
from holdfast.data import Digits
from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Euclidean
from holdfast.functional.spread import effective_rank, mean_cosine, spread, uniformity
from holdfast.recipes import recipe
from holdfast.rng import stream
from holdfast.training import Checkpoint, CollapseGuard, train
from holdfast.training.guard import Watch

HEALTHY = {"mean_cosine": 0.1, "effective_rank": 9.0}
COLLAPSED = {"mean_cosine": 0.99, "effective_rank": 9.0}


def test_spread_by_hand() -> None:
    cross = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert mean_cosine(cross) == pytest.approx(-1 / 3)
    assert effective_rank(cross) == pytest.approx(2.0)
    # Squared distances: four of 2 and two of 4.
    assert uniformity(cross) == pytest.approx(math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6))
    y = torch.tensor([0, 0, 1, 1])
    measures = spread(cross, y, Euclidean(), sharpness=0.0)
    assert measures["alignment"] == pytest.approx(2.0)
    within, between = math.sqrt(2), (2 * 2 + 2 * math.sqrt(2)) / 4
    assert measures["intra_inter"] == pytest.approx(within / between, abs=1e-6)
    assert measures["collapseness"] == pytest.approx(within - between, abs=1e-6)
    point = spread(torch.ones(4, 3), y, Euclidean())
    assert point["mean_cosine"] == pytest.approx(1.0)
    assert point["effective_rank"] == pytest.approx(1.0)
    assert point["collapseness"] == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(InvalidArgument, match="two classes"):
        spread(cross, torch.zeros(4), Euclidean())


def test_watch_steps_back_and_comes_back() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    watch, signal = Watch(CollapseGuard(grace=4)), dict[str, float]()

    def look(measures: dict[str, float], step: int) -> bool:
        return watch.look(measures, step, signal, net, optimizer)

    assert not look(COLLAPSED, 2)  # within the grace
    assert signal["ease"] == 1.0
    assert not look(HEALTHY, 8)
    good = net.weight.detach().clone()
    nn.init.zeros_(net.weight)
    assert look(COLLAPSED, 16)
    assert torch.equal(net.weight, good)
    assert signal["ease"] == 0.5
    assert not look(HEALTHY, 24)
    assert signal["ease"] == pytest.approx(0.55)
    for _ in range(20):
        look(HEALTHY, 32)
    assert signal["ease"] == 1.0


@pytest.mark.parametrize("bad", [{"every": 0}, {"factor": 1.0}, {"regain": 0.9}])
def test_guard_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        CollapseGuard(**bad)


def small(**changes: Any) -> Any:
    run = config.replace(recipe("plain"), "data.train_images", 120)
    return replace(config.replace(run, "sampler.batch_pairs", 30), epochs=3, **changes)


def test_a_collapse_is_caught_and_the_run_goes_on(tmp_path: Path) -> None:
    """A guard with limits that training must cross: it acts, and the state survives a resume."""
    run = small(guard=CollapseGuard(max_cosine=-1.0, every=2, grace=4, factor=0.5))
    lines: list[dict[str, Any]] = []
    data = run.data.load()
    whole = train(run, data, folder=tmp_path / "a", on_line=lines.append)
    acts = [line for line in lines if line["kind"] == "guard"]
    assert [line["acted"] for line in acts] == [False, *[True] * 5]
    assert acts[-1]["ease"] == 0.5**5
    assert {"mean_cosine", "effective_rank", "collapseness"} <= set(lines[-1])
    assert whole.steps == 12


def test_healthy_state_is_in_the_checkpoint(tmp_path: Path) -> None:
    run = small(guard=CollapseGuard(max_cosine=1.0, min_rank=0.0, every=2))
    data = run.data.load()
    whole = train(run, data, folder=tmp_path)
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert set(checkpoint.healthy) == set(checkpoint.tensors)
    assert all(torch.equal(checkpoint.healthy[k], checkpoint.tensors[k]) for k in checkpoint.tensors)
    again = train(run, data, folder=tmp_path, resume=True)
    for a, b in zip(whole.encoder.parameters(), again.encoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_average_of_weights() -> None:
    data = Digits(train_images=120).load()
    last = train(small(), data).encoder.head.weight.detach()
    still = train(small(average=0.0), data).encoder.head.weight
    slow = train(small(average=0.99), data).encoder.head.weight.detach()
    start = small().encoder.build(data.train.shape, 0).head.weight.detach()
    assert torch.allclose(still, last, atol=1e-6)  # decay 0 keeps nothing of the past
    assert 0 < float((slow - start).norm()) < float((last - start).norm())
    with pytest.raises(InvalidArgument, match="average"):
        small(average=1.0)


def test_measures_do_not_depend_on_order() -> None:
    z, y = torch.randn(30, 5, generator=stream(0, "z")), torch.arange(30) % 3
    order = torch.randperm(30, generator=stream(0, "order"))
    a, b = spread(z, y, Euclidean()), spread(z[order], y[order], Euclidean())
    assert a == pytest.approx(b, abs=1e-5)
