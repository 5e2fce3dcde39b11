"""The checks of the verdict on clusters, clusters seen by other encoders, and the smallest change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks import CLUSTER_ATTACKS, RankMargin
from holdfast.certify import Certificate
from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.errors import DataError, InvalidArgument
from holdfast.evaluation import SUITES, run_suite
from holdfast.evaluation.embed import cluster_means, embed, seen_by, under_clusters
from holdfast.evaluation.minimum import minimum_norm
from holdfast.evaluation.smallest import SmallestChange, robustness_curve
from holdfast.evaluation.verdict import (
    CHECKS,
    CONTROLS,
    Examination,
    ExtremeTemperature,
    GradientKiller,
    InputQuantiser,
    RandomInput,
    Unavailable,
    Verdict,
    conduct,
    repair,
    selftest,
)
from holdfast.functional.clustering import kmeans, name_clusters
from holdfast.functional.distance import Cosine, SquaredEuclidean
from holdfast.rng import stream
from holdfast.search import PGD
from holdfast.threat import L2Threat, LinfThreat
from holdfast.types import ClusterNames, ClusterTask, Gallery

BEST = PGD(steps=10, alpha=0.05, keep="best")


class Pixels(nn.Module):
    """Two pixels are the embedding: every best attack is known."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def images(points: Any) -> Tensor:
    """Points of the plane as images of two pixels, one above the other."""
    return torch.as_tensor(points, dtype=torch.float32)[:, None, :, None]


def clusters(
    encoder: Any,
    x: Tensor,
    references: Tensor,
    centroids: Tensor,
    *,
    truth: Tensor | None = None,
    names: Tensor | None = None,
    spherical: bool = False,
) -> ClusterTask:
    """Queries among given centroids; references belong to the nearest."""
    distance = Cosine() if spherical else SquaredEuclidean()
    z = embed(encoder, x)
    own = distance.matrix(z, centroids).argmin(1)
    k = torch.arange(len(centroids))
    return ClusterTask(
        encoder=encoder, x=x, y=own, z=z, gallery=Gallery(centroids, k, k), cluster_of=own,
        self_index=torch.full((len(x),), -1), index=torch.arange(len(x)), distance=distance,
        truth=torch.full((len(x),), -1) if truth is None else truth,
        names=None if names is None else ClusterNames(names, names), references=references,
        member_of=distance.matrix(embed(encoder, references), centroids).argmin(1), spherical=spherical,
    )  # fmt: skip


REFERENCES = images([[0.05, 0.4], [0.1, 0.5], [0.15, 0.6], [0.85, 0.4], [0.9, 0.5], [0.95, 0.6]])
CENTROIDS = torch.tensor([[0.1, 0.5], [0.9, 0.5]])


def task(encoder: Any = None, n: int = 24, **more: Any) -> ClusterTask:
    """Two clusters with their border at 0.5; all queries leave them where the first pixel moves by 0.2."""
    side = torch.arange(n) % 2
    x = images(torch.stack([torch.where(side == 0, 0.3, 0.7), torch.full((n,), 0.5)], 1))
    return clusters(encoder or Pixels(), x, REFERENCES, CENTROIDS, truth=side, **more)


def examination(encoder: Any = None, *, n: int = 24, eps: float = 0.25, **more: Any) -> Examination:
    fields: dict[str, Any] = {"task": task(encoder, n), "search": BEST, "threat": LinfThreat(eps=eps)}
    return Examination(**{**fields, **more})


def status(name: str, e: Examination) -> str:
    finding = CHECKS[name].run(e)
    assert finding.id == name
    assert finding.detail
    return finding.status


# --- clusters seen by another encoder -------------------------------------------------------------------


def test_means_by_hand() -> None:
    z, of = torch.tensor([[0.0, 0.0], [2.0, 4.0], [3.0, 4.0]]), torch.tensor([1, 1, 0])
    assert cluster_means(z, of, 2).tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert cluster_means(z, of, 2, spherical=True)[0].tolist() == pytest.approx([0.6, 0.8])
    with pytest.raises(DataError, match=r"none in \[2\]"):
        cluster_means(z, of, 3)
    with pytest.raises(DataError, match="0 to 0"):
        cluster_means(z, of, 1)
    with pytest.raises(DataError, match="3 references"):
        cluster_means(z, of[:2], 2)


