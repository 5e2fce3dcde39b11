"""The attack that sees the ranked list alone: hand numbers, ties, and a search that asks for values."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks import ListMismatch, hits, run
from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Euclidean, SquaredEuclidean
from holdfast.rng import stream
from holdfast.search import PGD, Square
from holdfast.threat import LinfThreat
from holdfast.types import Gallery, PairwiseDistance, RetrievalTask


def task_of(
    gallery: Tensor,
    y: list[int],
    queries: list[int],
    *,
    at: Tensor | None = None,
    labels: list[int] | None = None,
    distance: PairwiseDistance = SquaredEuclidean(),  # noqa: B008 - a frozen value
) -> RetrievalTask:
    rows, classes = torch.tensor(queries), torch.tensor(y)
    z = gallery[rows] if at is None else at
    return RetrievalTask(
        encoder=nn.Identity(), x=z, y=classes[rows] if labels is None else torch.tensor(labels), z=z,
        gallery=Gallery(gallery, classes, torch.arange(len(gallery))), self_index=rows,
        index=torch.arange(len(rows)), distance=distance,
    )  # fmt: skip


def line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.fixture
def hand() -> RetrievalTask:
    """From 0 the list of three is own, other, own."""
    return task_of(line(1, 2, 3, 4, 5), [0, 1, 0, 1, 0], [-1], at=line(0), labels=[0])


@pytest.mark.parametrize(
    ("z", "own", "left"),
    [
        (0.0, 3 + 1, 9 + 4 + 1),  # 1, 2, 3 again: own rows at places 1 and 3
        (1.75, 2 + 1, 3 * 2 + 2 * 3 + 1),  # 2, 1, 3
        (5.0, 3 + 1, 1),  # 5, 4, 3: as many own rows in the same places, other images
        (4.25, 2 + 1, 1),  # 4, 5, 3
    ],
)
def test_gain_by_hand(z: float, own: int, left: int, hand: RetrievalTask) -> None:
    """Places weigh 3, 2 and 1."""
    attack = ListMismatch(k=3)
    target = attack.target(hand)
    assert target.tolist() == [[0, 1, 2]]
    score = 1 - (own + left / 14 / 2) / 6.5
    first_is_own = z in (0.0, 5.0)
    assert attack.gain(line(z), target, hand).tolist() == pytest.approx([score - first_is_own], abs=1e-12)
    assert attack.measure(line(z), target, hand)["recall@1"].tolist() == [float(first_is_own)]


def test_nothing_but_the_list_is_read(hand: RetrievalTask) -> None:
    attack = ListMismatch(k=3)
    target = attack.target(hand)
    near = line(-9.0, 0.0, 0.5, 1.4)  # the same list from all of them
    many = task_of(hand.gallery.z, hand.gallery.y.tolist(), [-1] * 4, at=near, labels=[0] * 4)
    for distance in (SquaredEuclidean(), Euclidean()):
        gain = attack.gain(near, target.expand(4, 3), replace(many, distance=distance))
        assert len(set(gain.tolist())) == 1
    z = near.clone().requires_grad_()
    assert not attack.gain(z, target.expand(4, 3), many).requires_grad
    assert (
        attack.gain(z.float(), target.expand(4, 3), replace(many, gallery=_single(many))).dtype
        == torch.float32
    )


def _single(task: RetrievalTask) -> Gallery:
    return task.gallery._replace(z=task.gallery.z.float())


@pytest.fixture(scope="module")
def crowd() -> RetrievalTask:
    """Forty points on a grid of six by six: duplicates and ties in plenty; one label has one row."""
    generator = stream(0, "crowd")
    z = torch.randint(0, 6, (40, 2), generator=generator).double()
    y = torch.where(torch.rand(40, generator=generator) < 0.2, 2, (z[:, 0] > 2).long())
    y[7] = 9
    return task_of(z, y.tolist(), list(range(40)))


def own_places(task: RetrievalTask, z: Tensor, k: int) -> list[list[bool]]:
    """Which places of every list are held by the own class; other classes win ties. In plain Python."""
    lists = []
    for query, row in enumerate(task.distance.matrix(z, task.gallery.z).tolist()):
        seen = [
            (d, bool(task.gallery.y[j] == task.y[query]))
            for j, d in enumerate(row)
            if j != int(task.self_index[query])
        ]
        lists.append([own for _, own in sorted(seen)][:k])
    return lists


@pytest.mark.parametrize("k", [1, 3, 10, 39, 60])
def test_success_is_the_region_of_largest_gains(crowd: RetrievalTask, k: int) -> None:
    attack = ListMismatch(k=k)
    target = attack.target(crowd)
    assert not bool((target == crowd.self_index[:, None]).any())
    for z in (crowd.z, crowd.z.roll(1, 0), crowd.z + 0.5):
        gain, right = attack.gain(z, target, crowd), hits(z, crowd) > 0
        assert torch.equal(gain < 0, right)
        assert 0 < int(right.sum()) < 40
        assert -1 <= float(gain.min()) < 0 <= float(gain.max()) <= 1


@pytest.mark.parametrize("k", [3, 10])
def test_places_of_the_own_class_come_before_changes_of_the_list(crowd: RetrievalTask, k: int) -> None:
    attack = ListMismatch(k=k)
    target = attack.target(crowd).roll(1, 0)  # lists of others: some overlap, little or none
    z = crowd.z + torch.rand(40, 2, generator=stream(3), dtype=torch.float64)
    gain = attack.gain(z, target, crowd)
    places = own_places(crowd, z, k)
    held = [sum(k - i for i, own in enumerate(row) if own) for row in places]
    order = sorted(range(40), key=lambda i: (not places[i][0], -held[i]))
    for worse, better in pairwise(order):
        if (places[worse][0], held[worse]) != (places[better][0], held[better]):
            assert float(gain[worse]) < float(gain[better])
    assert len({(places[i][0], held[i]) for i in order}) > 3


def test_among_equal_places_the_clean_list_is_worth_least() -> None:
    """Six own rows and no other near: every order of them holds the same places."""
    gallery = torch.cat(
        [torch.randn(6, 4, generator=stream(1), dtype=torch.float64), torch.full((1, 4), 50.0)]
    )
    here = torch.randn(200, 4, generator=stream(2), dtype=torch.float64)
    task = task_of(gallery, [0] * 6 + [1], [-1] * 200, at=here, labels=[0] * 200)
    attack = ListMismatch(k=4)
    lists = attack.target(task)
    target = lists[:1].expand(200, 4)
    gain = attack.gain(here, target, task)
    same = (lists == lists[0]).all(1)
    assert 0 < int(same.sum()) < 200
    assert len(set(gain[same].tolist())) == 1
    assert float(gain[same][0]) < float(gain[~same].min())
    gone = [len(set(row) & set(lists[0].tolist())) for row in lists.tolist()]
    least = gain[torch.tensor(gone) == min(gone)].mean()
    assert float(least) > float(gain[(torch.tensor(gone) == 4) & ~same].mean())


def test_the_query_is_left_out_by_index_and_ties_go_to_the_others() -> None:
    gallery = line(0, 0, 1, -1, 5)
    task = task_of(gallery, [1, 0, 0, 1, 0], [1])  # row 0 is an exact duplicate, of another class
    attack = ListMismatch(k=4)
    assert attack.target(task).tolist() == [[0, 3, 2, 4]]
    assert float(attack.gain(task.z, attack.target(task), task)) >= 0


def test_short_and_one_sided_galleries() -> None:
    attack = ListMismatch()
    task = task_of(line(0, 1, 2), [0, 0, 1], [0, 2, -1], at=line(0, 2, 0), labels=[0, 1, 7])
    target = attack.target(task)
    assert target.tolist() == [[1, 2, -1], [1, 0, -1], [0, 1, 2]]
    gain = attack.gain(task.z, target, task)
    assert (gain < 0).tolist() == [True, False, False]  # rows 1 and 2 have no row of their class to find
    assert bool((gain.abs() <= 1).all())
    same = task_of(line(0, 1, 2), [0, 0, 0], [0])
    assert float(attack.gain(same.z, attack.target(same), same)) < 0
    assert attack.target(task_of(line(3), [0], [0])).tolist() == [[-1]]


def test_a_search_by_gradient_refuses_it_and_one_by_values_breaks_queries() -> None:
    """Two clusters of a class each; the query can cross the middle in the last of three coordinates."""
    gallery = torch.tensor([[0.0, 0, 0.2], [0.1, 0, 0.2], [0, 0.0, 0.8], [0.1, 0, 0.8]], dtype=torch.float64)
    here = torch.tensor([[0.0, 0.05, 0.40], [0.05, 0.0, 0.10]], dtype=torch.float64)
    task = task_of(gallery, [0, 0, 1, 1], [-1, -1], at=here, labels=[0, 0])
    attack, threat = ListMismatch(k=2), LinfThreat(eps=0.2)
    with pytest.raises(InvalidArgument, match="no gradient"):
        run(task, attack, PGD(steps=2, alpha=0.1), threat)
    assert ListMismatch.differentiable is False
    outcome = run(task, attack, Square(queries=60), threat)
    assert outcome.clean["recall@1"].tolist() == [1.0, 1.0]
    assert outcome.attacked["recall@1"].tolist() == [0.0, 1.0]  # 0.6 is within reach of 0.4, not of 0.1
    stopped = run(task, attack, Square(queries=60, stop_at=0.0), threat)
    assert stopped.attacked["recall@1"].tolist() == [0.0, 1.0]


def test_nan_in_an_embedding_stays_visible(hand: RetrievalTask) -> None:
    attack = ListMismatch(k=3)
    assert attack.gain(line(float("nan")), attack.target(hand), hand).isnan().all()


def test_the_length_is_checked() -> None:
    for bad in (0, -3):
        with pytest.raises(InvalidArgument, match="k: need an integer >= 1"):
            ListMismatch(k=bad)
