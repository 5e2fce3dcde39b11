"""Same seed, same values to the bit: across batch and chunk sizes, shards and places to go on from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.attacks import ATTACKS, Outcome
from holdfast.certify import Smoothing
from holdfast.data import Digits
from holdfast.encoders import MLP, LipschitzEncoder, SmallCNN
from holdfast.evaluation import SUITES, Entry, Share, Suite, retrieval_task, run_suite
from holdfast.evaluation.card import Plan, measure
from holdfast.evaluation.query_certificates import certify_queries, certify_task
from holdfast.evaluation.suite import LEAST, EntryResult, attack_again
from holdfast.functional.distance import Cosine, Euclidean
from holdfast.search import PGD, Square
from holdfast.threat import L2Threat, LinfThreat
from holdfast.types import RetrievalTask

N = 25
SEARCH = PGD(steps=2, alpha=0.05, random_start=True, restarts=2)
BY_VALUES = {name for name, attack in ATTACKS.items() if not getattr(attack, "differentiable", True)}
THREATS = {"linf": LinfThreat(eps=0.1), "l2": L2Threat(eps=0.5)}
EVERY = Suite(
    name="every",
    entries=tuple(
        Entry(label=name, attack=attack, higher_is_robust={})
        for name, attack in ATTACKS.items()
        if name not in BY_VALUES
    ),
)
VALUES = Suite(
    name="values",
    entries=tuple(Entry(label=n, attack=ATTACKS[n], higher_is_robust={}) for n in sorted(BY_VALUES)),
)


def made(spec: Any, n: int = N, distance: Any = None) -> RetrievalTask:
    test = Digits().load().test
    return retrieval_task(spec.build((1, 8, 8), seed=0).eval(), test.x[:n], test.y[:n], distance)


@pytest.fixture(scope="module")
def task() -> RetrievalTask:
    return made(SmallCNN(width=4, embedding_dim=8))


def different(a: Outcome, b: Outcome) -> Tensor:
    """Queries (n,) of which any bit differs."""
    differ = (a.x != b.x).flatten(1).any(1) | (a.z != b.z).any(1)
    for state in ("clean", "attacked"):
        first, second = getattr(a, state), getattr(b, state)
        assert first.keys() == second.keys()
        for metric in first:
            differ |= first[metric] != second[metric]
    return differ


def same(a: list[EntryResult], b: list[EntryResult]) -> dict[str, list[int]]:
    """Queries that differ, by attack; empty where all are equal to the bit."""
    assert [r.entry.label for r in a] == [r.entry.label for r in b]
    pairs = ((r.entry.label, different(r.outcome, q.outcome)) for r, q in zip(a, b, strict=True))
    return {label: torch.nonzero(d).flatten().tolist() for label, d in pairs if bool(d.any())}


@pytest.mark.parametrize("chunk", [7, 16, 24])
def test_every_attack_gives_the_same_bits_in_chunks_of_any_size(task: RetrievalTask, chunk: int) -> None:
    whole = everything(task)
    assert same(run_suite(task, EVERY, SEARCH, THREATS["linf"], chunk=chunk), whole[0]) == {}
    values = run_suite(task, VALUES, Square(queries=8), THREATS["linf"], chunk=chunk)
    short = [
        rows for rows in torch.arange(N).split(chunk) if len(rows) < LEAST
    ]  # not filled up: questions cost
    free = set(torch.cat(short).tolist()) if short else set[int]()
    assert {row for rows in same(values, whole[1]).values() for row in rows} <= free


_WHOLE: dict[int, Any] = {}


def everything(task: RetrievalTask) -> tuple[list[EntryResult], list[EntryResult]]:
    """All attacks on all queries at once; computed once."""
    if id(task) not in _WHOLE:
        _WHOLE[id(task)] = (
            run_suite(task, EVERY, SEARCH, THREATS["linf"], chunk=N),
            run_suite(task, VALUES, Square(queries=8), THREATS["linf"], chunk=N),
        )
    found: tuple[list[EntryResult], list[EntryResult]] = _WHOLE[id(task)]
    return found


def test_the_seed_and_nothing_else_changes_the_bits(task: RetrievalTask) -> None:
    run = partial(run_suite, task, SUITES["core"], SEARCH, THREATS["linf"])
    first = run()
    torch.manual_seed(123)
    torch.rand(5)
    assert same(run(), first) == {}
    assert set(same(run(seed=1), first)) == {"CA+", "CA-", "ES"}


@pytest.mark.parametrize("norm", list(THREATS))
@pytest.mark.parametrize(
    ("spec", "distance"),
    [(MLP(hidden=(16,), embedding_dim=8), Euclidean()), (SmallCNN(width=4, embedding_dim=8), Cosine())],
    ids=["mlp, euclidean", "cnn, cosine"],
)
def test_other_encoders_distances_and_norms(norm: str, spec: Any, distance: Any) -> None:
    task = made(spec, distance=distance)
    run = partial(run_suite, task, SUITES["core"], SEARCH, THREATS[norm])
    whole = run(chunk=N)
    assert same(run(chunk=9), whole) == {}
    assert same(run(chunk=N - 1), whole) == {}  # a last chunk of a single query


def test_rows_attacked_again_are_those_of_the_whole(task: RetrievalTask) -> None:
    for number, (entry, outcome, *_) in enumerate(everything(task)[0]):
        rows = torch.tensor([2, 3, 11, 20]) if number % 2 else torch.tensor([number])  # also one alone
        again = attack_again(task.rows(rows), entry, SEARCH, THREATS["linf"])
        stored = Outcome(
            x=outcome.x[rows], z=outcome.z[rows],
            clean={k: v[rows] for k, v in outcome.clean.items()},
            attacked={k: v[rows] for k, v in outcome.attacked.items()},
        )  # fmt: skip
        assert not bool(different(again, stored).any()), entry.label


@pytest.mark.parametrize("count", [2, 3])
def test_shards_and_a_second_process_put_together_the_same_bits(
    task: RetrievalTask, tmp_path: Path, count: int
) -> None:
    run = partial(run_suite, task, SUITES["core"], SEARCH, THREATS["l2"])
    whole = run(chunk=N)
    for index in reversed(range(count)):
        run(chunk=6, folder=tmp_path, share=Share(index=index, count=count))
    assert same(run(chunk=6, folder=tmp_path), whole) == {}


def test_from_every_place_to_go_on_the_same_bits_and_records(task: RetrievalTask, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stopping(at: int) -> Any:
        calls = iter(range(100))

        def on_chunk(*_: Any) -> None:
            if next(calls) == at:
                raise Stop

        return on_chunk

    plan = Plan(suite=SUITES["core"], search=SEARCH, threat=THREATS["linf"], level="off", chunk=12)
    whole = measure(task, plan, {"run": "r"}, {"seed": 0})
    for at in (3, 5, 7):
        folder = tmp_path / str(at)
        with pytest.raises(Stop):
            measure(task, plan, {"run": "r"}, {"seed": 0}, folder, on_chunk=stopping(at))
        assert any((folder / "evaluations").glob("*/*.npz"))
        again = measure(task, plan, {"run": "r"}, {"seed": 0}, folder)
        assert same(list(again.results), list(whole.results)) == {}
        for a, b in zip(again.records, whole.records, strict=True):
            assert {**a, "time": "", "seconds": 0} == {**b, "time": "", "seconds": 0}


@pytest.mark.parametrize("name", ["worst-case", "minimum-norm"])
def test_attacks_in_stages_are_the_same_in_the_same_chunks(task: RetrievalTask, name: str) -> None:
    """What other queries survived decides how many go on together, so only equal chunks promise bits."""
    run = partial(run_suite, task, SUITES[name], PGD(steps=2, alpha=0.05), THREATS["linf"])
    first = run(chunk=20)
    assert same(run(chunk=20), first) == {}
    other = run(chunk=LEAST)
    for a, b in zip(first, other, strict=True):
        assert torch.equal(a.outcome.attacked["recall@1"], b.outcome.attacked["recall@1"])
        assert torch.allclose(a.outcome.z, b.outcome.z, atol=1e-5)


# --- Certificates ------------------------------------------------------------------------------------------


def test_sampled_certificates_are_those_of_each_query_alone() -> None:
    part = made(MLP(hidden=(32,), embedding_dim=16)).rows(torch.arange(5))
    s = Smoothing(sigma=0.05, n_select=20, n_certify=2000, alpha=0.1)
    for way in ("smoothing", "votes"):
        whole, _ = certify_queries(part, s, way)
        assert float(whole.radius.max()) > 0
        parts = [certify_queries(part.rows(slice(i, i + 1)), s, way)[0] for i in range(5)]
        assert torch.equal(torch.cat([c.radius for c in parts]), whole.radius)
        other, _ = certify_queries(part, replace(s, seed=1), way)
        assert not torch.equal(other.radius, whole.radius)


def test_lipschitz_certificates_of_some_queries_are_those_of_all() -> None:
    task = made(LipschitzEncoder(width=4, units=16, embedding_dim=8))
    whole = certify_task(task)
    for size in (1, 3, 16):
        parts = [certify_task(task, task.rows(rows)) for rows in torch.arange(N).split(size)]
        radius = torch.cat([c.radius for c in parts])
        # Products of few rows are added up in another order: float64 rounding, which the slack covers.
        assert torch.allclose(radius, whole.radius, rtol=0, atol=1e-12)
        assert torch.equal(torch.cat([c.correct for c in parts]), whole.correct)