def test_another_encoder_sees_the_same_clusters_in_its_own_space() -> None:
    made = task()
    assert torch.allclose(seen_by(made, made.encoder), CENTROIDS, atol=1e-6)
    weight = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    other = lambda x: x.flatten(1) @ weight.T  # noqa: E731
    assert torch.allclose(seen_by(made, other), CENTROIDS @ weight.T, atol=1e-6)
    seen = under_clusters(made, other)
    assert torch.equal(seen.z, other(made.x))
    assert torch.equal(seen.cluster_of, made.cluster_of)
    assert torch.equal(seen.gallery.z, seen_by(made, other))
    assert seen.encoder is other
    assert seen.images is None
    given = under_clusters(made, other, centroids=torch.zeros(2, 3))
    assert torch.equal(given.gallery.z, torch.zeros(2, 3))
    with pytest.raises(InvalidArgument, match="references"):
        seen_by(replace(made, references=None, member_of=None), other)


def test_spherical_clusters_stay_of_length_1() -> None:
    unit = nn.functional.normalize(CENTROIDS)
    made = clusters(Pixels(), task().x, REFERENCES, unit, spherical=True)
    assert torch.allclose(seen_by(made, made.encoder).norm(dim=1), torch.ones(2))


def test_an_examination_shows_clusters_to_an_encoder_once() -> None:
    calls = []

    def other(x: Tensor) -> Tensor:
        calls.append(len(x))
        return 2 * x.flatten(1)

    e = examination(n=4)
    for _ in range(2):
        part = e.under(other, e.part)
    assert calls == [6, 4, 4]  # references once, the queries of the part each time
    assert torch.allclose(part.gallery.z, 2 * CENTROIDS)
    with pytest.raises(Unavailable, match="centroids"):
        _ = e.gallery_images


def test_chance_is_the_share_of_a_random_assignment_of_the_same_sizes() -> None:
    assert examination().chance == pytest.approx(0.5)
    x = images([[0.3, 0.5]] * 9 + [[0.7, 0.5]])
    uneven = clusters(Pixels(), x, REFERENCES, CENTROIDS)
    assert examination(task=uneven).chance == pytest.approx(0.81 + 0.01)


# --- single checks --------------------------------------------------------------------------------------


def test_r15_gets_the_cluster_of_the_reference() -> None:
    assert status("R15", examination()) == "pass"
    made = task()
    flipped = replace(made, gallery=Gallery(made.gallery.z.flip(0), made.gallery.y, made.gallery.ids))
    assert status("R15", examination(task=replace(flipped, y=1 - made.y, cluster_of=1 - made.y))) == "fail"
    half = replace(made, encoder=lambda x: 0.1 * x.flatten(1))  # not what the centroids were fitted on
    assert status("R15", examination(task=half)) == "fail"
    for change in ({"references": None}, {"member_of": torch.zeros(6, dtype=torch.int64)}):
        with pytest.raises(Unavailable, match="reference"):
            status("R15", examination(task=replace(made, **change)))


def test_r15_of_class_means_asks_references_that_are_clear() -> None:
    """A reference of class 0 lies in the cell of class 1, which is no fault of the evaluation."""
    made = task()
    x = torch.cat([REFERENCES, images([[0.8, 0.5]])])
    of = torch.tensor([0, 0, 0, 1, 1, 1, 0])
    z = cluster_means(x.flatten(1), of, 2)
    prototypes = replace(made, references=x, member_of=of, gallery=made.gallery._replace(z=z))
    for seed in range(5):
        assert status("R15", examination(task=prototypes, seed=seed)) == "pass"


def test_r14_reaches_every_query() -> None:
    assert status("R14", examination(eps=0.1)) == "pass"
    assert status("R14", examination(GradientKiller(Pixels()), eps=0.1)) == "fail"


def test_r18_hears_the_number_of_the_cluster_alone() -> None:
    assert status("R18", examination(n=4, eps=0.15)) == "pass"
    masked = examination(GradientKiller(Pixels()), n=8)
    assert status("R18", masked) == "fail"
    assert masked.found["label"].all()


