"""Attacks within an amount of memory: the same results, slice by slice, and refusals that say what works."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast import evaluate
from holdfast.attacks import ATTACKS, CLUSTER_ATTACKS, CandidateAttack, RankMargin, run
from holdfast.attacks.slices import Cost, Sliced, cost, queries_in, within
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.evaluation import Entry, Share, Suite, retrieval_task, run_suite
from holdfast.evaluation.card import Plan, measure
from holdfast.evaluation.suite import WithSearch
from holdfast.evaluation.worst_case import Stage, WorstCase
from holdfast.functional.distance import Euclidean
from holdfast.functional.memory import bytes_of
from holdfast.rng import RowStreams, stream
from holdfast.search import APGD, NES, PGD, Autograd
from holdfast.threat import LinfThreat
from holdfast.types import ClusterTask, Gallery, RetrievalTask

SEARCH, THREAT = PGD(steps=4, alpha=0.03, keep="best"), LinfThreat(eps=0.1)
DIFFERENTIABLE = [name for name, attack in ATTACKS.items() if getattr(attack, "differentiable", True)]


@dataclass
class Seen:
    """A Euclidean distance that keeps the largest number of entries of a matrix with the whole gallery."""

    gallery: int
    entries: int = 0

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        if len(b) == self.gallery:
            self.entries = max(self.entries, len(a) * len(b))
        return Euclidean().matrix(a, b)

    def rowwise(self, a: Tensor, b: Tensor) -> Tensor:
        return Euclidean().rowwise(a, b)


class Counting(nn.Module):
    """An encoder that keeps the number of images of each call."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        z: Tensor = self.inner(x)
        return z


