"""Attacks that keep images on top, and attacks on the order of results: by hand-sized numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from holdfast.attacks import ATTACKS, OrderAttack, PreservingQueryAttack, QueryAttack, run
from holdfast.attacks.keep import ChosenAndKept, keeping_weight, kept_on_top, near_rows
from holdfast.attacks.query import ChosenCandidates, hinge_below
from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.evaluation import retrieval_task
from holdfast.functional.distance import Euclidean, SquaredEuclidean
from holdfast.rng import RowStreams, stream
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import Gallery, RetrievalTask

UP = QueryAttack(direction="up")
DOWN = QueryAttack(direction="down")


def on_a_line(gallery: list[float], queries: list[int], at: list[float] | None = None) -> RetrievalTask:
    """Gallery and queries on a line; queries are gallery rows, or (row -1) stand ``at`` given places."""
    z = torch.tensor(gallery, dtype=torch.float64)[:, None]
    rows = torch.tensor(queries)
    here = z[rows] if at is None else torch.tensor(at, dtype=torch.float64)[:, None]
    y = torch.zeros(len(z), dtype=torch.int64)
    return RetrievalTask(
        encoder=nn.Identity(), x=here, y=y[:1].expand(len(rows)), z=here,
        gallery=Gallery(z, y, torch.arange(len(z))), self_index=rows,
        index=torch.arange(len(rows)), distance=Euclidean(offset=0.0),
    )  # fmt: skip


def aimed(attack: Any, task: RetrievalTask, seed: int = 0) -> Any:
    return attack.target(task, RowStreams(seed, "target", index=task.index))


@pytest.fixture(scope="module")
def digits() -> RetrievalTask:
    test = Digits().load().test
    x, y = test.x[:150].double(), test.y[:150]
    encoder = SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=3).double()
    return retrieval_task(encoder, x, y)


# --- the weight


def test_the_weight_grows_to_a_ceiling_and_falls_back_where_doubles_overflow() -> None:
    exponents = torch.tensor([0.0, 1.0, 20.0, 21.0, 100.0, 709.7, 709.8, 1e6, 1e30], dtype=torch.float64)

    def published(exponent: float) -> float:
        try:
            return min(math.exp(exponent), 1e9)
        except OverflowError:
            return 1e7

    want = [published(float(e)) for e in exponents]
    assert want[-4:] == [1e9, 1e7, 1e7, 1e7]
    assert keeping_weight(exponents / 4, 4.0).tolist() == pytest.approx(want, rel=1e-12)
    assert keeping_weight(exponents, 0.0).tolist() == [1.0] * 9
    single = keeping_weight((exponents / 4e4).float(), 4e4)
    assert single.dtype == torch.float32
    assert bool(torch.isfinite(single).all())
    assert single[[0, 3, 7]].tolist() == [1.0, 1e9, 1e7]


@pytest.mark.parametrize("stiffness", [0.0, 2.0, 7e4])
def test_no_gradient_runs_through_the_weight(stiffness: float) -> None:
    task = on_a_line([0.0, 1.0, 2.0, 4.0], [-1], at=[0.25])
    z, rows = task.z.clone().requires_grad_(), torch.tensor([[2, 1]])
    d = task.distance.matrix(z, task.gallery.z)
    (grad,) = torch.autograd.grad(kept_on_top(d, rows, stiffness).sum(), z, retain_graph=True)
    loss = hinge_below(d, rows)
    (plain,) = torch.autograd.grad(loss.sum(), z)
    assert bool(plain.any())
    assert torch.allclose(grad, keeping_weight(loss, stiffness) * plain, rtol=1e-12)


@pytest.mark.parametrize("name", ["SPQA+", "SPQA-", "SPFOA5"])
def test_gains_and_gradients_stay_finite_however_far_the_query_goes(name: str) -> None:
    base = on_a_line([float(v) for v in range(120)], [3, 50])
    task = replace(base, gallery=Gallery(base.gallery.z.float(), base.gallery.y, base.gallery.ids))
    task = replace(task, z=base.z.float())
    target = aimed(ATTACKS[name], task)
    for far in (0.0, 1e-4, 1e2, 1e6):
        z = (task.z + far).requires_grad_()
        gain = ATTACKS[name].gain(z, target, task)
        (grad,) = torch.autograd.grad(gain.sum(), z)
        assert gain.dtype == torch.float32
        assert bool(torch.isfinite(gain).all())
        assert bool(torch.isfinite(grad).all())


# --- SPQA


def test_preserving_gains_by_hand() -> None:
    """From 0 the gallery is at 0, 1, 2, 4: row 2 stands 3/4 behind, row 1 a quarter, row 0 7/4 ahead."""
    task = on_a_line([0.0, 1.0, 2.0, 4.0], [-1], at=[0.0])
    kept = torch.tensor([[1]])
    up = PreservingQueryAttack(query=UP, stiffness=2.0)
    gain = up.gain(task.z, ChosenAndKept(torch.tensor([[2]]), kept), task)
    assert gain.tolist() == pytest.approx([-(0.75 + 0.25 * math.exp(0.5))])
    down = replace(up, query=DOWN)
    gain = down.gain(task.z, ChosenAndKept(torch.tensor([[0]]), kept), task)
    assert gain.tolist() == pytest.approx([-(1.75 + 0.25 * math.exp(0.5))])


def test_both_ranks_are_measured() -> None:
    task = on_a_line([0.0, 1.0, 2.0, 4.0], [-1], at=[3.5])  # order 3, 2, 1, 0
    target = ChosenAndKept(torch.tensor([[0]]), torch.tensor([[3, 2, 1]]))
    measures = PreservingQueryAttack(query=UP, kept=3).measure(task.z, target, task)
    assert measures["rank"].tolist() == [0.75]
    assert measures["kept_rank"].tolist() == pytest.approx([(0 + 1 + 2) / 12])


def test_raising_keeps_the_nearest_and_lowering_some_of_the_rest() -> None:
    gallery = [0.0, 0.0, 1.0, 2.5, 4.0, 7.0, *range(20, 34)]
    task = on_a_line(gallery, [1] * 200)  # row 0 is a duplicate of the query
    target = aimed(PreservingQueryAttack(query=UP, kept=3), task)
    assert target.kept.tolist() == [[0, 2, 3]] * 200
    assert set(target.rows.flatten().tolist()) == set(range(20))
    lowering = PreservingQueryAttack(query=replace(DOWN, m=2, top=0.3), kept=3)
    target = aimed(lowering, task)  # the nearest six: rows 0, 2, 3, 4, 5, 6
    both = torch.cat(list(target), 1)
    assert bool((both.sort(1).values.diff(dim=1) > 0).all())
    for rows in target:
        assert set(rows.flatten().tolist()) == {0, 2, 3, 4, 5, 6}
    few = aimed(replace(lowering, query=replace(DOWN, top=0.01)), task)  # at least m + kept rows
    assert few.rows.tolist() == [[0]] * 200
    assert {tuple(sorted(kept)) for kept in few.kept.tolist()} == {(2, 3, 4)}


@pytest.mark.parametrize("query", [replace(UP, m=2), replace(DOWN, m=2, top=0.1)], ids=["up", "down"])
def test_it_keeps_the_ground_truth_better_than_the_plain_attack(
    query: QueryAttack, digits: RetrievalTask
) -> None:
    task = digits.rows(slice(0, 60))
    attack = PreservingQueryAttack(query=query, stiffness=300.0)
    target = aimed(attack, task)
    search, threat = PGD(steps=12, alpha=0.02), LinfThreat(eps=0.15)
    after = {}
    for name, objective in (
        ("plain", lambda z: query.gain(z, ChosenCandidates(target.rows), task)),
        ("preserving", lambda z: attack.gain(z, target, task)),
    ):
        z = task.encoder(search(task.encoder, task.x, objective, threat)).detach()
        after[name] = {k: float(v.mean()) for k, v in attack.measure(z, target, task).items()}
    clean = {k: float(v.mean()) for k, v in attack.measure(task.z, target, task).items()}
    assert clean["kept_rank"] < after["plain"]["kept_rank"] / 2
    assert after["preserving"]["kept_rank"] < 0.6 * after["plain"]["kept_rank"]
    pushed = after["preserving"]["rank"] - clean["rank"]
    assert pushed < -0.01 if query.direction == "up" else pushed > 0.005


def test_a_list_too_short_is_refused() -> None:
    task = on_a_line([0.0, 1.0, 2.0, 3.0, 4.0], [0])
    with pytest.raises(InvalidArgument, match="at least 5 gallery rows besides the query, got 4"):
        aimed(PreservingQueryAttack(query=UP), task)
    with pytest.raises(InvalidArgument, match="at least 5 gallery rows besides the query, got 4"):
        aimed(PreservingQueryAttack(query=DOWN, kept=4), task)
    assert near_rows(task, 1.0, 4).tolist() == [[False, True, True, True, True]]
    for field, bad in (("stiffness", -1.0), ("stiffness", math.nan), ("stiffness", math.inf), ("kept", 0)):
        with pytest.raises(InvalidArgument, match=field):
            replace(PreservingQueryAttack(query=UP), **{field: bad})  # type: ignore[arg-type]


# --- FOA


@pytest.mark.parametrize(
    ("at", "tau"),
    [(0.0, 1.0), (9.0, -1.0), (2.25, 1 / 3), (5.0, -1 / 3)],
    ids=["same", "reversed", "1", "-1"],
)
def test_kendall_by_hand(at: float, tau: float) -> None:
    """Wanted: 1, 3, 8. From 2.25 they are at 1.25, 0.75, 5.75; from 5 at 4, 2, 3."""
    task = on_a_line([1.0, 3.0, 8.0], [-1], at=[at])
    measures = OrderAttack(m=3).measure(task.z, torch.tensor([[0, 1, 2]]), task)
    assert list(measures) == ["kendall"]
    assert measures["kendall"].tolist() == pytest.approx([tau])


def test_pairs_by_hand() -> None:
    task = on_a_line([1.0, 3.0], [-1] * 3, at=[0.0, 3.0, 2.0])
    measures = OrderAttack(m=2).measure(task.z, torch.tensor([[1, 0]] * 3), task)
    assert measures["kendall"].tolist() == [-1.0, 1.0, 1.0]  # a tie counts against the defense
    assert measures["accuracy"].tolist() == [0.0, 1.0, 1.0]


def test_order_gain_by_hand() -> None:
    task = on_a_line([1.0, 2.0, 3.0, 9.0], [-1], at=[0.0])
    wanted = torch.tensor([[2, 1, 0]])
    assert OrderAttack(m=3).gain(task.z, wanted, task).tolist() == [-((3 - 2) + (3 - 1) + (2 - 1))]
    assert OrderAttack(m=3).gain(task.z, wanted.flip(1), task).tolist() == [0.0]
    # Kept on top: 3 stands 1 + 2 behind, 2 stands 1 behind, 1 leads; over three rows and a gallery of four.
    kept = OrderAttack(m=3, keep=2.0).gain(task.z, wanted, task)
    assert kept.tolist() == pytest.approx([-4 - 4 / 12 * math.exp(2 * 4 / 12)])


def test_kendall_agrees_with_scipy() -> None:
    generator = stream(2)
    gallery = torch.rand(30, generator=generator).tolist()
    task = on_a_line(gallery, [-1] * 20, at=torch.rand(20, generator=generator).tolist())
    attack = OrderAttack(m=6, top=0.5)
    target = aimed(attack, task)
    d = task.distance.matrix(task.z, task.gallery.z).gather(1, target)
    want = [kendalltau(range(6), row).statistic for row in d.numpy()]
    assert attack.measure(task.z, target, task)["kendall"].tolist() == pytest.approx(want)


def test_candidates_come_from_the_top_without_the_query_in_every_order_alike() -> None:
    task = on_a_line([0.0, 0.0, 1.0, 2.5, *range(20, 36)], [1] * 600)
    target = aimed(OrderAttack(m=3), task)  # one percent of twenty is less than three rows
    orders, counts = target.unique(dim=0, return_counts=True)
    assert orders.tolist() == [[0, 2, 3], [0, 3, 2], [2, 0, 3], [2, 3, 0], [3, 0, 2], [3, 2, 0]]
    assert 60 < int(counts.min()) <= int(counts.max()) < 140
    wide = aimed(OrderAttack(m=3, top=0.25), task)  # the five nearest
    assert set(wide.flatten().tolist()) == {0, 2, 3, 4, 5}
    pairs = aimed(OrderAttack(m=2, top=0.25), task)
    assert bool((pairs[:, 0] > pairs[:, 1]).all())  # the reverse of the clean order
    assert len(pairs.unique(dim=0)) == 10
    measures = OrderAttack(m=2).measure(task.z, pairs, task)
    assert set(measures["accuracy"].tolist()) == {0.0}
    assert set(measures["kendall"].tolist()) == {-1.0}


@pytest.mark.parametrize("eps", [0.01, 1.0])
def test_a_pair_turns_at_the_rate_that_a_linear_encoder_allows(eps: float) -> None:
    """Squared distances make the lead linear: 2 z (second - first) and a constant."""
    net = nn.Linear(4, 2, bias=False).double()
    nn.init.normal_(net.weight, generator=stream(7))
    x = torch.randn(5, 4, generator=stream(8), dtype=torch.float64)
    gallery = torch.randn(9, 2, generator=stream(9), dtype=torch.float64)
    z, y = net(x).detach(), torch.zeros(9, dtype=torch.int64)
    task = RetrievalTask(
        encoder=net, x=x, y=y[:5], z=z, gallery=Gallery(gallery, y, torch.arange(9)),
        self_index=torch.full((5,), -1), index=torch.arange(5), distance=SquaredEuclidean(),
    )  # fmt: skip
    attack = OrderAttack(m=2)
    outcome = run(task, attack, PGD(steps=5, alpha=eps), LinfThreat(eps=eps, bounds=None))
    first, second = gallery[attack.target(task, stream(0)).T]  # two rows: nothing to draw
    slope = (2 * (second - first) @ net.weight.detach()).abs().sum(1)
    clean = task.distance.rowwise(z, first) - task.distance.rowwise(z, second)
    assert bool((clean > 0).all())
    want = -torch.relu(clean - eps * slope)
    got = attack.gain(outcome.z, torch.stack([_row(gallery, first), _row(gallery, second)], 1), task)
    assert torch.allclose(got, want, rtol=0, atol=1e-9)
    assert torch.equal(outcome.attacked["accuracy"] > 0, want == 0)


def _row(gallery: Tensor, points: Tensor) -> Tensor:
    return (gallery[None] == points[:, None]).all(2).int().argmax(1)


def test_the_second_term_keeps_candidates_on_top(digits: RetrievalTask) -> None:
    task = digits.rows(slice(0, 60))
    search, threat = PGD(steps=12, alpha=0.02), LinfThreat(eps=0.15)
    plain, kept = OrderAttack(m=5, top=0.04), OrderAttack(m=5, top=0.04, keep=1e4)
    rank = {}
    for name, attack in (("plain", plain), ("kept", kept)):
        outcome = run(task, attack, search, threat, label="order")
        target = attack.target(task, RowStreams(0, "order", "target", index=task.index))
        rank[name] = float(kept.measure(outcome.z, target, task)["kept_rank"].mean())
        assert float(outcome.attacked["kendall"].mean()) > float(outcome.clean["kendall"].mean()) + 0.15
        assert ("kept_rank" in outcome.attacked) == (name == "kept")
    assert rank["kept"] < 0.8 * rank["plain"]


def test_order_fields_are_checked() -> None:
    for field, bad in (("m", 1), ("top", 0.0), ("top", 1.5), ("keep", -1.0), ("keep", math.inf)):
        with pytest.raises(InvalidArgument, match=field):
            replace(OrderAttack(), **{field: bad})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="at least 5 gallery rows besides the query, got 4"):
        aimed(OrderAttack(), on_a_line([0.0, 1.0, 2.0, 3.0, 4.0], [0]))
