"""Embedding, retrieval metrics, intervals, resumable suites, exhibits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks import Outcome
from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.errors import CorruptFile, DataError, InvalidArgument
from holdfast.evaluation import (
    SUITES,
    Entry,
    EntryResult,
    Estimate,
    Share,
    bootstrap,
    embed,
    estimate,
    evaluate_retrieval,
    maps,
    retrieval_task,
    run_suite,
    wilson,
    write_exhibits,
)
from holdfast.evaluation.exhibit import choose_queries, shown_queries
from holdfast.evaluation.maps import write_maps
from holdfast.evaluation.suite import LEAST, attack_again
from holdfast.files import read_arrays, write_arrays
from holdfast.functional.distance import Cosine, Euclidean
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import Gallery, RetrievalTask

SEARCH, THREAT = PGD(steps=3, alpha=0.06), LinfThreat(eps=0.15)


class Counting(nn.Module):
    """An encoder that keeps the number of images of each call."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.inner(x)


def pixels(x: Tensor) -> Tensor:
    return x.flatten(1)


def points(rows: list[list[float]]) -> Tensor:
    """Images of one pixel column whose embedding by :func:`pixels` is the row itself."""
    return torch.tensor(rows, dtype=torch.float64)[:, None, :, None]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = Digits().load().test
    return test.x[:25].double(), test.y[:25]


@pytest.fixture
def task(digits: tuple[Tensor, Tensor]) -> RetrievalTask:
    encoder = SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=3).double()
    return retrieval_task(Counting(encoder), *digits)


# --- Embedding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 25, 100])
def test_embed_is_the_encoder_whatever_the_batches(digits: tuple[Tensor, Tensor], batch_size: int) -> None:
    encoder = Counting(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).double())
    z = embed(encoder, digits[0], batch_size)
    assert encoder.training
    expected = encoder.inner.eval()(digits[0]).detach()
    assert torch.allclose(z, expected, atol=1e-12)
    assert not z.requires_grad
    assert max(encoder.calls) == min(batch_size, 25)
    assert sum(encoder.calls) == 25


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        (lambda x: x, r"embeddings \(4, e\), got \(4, 1, 8, 8\)"),
        (lambda x: x.flatten(1)[:-1], r"embeddings \(4, e\), got \(3, 64\)"),
        (lambda x: x.sum(), r"embeddings \(4, e\), got \(\)"),
        (lambda x: x.flatten(1).numpy(), r"embeddings \(4, e\), got 'ndarray'"),
        (lambda x: [x.flatten(1)], r"embeddings \(4, e\), got 'list'"),
        (lambda x: None, r"embeddings \(4, e\), got 'NoneType'"),
        (lambda x: x.flatten(1) / 0, "finite embeddings, got 'NaN or infinity'"),
        (lambda x: x.flatten(1).log(), "finite embeddings, got 'NaN or infinity'"),
    ],
)
def test_embed_refuses_what_is_no_embedding(encoder: Any, reason: str, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InvalidArgument, match=f"^encoder: need {reason}"):
        embed(encoder, digits[0][:4])
    with pytest.raises(InvalidArgument, match="encoder: need"):
        retrieval_task(encoder, digits[0][:4], digits[1][:4])


def test_embed_names_the_batch_that_is_wrong(digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0].clone()
    x[7, 0, 0, 0] = torch.nan
    with pytest.raises(InvalidArgument, match="finite"):
        embed(pixels, x, batch_size=5)
    assert embed(pixels, x[:7], batch_size=5).shape == (7, 64)


