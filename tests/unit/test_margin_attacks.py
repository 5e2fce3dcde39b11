"""Attacks on the exact decision of retrieval: hand numbers, ties, and the best move of a linear encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks import (
    CentroidGain,
    FirstPlaceMargin,
    RankMargin,
    TargetedNeighbour,
    TripletGain,
    hits,
    run,
)
from holdfast.attacks.shift import first_is_right
from holdfast.errors import InvalidArgument
from holdfast.evaluation import retrieval_task
from holdfast.functional.distance import Euclidean, SquaredEuclidean
from holdfast.functional.ranking import retrieval_scores
from holdfast.rng import stream
from holdfast.search import PGD
from holdfast.threat import L2Threat, LinfThreat
from holdfast.types import Encoder, Gallery, PairwiseDistance, RetrievalTask

LABELLED: dict[str, Any] = {
    "RANK": RankMargin(),
    "TARGET1": TargetedNeighbour(),
    "TRIPLET": TripletGain(),
    "CENTROID": CentroidGain(),
}
EVERY_LABELLED = pytest.mark.parametrize("name", list(LABELLED))


def points(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def task_of(
    z: Tensor,
    y: list[int],
    queries: list[int],
    *,
    at: Tensor | None = None,
    labels: list[int] | None = None,
    encoder: Encoder | None = None,
    distance: PairwiseDistance = Euclidean(offset=0.0),  # noqa: B008 - a frozen value
) -> RetrievalTask:
    """Queries that are rows of the gallery, or (row -1) stand ``at`` places outside it with ``labels``."""
    rows = torch.tensor(queries)
    here = z[rows] if at is None else at
    classes = torch.tensor(y)
    own = classes[rows] if labels is None else torch.tensor(labels)
    return RetrievalTask(
        encoder=encoder or nn.Identity(), x=here, y=own, z=here,
        gallery=Gallery(z, classes, torch.arange(len(z))), self_index=rows,
        index=torch.arange(len(rows)), distance=distance,
    )  # fmt: skip


HAND = points((0, 0), (3, 0), (0, 4), (6, 8), (0, -5))
LABELS = [0, 0, 1, 1, 2]
"""From the query, row 0, its class is at 3 and the others are at 4, 10 and 5."""


def gain_of(attack: Any, task: RetrievalTask, z: Tensor | None = None) -> list[float]:
    gain: Tensor = attack.gain(task.z if z is None else z, attack.target(task), task)
    return gain.tolist()


def test_rank_margin_by_hand() -> None:
    task = task_of(HAND, LABELS, [0])
    assert [gain_of(RankMargin(k=k), task) for k in (1, 2, 3)] == [[-1.0], [-2.0], [-7.0]]
    assert gain_of(RankMargin(k=4), task) == [-1.0]  # only three rows of other classes: it cannot be broken
    z = points((0, 2))  # own at sqrt(13), others at 2, sqrt(72) and 7
    assert gain_of(RankMargin(), task, z) == pytest.approx([13**0.5 - 2])
    assert gain_of(RankMargin(k=2), task, z) == pytest.approx([13**0.5 - 7])
    assert {k: v.tolist() for k, v in RankMargin().measure(z, None, task).items()} == {"recall@1": [0.0]}
    assert {k: v.tolist() for k, v in RankMargin(k=2).measure(z, None, task).items()} == {
        "recall@1": [0.0],
        "recall@2": [1.0],
    }


def test_the_gradient_leads_away_from_the_own_row_towards_the_kth_rival() -> None:
    task = task_of(HAND, LABELS, [0])
    z = points((0, 2)).requires_grad_()
    (grad,) = torch.autograd.grad(RankMargin(k=2).gain(z, None, task).sum(), z)
    assert torch.allclose(grad, points((-3, 2)) / 13**0.5 - points((0, 1)))


def test_targeted_neighbour_by_hand() -> None:
    task = task_of(HAND, LABELS, [0])
    assert [TargetedNeighbour(j=j).target(task).tolist() for j in (1, 2, 3, 9)] == [[2], [4], [3], [3]]
    assert [gain_of(TargetedNeighbour(j=j), task)[0] for j in (1, 2, 3)] == [-1.0, -2.0, -7.0]
    assert gain_of(TargetedNeighbour(j=2), task, points((0, -3))) == pytest.approx([18**0.5 - 2])


def test_triplet_by_hand_keeps_the_clean_rows() -> None:
    gallery = torch.cat([HAND, points((-1, 9))])
    task = task_of(gallery, [*LABELS, 0], [0])
    target = TripletGain().target(task)
    assert (target.positive.tolist(), target.negative.tolist()) == ([1], [2])
    z = points((-1, 8))  # its own row 5 is at 1 now; the triplet still asks about row 1
    assert gain_of(TripletGain(), task, z) == pytest.approx([80**0.5 - 17**0.5])
    assert TripletGain().measure(z, target, task)["recall@1"].tolist() == [1.0]


def test_centroids_by_hand_are_plain_means_without_the_query() -> None:
    task = task_of(HAND, LABELS, [0, 2])
    target = CentroidGain().target(task)
    assert target.own.tolist() == [[3.0, 0.0], [6.0, 8.0]]
    assert target.other.tolist() == [[0.0, -5.0], [1.5, 0.0]]  # (3, 6) is farther from row 0 than (0, -5)
    assert target.counts.tolist() == [[1, 1], [1, 2]]
    assert gain_of(CentroidGain(), task) == pytest.approx([3 - 5, 52**0.5 - (1.5**2 + 16) ** 0.5])
    unit = points((1, 0), (0, 1), (0, 1), (-1, 0), (0, -1))
    assert CentroidGain().target(task_of(unit, [0, 0, 0, 1, 1], [1])).own.tolist() == [[0.5, 0.5]]


def test_first_place_by_hand_needs_no_labels() -> None:
    task = task_of(HAND, [0, 1, 2, 3, 4], [0])  # no class twice
    attack = FirstPlaceMargin()
    target = attack.target(task)
    assert target.tolist() == [1]
    assert gain_of(attack, task) == [-1.0]
    assert attack.measure(task.z, target, task)["retain@1"].tolist() == [1.0]
    z = points((0, 2), (2.0, 0), (0, 0.875))
    three = task_of(HAND, LABELS, [0, 0, 0])
    assert gain_of(attack, three, z)[0] == pytest.approx(13**0.5 - 2)
    assert attack.measure(z, attack.target(three), three)["retain@1"].tolist() == [
        0.0,
        1.0,
        0.0,
    ]  # a tie: 3.125


def test_a_gallery_of_two_leaves_the_first_place_alone() -> None:
    task = task_of(HAND[:2], [0, 0], [0])
    attack = FirstPlaceMargin()
    assert gain_of(attack, task) == [-1.0]
    assert attack.measure(task.z, attack.target(task), task)["retain@1"].tolist() == [1.0]


def test_the_query_is_left_out_by_index_and_not_by_distance() -> None:
    """Row 0 is an exact duplicate of the query, row 1, under another label."""
    gallery = points((0, 0), (0, 0), (3, 0), (0, 4))
    task = task_of(gallery, [1, 0, 0, 1], [1])
    assert gain_of(RankMargin(), task) == [3.0]
    assert TargetedNeighbour().target(task).tolist() == [0]
    assert TripletGain().target(task)._asdict() == {
        "positive": torch.tensor([2]),
        "negative": torch.tensor([0]),
    }
    assert CentroidGain().target(task).own.tolist() == [[3.0, 0.0]]
    assert FirstPlaceMargin().target(task).tolist() == [0]
    assert hits(task.z, task).tolist() == [0.0]
    same = task_of(gallery, [0, 0, 0, 1], [1])  # the duplicate of its own class is a right answer
    assert gain_of(RankMargin(), same) == [-4.0]
    assert hits(same.z, same).tolist() == [1.0]


def test_ties_count_against_the_defense() -> None:
    task = task_of(points((-1, 0), (1, 0), (0, 5)), [0, 1, 1], [-1], at=points((0, 0)), labels=[0])
    assert gain_of(RankMargin(), task) == [0.0]
    assert hits(task.z, task).tolist() == [0.0]
    assert hits(task.z, task, 2).tolist() == [1.0]
    assert FirstPlaceMargin().measure(task.z, torch.tensor([0]), task)["retain@1"].tolist() == [0.0]


@EVERY_LABELLED
def test_a_query_alone_in_its_class_is_wrong_already(name: str) -> None:
    task = task_of(HAND, LABELS, [4, 0])
    attack = LABELLED[name]
    z = task.z.clone().requires_grad_()
    gain = attack.gain(z, attack.target(task), task)
    broken, held = gain.tolist()
    assert broken == 0
    assert held < 0
    (grad,) = torch.autograd.grad(gain.sum(), z)
    assert grad[0].tolist() == [0.0, 0.0]
    assert bool(torch.isfinite(grad).all())
    assert bool(grad[1].any())
    assert attack.measure(task.z, attack.target(task), task)["recall@1"].tolist() == [0.0, 1.0]


@EVERY_LABELLED
def test_a_gallery_of_one_class_cannot_be_broken(name: str) -> None:
    task = task_of(HAND, [0, 0, 0, 0, 0], [0, 3])
    attack = LABELLED[name]
    z = task.z.clone().requires_grad_()
    gain = attack.gain(z, attack.target(task), task)
    assert gain.tolist() == [-1.0, -1.0]
    (grad,) = torch.autograd.grad(gain.sum(), z)
    assert not bool(grad.any())
    assert attack.measure(task.z, attack.target(task), task)["recall@1"].tolist() == [1.0, 1.0]
    lone = task_of(HAND[:1], [0], [0])  # neither: nothing is listed
    assert gain_of(attack, lone) == [0.0]


@pytest.fixture(scope="module")
def crowd() -> RetrievalTask:
    """Forty points on a grid of six by six: duplicates and ties in plenty; one label has one row."""
    generator = stream(0, "crowd")
    z = torch.randint(0, 6, (40, 2), generator=generator).double()
    y = torch.where(torch.rand(40, generator=generator) < 0.2, 2, (z[:, 0] > 2).long())
    y[7] = 9
    return task_of(z, y.tolist(), list(range(40)), distance=SquaredEuclidean())


def right(task: RetrievalTask, z: Tensor, query: int, k: int) -> bool:
    """Whether an own row is among the first k when other classes win every tie, in plain Python."""
    listed = [j for j in range(len(task.gallery.z)) if j != int(task.self_index[query])]
    own = [task.gallery.y[j] == task.y[query] for j in listed]
    d = [float((z[query] - task.gallery.z[j]).square().sum()) for j in listed]
    order = sorted(range(len(listed)), key=lambda i: (d[i], bool(own[i])))
    return any(own[i] for i in order[:k])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_a_gain_at_or_above_zero_is_the_decision_itself(crowd: RetrievalTask, k: int) -> None:
    attack = RankMargin(k=k)
    for z in (crowd.z, crowd.z.roll(1, 0), crowd.z + 0.5):
        recall = attack.measure(z, None, crowd)[f"recall@{k}"]
        assert recall.tolist() == [float(right(crowd, z, i, k)) for i in range(len(crowd))]
        assert torch.equal(attack.gain(z, None, crowd) < 0, recall > 0)
        assert torch.equal(first_is_right(z, crowd), hits(z, crowd, 1))
        first = FirstPlaceMargin().target(crowd)
        retained = FirstPlaceMargin().measure(z, first, crowd)["retain@1"] > 0
        assert torch.equal(FirstPlaceMargin().gain(z, first, crowd) < 0, retained)
    assert 0 < float(hits(crowd.z, crowd, k).mean()) < 1


def test_hits_agree_with_the_ranked_list_where_there_are_no_ties(crowd: RetrievalTask) -> None:
    z = crowd.z + 0.1 * torch.rand(40, 2, generator=stream(1), dtype=torch.float64)
    task = task_of(z, crowd.y.tolist(), list(range(40)))
    scores = retrieval_scores(z, task.y, z, task.y, task.distance, task.self_index)
    for k in (1, 2, 4):
        assert torch.equal(hits(z, task, k), scores.recall(k).double())
        assert 0 < float(hits(z, task, k).mean()) < 1


@pytest.mark.parametrize("j", [1, 2, 4])
def test_a_targeted_gain_never_exceeds_the_margin(crowd: RetrievalTask, j: int) -> None:
    attack = TargetedNeighbour(j=j)
    z = crowd.z + 0.7 * torch.randn(40, 2, generator=stream(j), dtype=torch.float64)
    gain = attack.gain(z, attack.target(crowd), crowd)
    assert bool((gain <= RankMargin().gain(z, None, crowd)).all())
    assert bool(((gain < 0) | (hits(z, crowd) == 0)).all())
    assert bool((gain >= 0).any())


@pytest.mark.parametrize("threat", [LinfThreat(eps=0.1, bounds=None), L2Threat(eps=0.1, bounds=None)])
@pytest.mark.parametrize("name", [*LABELLED, "FIRST"])
def test_the_best_move_on_a_linear_encoder_is_found(name: str, threat: LinfThreat | L2Threat) -> None:
    """With one own and one other row every squared margin is linear: 2 z (n - p) and a constant."""
    attack = FirstPlaceMargin() if name == "FIRST" else LABELLED[name]
    net = nn.Linear(5, 3, bias=False).double()
    nn.init.normal_(net.weight, generator=stream(4))
    x = torch.randn(6, 5, generator=stream(5), dtype=torch.float64)
    ends = torch.randn(2, 3, generator=stream(6), dtype=torch.float64)
    z = net(x).detach()
    nearest = torch.cdist(z, ends).argmin(1)
    labels = nearest.tolist()  # clean, all are right: own row = first result
    task = task_of(ends, [0, 1], [-1] * 6, at=z, labels=labels, encoder=net, distance=SquaredEuclidean())
    task = RetrievalTask(**{**vars(task), "x": x})
    outcome = run(task, attack, PGD(steps=8, alpha=0.1), threat)
    target = attack.target(task)
    slope = 2 * (ends[1 - nearest] - ends[nearest]) @ net.weight.detach()  # (n, 5)
    best = slope.abs().sum(1) if isinstance(threat, LinfThreat) else slope.norm(dim=1)
    clean = attack.gain(z, target, task)
    assert bool((clean < 0).all())
    assert torch.allclose(attack.gain(outcome.z, target, task), clean + 0.1 * best, rtol=0, atol=1e-9)
    metric = "retain@1" if name == "FIRST" else "recall@1"
    assert torch.equal(outcome.attacked[metric] > 0, clean + 0.1 * best < 0)


@pytest.mark.parametrize("name", [*LABELLED, "FIRST"])
def test_nan_in_an_embedding_stays_visible(name: str) -> None:
    attack = FirstPlaceMargin() if name == "FIRST" else LABELLED[name]
    for queries in ([0], [4]):
        task = task_of(HAND, LABELS, queries)
        z = torch.full_like(task.z, torch.nan)
        assert bool(attack.gain(z, attack.target(task), task).isnan().all())


def test_places_are_checked() -> None:
    task = task_of(HAND, LABELS, [0])
    for bad in (0, -1):
        with pytest.raises(InvalidArgument, match="k: need an integer >= 1"):
            RankMargin(k=bad)
        with pytest.raises(InvalidArgument, match="j: need an integer >= 1"):
            TargetedNeighbour(j=bad)
        with pytest.raises(InvalidArgument, match="k: need an integer >= 1"):
            hits(task.z, task, bad)


def test_hits_look_at_bounded_numbers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = retrieval_task(nn.Identity(), z, torch.arange(30) % 3)
    whole = hits(z, task)
    largest: list[int] = []
    matrix = type(task.distance).matrix

    def noted(self: Any, a: Tensor, b: Tensor) -> Tensor:
        largest.append(len(a) * len(b))
        return matrix(self, a, b)

    monkeypatch.setattr(type(task.distance), "matrix", noted)
    monkeypatch.setattr("holdfast.attacks.places.NUMBERS", 120)
    assert torch.equal(hits(z, task), whole)
    assert max(largest) <= 120
    assert 0 < float(whole.mean()) < 1
