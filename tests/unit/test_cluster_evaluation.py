"""Suites on clusters: the union, the worst case, scores of sets of queries, transfer, poisoned references."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks import CLUSTER_ATTACKS, Outcome, hits, run
from holdfast.attacks.cluster import cluster_measures
from holdfast.encoders import Ensemble, SmallCNN
from holdfast.errors import CorruptFile, InvalidArgument
from holdfast.evaluation import (
    SUITES,
    ClusterWorstCase,
    Entry,
    EntryResult,
    Share,
    Suite,
    Surrogate,
    TransferredClusters,
    WithSearch,
    clusters,
    evaluate_clusters,
    read_clusters,
    read_values,
    run_suite,
    set_scores,
    union,
)
from holdfast.evaluation.agreement import agreement_of_counts, contingency, resampled_agreement
from holdfast.evaluation.card import Plan, measure, read_back
from holdfast.evaluation.cluster_poison import poisoning
from holdfast.evaluation.cluster_transfer import digest, other_encoders, with_transfer
from holdfast.evaluation.cluster_worst import HardLabelQueries, cluster_worst_case
from holdfast.evaluation.clusters import farthest, measurable, write_clusters, write_members
from holdfast.evaluation.embed import retrieval_task, under_clusters
from holdfast.evaluation.worst_case import Stage, WorstCase
from holdfast.files import read_arrays, write_arrays
from holdfast.functional.clustering import ami, ari, name_clusters, nmi, purity, reclustered
from holdfast.functional.distance import SquaredEuclidean
from holdfast.results import record
from holdfast.rng import stream
from holdfast.search import APGD, PGD, Square
from holdfast.threat import L2Threat, LinfThreat
from holdfast.types import ClusterTask, Gallery

SEARCH = PGD(steps=5, alpha=0.02, keep="best")
THREAT = LinfThreat(eps=0.04)
N, CLASSES = 40, 4
SUITE = replace(
    SUITES["clustering"],
    entries=(
        *(e for e in SUITES["clustering"].entries if e.label in ("A1", "A4", "A5")),
        Entry(
            label="A7",
            attack=WithSearch(attack=CLUSTER_ATTACKS["A1"], search=Square(queries=20, stop_at=0.0)),
            higher_is_robust=SUITES["clustering"].entries[0].higher_is_robust,
        ),
    ),
)
"""A few of the suite's entries, with few queries, for speed; the whole suite runs in one test."""
STAGES = tuple(
    Stage(label=f"APGD {name}", attack=CLUSTER_ATTACKS[name], search=APGD(steps=4)) for name in ("A1", "A4")
)
WORST = ClusterWorstCase(cases=WorstCase(stages=(*STAGES, Stage(label="A1", attack=CLUSTER_ATTACKS["A1"]))))
METRICS = ("flip", "accuracy", "majority", "recall@1", "map@r")


