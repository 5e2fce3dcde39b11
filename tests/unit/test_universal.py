"""One change for all queries: its direction, its ball, its box, and that it is judged on other queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks.margin import RankMargin
from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.evaluation import retrieval_task, universal
from holdfast.rng import stream
from holdfast.schedules import Linear
from holdfast.threat import L2Threat, LinfThreat, RowBall
from holdfast.types import RetrievalTask

BOTH = pytest.mark.parametrize("make", [LinfThreat, L2Threat])


class Climb:
    """Climbs the sum of the embedding, times a weight of each query; remembers which queries it saw."""

    def __init__(self, weight: Tensor | None = None) -> None:
        self.weight, self.batches = weight, list[list[int]]()

    def target(self, task: RetrievalTask, generator: Any = None) -> Tensor:
        assert len(generator) == len(task)
        return torch.stack([torch.rand((), generator=g) for g in generator.generators])

    def gain(self, z: Tensor, target: Tensor, task: RetrievalTask) -> Tensor:
        self.batches.append(task.index.tolist())
        return z.sum(1) * (1 if self.weight is None else self.weight[task.index])

    def measure(self, z: Tensor, target: Tensor, task: RetrievalTask) -> dict[str, Tensor]:
        return {"sum": z.sum(1), "target": target.to(z.dtype), "index": task.index.to(z.dtype)}


def linear_task(n: int = 12) -> tuple[RetrievalTask, Tensor]:
    g = stream(0, "universal")
    weight = torch.randn(2, 12, generator=g, dtype=torch.float64)
    x = 0.4 + 0.2 * torch.rand(n, 3, 2, 2, generator=g, dtype=torch.float64)
    return retrieval_task(lambda x: x.flatten(1) @ weight.T, x, torch.arange(n) % 3), weight.sum(0)


@pytest.fixture(scope="module")
def digits() -> RetrievalTask:
    test = Digits().load().test
    encoder = SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=3).double()
    return retrieval_task(encoder, test.x[:120].double(), test.y[:120])


def test_a_linear_encoder_gets_the_sign_of_its_weight() -> None:
    task, weight = linear_task()
    found = universal(
        task, Climb(), LinfThreat(eps=0.1), train=torch.arange(6), epochs=2, batch_size=3, alpha=0.05
    )
    torch.testing.assert_close(found.delta.flatten(), 0.1 * weight.sign())
    gained = found.attacked["sum"] - found.clean["sum"]
    torch.testing.assert_close(gained, torch.full_like(gained, float(0.1 * weight.abs().sum())))


def test_a_linear_encoder_gets_the_direction_of_its_weight_in_l2() -> None:
    task, weight = linear_task()
    found = universal(task, Climb(), L2Threat(eps=0.1), train=torch.arange(6), epochs=3, alpha=0.1)
    torch.testing.assert_close(found.delta.flatten(), 0.1 * weight / weight.norm())


def test_it_is_the_mean_gain_that_is_climbed() -> None:
    """Two queries pull one way with weight 1, one pulls the other way with weight -3."""
    task, weight = linear_task(4)
    attack = Climb(torch.tensor([1.0, 1.0, -3.0, 0.0], dtype=torch.float64))
    found = universal(task, attack, LinfThreat(eps=0.1), train=torch.arange(3), epochs=1, alpha=0.1)
    torch.testing.assert_close(found.delta.flatten(), -0.1 * weight.sign())
    assert found.rows.tolist() == [3]


def test_a_capped_gain_leaves_broken_queries_alone() -> None:
    """The third query's gain is at the cap already: the two others decide."""
    task, weight = linear_task(4)
    sums = task.z.sum(1)
    attack = Climb(torch.stack([-1 / sums[0], -1 / sums[1], 3 / sums[2], sums[3]]))  # gains -1, -1, 3
    ways = -torch.stack([1 / sums[0], 1 / sums[1]]).sum() * weight
    settings: dict[str, Any] = {"train": torch.arange(3), "epochs": 1, "alpha": 0.01}
    capped = universal(task, attack, LinfThreat(eps=0.01), cap=0.0, **settings)
    free = universal(task, attack, LinfThreat(eps=0.01), **settings)
    torch.testing.assert_close(capped.delta.flatten(), 0.01 * ways.sign())
    everybody = ways + 3 / sums[2] * weight
    torch.testing.assert_close(free.delta.flatten(), 0.01 * everybody.sign())
    assert not torch.equal(capped.delta, free.delta)


@pytest.mark.parametrize("train", [torch.tensor([3, 1, 10]), torch.arange(12).eq(1) | torch.arange(12).eq(7)])
def test_it_is_never_measured_where_it_was_made(train: Tensor) -> None:
    task, _ = linear_task()
    attack = Climb()
    found = universal(task, attack, LinfThreat(eps=0.1), train=train, batch_size=2)
    made_from = set(train.tolist()) if train.dtype == torch.int64 else {1, 7}
    assert {row for batch in attack.batches for row in batch} == made_from
    assert found.rows.tolist() == [row for row in range(12) if row not in made_from]
    for measures in (found.clean, found.attacked):
        assert measures["index"].tolist() == found.rows.tolist()
    assert torch.equal(found.clean["target"], found.attacked["target"])


