"""Smallest changes: the closed form of linear encoders, upper bounds always, one curve from one run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks import GreedyMismatch, run
from holdfast.attacks.margin import FirstPlaceMargin, RankMargin
from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.evaluation import MinimumNorm, minimum_norm, retrieval_task
from holdfast.functional.distance import Euclidean
from holdfast.rng import stream
from holdfast.search import PGD
from holdfast.threat import L2Threat, LinfThreat, RowBall
from holdfast.types import Gallery, RetrievalTask

BOTH = pytest.mark.parametrize("make", [LinfThreat, L2Threat])
DUAL = {LinfThreat: 1, L2Threat: 2}


@dataclass(frozen=True)
class Linear:
    """A linear encoder into the plane, and what is known about the border between two gallery points."""

    task: RetrievalTask
    margin: Tensor  # (n,) > 0 where the query is right
    slope: Tensor  # (c*h*w,) the margin falls by this much for each unit of input

    def closed_form(self, make: Any) -> Tensor:
        """(n,): the smallest change that reaches the bisector; 0 where the query is wrong."""
        return self.margin.clamp_min(0) / self.slope.norm(p=DUAL[make])


def linear(n: int = 40, seed: int = 0) -> Linear:
    g = stream(seed, "minimum")
    weight = torch.randn(2, 12, generator=g, dtype=torch.float64)
    points = 3 * torch.randn(2, 2, generator=g, dtype=torch.float64)
    x = torch.randn(n, 3, 2, 2, generator=g, dtype=torch.float64)
    z = x.flatten(1) @ weight.T
    task = RetrievalTask(
        encoder=lambda x: x.flatten(1) @ weight.T,
        x=x,
        y=torch.zeros(n, dtype=torch.int64),
        z=z,
        gallery=Gallery(points, torch.tensor([0, 1]), torch.arange(2)),
        self_index=torch.full((n,), -1),
        index=torch.arange(n),
        distance=Euclidean(),
    )
    apart = points[1] - points[0]
    margin = (points[1].square().sum() - points[0].square().sum()) / 2 - z @ apart
    return Linear(task, margin, weight.T @ apart)


@pytest.fixture(scope="module")
def digits() -> RetrievalTask:
    test = Digits().load().test
    encoder = SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=3).double()
    return retrieval_task(encoder, test.x[:40].double(), test.y[:40])


@BOTH
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_closed_form_of_a_linear_encoder(make: Any, seed: int) -> None:
    """|margin| / |w|_2 and |margin| / |w|_1, from a ball that is up to thousands of times too large."""
    case = linear(seed=seed)
    found = minimum_norm(case.task, None, make(eps=10.0, bounds=None))
    closed = case.closed_form(make)
    right = case.margin > 0
    assert 5 < int(right.sum()) < 40
    assert bool((found.radius[~right] == 0).all())
    assert torch.equal(found.x[~right], case.task.x[~right])
    ratio = found.radius[right] / closed[right]
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.max()) <= 1.02
    assert (found.norm, found.eps) == (make.norm, 10.0)


@BOTH
@pytest.mark.parametrize("settings", [{"steps": 0}, {"bisections": 0}, {"steps": 3, "search_steps": 0}])
def test_a_poor_search_is_still_an_upper_bound(make: Any, settings: dict[str, Any]) -> None:
    case = linear(seed=1)
    found = minimum_norm(case.task, None, make(eps=10.0, bounds=None), **settings)
    assert bool((found.radius >= case.closed_form(make) * (1 - 1e-6)).all())


@BOTH
def test_a_gain_that_ignores_the_border_is_an_upper_bound_too(make: Any) -> None:
    case = linear(seed=2)
    threat = make(eps=10.0, bounds=None)
    greedy, margin = (minimum_norm(case.task, a, threat).radius for a in (GreedyMismatch(), None))
    assert bool((greedy >= case.closed_form(make) * (1 - 1e-6)).all())
    assert float(greedy.mean()) > float(margin.mean())


@BOTH
def test_beyond_the_largest_radius_nothing_is_found(make: Any) -> None:
    case = linear()
    closed = case.closed_form(make)
    eps = float(closed[closed > 0].median()) * 1.05
    assert bool(((closed - eps).abs() > 0.02 * eps).all())
    found = minimum_norm(case.task, None, make(eps=eps, bounds=None))
    assert torch.equal(found.radius.isinf(), closed > eps)
    assert torch.equal(found.x[found.radius.isinf()], case.task.x[found.radius.isinf()])
    assert bool((found.radius[found.radius.isfinite()] <= eps).all())


@BOTH
def test_every_radius_is_the_size_of_a_point_that_was_seen_to_break(digits: RetrievalTask, make: Any) -> None:
    threat = make(eps=0.3)
    found = minimum_norm(digits, None, threat, steps=8, bisections=3, search_steps=4)
    broken = found.radius.isfinite()
    assert bool(broken.any())
    torch.testing.assert_close(threat.size(found.x, digits.x)[broken], found.radius[broken])
    assert (float(found.x.min()), float(found.x.max())) >= (0.0, 0.0)
    assert float(found.x.max()) <= 1
    with torch.no_grad():
        measured = RankMargin().measure(digits.encoder(found.x), None, digits)["recall@1"]
    assert torch.equal(measured == 0, broken)
    clean = RankMargin().measure(digits.z, None, digits)["recall@1"]
    assert torch.equal(clean == 0, found.radius == 0)


def test_one_run_is_at_least_as_strong_as_attacks_at_single_radii(digits: RetrievalTask) -> None:
    found = minimum_norm(digits, None, LinfThreat(eps=0.3))
    for eps in (0.01, 0.03, 0.1):
        search = PGD(steps=20, alpha=eps / 8, keep="best")
        single = run(digits, RankMargin(), search, LinfThreat(eps=eps)).attacked["recall@1"]
        assert found.accuracy_at(eps) <= float(single.mean()) + 1 / 40


@BOTH
def test_more_bisections_never_hurt(digits: RetrievalTask, make: Any) -> None:
    radii = [
        minimum_norm(digits, None, make(eps=0.2), steps=6, search_steps=3, bisections=b).radius
        for b in (0, 2, 5)
    ]
    assert bool((radii[1] <= radii[0]).all())
    assert bool((radii[2] <= radii[1]).all())
    assert float(radii[2].nan_to_num(posinf=1).mean()) < float(radii[0].nan_to_num(posinf=1).mean())


def test_results_do_not_depend_on_the_chunk_or_the_other_queries(digits: RetrievalTask) -> None:
    settings: dict[str, Any] = {"steps": 6, "bisections": 3, "search_steps": 3, "seed": 4}
    threat = L2Threat(eps=1.0)
    whole = minimum_norm(digits, None, threat, **settings).radius
    parts = minimum_norm(digits, None, threat, chunk=7, **settings).radius
    backwards = minimum_norm(digits.rows(torch.arange(39, -1, -1)), None, threat, **settings).radius
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(backwards.flip(0), whole, rtol=1e-6, atol=1e-9)


class Drawn(RankMargin):
    """Broken when the embedding's sum has risen by a number that was drawn for the query."""

    def target(self, task: RetrievalTask, generator: Any = None) -> Any:
        assert len(generator) == len(task)
        return torch.stack([torch.rand((), generator=g) for g in generator.generators])

    def gain(self, z: Tensor, target: Any, task: RetrievalTask) -> Tensor:
        return z.sum(1)

    def measure(self, z: Tensor, target: Any, task: RetrievalTask) -> dict[str, Tensor]:
        rise = (z - task.z).sum(1) + (task.index % 3 == 0)  # every third is wrong when clean
        return {"recall@1": (rise < target).to(z.dtype)}