class Net(nn.Module):
    """Unit embeddings of 4x4 images, smooth enough for attacks to succeed on some queries and not on all."""

    def __init__(self, seed: int = 0, width: int = 6) -> None:
        super().__init__()
        weight = torch.randn(width, 16, generator=stream(seed, "net"))
        self.weight = nn.Parameter(weight / 4, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(torch.tanh(x.flatten(1) @ self.weight.T), dim=1)


def images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy copies of four pictures."""
    y = torch.arange(n) % CLASSES
    pictures = torch.rand(CLASSES, 1, 4, 4, generator=stream(7, "pictures"))
    noise = 0.25 * torch.randn(n, 1, 4, 4, generator=stream(seed, "noise"))
    return (pictures[y] + noise).clamp(0, 1), y


def make(
    encoder: Any = None, *, truth: bool = True, k: int = CLASSES, n: int = N, with_images: bool = True
) -> ClusterTask:
    """Queries against the means of their classes, or of parts of them: clusters that need no k-means."""
    encoder = encoder or Net()
    x, y = images(n)
    references, ref_y = images(80, seed=1)
    seen = retrieval_task(encoder, x, y, gallery=references, gallery_y=ref_y)
    member = ref_y if k == CLASSES else torch.arange(80) % k
    z = seen.gallery.z
    centroids = torch.stack([z[member == j].mean(0) for j in range(k)])
    own = SquaredEuclidean().matrix(seen.z, centroids).argmin(1)
    return ClusterTask(
        encoder=encoder, x=x, y=own, z=seen.z, gallery=Gallery(centroids, torch.arange(k), torch.arange(k)),
        self_index=torch.full((n,), -1), index=torch.arange(n), distance=SquaredEuclidean(), cluster_of=own,
        truth=y if truth else torch.full((n,), -1), names=name_clusters(ref_y, member, k) if truth else None,
        images=seen if truth and with_images else None, references=references, member_of=member,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _few_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cluster anew by two seeds in place of five, for speed."""
    assert clusters.SEEDS == (0, 1, 2, 3, 4)
    monkeypatch.setattr(clusters, "SEEDS", (0, 1))


@pytest.fixture(scope="module")
def task() -> ClusterTask:
    made = make()
    right = cluster_measures(made.z, made)["accuracy"]
    assert 0.5 < float(right.mean()) < 1  # some are wrong when clean, which the tests below need
    return made


@pytest.fixture(scope="module")
def results(task: ClusterTask) -> list[EntryResult]:
    return run_suite(task, SUITE, SEARCH, THREAT)


def equal(a: list[EntryResult], b: list[EntryResult]) -> bool:
    return all(
        torch.allclose(u.outcome.attacked[m], v.outcome.attacked[m], atol=1e-6)
        for u, v in zip(a, b, strict=True)
        for m in METRICS
    )


# --- counts ------------------------------------------------------------------------------------------------


def test_scores_of_counts_by_hand() -> None:
    """Two classes of two, one in each of two clusters: nothing is known, so NMI 0 and ARI below 0."""
    assert agreement_of_counts(np.array([[2, 0], [0, 2]])) == (1.0, 1.0, 1.0, 1.0)
    p, n, a, r = agreement_of_counts(np.array([[1, 1], [1, 1]]))
    assert (p, n, r) == (0.5, 0.0, -0.5)
    assert a == pytest.approx(-0.5)  # (0 - ln2 / 3) / (ln2 - ln2 / 3)
    assert contingency(torch.tensor([5, 5, 9]), torch.tensor([1, 0, 1])).tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("n", "c", "k"), [(50, 3, 4), (97, 10, 10), (6, 6, 6), (5, 1, 1), (6, 1, 3), (6, 3, 1)]
)
def test_scores_of_counts_are_those_of_labels(n: int, c: int, k: int) -> None:
    truth = torch.randint(0, c, (n,), generator=stream(n, "truth"))
    found = torch.where(torch.rand(n, generator=stream(n)) < 0.5, truth % k, torch.randint(0, k, (n,)))
    got = agreement_of_counts(contingency(truth, found))
    assert got == pytest.approx([score(truth, found) for score in (purity, nmi, ami, ari)], abs=1e-12)
    assert agreement_of_counts(np.pad(contingency(truth, found), 1)) == pytest.approx(got)  # empty rows


def test_resampled_counts_spread_around_the_value() -> None:
    counts = np.array([[30, 5], [8, 57]])
    drawn = resampled_agreement(counts, 200, seed=3)
    assert drawn.shape == (200, 4)
    assert np.array_equal(drawn, resampled_agreement(counts, 200, seed=3))
    value = np.array(agreement_of_counts(counts))
    assert (np.percentile(drawn, 2.5, axis=0) < value).all()
    assert (np.percentile(drawn, 97.5, axis=0) > value).all()
    assert drawn[:, 0].std() == pytest.approx(math.sqrt(0.87 * 0.13 / 100), rel=0.2)  # a proportion


# --- union -------------------------------------------------------------------------------------------------


def outcome(**pairs: tuple[list[float], list[float]]) -> Outcome:
    """An outcome of given clean and attacked measures."""
    clean, attacked = ({k: torch.tensor(v[i]) for k, v in pairs.items()} for i in (0, 1))
    n = len(next(iter(clean.values())))
    return Outcome(x=torch.zeros(n, 0), z=torch.zeros(n, 1), clean=clean, attacked=attacked)


def test_the_union_by_hand() -> None:
    """Four queries: held, broken by the first, broken by the second, wrong when clean and mended by both."""
    flags = {"flip": False, "accuracy": True}
    clean = [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]
    first = outcome(flip=(clean[0], [0, 1, 0, 1]), accuracy=(clean[1], [1, 0, 1, 1]))
    second = outcome(flip=(clean[0], [0, 0, 1, 1]), accuracy=(clean[1], [1, 1, 0, 1]))
    entries = tuple(Entry(label=name, attack=None, higher_is_robust=flags) for name in ("a", "b"))
    suite = Suite(name="two", entries=entries, union=flags)
    before, after = union(
        suite, [EntryResult(e, o, 0.0) for e, o in zip(entries, (first, second), strict=True)]
    )
    assert before["accuracy"].tolist() == [1, 1, 1, 0]
    assert after["flip"].tolist() == [0, 1, 1, 1]
    assert after["accuracy"].tolist() == [1, 0, 0, 0]
    assert union(replace(suite, union={"rank": True}), [EntryResult(entries[0], first, 0.0)]) == ({}, {})