def test_r19_and_r21_transfer_through_references() -> None:
    twin = {"twin": Pixels()}
    assert status("R19", examination(**twin)) == "pass"
    assert status("R21", examination(**twin)) == "pass"
    masked = examination(GradientKiller(Pixels()), **twin)
    assert status("R19", masked) == "fail"
    assert masked.found["transfer twin"].all()
    assert status("R21", examination(eps=0.15, **twin)) == "fail"
    blind = examination(task=replace(task(), references=None, member_of=None), **twin)
    for name in ("R19", "R21"):
        with pytest.raises(Unavailable, match="references"):
            status(name, blind)


class Both(nn.Module):
    """An ensemble of two, of which the first hides its gradient."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def __len__(self) -> int:
        return len(self.members)

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        return tuple((z * len(self) ** 0.5).tensor_split(len(self), 1))

    def member(self, m: int) -> nn.Module:
        return self.members[m]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([member(x) for member in self.members], 1) / len(self) ** 0.5


def test_r28_and_r19_find_the_members_of_an_ensemble() -> None:
    twice = torch.cat([CENTROIDS, CENTROIDS], 1) / 2**0.5

    def joint(*members: nn.Module) -> Examination:
        return examination(task=clusters(Both(*members), task().x, REFERENCES, twice))

    e = joint(Pixels(), Pixels())
    assert len(e.parts) == 2
    assert status("R28", e) == status("R19", e) == "pass"
    assert {"ensemble member 1", "ensemble member 2", "ensemble sum", "transfer member 2"} <= set(e.found)
    assert e.found["ensemble sum"].all()
    masked = joint(GradientKiller(Pixels()), GradientKiller(Pixels()))
    assert status("R28", replace(masked, members=(Pixels(), Pixels()))) == "fail"
    assert status("R28", examination()) == "skipped"
    alone = clusters(Both(Pixels()), task().x, REFERENCES, CENTROIDS)
    assert examination().parts == examination(task=alone).parts == ()


def test_r20_and_r35_take_the_objectives_of_clusters() -> None:
    e = examination(level="full")
    assert status("R20", e) == "pass"
    assert {f"objective {name}" for name in ("A2", "A3.1", "A4", "A5", "A6")} <= set(e.found)
    assert status("R35", e) == "pass"
    assert status("R20", examination()) == status("R35", examination()) == "skipped"
    made = task()
    suite = run_suite(made, SUITES["clustering"], BEST, LinfThreat(eps=0.25))
    with_suite = examination(results=suite)
    assert status("R20", with_suite) == status("R35", with_suite) == status("R25", with_suite) == "pass"


def test_the_score_of_clusters_is_the_worst_case_over_the_suite() -> None:
    made, weak = task(), PGD(steps=1, alpha=0.0)
    results = run_suite(made, SUITES["clustering"], BEST, LinfThreat(eps=0.25))
    z = made.z.clone()
    z[:12] = 1 - z[:12]  # half of the queries flip under one attack, the others under another
    a, b = (results[i]._replace(outcome=replace(results[i].outcome, z=h)) for i, h in enumerate((z, 1 - z)))
    both, one, none = (examination(results=r, search=weak, twin=Pixels()) for r in ([a, b], [a], []))
    assert both.scored.all()
    assert torch.equal(one.scored, torch.arange(24) < 12)
    assert not none.scored.any()
    assert status("R20", both) == status("R16", both) == status("R8", both) == "pass"
    assert status("R8", one) == status("R16", one) == "fail"  # one step of length eps breaks the others
    assert CHECKS["R16"].run(one).value == 0.5


def test_r24_judges_the_names_of_clusters() -> None:
    noise = torch.randn(60, 16, generator=stream(0, "z"))
    y = torch.arange(60) % 6
    z = nn.functional.one_hot(y, 16) * 4 + 0.5 * noise

    def made(truth: Tensor, names: Tensor | None) -> Examination:
        base = clusters(nn.Flatten(), z[:, None, None], z[:, None, None], z[:6], truth=truth, names=names)
        return examination(task=base)

    numbers = torch.arange(6)
    assert status("R24", made(y, numbers)) == "pass"
    assert status("R24", made(y, numbers.roll(1))) == "fail"  # every query has a wrong name
    assert status("R24", made(y, None)) == status("R24", made(torch.full_like(y, -1), numbers)) == "pass"
    some = torch.where(torch.arange(60) < 30, y, -1)
    found = CHECKS["R24"].run(made(some, numbers))
    assert "accuracy 100 % (chance 16.7 %)" in found.detail
    assert "no classes to compare" in CHECKS["R24"].run(made(y, None)).detail
    near = nn.functional.one_hot(torch.zeros_like(y), 16) * 100 + z
    x = near[:, None, None]
    assert status("R24", examination(task=clusters(nn.Flatten(), x, x, near[:6]))) == "fail"


def test_r26_and_r27_hold_certificates_of_clusters_to_account() -> None:
    right = torch.ones(24, dtype=torch.bool)
    sound = Certificate(radius=torch.full((24,), 0.1999), correct=right)
    bold = Certificate(radius=torch.full((24,), 0.21), correct=right)
    assert status("R26", examination(certificate=sound)) == status("R27", examination(certificate=sound))
    assert status("R26", examination(certificate=sound)) == "pass"
    assert status("R26", examination(certificate=bold, search=PGD(steps=10, alpha=0.1))) == "fail"
    assert status("R27", examination(certificate=replace(bold, radius=9 * bold.radius))) == "fail"


def test_r29_takes_an_index_of_centroids() -> None:
    def exact(z: Tensor, k: int) -> Tensor:
        return torch.cdist(z, CENTROIDS).topk(k, largest=False).indices

    def stale(z: Tensor, k: int) -> Tensor:
        return exact(task().z, k)

    assert status("R29", examination(index=exact)) == "pass"
    assert status("R29", examination(index=stale)) == "fail"


def test_r36_compares_queries_with_references_and_true_classes() -> None:
    x = torch.rand(30, 1, 8, 8, generator=stream(0, "images"))
    other = torch.rand(40, 1, 8, 8, generator=stream(1, "images"))
    centroids = other[:2].flatten(1)
    truth = torch.arange(30) % 3 + 5
    made = clusters(Pixels(), x, other, centroids, truth=truth)
    assert status("R36", examination(task=made)) == "pass"
    twice = clusters(Pixels(), x, torch.cat([other, x[7:8] + 1 / 255]), centroids)
    assert status("R36", examination(task=twice)) == "fail"
    itself = clusters(Pixels(), x, x, centroids)
    assert status("R36", examination(task=itself)) == "pass"
    assert status("R36", examination(task=itself, train_x=x)) == "fail"
    assert status("R36", examination(task=made, train_y=torch.tensor([0, 1, 4]))) == "pass"
    assert status("R36", examination(task=made, train_y=torch.tensor([0, 7]))) == "fail"
    none = examination(task=replace(made, references=None, member_of=None))
    assert status("R36", none) == "skipped"


def test_words_are_about_clusters() -> None:
    about = {name: CHECKS[name].run(examination(n=30)).detail for name in ("R2", "R15", "R24", "R32")}
    assert "have left their cluster" in about["R2"]
    assert "reference of another one" in about["R15"]
    assert "share in its own cluster" in about["R32"]
    assert not any("recall@1" in words for words in about.values())


# --- the verdict on whole encoders ----------------------------------------------------------------------

NEAR = LinfThreat(eps=77 / 255)
STEPS = PGD(steps=24, alpha=0.05, keep="best")


@pytest.fixture(scope="module")
def digits() -> ClusterTask:
    """A small undefended encoder of 8x8 digits, k-means on 600 training images, 150 queries."""
    split = Digits().load()
    x, y = split.train.x[:600], split.train.y[:600]
    encoder = SmallCNN(width=8, embedding_dim=16).build((1, 8, 8), seed=0)
    head = nn.Linear(16, 10)
    torch.manual_seed(0)
    with torch.no_grad():
        head.weight.normal_(generator=stream(0, "head"))
    optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=5e-3)
    for step in range(60):
        rows = torch.randint(len(x), (64,), generator=stream(step, "batch"))
        loss = nn.functional.cross_entropy(8 * head(encoder(x[rows])), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    encoder.eval()
    z = embed(encoder, x)
    found = kmeans(z, 10, n_init=3)
    names = name_clusters(y, found.cluster_of, 10).hungarian
    return clusters(encoder, split.test.x[:150], x, found.centroids, truth=split.test.y[:150], names=names)


def judged(made: ClusterTask, **more: Any) -> tuple[Verdict, Examination]:
    e = Examination(task=made, search=STEPS, threat=NEAR, **more)
    return conduct(e), e


def test_an_undefended_encoder_is_fragile_and_its_verdict_is_no_accusation(digits: ClusterTask) -> None:
    suite = SUITES["clustering"]
    few = replace(suite, entries=tuple(e for e in suite.entries if e.label in ("A1", "A3.1", "A5")))
    verdict, e = judged(digits, results=run_suite(digits, few, STEPS, NEAR))
    assert float(e.primary.success.float().mean()) > 0.97
    assert verdict.word in ("TRUSTWORTHY", "UNDERPOWERED"), verdict.fixes
    assert verdict["R22"].status == verdict["R14"].status == verdict["R15"].status == "pass"
    assert verdict["R24"].status in ("pass", "warn")
    assert not [f for f in verdict.findings if "recall@1" in f.detail]


CAUGHT: dict[str, tuple[Any, set[str]]] = {
    "gradient killer": (GradientKiller, {"R4", "R14", "R16"}),
    "input quantiser": (InputQuantiser, {"R4", "R14"}),
    "extreme temperature": (ExtremeTemperature, {"R4", "R5", "R14"}),
    "random input": (RandomInput, {"R1"}),
    "collapsed": (CONTROLS["collapsed"], {"R24"}),
}


def test_r22_says_so_when_a_control_is_not_caught(
    digits: ClusterTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = Examination(task=digits, search=STEPS, threat=NEAR)
    monkeypatch.setattr(selftest, "CONTROLS", {"not broken": lambda encoder: encoder})
    assert status("R22", e) == "fail"


def test_the_self_test_leaves_empty_clusters_out(digits: ClusterTask) -> None:
    few = digits.rows(torch.nonzero(torch.isin(digits.cluster_of, torch.tensor([2, 7]))).squeeze(1))
    among = selftest.clusters_among(few)
    assert torch.equal(among.cluster_of, (few.cluster_of == 7).long())
    assert torch.equal(among.gallery.z, digits.gallery.z[[2, 7]])
    assert seen_by(among, digits.encoder).shape == (2, 16)


@pytest.mark.parametrize("name", CAUGHT)
def test_what_is_broken_on_purpose_fails(name: str, digits: ClusterTask) -> None:
    """With clusters of its own, fitted on what the broken encoder makes of the references."""
    make, wanted = CAUGHT[name]
    broken = make(digits.encoder)
    z = embed(broken, digits.references)  # type: ignore[arg-type]
    found = kmeans(z, 10)
    made = clusters(broken, digits.x[:60], digits.references, found.centroids)  # type: ignore[arg-type]
    e = Examination(task=made, search=STEPS, threat=NEAR, queries=32)
    failed = {name for name in wanted if _runs(name, e) == "fail"}
    assert failed, {name: _runs(name, e) for name in wanted}


def _runs(name: str, e: Examination) -> str:
    try:
        return CHECKS[name].run(e).status
    except Unavailable:
        return "skipped"


def test_without_references_checks_that_need_images_say_so(digits: ClusterTask) -> None:
    blind = replace(digits, references=None, member_of=None, images=None).rows(slice(0, 32))
    verdict, _ = judged(blind, twin=digits.encoder)
    assert verdict["R15"].status == verdict["R21"].status == verdict["R36"].status == "skipped"
    assert "references" in verdict["R15"].detail
    assert "references" in verdict["R21"].detail
    assert verdict["R22"].status == "pass"  # stands on the queries themselves


def test_a_repair_takes_square_where_gradients_are_dead(digits: ClusterTask) -> None:
    masked = replace(digits, encoder=GradientKiller(digits.encoder)).rows(slice(0, 16))
    e = Examination(task=masked, search=STEPS, threat=NEAR, queries=8)
    first = Verdict.of([CHECKS["R4"].run(e)])
    mended = repair(e, first)
    assert "Square" in mended.applied["R4"]
    assert float(mended.success.float().mean()) > 0.9


def test_a_repair_of_a_random_encoder_sees_clusters_by_its_mean(digits: ClusterTask) -> None:
    noisy = RandomInput(digits.encoder, noise=0.02, shrink=1.0)
    some = replace(digits.rows(slice(0, 8)), references=digits.x[:100], member_of=digits.cluster_of[:100])
    made = under_clusters(some, noisy)
    e = Examination(task=made, search=PGD(steps=1, alpha=0.1), threat=NEAR, queries=4)
    mended = repair(e, Verdict.of([CHECKS["R1"].run(e)]))
    assert "means of 20 passes" in mended.applied["R1"]
    assert len(mended.rows) == 4


# --- the smallest change --------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "dual"), [(LinfThreat, 1), (L2Threat, 2)])
def test_the_closed_form_of_a_linear_encoder_with_two_centroids(make: Any, dual: int) -> None:
    """|margin| / |w|_1 for l-inf and |margin| / |w|_2 for l2, with w the way from centroid to centroid."""
    g = stream(0, "linear clusters")
    weight = torch.randn(3, 12, generator=g, dtype=torch.float64)
    centroids = 3 * torch.randn(2, 3, generator=g, dtype=torch.float64)
    x = torch.randn(30, 3, 2, 2, generator=g, dtype=torch.float64)
    made = clusters(lambda x: x.flatten(1) @ weight.T, x, x, centroids)
    apart = centroids[1] - centroids[0]
    margin = (made.z - centroids.mean(0)) @ apart  # > 0 where centroid 1 is nearer
    assert torch.equal(made.cluster_of, (margin > 0).long())
    closed = margin.abs() / (weight.T @ apart).norm(p=dual)
    for attack, metric in ((None, "recall@1"), (CLUSTER_ATTACKS["A1"], "flip")):
        found = minimum_norm(made, attack, make(eps=20.0, bounds=None), metric=metric)  # type: ignore[arg-type]
        ratio = found.radius / closed
        assert float(ratio.min()) >= 1 - 1e-6
        assert float(ratio.max()) <= 1.02
        z = made.encoder(found.x)
        assert bool((made.distance.matrix(z, centroids).argmin(1) != made.cluster_of).all())


def test_a_flip_that_happened_counts_as_a_radius_of_0() -> None:
    made = task(n=6)
    left = replace(made, z=1 - made.z)
    assert bool((minimum_norm(left, None, LinfThreat(eps=0.3)).radius == 0).all())
    a1: Any = CLUSTER_ATTACKS["A1"]
    assert bool((minimum_norm(left, a1, LinfThreat(eps=0.3), metric="flip").radius == 0).all())


def test_the_smallest_change_as_an_entry_of_a_suite() -> None:
    outcome = SmallestChange(steps=20).run(task(n=6), BEST, LinfThreat(eps=0.3))
    assert torch.equal(outcome.clean["flip"], torch.zeros(6))
    assert torch.equal(outcome.attacked["flip"], torch.ones(6))
    assert torch.allclose(outcome.attacked["radius"], torch.full((6,), 0.2, dtype=torch.float64), atol=2e-3)
    points, median = robustness_curve(outcome, 0.3)
    assert [point.recall.value for point in points] == [1.0] * 6 + [0.0] * 4
    assert float(median.value) == pytest.approx(0.2, abs=2e-3)


def test_a_margin_is_a_flip() -> None:
    made = task()
    z = torch.linspace(0, 1, 24)[:, None] * torch.tensor([[1.0, 0.0]]) + torch.tensor([[0.0, 0.5]])
    gain = RankMargin().gain(z, None, made)
    flips = CLUSTER_ATTACKS["A1"].measure(z, None, made)["flip"]
    assert torch.equal(flips > 0, gain >= 0)