def test_targets_follow_the_query(digits: RetrievalTask) -> None:
    """Also after the queries that are wrong when clean have left."""
    threat = LinfThreat(eps=1.0, bounds=None)
    whole = minimum_norm(digits, Drawn(), threat, steps=3, bisections=2, search_steps=2, chunk=40)
    part = minimum_norm(digits.rows(slice(10, 40)), Drawn(), threat, steps=3, bisections=2, search_steps=2)
    torch.testing.assert_close(part.radius, whole.radius[10:])
    other = minimum_norm(digits, Drawn(), threat, steps=3, bisections=2, search_steps=2, seed=1)
    assert not torch.equal(other.radius, whole.radius)


def test_rounding_at_the_largest_radius_does_not_count() -> None:
    """In float32 a step of 0.1 is often a little longer; the first step goes to the surface."""
    case = linear()
    x = case.task.x.float()
    encoder = case.task.encoder
    task = replace(case.task, x=x, encoder=lambda x: encoder(x.double()))
    found = minimum_norm(task, None, LinfThreat(eps=0.1, bounds=None), steps=1, bisections=0)
    assert float(LinfThreat(eps=0.1).size(found.x.double(), x.double()).max()) > 0.1
    assert float(found.radius[found.radius.isfinite()].max()) == 0.1


class Shaped(RankMargin):
    """Given functions of the embedding say what is climbed and what is broken."""

    def __init__(self, gain: Any, broken: Any) -> None:
        object.__setattr__(self, "shape", (gain, broken))

    def gain(self, z: Tensor, target: None, task: RetrievalTask) -> Tensor:
        return self.shape[0](z)

    def measure(self, z: Tensor, target: None, task: RetrievalTask) -> dict[str, Tensor]:
        return {"recall@1": (~self.shape[1](z)).to(z.dtype)}


