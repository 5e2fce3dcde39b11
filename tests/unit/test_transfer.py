"""A search on a surrogate, and the count of what an encoder was asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from holdfast.rng import RowStreams, stream
from holdfast.search import PGD, Counted, LowPrecision, Square, Transfer, frozen
from holdfast.threat import LinfThreat

THREAT = LinfThreat(eps=0.1, bounds=None)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=stream(seed, "transfer"), dtype=torch.float64)


def total(z: Tensor) -> Tensor:
    return z.sum(1)


def test_the_attacked_encoder_is_never_asked() -> None:
    attacked, surrogate = Counted(torch.neg), Counted(torch.clone)
    search = Transfer(surrogate, PGD(steps=4, alpha=0.05))
    x0 = rand(3, 2)
    x = search(attacked, x0, total, THREAT)
    assert attacked.queries == 0
    assert surrogate.calls == [3] * 4
    torch.testing.assert_close(x, x0 + 0.1)  # up for the surrogate, down for the attacked encoder


def test_an_objective_of_the_surrogates_space_takes_its_place() -> None:
    x0 = rand(3, 2)
    narrow = rand(2, 5, seed=1)  # the surrogate has five dimensions, the attacked encoder two
    clean = (x0 @ narrow).detach()
    goal = clean + 0.05 * narrow.sum(0)

    def near(z: Tensor) -> Tensor:
        return -(z - goal).square().sum(1)

    def never(z: Tensor) -> Tensor:
        raise AssertionError("belongs to another space")

    search = Transfer(lambda x: x @ narrow, PGD(steps=10, alpha=0.01, keep="best"), objective=near)
    x = search(torch.neg, x0, never, THREAT)
    torch.testing.assert_close(x, x0 + 0.05)


def test_streams_reach_the_search() -> None:
    x0 = rand(3, 6)
    search = Square(queries=12)
    direct = search(torch.sin, x0, total, THREAT, RowStreams(0, index=range(3)))
    through = Transfer(torch.sin, search)(torch.neg, x0, total, THREAT, RowStreams(0, index=range(3)))
    assert torch.equal(direct, through)


def test_images_are_counted_call_by_call() -> None:
    counted = Counted(torch.neg)
    for n in (3, 0, 5):
        assert torch.equal(counted(torch.ones(n, 2)), -torch.ones(n, 2))
    assert counted.calls == [3, 0, 5]
    assert counted.queries == 8
    counted.reset()
    assert counted.queries == 0


def test_a_failed_pass_counts() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError

    counted = Counted(fails)
    with pytest.raises(RuntimeError):
        counted(torch.ones(2, 2))
    assert counted.queries == 2


def test_a_counted_module_is_that_module() -> None:
    inner = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).double().train()
    inner[2].eval()
    counted = Counted(inner)
    assert counted.training
    with frozen(counted):
        assert not any(m.training for m in counted.modules())
        assert torch.equal(counted(rand(4, 2)), inner(rand(4, 2)))
    assert [m.training for m in inner.modules()] == [True, True, True, False]
    assert list(counted.parameters()) == list(inner.parameters())
    assert not Counted(inner.eval()).training
    assert not Counted(torch.neg).training


def test_a_counted_encoder_is_searched_like_the_bare_one() -> None:
    inner = nn.Linear(4, 3).double()
    x0, counted = rand(5, 4), Counted(inner)
    search = PGD(steps=3, alpha=0.01)
    assert torch.equal(search(counted, x0, total, THREAT), search(inner, x0, total, THREAT))
    assert counted.queries == 15
    low = LowPrecision(Counted(inner.float()))
    assert low(x0.float()).dtype == torch.float32