def test_the_union_is_never_better_for_the_defense_than_an_entry(
    task: ClusterTask, results: list[EntryResult]
) -> None:
    clean, worst = union(SUITE, results)
    assert list(worst) == list(METRICS)
    assert 0 < float(worst["accuracy"].mean()) < float(clean["accuracy"].mean())
    for result in results:
        for metric, higher in SUITE.union.items():
            gap = worst[metric] - result.outcome.attacked[metric]
            assert bool((gap <= 0 if higher else gap >= 0).all()), (result.entry.label, metric)
            before = worst[metric] - clean[metric]
            assert bool((before <= 0 if higher else before >= 0).all())


def test_robust_accuracy_is_right_when_clean_and_never_flipped(
    task: ClusterTask, results: list[EntryResult]
) -> None:
    """Names are one to one, so a query keeps its name exactly as long as it keeps its cluster."""
    clean, worst = union(SUITE, results)
    assert torch.equal(worst["accuracy"], clean["accuracy"] * (1 - worst["flip"]))
    mended = torch.stack([r.outcome.attacked["accuracy"] for r in results]).amax(0) > clean["accuracy"]
    assert bool(mended.any())  # attacks do mend queries that are wrong when clean, which must not count


def test_the_farthest_embeddings_are_the_set_of_the_union(
    task: ClusterTask, results: list[EntryResult]
) -> None:
    z = farthest(task, results)
    _, worst = union(SUITE, results)
    assert torch.equal(cluster_measures(z, task)["flip"], worst["flip"])
    assert torch.equal(farthest(task, []), task.z)


# --- suites ------------------------------------------------------------------------------------------------


def test_the_suite_holds_every_attack_and_reports_every_measure(task: ClusterTask) -> None:
    suite = SUITES["clustering"]
    assert [e.label for e in suite.entries] == [
        "A1", "A2", "A3.1", "A3.2", "A3.3", "A4", "A5", "A6", "A7", "A7-label",
    ]  # fmt: skip
    part = task.rows(slice(0, 6))
    for result in run_suite(part, suite, PGD(steps=1, alpha=0.02), THREAT):
        assert set(result.entry.higher_is_robust) == set(result.outcome.attacked) == set(METRICS)
        assert float(THREAT.size(result.outcome.x, part.x).max()) <= THREAT.eps + 1e-6
    assert suite.union == suite.entries[0].higher_is_robust
    for entry in (*suite.entries, *SUITES["clustering-worst"].entries):
        assert entry.higher_is_robust["flip"] is False
        assert all(entry.higher_is_robust[m] for m in METRICS[1:])


def test_only_clusters_can_be_attacked_by_suites_on_clusters(task: ClusterTask) -> None:
    assert task.images is not None
    with pytest.raises(InvalidArgument, match="ClusterTask for suite clustering"):
        run_suite(task.images, SUITE, SEARCH, THREAT)


def test_a_search_of_its_own_and_a_random_start(task: ClusterTask) -> None:
    own = WithSearch(attack=CLUSTER_ATTACKS["A1"], search=APGD(steps=3))
    plain = run(task, CLUSTER_ATTACKS["A1"], APGD(steps=3), THREAT, label="a")
    assert torch.equal(own.run(task, SEARCH, THREAT, label="a").x, plain.x)
    flat = WithSearch(attack=CLUSTER_ATTACKS["A5"], random_start=True)
    start = run(task, CLUSTER_ATTACKS["A5"], replace(SEARCH, random_start=True), THREAT, label="a")
    assert torch.equal(flat.run(task, SEARCH, THREAT, label="a").x, start.x)
    queries = Square(queries=3)
    assert torch.equal(
        flat.run(task, queries, THREAT, label="a").x,
        run(task, CLUSTER_ATTACKS["A5"], queries, THREAT, label="a").x,
    )