def at_zero(width: int) -> RetrievalTask:
    x = torch.zeros(1, width, dtype=torch.float64)
    return replace(linear(1).task, encoder=lambda x: x, x=x, z=x)


def test_a_query_that_never_broke_goes_on_from_its_newest_point() -> None:
    """The second value counts only after the first has arrived: one step is too short, two are enough."""
    attack = Shaped(lambda z: torch.where(z[:, 0] < 0.4, z[:, 0], 0.4 + z[:, 1]), lambda z: (z >= 0.4).all(1))
    settings: dict[str, Any] = {"steps": 0, "search_steps": 1}
    threat = LinfThreat(eps=0.5, bounds=None)
    radii = [minimum_norm(at_zero(2), attack, threat, bisections=b, **settings).radius for b in (1, 2, 3)]
    assert [float(radius) for radius in radii] == [math.inf, math.inf, 0.5]


def test_a_point_below_a_radius_that_failed_opens_the_interval_again() -> None:
    """At 0.5 the search fails from the best point, at 0.75 it finds a hill at 0.2 from the clean input."""
    attack = Shaped(
        lambda z: torch.where(z < 0.45, -(z - 0.2).square(), z - 10)[:, 0],
        lambda z: (((z >= 0.1) & (z <= 0.3)) | (z >= 0.6))[:, 0],
    )
    threat = LinfThreat(eps=1.0, bounds=None)
    first, second, last = (
        float(minimum_norm(at_zero(1), attack, threat, steps=1, bisections=b).radius) for b in (1, 2, 12)
    )
    assert first == 1.0
    assert 0.15 < second < 0.3
    assert 0.1 <= last < 0.101


def test_the_curve() -> None:
    radius = torch.tensor([0.0, 0.1, 0.3, math.inf], dtype=torch.float64)
    found = MinimumNorm(radius=radius, x=torch.zeros(4, 1), norm="l2", eps=0.5)
    curve = [found.accuracy_at(eps) for eps in (0.0, 0.05, 0.1, 0.3, 0.5)]
    assert curve == [0.75, 0.75, 0.5, 0.25, 0.25]  # at its own radius a query is broken
    assert found.robust_at(0.2).tolist() == [False, False, True, True]
    for eps in (-0.1, 0.6, math.nan):
        with pytest.raises(InvalidArgument, match=r"eps: need a radius in \[0, 0.5\]"):
            found.accuracy_at(eps)


def test_another_measure(digits: RetrievalTask) -> None:
    found = minimum_norm(digits, FirstPlaceMargin(), LinfThreat(eps=0.5), metric="retain@1", steps=4)
    assert bool((found.radius > 0).all())  # every clean query keeps its first result
    assert bool(found.radius.isfinite().any())


def test_the_encoder_is_left_as_it_was(digits: RetrievalTask) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).double()
    task = retrieval_task(encoder, digits.x, digits.y)
    minimum_norm(task, None, LinfThreat(eps=0.1), steps=2, bisections=1, search_steps=1)
    assert all(module.training for module in encoder.modules())
    assert all(p.grad is None for p in encoder.parameters())


def test_radius_zero_breaks_nothing(digits: RetrievalTask) -> None:
    found = minimum_norm(digits, None, LinfThreat(eps=0.0), steps=2, bisections=1, search_steps=1)
    assert torch.equal(found.x, digits.x)
    assert set(found.radius.tolist()) <= {0.0, math.inf}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps"),
        ({"bisections": -1}, "bisections"),
        ({"search_steps": -1}, "search_steps"),
        ({"gamma": 1.0}, "gamma"),
        ({"gamma": 0.0}, "gamma"),
        ({"chunk": 0}, "size"),
        ({"metric": "recall@7"}, "metric: need one of recall@1"),
        ({"metric": "shift"}, "metric"),
    ],
)
def test_bad_settings(digits: RetrievalTask, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        minimum_norm(digits, None, LinfThreat(eps=0.1), **settings)


def test_bad_tasks_threats_and_measures(digits: RetrievalTask) -> None:
    class Real(RankMargin):
        def measure(self, z: Tensor, target: Any, task: RetrievalTask) -> dict[str, Tensor]:
            return {"recall@1": z.sum(1)}

    ball: Any = RowBall(threat=LinfThreat(eps=1), radii=torch.ones(40))
    with pytest.raises(InvalidArgument, match="threat: need an l-inf or l2 ball"):
        minimum_norm(digits, None, ball)
    with pytest.raises(InvalidArgument, match="metric: need a measure of zeros and ones"):
        minimum_norm(digits, Real(), LinfThreat(eps=1))
    with pytest.raises(InvalidArgument, match="task: need at least one query"):
        minimum_norm(replace(digits, x=digits.x[:0]), None, LinfThreat(eps=1))