def test_targets_follow_the_query_and_the_seed_names_everything() -> None:
    task, _ = linear_task()
    settings: dict[str, Any] = {"threat": LinfThreat(eps=0.1), "train": torch.arange(6)}
    first = universal(task, Climb(), batch_size=4, **settings)
    again = universal(task, Climb(), batch_size=4, **settings)
    assert torch.equal(first.delta, again.delta)
    assert torch.equal(
        first.attacked["target"], universal(task, Climb(), batch_size=1, **settings).attacked["target"]
    )
    assert not torch.equal(
        first.attacked["target"], universal(task, Climb(), seed=1, **settings).attacked["target"]
    )


def test_every_epoch_takes_every_query_once_in_a_new_order_while_the_step_falls() -> None:
    task, _ = linear_task()
    attack, fractions = Climb(), list[float]()

    def alpha(fraction: float) -> float:
        fractions.append(fraction)
        return 0.01

    train = torch.arange(7)
    universal(task, attack, LinfThreat(eps=0.1), train=train, epochs=2, batch_size=3, alpha=alpha)
    assert [len(batch) for batch in attack.batches] == [3, 3, 1] * 2
    first, second = (
        [row for batch in attack.batches[part] for row in batch] for part in (slice(3), slice(3, 6))
    )
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert fractions == pytest.approx([i / 6 for i in range(6)])


@BOTH
def test_inside_the_ball_and_the_box(digits: RetrievalTask, make: Any) -> None:
    seen: list[Tensor] = []

    class Looking(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return self.inner(x)

    task = retrieval_task(Looking(digits.encoder), digits.x, digits.y)  # type: ignore[arg-type]
    seen.clear()
    threat = make(eps=0.3)
    found = universal(task, RankMargin(), threat, train=torch.arange(80), epochs=2, batch_size=32, alpha=0.2)
    delta = found.delta[None]
    assert float(threat.size(delta, torch.zeros_like(delta))) == pytest.approx(0.3)
    assert (min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)) == (0.0, 1.0)
    held = torch.cat(seen[6:])  # two epochs of three batches, then the others
    torch.testing.assert_close(held, (digits.x[80:] + delta).clamp(0, 1))
    changed = threat.size(held, digits.x[80:])
    assert float(changed.max()) <= 0.3 + 1e-9
    assert float(found.delta.min()) < 0  # although digits have black borders: the box is not the change's own


@pytest.mark.parametrize("cap", [None, 0.0])
def test_it_breaks_queries_that_it_has_not_seen(cap: float | None) -> None:
    """A net that was fitted in closed form; random signs of the same size break far fewer queries."""
    data = Digits().load()
    ones = torch.ones(len(data.train.x), 1)
    a = torch.cat([data.train.x.flatten(1), ones], 1).double()
    ridge = torch.linalg.solve(a.T @ a + torch.eye(65, dtype=a.dtype), a.T @ F.one_hot(data.train.y).double())

    def encoder(x: Tensor) -> Tensor:
        return F.normalize(x.flatten(1) @ ridge[:-1] + ridge[-1], dim=1)

    task = retrieval_task(encoder, data.test.x[:200].double(), data.test.y[:200])
    train = torch.arange(0, 200, 2)
    falling = Linear(start=0.03, stop=0.0)
    found = universal(
        task, RankMargin(), LinfThreat(eps=0.3), train=train, batch_size=25, alpha=falling, cap=cap
    )
    clean, attacked = (float(m["recall@1"].mean()) for m in (found.clean, found.attacked))
    held = task.rows(found.rows)
    random = []
    for i in range(5):
        sign = (torch.rand(found.delta.shape, generator=stream(i, "signs")) - 0.5).sign()
        z = encoder((held.x + 0.3 * sign).clamp(0, 1))
        random.append(float(RankMargin().measure(z, None, held)["recall@1"].mean()))
    assert clean > 0.95
    assert attacked < 0.5
    assert attacked < min(random) - 0.15


def test_no_epoch_changes_nothing(digits: RetrievalTask) -> None:
    found = universal(digits, RankMargin(), LinfThreat(eps=0.1), train=torch.arange(5), epochs=0)
    assert not bool(found.delta.any())
    assert torch.equal(found.clean["recall@1"], found.attacked["recall@1"])


def test_the_encoder_is_left_as_it_was(digits: RetrievalTask) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).double()
    task = retrieval_task(encoder, digits.x, digits.y)
    universal(task, RankMargin(), LinfThreat(eps=0.1), train=torch.arange(9), epochs=1)
    assert all(module.training for module in encoder.modules())
    assert all(p.grad is None for p in encoder.parameters())
    first, second = (
        universal(task, RankMargin(), LinfThreat(eps=0.1), train=torch.arange(9), epochs=1).delta
        for _ in range(2)
    )
    assert torch.equal(first, second)  # no dropout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"alpha": -0.1}, "alpha"),
        ({"train": torch.tensor([], dtype=torch.int64)}, "train: need some of the 12"),
        ({"train": torch.arange(12)}, "train: need some of the 12"),
        ({"train": torch.tensor([12])}, "train: need row numbers"),
        ({"train": torch.tensor([-1])}, "train: need row numbers"),
        ({"train": torch.tensor([0.5])}, "train: need row numbers"),
        ({"train": torch.tensor([True])}, "train: need row numbers"),
        ({"threat": RowBall(threat=LinfThreat(eps=1), radii=torch.ones(1))}, "threat: need an l-inf or l2"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    task, _ = linear_task()
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        universal(task, Climb(), **{"threat": LinfThreat(eps=0.1), "train": torch.arange(3), **settings})