def test_hard_labels_are_searched_under_every_ball(task: ClusterTask) -> None:
    hard = WithSearch(attack=CLUSTER_ATTACKS["A7-label"], search=HardLabelQueries(queries=30))
    for threat in (LinfThreat(eps=0.1), L2Threat(eps=0.5)):
        found = hard.run(task, SEARCH, threat)
        assert float(threat.size(found.x, task.x).max()) <= threat.eps + 1e-5
        assert float(found.attacked["flip"].mean()) > 0.1
    with pytest.raises(InvalidArgument, match="queries"):
        HardLabelQueries(queries=0)


def test_a_radius_of_zero_changes_nothing(task: ClusterTask) -> None:
    nothing = run_suite(task, SUITE, SEARCH, LinfThreat(eps=0.0))
    clean, worst = union(SUITE, nothing)
    for metric in METRICS:
        assert torch.allclose(worst[metric], clean[metric], atol=1e-6), metric
    found = WORST.run(task, SEARCH, LinfThreat(eps=0.0))
    assert all(torch.allclose(found.attacked[m], found.clean[m], atol=1e-6) for m in METRICS)
    assert set_scores(farthest(task, nothing), task) == set_scores(task.z, task)


def test_neither_chunks_nor_shards_nor_a_budget_change_a_query(
    task: ClusterTask, results: list[EntryResult], tmp_path: Path
) -> None:
    assert equal(run_suite(task, SUITE, SEARCH, THREAT, chunk=7), results)
    for i in range(2):
        run_suite(task, SUITE, SEARCH, THREAT, chunk=7, folder=tmp_path, share=Share(index=i, count=2))
    assert equal(run_suite(task, SUITE, SEARCH, THREAT, chunk=7, folder=tmp_path), results)
    some = run_suite(task, SUITE, SEARCH, THREAT, chunk=7, share=Share(seconds=1e-9))
    rows = some[0].rows
    assert rows is not None
    assert len(rows) == 7
    assert torch.equal(some[0].outcome.attacked["flip"], results[0].outcome.attacked["flip"][rows])


# --- the worst case ----------------------------------------------------------------------------------------


def test_the_worst_case_is_that_of_retrieval_among_centroids(task: ClusterTask) -> None:
    found = WORST.run(task, SEARCH, THREAT)
    plain = WORST.cases.run(task, SEARCH, THREAT)
    assert torch.equal(found.attacked["flip"], 1 - plain.attacked["recall@1"])
    assert torch.equal(found.attacked["flip"], 1 - hits(found.z, task))
    assert torch.equal(found.attacked["stage"], plain.attacked["stage"])
    clean = found.clean
    assert torch.equal(found.attacked["accuracy"], clean["accuracy"] * (1 - found.attacked["flip"]))
    assert 0 < float(found.attacked["accuracy"].mean()) < float(clean["accuracy"].mean())
    for metric in METRICS[1:]:
        assert bool((found.attacked[metric] <= clean[metric]).all())
    with torch.no_grad():
        assert torch.allclose(task.encoder(found.x), found.z, atol=1e-6)


def test_the_worst_case_is_below_what_its_stages_do_alone(task: ClusterTask) -> None:
    """Of all stages run on all queries the union is the worst case, as the same random numbers are used."""
    found = WORST.run(task, SEARCH, THREAT)
    entries = tuple(
        Entry(
            label=stage.label,
            attack=WithSearch(attack=stage.attack, search=stage.search),
            higher_is_robust=SUITE.union,
        )
        for stage in WORST.cases.stages
    )
    suite = replace(SUITE, entries=entries)
    _, worst = union(suite, run_suite(task, suite, SEARCH, THREAT))
    assert torch.equal(found.attacked["flip"], worst["flip"])
    assert torch.equal(found.attacked["accuracy"], worst["accuracy"])
    alone = run_suite(task, replace(SUITE, entries=SUITE.entries[:1]), SEARCH, THREAT)[0].outcome
    assert bool((found.attacked["flip"] >= alone.attacked["flip"]).all())  # the last stage is the suite's A1


def test_only_survivors_are_attacked_again(task: ClusterTask) -> None:
    seen: list[int] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            z: Tensor = task.encoder(x)
            return z

    one = ClusterWorstCase(cases=WorstCase(stages=WORST.cases.stages[:1])).run(task, SEARCH, THREAT)
    left = int((one.attacked["stage"] == -1).sum())
    assert 0 < left < len(task)
    two = ClusterWorstCase(cases=WorstCase(stages=WORST.cases.stages[:2]))
    two.run(replace(task, encoder=Watch()), SEARCH, THREAT)
    assert seen[-1] == left