def on_line(z: list[float], y: list[int], gallery: list[float], gallery_y: list[int]) -> RetrievalTask:
    """A task whose embeddings are numbers and whose images are the same numbers."""
    rows = torch.tensor(z)[:, None]
    return RetrievalTask(
        encoder=nn.Identity(), x=rows, y=torch.tensor(y), z=rows,
        gallery=Gallery(torch.tensor(gallery)[:, None], torch.tensor(gallery_y), torch.arange(len(gallery))),
        self_index=torch.full((len(z),), -1), index=torch.arange(len(z)), distance=Euclidean(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def task() -> RetrievalTask:
    """Twenty-two queries that stand in a gallery of fifty, in double precision."""
    y = torch.arange(50) % 7
    x = torch.rand(50, 1, 8, 8, generator=stream(0, "images"), dtype=torch.float64)
    x = (x + torch.rand(7, 1, 8, 8, generator=stream(0, "classes"), dtype=torch.float64)[y]) / 2
    encoder = SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=3).double()
    return retrieval_task(encoder, x, y).rows(slice(0, 22))


def tight(need: Cost, queries: int, rows: int) -> int:
    """Return the memory of targets for ``queries`` and of all else for ``rows``."""
    return need.kept * queries + need.working * rows


def refusal(attack: Any, task: RetrievalTask) -> str:
    with pytest.raises(InvalidArgument, match="memory: need at least") as error:
        run(task, attack, SEARCH, THREAT, memory=1, label="ATTACK")
    return str(error.value)


def test_hand_numbers_value_and_gradient() -> None:
    """Own rows at 0 and 10, another at 4; the nearest own row pulls with -1, the other pushes with 1."""
    made = on_line([1.0, 3.0, 9.0], [0, 0, 0], [0.0, 10.0, 4.0], [0, 0, 1])
    z = made.z.clone().requires_grad_(True)
    value = Sliced(attack=RankMargin(), rows=2).gain(z, None, made)
    assert value.tolist() == pytest.approx([1 - 3, 3 - 1, 1 - 5], abs=1e-5)
    (grad,) = torch.autograd.grad((value * torch.tensor([1.0, 2.0, 4.0])).sum(), z)
    assert grad[:, 0].tolist() == pytest.approx([1 + 1, 2 * (1 + 1), 4 * (-1 - 1)], abs=1e-4)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_every_attack_gives_the_same_within_little_memory(name: str, task: RetrievalTask) -> None:
    attack: Any = ATTACKS[name]
    memory = tight(cost(attack, task), 22, 4)
    cut, batch = within(attack, task, memory, 22, name)
    assert isinstance(cut, Sliced)
    assert (batch, cut.rows) == (22, 4)
    counted = Counting(task.encoder)  # type: ignore[arg-type]
    free = run(task, attack, SEARCH, THREAT, label=name, seed=1)
    bound = run(replace(task, encoder=counted), attack, SEARCH, THREAT, label=name, seed=1, memory=memory)
    assert max(counted.calls) == 22  # the encoder sees whole batches
    assert torch.allclose(free.x, bound.x, atol=1e-9)
    for before, after in ((free.clean, bound.clean), (free.attacked, bound.attacked)):
        for measure_name, values in before.items():
            assert torch.allclose(values, after[measure_name], atol=1e-9), measure_name


@pytest.mark.parametrize("name", ["RANK", "QA-", "GTT", "CA+"])
def test_no_matrix_is_larger_than_the_slice(name: str, task: RetrievalTask) -> None:
    attack, seen = ATTACKS[name], Seen(gallery=50)
    watched = replace(task, distance=seen)
    run(watched, attack, SEARCH, THREAT)
    assert seen.entries == 22 * 50
    seen.entries = 0
    run(watched, attack, SEARCH, THREAT, memory=tight(cost(attack, task), 22, 3))
    assert 0 < seen.entries <= 3 * 50


def test_nothing_is_cut_where_everything_fits(task: RetrievalTask) -> None:
    attack = ATTACKS["QA+"]
    assert within(attack, task, None, 128, "QA+") == (attack, 22)
    assert within(attack, task, sum(cost(attack, task)[:2]) * 22, 128, "QA+") == (attack, 22)


def test_targets_that_do_not_fit_make_batches_smaller(task: RetrievalTask) -> None:
    attack = CandidateAttack(direction="up", w=40)
    z, y, ids = task.gallery
    task = replace(task, gallery=Gallery(z[22:], y[22:], ids[22:]), self_index=torch.full((22,), -1))
    need = cost(attack, task)
    assert need.kept == 40 * (8 + 8 * 8 + 28 * 8)  # numbers of rows, embeddings, distances
    memory = 2 * (need.kept + need.working)
    cut, batch = within(attack, task, memory, 22, "CA+")
    assert isinstance(cut, Sliced)
    assert batch * need.kept <= memory / 2
    assert tight(need, batch, cut.rows) <= memory
    assert 1 < batch < 22
    free, bound = (run(task, attack, SEARCH, THREAT, memory=m) for m in (None, memory))
    assert torch.allclose(free.x, bound.x, atol=1e-9)
    assert torch.allclose(free.attacked["rank"], bound.attacked["rank"])


def test_too_little_memory_is_refused_with_the_smallest_that_works(task: RetrievalTask) -> None:
    for name in ("RANK", "CA+", "SPQA+"):
        told = refusal(ATTACKS[name], task)
        assert "ATTACK on one query against 50 rows" in told
        least = bytes_of(told.split("at least ")[1].split(" for")[0])
        run(task, ATTACKS[name], SEARCH, THREAT, memory=least)
        with pytest.raises(InvalidArgument, match="at least"):
            run(task, ATTACKS[name], SEARCH, THREAT, memory=sum(cost(ATTACKS[name], task)[:2]) - 1)


@dataclass(frozen=True)
class Together:
    """An attack whose queries see each other."""

    by_row = False

    def target(self, task: RetrievalTask, generator: Any = None) -> None:
        return

    def gain(self, z: Tensor, target: None, task: RetrievalTask) -> Tensor:
        return (z - z.mean(0)).norm(dim=1)

    def measure(self, z: Tensor, target: None, task: RetrievalTask) -> dict[str, Tensor]:
        return {"spread": self.gain(z, target, task)}


def test_attacks_that_cannot_be_taken_apart_are_left_whole(task: RetrievalTask) -> None:
    whole = sum(cost(Together(), task)[:2]) * 22
    assert within(Together(), task, whole, 22, "T") == (Together(), 22)
    with pytest.raises(InvalidArgument, match="T on 22 queries, which it cannot take apart"):
        within(Together(), task, whole - 1, 22, "T")
    with pytest.raises(InvalidArgument, match="row-wise"):
        Sliced(attack=Together(), rows=2)
    with pytest.raises(InvalidArgument, match="rows"):
        Sliced(attack=RankMargin(), rows=0)


@dataclass(frozen=True)
class OneValue(RankMargin):
    def gain(self, z: Tensor, target: None, task: RetrievalTask) -> Tensor:
        return super().gain(z, target, task).sum()[None]


def test_a_gain_that_is_not_one_for_each_query_is_seen(task: RetrievalTask) -> None:
    with pytest.raises(InvalidArgument, match="one gain for each of 5 queries"):
        Sliced(attack=OneValue(), rows=5).gain(task.z, None, task)


def test_ties_stay_exact(task: RetrievalTask) -> None:
    """A clean candidate ties with itself: in no list is it strictly closer than itself."""
    attack = CandidateAttack(direction="up", w=3)
    gallery = task.gallery.z.float()
    gallery[30] = gallery[3]
    single = replace(task, z=task.z.float(), gallery=Gallery(gallery, task.gallery.y, task.gallery.ids))
    free, bound = attack, Sliced(attack=attack, rows=5)
    for one in (free, bound):
        target = one.target(single, RowStreams(0, "t", index=single.index))
        rank = one.measure(single.z, target, single)["rank"] * 50 * 3
        exact = [
            (torch.cdist(single.gallery.z[rows].double(), single.gallery.z.double()) <
             torch.cdist(single.gallery.z[rows].double(), single.z[i : i + 1].double()) - 1e-6).sum()
            for i, rows in enumerate(target.rows)
        ]  # fmt: skip
        assert rank.round().long().tolist() == [int(e) for e in exact]


def test_searches_without_gradient_and_gains_without_gradient(task: RetrievalTask) -> None:
    by_queries = PGD(steps=2, alpha=0.03, gradient=NES(samples=2))
    memory = tight(cost(RankMargin(), task), 22, 4)
    free, bound = (run(task, RankMargin(), by_queries, THREAT, memory=m) for m in (None, memory))
    assert torch.allclose(free.x, bound.x, atol=1e-9)
    cut = Sliced(attack=ATTACKS["LIST"], rows=4)
    assert not cut.differentiable
    target = cut.target(task)
    with pytest.raises(InvalidArgument, match="differentiable"):
        Autograd()(task.encoder, task.x, lambda z: cut.gain(z, target, task))


def test_clusters_are_sliced_too() -> None:
    z = torch.rand(18, 3, generator=stream(0, "z"))
    centroids = torch.rand(4, 3, generator=stream(0, "c"))
    own = torch.cdist(z, centroids).argmin(1)
    made = ClusterTask(
        encoder=nn.Identity(), x=z, y=own, z=z, gallery=Gallery(centroids, torch.arange(4), torch.arange(4)),
        self_index=torch.full((18,), -1), index=torch.arange(18), distance=Euclidean(), cluster_of=own,
        truth=own,
    )  # fmt: skip
    for name in ("A1", "A2", "A3.2", "A4", "A6"):
        attack: Any = CLUSTER_ATTACKS[name]
        results = [
            run(made, attack, SEARCH, THREAT, memory=m) for m in (None, tight(cost(attack, made), 18, 4))
        ]
        assert torch.allclose(results[0].x, results[1].x, atol=1e-6), name
        assert torch.equal(results[0].attacked["flip"], results[1].attacked["flip"]), name


def suite_of(*attacks: tuple[str, Any, str]) -> Suite:
    return Suite(
        name="some",
        entries=tuple(Entry(label=n, attack=a, higher_is_robust={m: True}) for n, a, m in attacks),
    )


def test_a_suite_refuses_before_any_attack_begins(task: RetrievalTask) -> None:
    counted = Counting(task.encoder)  # type: ignore[arg-type]
    made = replace(task, encoder=counted)
    wide = CandidateAttack(direction="up", w=30)
    some = suite_of(("RANK", RankMargin(), "recall@1"), ("WIDE", wide, "rank"))
    memory = sum(cost(wide, task)[:2])
    with pytest.raises(InvalidArgument, match="WIDE on one query against 50 rows"):
        run_suite(made, some, SEARCH, THREAT, memory=memory - 1)
    assert not counted.calls
    assert len(run_suite(made, some, SEARCH, THREAT, memory=memory)) == 2


def test_composites_get_memory_or_fewer_queries(task: RetrievalTask) -> None:
    cases = WorstCase(stages=(Stage(label="R", attack=RankMargin(), search=APGD(steps=3)),))
    other = WithSearch(attack=RankMargin(), search=APGD(steps=3))
    some = suite_of(("CASES", cases, "recall@1"), ("OTHER", other, "recall@1"))
    seen = Seen(gallery=50)
    memory = 5 * sum(cost(cases, task)[:2])
    free = run_suite(task, some, SEARCH, THREAT)
    bound = run_suite(replace(task, distance=seen), some, SEARCH, THREAT, memory=memory)
    assert seen.entries <= max(5, memory // cost(RankMargin(), task).working) * 50 < 22 * 50
    for a, b in zip(free, bound, strict=True):
        assert torch.allclose(a.outcome.x, b.outcome.x, atol=1e-9)
        assert torch.equal(a.outcome.attacked["recall@1"], b.outcome.attacked["recall@1"])


def test_the_checks_look_at_what_fits(task: RetrievalTask, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Any] = []

    def keep(examination: Any, **_: Any) -> Any:
        looked_at.append(examination)
        raise RuntimeError("seen")

    monkeypatch.setattr("holdfast.evaluation.card.conduct", keep)
    some = suite_of(("RANK", RankMargin(), "recall@1"))
    for memory, queries in ((None, 22), (queries_bytes(task, 9), 9)):
        plan = Plan(suite=some, search=SEARCH, threat=THREAT, memory=memory)
        with pytest.raises(RuntimeError, match="seen"):
            measure(task, plan, {"run": "r"}, {})
        assert len(looked_at[-1].task) == queries
    part, outcome = looked_at[-1].task, looked_at[-1].results[0].outcome
    whole = run(task, RankMargin(), SEARCH, THREAT, label="RANK")
    assert torch.allclose(outcome.z, whole.z[part.index], atol=1e-9)


def queries_bytes(task: RetrievalTask, queries: int) -> int:
    """Return the least memory in which so many queries are compared with the gallery at once."""
    memory = next(m for m in range(1, 10**6, 64) if queries_in(m, task, 1024) == queries)
    assert queries_in(None, task, 1024) == 1024
    return memory


def test_the_checks_see_the_queries_that_a_budget_covered(
    task: RetrievalTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row i of an outcome belongs to the i-th covered query, also where the covered ones are few."""
    looked_at: list[Any] = []

    def keep(examination: Any, **_: Any) -> Any:
        looked_at.append(examination)
        raise RuntimeError("seen")

    monkeypatch.setattr("holdfast.evaluation.card.conduct", keep)
    some = suite_of(("RANK", RankMargin(), "recall@1"))
    plan = Plan(suite=some, search=SEARCH, threat=THREAT, chunk=8, share=Share(seconds=1e-9))
    with pytest.raises(RuntimeError, match="seen"):
        measure(task, plan, {"run": "r"}, {})
    (seen,) = looked_at
    assert 0 < len(seen.task) < 22
    right = torch.nonzero(seen.right).squeeze(1)
    assert torch.equal(seen.rows, right)  # all that can be looked at
    whole = run(task, RankMargin(), SEARCH, THREAT, label="RANK")
    broken = whole.attacked["recall@1"][seen.task.index[right]] == 0
    assert torch.equal(seen.stored["RANK"], broken)


def test_an_evaluation_within_memory(tmp_path: Path) -> None:
    x = torch.rand(40, 1, 8, 8, generator=stream(1, "images"))
    y = torch.arange(40) % 4
    encoder = SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=0)
    how: dict[str, Any] = {"suite": "core", "eps": 0.1, "search": SEARCH, "verdict": "off"}
    free = evaluate(encoder, x, y, **how, out=tmp_path / "free")
    bound = evaluate(encoder, x, y, **how, out=tmp_path / "bound", memory="16K")
    assert [r["fingerprint"] for r in free.records] == [r["fingerprint"] for r in bound.records]
    for a, b in zip(free.records, bound.records, strict=True):
        assert a["value"] == pytest.approx(b["value"], abs=1e-5), a["metric"]
    with pytest.raises(InvalidArgument, match="memory: need at least"):
        evaluate(encoder, x, y, **how, memory=100)
    for wrong in ("0", "much", -1):
        with pytest.raises(InvalidArgument, match="memory"):
            evaluate(encoder, x, y, **how, memory=wrong)