def test_tasks_need_images_and_labels(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    with pytest.raises(DataError, match="at least one image"):
        embed(pixels, x[:0])
    with pytest.raises(DataError, match="one for each of 25 images, got 24"):
        retrieval_task(pixels, x, y[:24])
    with pytest.raises(DataError, match="at least two"):
        retrieval_task(pixels, x[:1], y[:1])
    with pytest.raises(InvalidArgument, match="size"):
        embed(pixels, x, batch_size=0)


def test_a_task_queries_every_image_against_all_others(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    task = retrieval_task(pixels, x, y)
    assert len(task) == 25
    assert task.self_index.tolist() == task.index.tolist() == task.gallery.ids.tolist() == list(range(25))
    assert torch.equal(task.z, x.flatten(1))
    assert torch.equal(task.gallery.y, y)
    assert task.distance == Euclidean()
    assert retrieval_task(pixels, x, y, Cosine()).distance == Cosine()
    part = task.rows(torch.tensor([3, 1]))
    assert part.self_index.tolist() == part.index.tolist() == [3, 1]
    assert torch.equal(part.gallery.z, task.gallery.z)


# --- Retrieval metrics -------------------------------------------------------------------------------------


def test_retrieval_metrics_by_hand() -> None:
    """Five points on a line, at 0, 1, 3, 7 and 7.5, of classes 0, 1, 0, 1 and 1."""
    task = retrieval_task(pixels, points([[0.0], [1.0], [3.0], [7.0], [7.5]]), torch.tensor([0, 1, 0, 1, 1]))
    # Lists of labels, with relevance: 0 -> 1 0 1 1; 1 -> 0 0 1 1; 2 -> 1 0 1 1; 3 -> 1 0 1 0; 4 -> 1 0 1 0.
    found = evaluate_retrieval(task, cuts=(1, 2, 3))
    ap = [1 / 2, (1 / 3 + 2 / 4) / 2, 1 / 2, (1 + 2 / 3) / 2, (1 + 2 / 3) / 2]
    at_r = [0, 0, 0, 1 / 2, 1 / 2]
    at_10 = [0.05, (1 / 3 + 2 / 4) / 10, 0.05, (1 + 2 / 3) / 10, (1 + 2 / 3) / 10]
    assert found["recall@1"].value == pytest.approx(2 / 5)
    assert found["recall@2"].value == pytest.approx(4 / 5)
    assert found["recall@3"].value == pytest.approx(1.0)
    assert found["map"].value == pytest.approx(np.mean(ap))
    assert found["map@r"].value == pytest.approx(np.mean(at_r))
    assert found["map@10"].value == pytest.approx(np.mean(at_10))
    assert set(found) == {"recall@1", "recall@2", "recall@3", "map", "map@r", "map@10", "nmi"}
    for value in found.values():
        assert 0 <= value.low <= value.value <= value.high <= 1
        assert value.n == 5


def test_nmi_of_separate_and_of_mixed_clusters() -> None:
    rows = [[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]]
    apart = evaluate_retrieval(retrieval_task(pixels, points(rows), torch.tensor([0, 0, 0, 1, 1, 1])))
    assert apart["nmi"].value == pytest.approx(1.0)
    mixed = evaluate_retrieval(retrieval_task(pixels, points(rows), torch.tensor([0, 1, 0, 0, 1, 0])))
    assert mixed["nmi"].value < 0.1
    three = retrieval_task(pixels, points(rows), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert evaluate_retrieval(three, clusters=1)["nmi"].value == pytest.approx(0.0, abs=1e-9)


def test_a_duplicate_is_found_and_the_query_itself_is_not() -> None:
    rows = points([[1.0], [1.0], [5.0], [6.0]])
    same = evaluate_retrieval(retrieval_task(pixels, rows, torch.tensor([0, 0, 1, 1])))
    other = evaluate_retrieval(retrieval_task(pixels, rows, torch.tensor([0, 1, 0, 1])))
    assert same["recall@1"].value == 1.0
    assert other["recall@1"].value == 0.0


def test_metrics_do_not_depend_on_the_order_of_the_queries(task: RetrievalTask) -> None:
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    a, b = evaluate_retrieval(task), evaluate_retrieval(task.rows(order))
    for name in a:
        if name != "nmi":
            assert a[name].value == pytest.approx(b[name].value), name


# --- Intervals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0000),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson_interval_is_that_of_the_table(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert found == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    mirrored = wilson(n - successes, n)
    assert mirrored == (pytest.approx(1 - found[1]), pytest.approx(1 - found[0]))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(InvalidArgument, match="0 <= successes <= n"):
        wilson(successes, n)


def test_bootstrap_is_deterministic_and_covers_the_mean() -> None:
    values = np.random.default_rng(3).exponential(size=200)

    def mean(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    low, high = bootstrap(mean, 200, seed=1)
    assert (low, high) == bootstrap(mean, 200, seed=1)
    assert (low, high) != bootstrap(mean, 200, seed=2)
    assert low < values.mean() < high
    half = 1.96 * values.std() / math.sqrt(200)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        sample = rng.normal(size=80)
        low, high = bootstrap(lambda rows, s=sample: float(s[rows].mean()), 80, resamples=200, seed=seed)
        covered += low <= 0 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_estimate_takes_wilson_for_zeros_and_ones_and_else_the_bootstrap() -> None:
    hits = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert estimate(hits) == Estimate(0.75, *wilson(3, 4), 4)
    assert estimate(hits.bool()) == estimate(hits)
    assert estimate(torch.ones(6)) == Estimate(1.0, wilson(6, 6)[0], 1.0, 6)
    values = torch.tensor([0.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    low, high = bootstrap(lambda rows: float(values.numpy()[rows].mean()), 4, seed=9)
    assert estimate(values, seed=9) == Estimate(0.4375, low, high, 4)
    constant = estimate(torch.full((5,), 0.3, dtype=torch.float64))
    assert (constant.low, constant.high) == (constant.value, constant.value)


@pytest.mark.parametrize(
    "bad", [torch.tensor([]), torch.tensor([0.5, torch.nan]), torch.tensor([torch.inf]), torch.zeros(2, 2)]
)
def test_estimate_refuses_what_has_no_mean(bad: Tensor) -> None:
    with pytest.raises(InvalidArgument, match="values"):
        estimate(bad)


# --- Suites ------------------------------------------------------------------------------------------------


def equal(a: list[EntryResult], b: list[EntryResult], atol: float = 0.0) -> bool:
    return [r.entry.label for r in a] == [r.entry.label for r in b] and all(
        torch.allclose(u, v, rtol=0, atol=atol)
        for first, second in zip(a, b, strict=True)
        for u, v in zip(tensors(first), tensors(second), strict=True)
    )


def tensors(result: EntryResult) -> list[Tensor]:
    outcome = result.outcome
    assert list(outcome.clean) == list(outcome.attacked)
    return [outcome.x, outcome.z, *outcome.clean.values(), *outcome.attacked.values()]


def test_a_suite_resumes_at_the_missing_chunks(task: RetrievalTask, tmp_path: Path) -> None:
    assert isinstance(task.encoder, Counting)
    calls = task.encoder.calls

    def again(folder: Path | None) -> tuple[list[EntryResult], list[int]]:
        calls.clear()
        found = run_suite(task, SUITES["core"], SEARCH, THREAT, chunk=10, folder=folder)
        return found, list(calls)

    kept_nothing, whole = again(None)
    assert whole[::4] == [LEAST] * 9  # nine chunks, each filled up with copies; three steps and the result
    assert len(whole) == 36
    first, counted = again(tmp_path)
    assert counted == whole
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 9
    assert equal(first, kept_nothing)

    second, none = again(tmp_path)
    assert none == []
    assert equal(second, first)
    assert [r.seconds for r in second] == [r.seconds for r in first]

    chosen = [names[i] for i in (1, 5, 6)]
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    for name in chosen:
        (tmp_path / name).unlink()
    third, some = again(tmp_path)
    assert len(some) == 12
    assert equal(third, first)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    rewritten = [name for name in names if (tmp_path / name).stat().st_mtime_ns != stamps[name]]
    assert rewritten == chosen


def test_shares_of_several_processes_make_one_suite(task: RetrievalTask, tmp_path: Path) -> None:
    whole = run_suite(task, SUITES["core"], SEARCH, THREAT, chunk=6)
    parts = [
        run_suite(
            task, SUITES["core"], SEARCH, THREAT, chunk=6, folder=tmp_path, share=Share(index=i, count=2)
        )
        for i in range(2)
    ]
    rows = [part[0].rows for part in parts]
    assert [r.tolist() for r in rows if r is not None] == [
        [*range(6), *range(12, 18), 24],
        [*range(6, 12), *range(18, 24)],
    ]
    assert isinstance(task.encoder, Counting)
    task.encoder.calls.clear()
    merged = run_suite(task, SUITES["core"], SEARCH, THREAT, chunk=6, folder=tmp_path)
    assert task.encoder.calls == []
    assert equal(merged, whole)
    assert all(result.rows is None for result in merged)


def test_more_shares_than_chunks_leave_some_without_work(task: RetrievalTask) -> None:
    assert run_suite(task, SUITES["core"], SEARCH, THREAT, share=Share(index=1, count=2)) == []


def test_a_budget_covers_a_random_sample_and_says_which(task: RetrievalTask, tmp_path: Path) -> None:
    little = Share(seconds=1e-9)
    (first, *_) = found = run_suite(task, SUITES["core"], SEARCH, THREAT, chunk=6, share=little)
    assert first.rows is not None
    rows = first.rows.tolist()
    assert len(rows) == 6
    assert rows == sorted(rows) != list(range(6))
    assert all(result.rows is not None and result.rows.tolist() == rows for result in found)
    alone = run_suite(task.rows(first.rows), SUITES["core"], SEARCH, THREAT)
    assert equal(found, alone, atol=1e-9)
    again = run_suite(task, SUITES["core"], SEARCH, THREAT, chunk=6, share=little, folder=tmp_path)
    enough = run_suite(
        task, SUITES["core"], SEARCH, THREAT, chunk=6, share=Share(seconds=1e9), folder=tmp_path
    )
    assert equal(again, found)
    assert enough[0].rows is None  # everything, in the order of the task
    assert equal(enough, run_suite(task, SUITES["core"], SEARCH, THREAT), atol=1e-9)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError, "allocate"])
def test_chunks_are_halved_until_they_fit(
    task: RetrievalTask, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def small(x: Tensor) -> Tensor:
        if len(x) > 7:
            raise RuntimeError("cannot allocate memory") if kind == "allocate" else kind("out of memory")
        return task.encoder(x)

    found = run_suite(replace(task, encoder=small), SUITES["core"], SEARCH, THREAT, chunk=25)
    assert equal(found, run_suite(task, SUITES["core"], SEARCH, THREAT), atol=1e-9)
    assert "out of memory with 25 queries" in caplog.text


def test_other_errors_and_single_queries_are_not_halved(task: RetrievalTask) -> None:
    calls = []

    def broken(x: Tensor) -> Tensor:
        calls.append(len(x))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run_suite(replace(task, encoder=broken), SUITES["core"], SEARCH, THREAT, chunk=25)
    assert calls == [25]

    def never(x: Tensor) -> Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        run_suite(replace(task, encoder=never), SUITES["core"], SEARCH, THREAT, chunk=25)


def test_images_are_kept_only_where_they_are_few(
    task: RetrievalTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = run_suite(task, SUITES["core"], SEARCH, THREAT)
    assert [tuple(result.outcome.x.shape) for result in kept] == [tuple(task.x.shape)] * 3
    monkeypatch.setattr("holdfast.evaluation.suite.KEEP_BYTES", 100)
    for _ in range(2):  # computed, then read
        bare = run_suite(task, SUITES["core"], SEARCH, THREAT, chunk=10, folder=tmp_path)
        assert [tuple(result.outcome.x.shape) for result in bare] == [(25, 0)] * 3
        assert all(torch.allclose(a.outcome.z, b.outcome.z) for a, b in zip(kept, bare, strict=True))


def test_a_damaged_chunk_is_named_and_not_taken_for_a_result(task: RetrievalTask, tmp_path: Path) -> None:
    run_suite(task, SUITES["core"], SEARCH, THREAT, chunk=25, folder=tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptFile, match=path.name[:3].replace("+", r"\+")):
        run_suite(task, SUITES["core"], SEARCH, THREAT, chunk=25, folder=tmp_path)


@pytest.mark.parametrize("random_start", [False, True])
def test_results_do_not_depend_on_the_chunk_size(task: RetrievalTask, random_start: bool) -> None:
    search = PGD(steps=3, alpha=0.06, random_start=random_start)
    whole = run_suite(task, SUITES["core"], search, THREAT, chunk=25)
    for chunk in (1, 7, 100):
        other = run_suite(task, SUITES["core"], search, THREAT, chunk=chunk)
        assert equal(other, whole, atol=1e-9)


def test_seeds_and_labels_name_the_streams(task: RetrievalTask) -> None:
    first, second = (run_suite(task, SUITES["core"], SEARCH, THREAT, seed=seed) for seed in (0, 1))
    assert not equal(first[:1], second[:1], atol=1e-6)  # CA+ draws other queries
    assert equal(first[2:], second[2:])  # ES draws nothing


def test_a_suite_tells_how_far_it_is(task: RetrievalTask) -> None:
    said: list[tuple[str, int, int]] = []
    run_suite(task, SUITES["core"], PGD(steps=1), THREAT, chunk=20, on_chunk=lambda *line: said.append(line))
    first = [(label, done, 25) for label in ("CA+", "CA-", "ES") for done in (0, 20)]
    assert said == first + [(label, 25, 25) for label in ("CA+", "CA-", "ES")]
    with pytest.raises(InvalidArgument, match="chunk"):
        run_suite(task, SUITES["core"], SEARCH, THREAT, chunk=0)
    assert run_suite(task, SUITES["benign"], SEARCH, THREAT) == []


# --- Exhibits ----------------------------------------------------------------------------------------------


def test_exhibits_hold_what_they_say(task: RetrievalTask, tmp_path: Path) -> None:
    names = [f"digit {i}" for i in range(10)]
    results = run_suite(task, SUITES["core"], SEARCH, THREAT)
    write_exhibits(tmp_path, task, task.x, results, THREAT, names, k=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CA+@0.15.npz", "CA-@0.15.npz", "ES@0.15.npz"]
    right = neighbours(task, task.z)[:, 0]
    for entry, outcome, *_ in results:
        arrays = read_arrays(tmp_path / f"{entry.label}@0.15.npz")
        shapes = {name: value.shape for name, value in arrays.items()}
        assert shapes == {
            "query": (6, 1, 8, 8), "attacked": (6, 1, 8, 8), "query_y": (6,), "held": (6,), "ids": (6,),
            "before_x": (6, 5, 1, 8, 8), "before_y": (6, 5), "before_d": (6, 5), "before_ids": (6, 5),
            "after_x": (6, 5, 1, 8, 8), "after_y": (6, 5), "after_d": (6, 5), "after_ids": (6, 5),
            "eps": (), "norm": (), "class_names": (10,),
        }  # fmt: skip
        assert arrays["held"].dtype == bool
        assert float(arrays["eps"]) == 0.15
        assert arrays["class_names"].tolist() == names
        ids = torch.from_numpy(arrays["ids"])
        assert len(set(ids.tolist())) == 6
        for name, x in (("query", task.x), ("attacked", outcome.x)):
            assert np.array_equal(arrays[name], x[ids].numpy())
        assert np.array_equal(arrays["query_y"], task.y[ids].numpy())
        for state, z in (("before", task.z), ("after", outcome.z)):
            near = neighbours(task, z)[ids, :5]
            assert np.array_equal(arrays[f"{state}_ids"], near.numpy())
            assert np.array_equal(arrays[f"{state}_y"], task.y[near].numpy())
            assert np.array_equal(arrays[f"{state}_x"], task.x[near].numpy())
            d = (z[ids][:, None] - task.z[near]).norm(dim=2)
            assert np.allclose(arrays[f"{state}_d"], d.numpy(), atol=1e-6)
            assert bool((np.diff(arrays[f"{state}_d"], axis=1) >= 0).all())
        assert np.array_equal(arrays["held"], arrays["after_y"][:, 0] == arrays["query_y"])
        if int((task.y[right] == task.y).sum()) >= 6:
            assert np.array_equal(arrays["before_y"][:, 0], arrays["query_y"])  # right when clean


def neighbours(task: RetrievalTask, z: Tensor) -> Tensor:
    """All gallery rows, nearest first, the query itself last."""
    d = (z[:, None] - task.gallery.z[None]).norm(dim=2)
    d[torch.arange(len(z)), task.self_index] = torch.inf
    return d.argsort(1)


def test_exhibits_show_both_held_and_lost_queries_over_the_range_of_shifts() -> None:
    z = torch.tensor([[0.0], [1.0], [10.0], [11.0], [20.0], [21.0]])
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    task = RetrievalTask(
        encoder=pixels, x=z, y=y, z=z, gallery=Gallery(z, y, torch.arange(6)),
        self_index=torch.arange(6), index=torch.arange(6), distance=Euclidean(),
    )  # fmt: skip
    after = torch.tensor([[0.5], [9.0], [10.2], [19.0], [20.1], [21.0]])
    shift = (after - z).abs()[:, 0]
    rows, held = choose_queries(task, after, shift, k=6)
    assert rows.tolist() == [1, 3, 0, 2, 4, 5]  # the largest shift first
    assert held.tolist() == [False, False, True, True, True, True]
    rows, held = choose_queries(task, after, shift, k=3)
    assert (rows[0], rows[-1]) == (1, 5)
    assert len(rows) == 3
    assert held.tolist() == [bool(r not in (1, 3)) for r in rows.tolist()]

    wrong = RetrievalTask(
        encoder=pixels, x=z, y=torch.tensor([0, 1, 0, 1, 2, 2]), z=z,
        gallery=Gallery(z, torch.tensor([0, 1, 0, 1, 2, 2]), torch.arange(6)),
        self_index=torch.arange(6), index=torch.arange(6), distance=Euclidean(),
    )  # fmt: skip
    rows, held = choose_queries(wrong, z, shift, k=2)
    assert set(rows.tolist()) == {4, 5}  # the only ones that are right when clean
    assert held.tolist() == [True, True]
    rows, _ = choose_queries(wrong, z, shift, k=4)
    assert len(rows) == 4  # not enough right ones: any


def test_exhibits_attack_again_what_was_not_kept(task: RetrievalTask, tmp_path: Path) -> None:
    kept = run_suite(task, SUITES["core"], SEARCH, THREAT, share=Share(seconds=1e-9), chunk=10)
    bare = run_suite(
        task, SUITES["core"], SEARCH, THREAT, share=Share(seconds=1e-9), chunk=10, keep_images=False
    )
    write_exhibits(tmp_path / "none", task, task.x, bare, THREAT, k=4)
    assert not (tmp_path / "none").exists()

    def again(entry: Entry, part: RetrievalTask) -> Outcome:
        return attack_again(part, entry, SEARCH, THREAT)

    write_exhibits(tmp_path / "again", task, task.x, bare, THREAT, k=4, again=again)
    write_exhibits(tmp_path / "kept", task, task.x, kept, THREAT, k=4)
    assert kept[0].rows is not None
    for label in ("CA+", "CA-", "ES"):
        a, b = (read_arrays(tmp_path / name / f"{label}@0.15.npz") for name in ("again", "kept"))
        assert set(a["ids"].tolist()) <= set(kept[0].rows.tolist())
        assert all(np.array_equal(a[n], b[n]) or np.allclose(a[n], b[n], atol=1e-9) for n in a if a[n].size)


def test_exhibits_of_all_attacks_and_radii_show_the_same_queries(task: RetrievalTask, tmp_path: Path) -> None:
    for eps in (0.15, 0.3):
        threat = LinfThreat(eps=eps)
        results = run_suite(task, SUITES["core"], SEARCH, threat)
        write_exhibits(tmp_path / "e", task, task.x, results, threat, k=6)
        write_maps(tmp_path / "m", tmp_path / "e", task, results, threat, ["a"] * 10)
    files = sorted((tmp_path / "e").iterdir())
    ids = [read_arrays(path)["ids"].tolist() for path in files]
    assert len(files) == 6
    assert ids == ids[:1] * 6
    six = torch.arange(6)
    stored = {**read_arrays(files[0]), "ids": six.numpy(), "query": task.x[six].numpy()}
    write_arrays(tmp_path / "s" / "ES@0.1.npz", stored)
    assert shown_queries(tmp_path / "s", task, results, 6).tolist() == six.tolist()
    other = replace(task, x=1 - task.x)  # other pictures under the same numbers
    anew = shown_queries(tmp_path / "empty", task, results, 6).tolist()
    assert shown_queries(tmp_path / "s", other, results, 6).tolist() == anew != six.tolist()

    clean = read_arrays(tmp_path / "m" / "clean.npz")
    assert set(ids[0]) <= set(clean["ids"].tolist())
    assert np.array_equal(clean["query_z"], task.z[clean["ids"]].float().numpy())
    assert np.array_equal(clean["gallery_z"], task.gallery.z[clean["gallery_ids"]].float().numpy())
    moved = read_arrays(tmp_path / "m" / "ES@0.3.npz")
    outcome = next(r.outcome for r in results if r.entry.label == "ES")
    assert np.array_equal(moved["attacked_z"], outcome.z[clean["ids"]].float().numpy())
    assert (float(moved["eps"]), str(moved["norm"]), str(clean["distance"])) == (0.3, "linf", "Euclidean")


def test_maps_keep_a_bounded_sample(
    task: RetrievalTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "QUERIES", 8)
    monkeypatch.setattr(maps, "ROWS", 11)
    results = run_suite(task, SUITES["core"], SEARCH, THREAT)
    write_exhibits(tmp_path / "e", task, task.x, results, THREAT, k=6)
    for _ in range(2):
        write_maps(tmp_path / "m", tmp_path / "e", task, results, THREAT)
    clean = read_arrays(tmp_path / "m" / "clean.npz")
    assert (len(clean["query_z"]), len(clean["gallery_z"])) == (8, 11)
    assert len(set(clean["ids"].tolist())) == 8


def test_maps_of_other_samples_add_to_the_map(task: RetrievalTask, tmp_path: Path) -> None:
    def mapped(part: RetrievalTask, eps: float) -> dict[str, np.ndarray]:
        threat = LinfThreat(eps=eps)
        results = run_suite(part, SUITES["core"], SEARCH, threat)
        write_exhibits(tmp_path / "e", part, task.x, results, threat, k=4)
        write_maps(tmp_path / "m", tmp_path / "e", part, results, threat)
        return read_arrays(tmp_path / "m" / "clean.npz")

    few = mapped(task.rows(torch.arange(0, 10)), 0.1)
    both = mapped(task.rows(torch.arange(5, 15)), 0.2)
    assert sorted(few["ids"]) == list(range(10))
    assert both["ids"][:10].tolist() == few["ids"].tolist()
    assert sorted(both["ids"]) == list(range(15))
    assert np.allclose(both["query_z"], task.z[both["ids"]].float().numpy(), atol=1e-6)
    for eps, seen in ((0.1, range(10)), (0.2, range(5, 15))):
        z = read_arrays(tmp_path / "m" / f"ES@{eps}.npz")["attacked_z"]
        assert len(z) == 15
        assert set(both["ids"][np.isfinite(z).all(1)].tolist()) == set(seen)
    other = replace(task, z=-task.z, gallery=Gallery(-task.gallery.z, task.gallery.y, task.gallery.ids))
    again = mapped(other.rows(torch.arange(0, 10)), 0.3)  # of another encoder: nothing of the old map stays
    assert sorted(again["ids"]) == list(range(10))
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"clean.npz", *(f"{x}@0.3.npz" for x in LABELS)}


LABELS = ("CA+", "CA-", "ES")


def test_exhibits_of_a_tiny_gallery(tmp_path: Path) -> None:
    task = retrieval_task(pixels, points([[0.1], [0.2], [0.9]]), torch.tensor([0, 0, 1]))
    results = run_suite(task, SUITES["core"], SEARCH, THREAT)
    write_exhibits(tmp_path, task, task.x, results, THREAT)
    arrays = read_arrays(tmp_path / "ES@0.15.npz")
    assert arrays["before_y"].shape == (3, 2)  # three queries, two others
    assert arrays["class_names"].shape == (0,)