def test_the_standard_worst_case() -> None:
    stages = cluster_worst_case().cases.stages
    assert [s.label for s in stages] == [
        *(f"APGD {name}" for name in ("A1", "A2", "A3.1", "A3.2", "A3.3", "A4", "A5", "A6")), "A1", "A7",
    ]  # fmt: skip
    searches = [s.search for s in stages[:8]]
    assert {(s.steps, s.restarts) for s in searches if isinstance(s, APGD)} == {(50, 3)}
    assert [getattr(s, "random_start", None) for s in searches] == [False] * 6 + [True, False]
    assert stages[8].search is None
    assert isinstance(stages[9].search, Square)


# --- scores of sets ----------------------------------------------------------------------------------------


def test_set_scores_are_those_of_the_assignment(task: ClusterTask) -> None:
    found = set_scores(task.z, task)
    truth, given = task.truth, task.cluster_of
    for name, score in {"purity": purity, "nmi": nmi, "ami": ami, "ari": ari}.items():
        e = found[name]
        assert e.value == pytest.approx(score(truth, given))
        assert e.low < e.value < e.high
        assert e.n == N
    for name, (mean, sd) in reclustered(task.z, truth, CLASSES, seeds=(0, 1)).items():
        if name != "majority":
            again = found[f"{name}-t"]
            assert (again.value, again.low, again.high) == pytest.approx((mean, mean - sd, min(mean + sd, 1)))
    assert set(found) == {f"{m}{t}" for m in ("purity", "nmi", "ami", "ari") for t in ("", "-t")} | {
        "accuracy-t"
    }
    assert set_scores(task.z, task, seed=1)["nmi"].value == found["nmi"].value
    assert set_scores(task.z, task, seed=1)["nmi"] != found["nmi"]


def test_embeddings_on_their_centroids_are_perfect_and_swapped_ones_are_found_anew(task: ClusterTask) -> None:
    """All queries of a class on one foreign centroid: assigned wrongly, and yet a cluster for each class."""
    assert task.names is not None
    home = torch.stack([torch.nonzero(task.names.hungarian == c)[0, 0] for c in range(CLASSES)])
    z = task.gallery.z[home[task.truth]]
    for name, e in set_scores(z, task).items():
        assert e.value == pytest.approx(1), name
    swapped = task.gallery.z[home[(task.truth + 1) % CLASSES]]
    assert float(cluster_measures(swapped, task)["accuracy"].sum()) == 0
    found = set_scores(swapped, task)
    assert found["accuracy-t"].value == found["nmi"].value == 1


def test_unlabelled_queries_count_in_no_score(task: ClusterTask) -> None:
    half = replace(task, truth=torch.where(torch.arange(N) < 20, task.truth, -1))
    found, alone = set_scores(task.z, half), set_scores(task.z[:20], task.rows(slice(0, 20)))
    for name in ("purity", "nmi", "ami", "ari"):
        assert found[name] == alone[name]
    assert found["nmi-t"].n == 20
    assert evaluate_clusters(half)["accuracy"].n == evaluate_clusters(half)["recall@1"].n == 20
    assert set_scores(task.z, make(truth=False)) == evaluate_clusters(make(truth=False)) == {}


def test_clean_scores_hold_both_names_and_retrieval(task: ClusterTask) -> None:
    found = evaluate_clusters(task)
    measures = cluster_measures(task.z, task)
    for metric in ("accuracy", "majority", "recall@1", "map@r"):
        assert found[metric].value == pytest.approx(float(measures[metric].mean()), abs=1e-6)
    assert found["nmi"].value == pytest.approx(nmi(task.truth, task.cluster_of))  # not of k-means on queries
    assert "recall@8" in found
    assert "recall@1" not in evaluate_clusters(make(with_images=False))


def test_more_clusters_than_classes(task: ClusterTask) -> None:
    many = make(k=7)
    spread = [e for name, e in set_scores(many.z, many).items() if name.endswith("-t")]
    assert any(e.low < e.value < e.high for e in spread)  # k-means is random
    results = run_suite(many, SUITE, SEARCH, THREAT)
    clean, worst = union(SUITE, results)
    assert torch.equal(worst["accuracy"], clean["accuracy"] * (1 - worst["flip"]))
    assert bool((worst["majority"] >= worst["accuracy"]).any())
    assert set_scores(many.z, many)["purity-t"].value <= 1


# --- records -----------------------------------------------------------------------------------------------


