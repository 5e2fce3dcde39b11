"""Attacks on clusters: closed forms of a linear encoder, identities between gains, ties, and the contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks import (
    CLUSTER_ATTACKS,
    CentroidRepel,
    HardLabel,
    OnClusters,
    PoisonTask,
    ProxyGain,
    RankMargin,
    SoftAssignment,
    TargetedNeighbour,
    cluster_measures,
    hits,
    run,
)
from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.functional.clustering import kmeans
from holdfast.functional.distance import Cosine, SquaredEuclidean
from holdfast.functional.ranking import retrieval_scores
from holdfast.losses.proxy_anchor import proxy_anchor_loss
from holdfast.rng import RowStreams, stream
from holdfast.schedules import Linear
from holdfast.search import PGD, RayS, Square
from holdfast.threat import L2Threat, LinfThreat, RowBall
from holdfast.types import ClusterNames, ClusterTask, Gallery, RetrievalTask

EVERY = pytest.mark.parametrize("name", list(CLUSTER_ATTACKS))
NAMES = list(CLUSTER_ATTACKS)
BY_VALUES = {name for name, attack in CLUSTER_ATTACKS.items() if not getattr(attack, "differentiable", True)}
N, D, E = 7, 12, 4


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=stream(seed, "clusters"), dtype=torch.float64)


def cluster_task(
    encoder: Any, x: Tensor, centroids: Tensor, distance: Any = None, **also: Any
) -> ClusterTask:
    distance = distance or SquaredEuclidean()
    with torch.no_grad():
        z = encoder(x)
    own = distance.matrix(z, centroids).argmin(1)
    numbers = torch.arange(len(centroids))
    return ClusterTask(**{
        "encoder": encoder, "x": x, "y": own, "z": z, "gallery": Gallery(centroids, numbers, numbers),
        "self_index": torch.full((len(x),), -1), "index": torch.arange(len(x)), "distance": distance,
        "cluster_of": own, "truth": torch.full((len(x),), -1), **also,
    })  # fmt: skip


W = rand(E, D, seed=1) - 0.5
X = rand(N, D, seed=2)


def linear(x: Tensor) -> Tensor:
    return x.flatten(1) @ W.T


def two_clusters() -> ClusterTask:
    """Two centroids well apart, the border between them through the middle of the queries."""
    z = linear(X)
    way = F.normalize(rand(1, E, seed=4) - 0.5)
    return cluster_task(linear, X, torch.cat([z.mean(0) - way, z.mean(0) + way]))


TASK = two_clusters()
MARGIN = OnClusters(RankMargin())


def pull(task: ClusterTask) -> Tensor:
    """The gradient of A1 with two centroids, the same at every input: 2 W^T (mu_other - mu_own)."""
    mu = task.gallery.z
    return 2 * (mu[1 - task.cluster_of] - mu[task.cluster_of]) @ W


def best_linf(x: Tensor, way: Tensor, radius: Any, bounds: Any) -> Tensor:
    moved = x + radius * way.sign()
    return moved if bounds is None else moved.clamp(*bounds)


def best_l2(x: Tensor, way: Tensor, eps: float, bounds: Any) -> Tensor:
    """``clip(x + t * way)`` with the t that uses up the radius (Karush-Kuhn-Tucker), by bisection."""
    if bounds is None:
        return x + eps * F.normalize(way)
    low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e6).double()
    for _ in range(200):
        t = (low + high) / 2
        inside = ((x + t * way).clamp(*bounds) - x).norm(dim=1, keepdim=True) <= eps
        low, high = torch.where(inside, t, low), torch.where(inside, high, t)
    return (x + low * way).clamp(*bounds)


# ---- closed forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
@pytest.mark.parametrize("name", ["A1", "A2", "A3.1"])
def test_the_best_linf_attack_on_two_clusters_is_reached(name: str, bounds: Any) -> None:
    threat = LinfThreat(eps=0.1, bounds=bounds)
    outcome = run(TASK, CLUSTER_ATTACKS[name], PGD(steps=20, alpha=0.03), threat)
    best = best_linf(X, pull(TASK), 0.1, bounds)
    torch.testing.assert_close(outcome.x, best, atol=1e-12, rtol=0)
    gain = MARGIN.gain(outcome.z, None, TASK)
    torch.testing.assert_close(gain, MARGIN.gain(linear(best), None, TASK), atol=1e-6, rtol=0)
    if bounds is None:
        rise = gain - MARGIN.gain(TASK.z, None, TASK)
        torch.testing.assert_close(rise, 0.1 * pull(TASK).abs().sum(1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_the_best_l2_attack_on_two_clusters_is_reached(bounds: Any) -> None:
    threat = L2Threat(eps=0.5, bounds=bounds)
    search = PGD(steps=400, alpha=Linear(start=0.05, stop=0.0), keep="best")
    outcome = run(TASK, MARGIN, search, threat)
    best = best_l2(X, pull(TASK), 0.5, bounds)
    assert bounds is None or bool(((best == 0) | (best == 1)).any())
    value, optimum = (MARGIN.gain(z, None, TASK) for z in (outcome.z, linear(best)))
    assert bool((value <= optimum + 1e-9).all())
    torch.testing.assert_close(value, optimum, atol=1e-6 if bounds is None else 1e-4, rtol=0)
    if bounds is None:
        rise = optimum - MARGIN.gain(TASK.z, None, TASK)
        torch.testing.assert_close(rise, 0.5 * pull(TASK).norm(dim=1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_the_radius_at_which_a_query_flips_is_exact(bounds: Any) -> None:
    way = pull(TASK)
    low, high = torch.zeros(N).double(), torch.ones(N).double()
    for _ in range(60):
        r = (low + high) / 2
        broken = MARGIN.gain(linear(best_linf(X, way, r[:, None], bounds)), None, TASK) >= 0
        low, high = torch.where(broken, low, r), torch.where(broken, r, high)
    assert float(high.max()) < 0.9  # all can be flipped within the box
    if bounds is None:
        exact = -MARGIN.gain(TASK.z, None, TASK) / way.abs().sum(1)
        torch.testing.assert_close(high, exact, atol=1e-9, rtol=0)
    for factor, flips in ((1 - 1e-6, 0.0), (1 + 1e-6, 1.0)):
        ball = RowBall(threat=LinfThreat(eps=1.0, bounds=bounds), radii=high * factor)
        outcome = run(TASK, MARGIN, PGD(steps=20, alpha=0.3), ball)
        assert outcome.attacked["flip"].tolist() == [flips] * N
    assert outcome.clean["flip"].tolist() == [0.0] * N


def test_repel_in_one_dimension_and_from_the_centroid_itself() -> None:
    """(|w x - mu| + eps |w|_1)^2 on a line; (eps * largest singular value)^2 from the centroid in l2."""
    w = W[:1]
    line = cluster_task(lambda x: x.flatten(1) @ w.T, X, torch.tensor([[-0.3], [0.8]]).double())
    away = (line.z - line.gallery.z[line.cluster_of]).abs()[:, 0]
    outcome = run(line, CentroidRepel(), PGD(steps=20, alpha=0.03), LinfThreat(eps=0.1, bounds=None))
    reached = CentroidRepel().gain(outcome.z, None, line)
    torch.testing.assert_close(reached, (away + 0.1 * w.abs().sum()).square(), atol=1e-9, rtol=0)

    alone = cluster_task(linear, X[:3], linear(X[:3]))
    search, threat = PGD(steps=200, alpha=0.1, random_start=True), L2Threat(eps=0.1, bounds=None)
    best = (0.1 * torch.linalg.matrix_norm(W, ord=2)) ** 2
    for attack in (CentroidRepel(), CLUSTER_ATTACKS["A5"]):
        z = run(alone, attack, search, threat).z
        torch.testing.assert_close((z - alone.z).square().sum(1), best.expand(3), rtol=1e-4, atol=0)
    assert torch.equal(run(alone, CentroidRepel(), PGD(steps=5), threat).x, alone.x)  # flat, as documented


def test_shift_climbs_from_the_clean_input() -> None:
    """The squared distance of the task would be flat there."""
    for distance in (SquaredEuclidean(), Cosine()):
        task = replace(TASK, distance=distance)
        outcome = run(task, CLUSTER_ATTACKS["A5"], PGD(steps=10, alpha=0.02), LinfThreat(eps=0.1))
        assert float((outcome.z - task.z).norm(dim=1).min()) > 0.05
    assert CLUSTER_ATTACKS["A5"].gain(TASK.z, None, TASK).max() < 1e-5


# ---- identities between gains -------------------------------------------------------------------------


def several() -> ClusterTask:
    z = linear(X)
    return cluster_task(linear, X, z.mean(0) + 0.6 * (rand(5, E, seed=5) - 0.5))


def near(task: ClusterTask, n: int = 200) -> tuple[Tensor, ClusterTask]:
    """Embeddings around the centroids, and the task with as many queries."""
    spread = 0.4 * torch.randn(n, E, generator=stream(3, "near"), dtype=torch.float64)
    return task.gallery.z.mean(0) + spread, task.rows(torch.arange(n) % len(task))


def test_margin_gain_is_not_negative_exactly_where_the_query_flips() -> None:
    for task in (TASK, several()):
        z, wide = near(task)
        gain, flip = MARGIN.gain(z, None, wide), cluster_measures(z, wide)["flip"]
        assert 0 < float(flip.mean()) < 1
        assert torch.equal(gain >= 0, flip == 1)
        assert torch.equal(HardLabel().gain(z, None, wide), flip - 1)
        nearest = wide.distance.matrix(z, wide.gallery.z).argmin(1)
        assert torch.equal(flip == 1, nearest != wide.cluster_of)  # without ties


def test_the_nearest_target_is_the_margin_where_there_are_two_clusters() -> None:
    z, wide = near(TASK)
    aimed = CLUSTER_ATTACKS["A3.1"]
    assert torch.equal(aimed.gain(z, aimed.target(wide), wide), MARGIN.gain(z, None, wide))
    z, wide = near(several())
    gains = [a.gain(z, a.target(wide), wide) for a in (CLUSTER_ATTACKS[f"A3.{j}"] for j in (1, 2, 3))]
    assert bool((torch.stack(gains).amax(0) <= MARGIN.gain(z, None, wide) + 1e-12).all())
    assert not torch.equal(gains[0], gains[1])


@pytest.mark.parametrize("tau", [None, 0.05, 3.0])
def test_soft_assignment_is_the_cross_entropy_on_another_scale(tau: float | None) -> None:
    z, wide = near(several())
    attack = SoftAssignment(tau=tau)
    target = attack.target(wide)
    between = torch.cdist(wide.gallery.z, wide.gallery.z).square().fill_diagonal_(9)
    expected = tau or float(between.amin(1).median()) / 2
    assert target.tolist() == pytest.approx([expected] * len(z))
    z = z.requires_grad_()
    gain = attack.gain(z, target, wide)
    d = torch.cdist(z, wide.gallery.z).square()
    entropy = F.cross_entropy(-d / expected, wide.cluster_of, reduction="none")
    torch.testing.assert_close(F.softplus(gain / expected, threshold=1e9), entropy)
    (mine,), (theirs,) = (torch.autograd.grad(v.sum(), z) for v in (gain, entropy))
    both = F.cosine_similarity(mine, theirs, dim=1)
    assert float(both[theirs.norm(dim=1) > 1e-9].min()) > 1 - 1e-6
    margin = MARGIN.gain(z, None, wide)
    assert bool((margin <= gain + 1e-12).all())
    assert bool((gain <= margin + expected * torch.tensor(4.0).log() + 1e-12).all())


def test_soft_assignment_is_the_margin_where_there_are_two_clusters() -> None:
    z, wide = near(TASK)
    z = z.requires_grad_()
    soft, hard = SoftAssignment().gain(z, SoftAssignment().target(wide), wide), MARGIN.gain(z, None, wide)
    torch.testing.assert_close(soft, hard)
    (a,), (b,) = (torch.autograd.grad(v.sum(), z) for v in (soft, hard))
    torch.testing.assert_close(a, b)
    assert torch.equal(a.sign(), b.sign())


def test_soft_assignment_does_not_vanish_deep_inside_a_cell() -> None:
    """In float32 the gradient of the cross-entropy itself is 0 there, and the search would stand still."""
    far = torch.tensor([[0.0, 0.0], [40.0, 0.0], [0.0, 60.0]])
    task = cluster_task(nn.Identity(), torch.tensor([[0.5, 0.5]]), far)
    z = task.z.clone().requires_grad_()
    target = torch.ones(1)
    gain = SoftAssignment().gain(z, target, task)
    entropy = F.cross_entropy(-SquaredEuclidean().matrix(z, far), task.cluster_of)
    (mine,), (theirs,) = (torch.autograd.grad(v.sum(), z) for v in (gain, entropy))
    assert not bool(theirs.any())
    assert mine[0].tolist() == pytest.approx([80.0, 0.0], abs=1e-3)


@pytest.mark.parametrize("distance", [SquaredEuclidean(), Cosine()])
def test_proxy_gain_is_the_loss_of_a_batch_of_one(distance: Any) -> None:
    task = replace(several(), distance=distance)
    z, wide = near(task, 20)
    rows = [
        proxy_anchor_loss(z[i : i + 1], wide.cluster_of[i : i + 1], task.gallery.z, 32.0, 0.1)
        for i in range(20)
    ]
    torch.testing.assert_close(ProxyGain().gain(z, None, wide), torch.cat(rows), atol=1e-7, rtol=1e-7)


def test_settings_are_checked() -> None:
    for make, name, bad in (
        (SoftAssignment, "tau", 0.0), (SoftAssignment, "tau", float("nan")), (ProxyGain, "alpha", 0.0),
        (ProxyGain, "margin", -0.1), (ProxyGain, "alpha", float("inf")),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match=name):
            make(**{name: bad})


# ---- measures -----------------------------------------------------------------------------------------


def test_measures_by_hand() -> None:
    """Centroids at 0, 4, 10 on a line; queries of cluster 0, 1, 1, 2 moved to 1, 2 (a tie), 8 and NaN."""
    x = torch.tensor([[0.0], [3.0], [4.0], [9.0]]).double()
    names = ClusterNames(torch.tensor([7, 3, -1]), torch.tensor([7, 3, 7]))
    task = cluster_task(
        nn.Identity(), x, torch.tensor([[0.0], [4.0], [10.0]]).double(),
        truth=torch.tensor([7, 3, 7, -1]), names=names,
    )  # fmt: skip
    assert task.cluster_of.tolist() == [0, 1, 1, 2]
    before = cluster_measures(task.z, task)
    assert list(before) == ["flip", "accuracy", "majority"]
    assert [v.tolist() for v in before.values()] == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    z = torch.tensor([[1.0], [2.0], [8.0], [torch.nan]]).double()
    after = cluster_measures(z, task)
    assert after["flip"].tolist() == [0, 1, 1, 1]
    assert after["accuracy"].tolist() == [1, 0, 0, 0]  # the last centroid bears no name one-to-one
    assert after["majority"].tolist() == [1, 0, 1, 0]
    gain = MARGIN.gain(z[:3], None, task.rows(slice(0, 3)))
    assert gain.tolist() == [1 - 9, 0, 16 - 4]  # the tie is a flip
    assert HardLabel().gain(z[:3], None, task.rows(slice(0, 3))).tolist() == [-1, 0, 0]
    assert bool(HardLabel().gain(z, None, task)[3].isnan())


def test_a_query_between_two_clusters_of_its_class_is_right() -> None:
    names = ClusterNames(torch.tensor([5, -1]), torch.tensor([5, 5]))
    x = torch.tensor([[1.0]]).double()
    task = cluster_task(
        nn.Identity(), x, torch.tensor([[0.0], [4.0]]).double(), truth=torch.tensor([5]), names=names
    )
    for where, flip, accuracy in ((2.0, 1.0, 0.0), (3.0, 1.0, 0.0), (1.9, 0.0, 1.0)):
        measures = cluster_measures(torch.tensor([[where]]).double(), task)
        assert (float(measures["flip"]), float(measures["accuracy"])) == (flip, accuracy)
        assert float(measures["majority"]) == 1
    lost = cluster_measures(torch.tensor([[torch.nan]]).double(), task)
    assert (float(lost["flip"]), float(lost["majority"])) == (1, 0)


def test_right_and_not_flipped_is_robust_accuracy() -> None:
    """The names are one-to-one: of the queries that were right, the right ones are those that stayed."""
    names = ClusterNames(torch.tensor([2, 0, 1, 4, 3]), torch.tensor([2, 0, 1, 1, 2]))
    task = replace(several(), names=names)
    task = replace(task, truth=names.hungarian[task.cluster_of].where(torch.arange(N) % 3 > 0, 1))
    z, wide = near(task)
    before, after = (cluster_measures(v, wide) for v in (wide.z, z))
    right = before["accuracy"] == 1
    assert 0 < int(right.sum()) < len(z)
    assert torch.equal(after["accuracy"][right], 1 - after["flip"][right])


def test_images_are_searched_too() -> None:
    y = torch.arange(N) // 2
    images = RetrievalTask(
        encoder=linear, x=X, y=y, z=TASK.z, gallery=Gallery(TASK.z, y, torch.arange(N)),
        self_index=torch.arange(N), index=torch.arange(N), distance=SquaredEuclidean(),
    )  # fmt: skip
    task = replace(TASK, images=images)
    z = TASK.z.flip(0)
    measures = cluster_measures(z, task)
    assert torch.equal(measures["recall@1"], hits(z, images))
    scores = retrieval_scores(z, y, TASK.z, y, SquaredEuclidean(), torch.arange(N))
    assert torch.equal(measures["map@r"], scores.map_at_r)
    part = cluster_measures(z[2:5], task.rows(slice(2, 5)))
    assert all(torch.equal(part[name], values[2:5]) for name, values in measures.items())
    assert set(cluster_measures(z, TASK)) == {"flip"}


# ---- bad and degenerate input -------------------------------------------------------------------------


def as_poison(task: ClusterTask) -> ClusterTask:
    """The same rows as references, with queries of their own clusters as victims."""
    z, wide = near(task, 30)
    k = len(task.gallery.z)
    own = task.distance.matrix(z, task.gallery.z).argmin(1)
    fields = {name: getattr(task, name) for name in task.__dataclass_fields__}
    return PoisonTask(**fields, victims=Gallery(z, own, wide.index), shares=torch.full((k,), 0.3).double())


def suited(name: str, task: ClusterTask) -> ClusterTask:
    return as_poison(task) if name == "G1" else task


def search_for(name: str) -> Any:
    return RayS(queries=40) if name in BY_VALUES else PGD(steps=6, alpha=0.02)


@EVERY
def test_one_cluster_cannot_be_left(name: str) -> None:
    task = suited(name, cluster_task(linear, X, torch.full((1, E), 0.3).double()))
    outcome = run(task, CLUSTER_ATTACKS[name], search_for(name), LinfThreat(eps=0.1))
    assert outcome.attacked["flip"].tolist() == [0.0] * N
    attack = CLUSTER_ATTACKS[name]
    gain = attack.gain(outcome.z, attack.target(task), task)
    assert bool(torch.isfinite(gain).all())
    if name not in ("A4", "A5", "A6"):
        assert torch.equal(gain, -torch.ones(N).double())
        assert torch.equal(outcome.x, X)


@EVERY
def test_nan_is_reported_and_not_passed_over(name: str) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return linear(x) * torch.where(torch.arange(len(x)) == 2, torch.nan, 1.0)[:, None]

    task = suited(name, replace(TASK, encoder=Broken()))
    with pytest.raises(InvalidArgument, match="finite"):
        run(task, CLUSTER_ATTACKS[name], search_for(name), LinfThreat(eps=0.1))


def test_duplicate_centroids_have_flipped_from_the_start() -> None:
    mu = TASK.gallery.z
    task = cluster_task(linear, X, torch.cat([mu, mu]))
    assert cluster_measures(task.z, task)["flip"].tolist() == [1.0] * N
    gain = SoftAssignment().gain(task.z, SoftAssignment().target(task), task)
    assert bool(torch.isfinite(gain).all())
    assert bool((gain >= 0).all())


def test_poisoning_asks_for_victims() -> None:
    with pytest.raises(InvalidArgument, match="PoisonTask"):
        CLUSTER_ATTACKS["G1"].gain(TASK.z, None, TASK)


# ---- the contract -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ClusterTask:
    """Thirty digits among six clusters of an encoder that was never trained."""
    test = Digits().load().test
    x, y = test.x[:60].double(), test.y[:60]
    encoder = SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=3).double().eval()
    with torch.no_grad():
        z = encoder(x)
    fitted = kmeans(z, 6, n_init=3)
    names = ClusterNames(torch.arange(6), torch.arange(6))
    return cluster_task(encoder, x, fitted.centroids, truth=y, names=names).rows(slice(0, 30))


def test_the_table_holds_the_public_names() -> None:
    assert NAMES == ["A1", "A2", "A3.1", "A3.2", "A3.3", "A4", "A5", "A6", "A7-label", "G1"]
    assert {"A7-label"} == BY_VALUES
    assert OnClusters(HardLabel()).differentiable is False


@EVERY
def test_gain_is_one_finite_differentiable_value_for_each_query(name: str, digits: ClusterTask) -> None:
    task, attack = suited(name, several()), CLUSTER_ATTACKS[name]
    z, wide = near(task, 12)
    target = attack.target(wide)
    z = z.requires_grad_()
    gain = attack.gain(z, target, wide)
    assert gain.shape == (12,)
    assert gain.dtype == z.dtype
    assert gain.requires_grad == (name not in BY_VALUES)
    if name in BY_VALUES:
        with pytest.raises(InvalidArgument, match="differentiable"):
            run(digits, attack, PGD(steps=1), LinfThreat(eps=0.1))
        return
    assert torch.autograd.gradcheck(lambda z: attack.gain(z, target, wide), (z,), eps=1e-7, atol=1e-4)
    (grad,) = torch.autograd.grad(gain[4], z)
    assert bool(grad[4].any())
    assert not bool(grad[torch.arange(12) != 4].any())


@EVERY
@pytest.mark.parametrize("random_start", [False, True])
def test_outcomes_do_not_depend_on_batches(name: str, digits: ClusterTask, random_start: bool) -> None:
    task = digits
    if name == "G1":
        victims = Gallery(task.z.flip(0), task.cluster_of.flip(0), task.index)
        fields = {field: getattr(task, field) for field in task.__dataclass_fields__}
        task = PoisonTask(**fields, victims=victims, shares=torch.full((6,), 0.2).double())
    search: Any = PGD(steps=5, alpha=0.03, random_start=random_start)
    if name in BY_VALUES:
        search = Square(queries=25) if random_start else RayS(queries=60)
    attack, threat = CLUSTER_ATTACKS[name], LinfThreat(eps=0.1)
    whole = run(task, attack, search, threat, batch_size=128)
    order = torch.randperm(30, generator=stream(1, "order"))
    pairs = [
        (run(task, attack, search, threat, batch_size=7), slice(None)),
        (run(task.rows(slice(11, 14)), attack, search, threat, batch_size=1), slice(11, 14)),
        (run(task.rows(order), attack, search, threat), order),
    ]
    for other, rows in pairs:
        assert torch.allclose(other.x, whole.x[rows], rtol=0, atol=1e-9)
        for state in ("clean", "attacked"):
            there, here = getattr(other, state), getattr(whole, state)
            assert set(there) == {"flip", "accuracy", "majority"}
            assert all(torch.equal(there[measure], here[measure][rows]) for measure in there)
    assert float(threat.size(whole.x, task.x).max()) <= 0.1 + 1e-9
    assert not torch.equal(whole.x, task.x)


@EVERY
def test_radius_zero_leaves_everything_as_it_was(name: str, digits: ClusterTask) -> None:
    task = suited(name, several())
    outcome = run(task, CLUSTER_ATTACKS[name], search_for(name), LinfThreat(eps=0.0))
    assert torch.equal(outcome.x, task.x)
    assert outcome.attacked["flip"].tolist() == [0.0] * N


def test_a_whole_box_flips_everything_and_noise_does_less(digits: ClusterTask) -> None:
    """T10, with a trained-free network and six clusters."""
    search, flips = PGD(steps=30, alpha=0.1, keep="best", restarts=2), []
    for eps in (0.0, 0.02, 0.05, 0.1, 0.2, 1.0):
        threat = LinfThreat(eps=eps)
        outcome = run(digits, MARGIN, replace(search, alpha=max(eps / 8, 1e-3)), threat)
        flips.append(float(outcome.attacked["flip"].mean()))
        noisy = threat.noise(digits.x, RowStreams(0, "noise", index=digits.index))
        with torch.no_grad():
            by_noise = float(cluster_measures(digits.encoder(noisy), digits)["flip"].mean())
        assert by_noise <= flips[-1]
        assert eps != 0.1 or by_noise < flips[-1] - 0.2
    assert flips[0] == 0
    assert flips[-1] == 1
    assert flips == sorted(flips)
    assert 0 < flips[2] < 1


@pytest.mark.parametrize(
    "search", [Square(queries=300, stop_at=0.0), RayS(queries=300)], ids=["square", "rays"]
)
def test_the_number_alone_is_enough_where_the_margin_breaks_clearly(search: Any) -> None:
    way = pull(TASK)
    exact = -MARGIN.gain(TASK.z, None, TASK) / way.abs().sum(1)
    ball = RowBall(threat=LinfThreat(eps=1.0, bounds=None), radii=3 * exact)
    assert run(TASK, HardLabel(), search, ball).attacked["flip"].tolist() == [1.0] * N
    short = RowBall(threat=LinfThreat(eps=1.0, bounds=None), radii=0.99 * exact)
    assert run(TASK, HardLabel(), search, short).attacked["flip"].tolist() == [0.0] * N


def test_any_attack_of_retrieval_can_be_wrapped(digits: ClusterTask) -> None:
    attack = OnClusters(TargetedNeighbour(j=9))
    outcome = run(digits, attack, PGD(steps=5, alpha=0.03), LinfThreat(eps=0.1))
    last = digits.distance.matrix(digits.z, digits.gallery.z).argmax(1)
    assert torch.equal(attack.target(digits), last)  # the farthest, where there are fewer
    assert set(outcome.attacked) == {"flip", "accuracy", "majority"}


def test_the_command_line_lists_them(holdfast: Callable[..., Any]) -> None:
    said = holdfast("list", "attacks", "--json")
    assert said.code == 0
    assert set(NAMES) < {row["name"] for row in json.loads(said.out)}