def card(task: ClusterTask, folder: Path | None, suite: Suite = SUITE, **changes: Any) -> Any:
    plan = Plan(suite=suite, search=SEARCH, threat=THREAT, level="off", **changes)
    return measure(task, plan, {"run": "toy"}, {"suite": suite.name}, folder)


def comparable(records: list[Any]) -> list[Any]:
    return [{**r, "time": "", "seconds": 0.0} for r in records]


def test_records_hold_every_attack_the_union_and_the_sets(task: ClusterTask, tmp_path: Path) -> None:
    found = card(task, tmp_path)
    by = {(r["attack"], r["state"], r["metric"]): r for r in found.records}
    sets = set(set_scores(task.z, task))
    for attack in ("A1", "A4", "A5", "A7", "UNION"):
        assert {m for a, s, m in by if (a, s) == (attack, "attacked")} == {*METRICS, *sets}
        assert {m for a, s, m in by if (a, s) == (attack, "clean")} == set(METRICS)
    assert sets | {"accuracy", "majority", "recall@1", "map@r"} <= {m for a, _, m in by if a == "none"}
    _, worst = union(SUITE, found.results)
    for metric in METRICS:
        assert by["UNION", "attacked", metric]["value"] == pytest.approx(
            float(worst[metric].mean()), abs=1e-6
        )
        assert by["UNION", "attacked", metric]["higher_is_robust"] is (metric != "flip")
    z = found.results[0].outcome.z
    assert by["A1", "attacked", "nmi"]["value"] == pytest.approx(set_scores(z, task)["nmi"].value)
    assert record.read(tmp_path / "records.jsonl") == found.records
    plan = Plan(suite=SUITE, search=SEARCH, threat=THREAT, level="off")
    back = read_back(tmp_path, {"suite": SUITE.name}, plan)
    assert back is not None
    assert back.records == found.records


def test_a_lost_chunk_is_made_again_with_the_same_records(task: ClusterTask, tmp_path: Path) -> None:
    whole = card(task, tmp_path, chunk=16).records
    (folder,) = (tmp_path / "evaluations").iterdir()
    lost = sorted(folder.glob("A4-*.npz"))[1]
    stored = read_values(folder)
    lost.unlink()
    (tmp_path / "records.jsonl").unlink()
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("A*.npz")}
    assert comparable(card(task, tmp_path, chunk=16).records) == comparable(whole)
    assert lost.exists()
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    again = read_values(folder)
    assert again.keys() == stored.keys() == {"A1", "A4", "A5", "A7"}
    assert np.array_equal(again["A4"]["attacked"]["flip"], stored["A4"]["attacked"]["flip"])


def test_the_clusters_are_kept(task: ClusterTask, tmp_path: Path) -> None:
    card(task, tmp_path, replace(SUITE, entries=SUITE.entries[:1]))
    (folder,) = (tmp_path / "evaluations").iterdir()
    kept = read_clusters(folder)
    assert task.names is not None
    for name, values in {
        "centroids": task.gallery.z, "cluster_of": task.cluster_of, "truth": task.truth, "z": task.z,
        "hungarian": task.names.hungarian, "majority": task.names.majority, "index": task.index,
    }.items():  # fmt: skip
        assert np.array_equal(kept[name], values.numpy()), name
    write_clusters(tmp_path, make(truth=False))
    assert read_clusters(tmp_path)["hungarian"].tolist() == [-1] * CLASSES
    arrays = read_arrays(tmp_path / "clusters.npz")
    write_arrays(tmp_path / "clusters.npz", {k: v for k, v in arrays.items() if k != "truth"})
    with pytest.raises(CorruptFile, match="truth"):
        read_clusters(tmp_path)
    write_arrays(tmp_path / "clusters.npz", {**arrays, "majority": arrays["majority"][1:]})
    with pytest.raises(CorruptFile, match="majority"):
        read_clusters(tmp_path)


def test_what_each_member_of_an_ensemble_would_say_is_kept(task: ClusterTask, tmp_path: Path) -> None:
    """A joint of two: each member's own centroids are the means of its embeddings of their members."""
    part = SmallCNN(width=2, embedding_dim=3)
    joint = Ensemble(members=(part, part)).build((1, 4, 4), 0)
    made = make(joint)
    card(made, tmp_path, replace(SUITE, entries=SUITE.entries[:1]))
    (folder,) = (tmp_path / "evaluations").iterdir()
    kept = read_arrays(folder / "members.npz")
    assert kept["attacked"].shape == (2, N)
    for m in range(2):
        seen = under_clusters(made, joint.member(m))
        assert np.array_equal(kept["assigned"][m], seen.distance.matrix(seen.z, seen.gallery.z).argmin(1))
    assert not np.array_equal(kept["assigned"], kept["attacked"])
    write_members(tmp_path, task, task.z)
    assert not (tmp_path / "members.npz").exists()  # no ensemble


def test_without_labels_only_flips_are_measured(tmp_path: Path) -> None:
    blind = make(truth=False)
    found = card(blind, tmp_path)
    assert {r["metric"] for r in found.records} == {"flip"}
    assert {r["attack"] for r in found.records} == {"A1", "A4", "A5", "A7", "UNION"}
    labelled = card(make(), None)
    flips = [
        {r["attack"]: r["value"] for r in f.records if (r["metric"], r["state"]) == ("flip", "attacked")}
        for f in (found, labelled)
    ]
    assert flips[0] == flips[1]
    assert measurable(SUITE, make()) is SUITE
    bare = measurable(SUITE, make(with_images=False))
    assert set(bare.union) == {"flip", "accuracy", "majority"}


def test_the_worst_case_suite_is_one_entry_with_sets(task: ClusterTask) -> None:
    entry = replace(SUITES["clustering-worst"].entries[0], attack=WORST)
    found = card(task, None, replace(SUITES["clustering-worst"], entries=(entry,)))
    values = {
        r["metric"]: r["value"] for r in found.records if (r["attack"], r["state"]) == ("WORST", "attacked")
    }
    assert set(values) == {*METRICS, *set_scores(task.z, task)}
    assert values["purity"] == pytest.approx(set_scores(found.results[0].outcome.z, task)["purity"].value)
    assert not any(r["attack"] == "UNION" for r in found.records)


def test_a_budget_covers_a_sample_and_its_records_say_so(task: ClusterTask) -> None:
    found = card(task, None, share=Share(seconds=1e-9), chunk=16)
    assert {r["n"] for r in found.records} == {16}


# --- transfer ----------------------------------------------------------------------------------------------


def test_transfer_is_crafted_on_others_and_measured_on_the_task(task: ClusterTask) -> None:
    """On a copy of the encoder it is A1 itself; of two surrogates each query gets the worse."""
    same = Surrogate(name="copy", encoder=Net(), centroids=task.gallery.z)
    other = with_transfer(SUITE, task, {"other": Net(seed=5)}).entries[-1].attack.surrogates[0]
    a1 = run(task, CLUSTER_ATTACKS["A1"], SEARCH, THREAT, label="A8 copy")
    copied = TransferredClusters(surrogates=(same,)).run(task, SEARCH, THREAT, label="A8")
    for metric in METRICS:
        assert torch.equal(copied.attacked[metric], a1.attacked[metric])
    moved = TransferredClusters(surrogates=(other,)).run(task, SEARCH, THREAT, label="A8")
    assert float(moved.attacked["flip"].mean()) < float(copied.attacked["flip"].mean())
    both = TransferredClusters(surrogates=(other, same)).run(task, SEARCH, THREAT, label="A8")
    assert torch.equal(both.attacked["flip"], torch.maximum(copied.attacked["flip"], moved.attacked["flip"]))
    assert torch.equal(both.attacked["flip from other"], moved.attacked["flip"])
    assert torch.equal(both.attacked["flip from copy"], copied.attacked["flip"])
    worse = torch.minimum(copied.attacked["map@r"], moved.attacked["map@r"])
    assert torch.equal(both.attacked["map@r"], worse)
    assert torch.equal(both.attacked["flip"], 1 - hits(both.z, task))
    with torch.no_grad():
        assert torch.allclose(task.encoder(both.x), both.z, atol=1e-6)
    assert float(THREAT.size(both.x, task.x).max()) <= THREAT.eps + 1e-6
    assert both.clean.keys() == both.attacked.keys()


def test_the_own_space_of_a_surrogate_is_used(task: ClusterTask) -> None:
    """A surrogate of another width, and a rotated copy, whose attack is that of the copy."""
    turn = torch.linalg.qr(torch.randn(6, 6, generator=stream(0))).Q
    turned = with_transfer(
        SUITE, task, {"copy": lambda x: task.encoder(x) @ turn, "wide": Net(3, 9)}
    ).entries[-1]
    found = turned.attack.run(task, SEARCH, THREAT, label="A8")
    a1 = run(task, CLUSTER_ATTACKS["A1"], SEARCH, THREAT, label="A8 copy")
    assert float((found.attacked["flip from copy"] - a1.attacked["flip"]).abs().mean()) < 0.05
    assert turned.higher_is_robust["flip from wide"] is False
    assert turned.higher_is_robust["accuracy"] is True


def test_transfer_joins_a_suite_and_a_worst_case(task: ClusterTask) -> None:
    others = {"other": Net(seed=5)}
    assert with_transfer(SUITE, task, {}) is SUITE
    entry = replace(SUITES["clustering-worst"].entries[0], attack=WORST)
    staged = with_transfer(replace(SUITES["clustering-worst"], entries=(entry,)), task, others)
    assert [s.label for s in staged.entries[0].attack.cases.stages][-1] == "A8"
    with_it = staged.entries[0].attack.run(task, SEARCH, THREAT)
    without = WORST.run(task, SEARCH, THREAT)
    assert bool((with_it.attacked["flip"] >= without.attacked["flip"]).all())
    found = card(task, None, with_transfer(replace(SUITE, entries=SUITE.entries[:1]), task, others))
    assert "flip from other" in {r["metric"] for r in found.records if r["attack"] == "A8"}
    with pytest.raises(InvalidArgument, match="references"):
        with_transfer(SUITE, replace(task, references=None, member_of=None), others)


def test_members_of_an_ensemble_are_surrogates() -> None:
    part = SmallCNN(width=2, embedding_dim=3)
    three, two = (Ensemble(members=(part,) * m).build((1, 8, 8), 0) for m in (3, 2))
    twin = Net()
    names = list(other_encoders(three, twin, {"older": Net(1)}))
    assert names == ["twin", "older", *(f"{w}member {m}" for w in ("", "without ") for m in (1, 2, 3))]
    assert list(other_encoders(two)) == ["member 1", "member 2"]
    assert other_encoders(Net()) == other_encoders(None) == {}
    x = torch.rand(2, 1, 8, 8, generator=stream(0))
    without = other_encoders(three)["without member 2"](x)
    z = three.split(three(x))
    assert torch.allclose(without, torch.cat([z[0], z[2]], 1) / math.sqrt(2), atol=1e-6)


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_surrogates_need_names_of_their_own(names: tuple[str, ...], task: ClusterTask) -> None:
    with pytest.raises(InvalidArgument, match="surrogates"):
        TransferredClusters(
            surrogates=tuple(Surrogate(name=n, encoder=Net(), centroids=task.gallery.z) for n in names)
        )


def test_surrogates_need_a_centroid_for_each_cluster(task: ClusterTask) -> None:
    short = Surrogate(name="short", encoder=Net(), centroids=task.gallery.z[1:])
    with pytest.raises(InvalidArgument, match="4 centroids for short"):
        TransferredClusters(surrogates=(short,)).run(task, SEARCH, THREAT)


def test_the_digest_tells_weights_apart() -> None:
    assert digest(Net(0)) == digest(Net(0)) != digest(Net(1))
    assert digest(torch.relu) != digest(torch.tanh)


# --- poisoned references -----------------------------------------------------------------------------------


def test_poisoned_references_are_a_suite(task: ClusterTask) -> None:
    _, labels = images(80, seed=1)
    threat = LinfThreat(eps=0.5)
    made = poisoning(SUITES["poisoning"], task, SEARCH, threat, share=0.5, reference_labels=labels)
    assert [e.label for e in made.entries] == ["G1", "G1-noise"]
    whole, parts = (run_suite(task, made, SEARCH, threat, chunk=chunk) for chunk in (N, 7))
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a.outcome.attacked["flip"], b.outcome.attacked["flip"])
        assert torch.equal(a.outcome.z, task.z)
        assert a.outcome.clean.keys() == a.outcome.attacked.keys() == {"flip", "accuracy"}
    flips = [float(r.outcome.attacked["flip"].mean()) for r in whole]
    assert flips[0] > flips[1]
    found = card(task, None, made)
    assert {r["metric"] for r in found.records if r["attack"] == "G1"} == {"flip", "accuracy"}  # no sets
    nothing = poisoning(SUITES["poisoning"], task, SEARCH, threat, share=0.0, reference_labels=labels)
    for entry in nothing.entries:
        assert torch.equal(entry.attack.attacked["flip"], entry.attack.clean["flip"])
    with pytest.raises(InvalidArgument, match="share"):
        poisoning(SUITES["poisoning"], task, SEARCH, threat, share=1.5)
