"""No attack flips a query inside a certified radius, and the radii are those of geometry."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.attacks import CLUSTER_ATTACKS, hits, run
from holdfast.certify import SmoothedEncoder, Smoothing, certify_clusters, lipschitz_constant
from holdfast.certify.lipschitz import embed_as, is_proven, rounding_error
from holdfast.config import replace as changed
from holdfast.data import Digits
from holdfast.encoders import Ensemble, LipschitzEncoder, SmallCNN
from holdfast.errors import InvalidArgument, UnknownName
from holdfast.evaluation.minimum import minimum_norm
from holdfast.evaluation.query_certificates import by_class, certify_queries, certify_task, proves
from holdfast.evaluation.verdict import CHECKS, Examination, falsify
from holdfast.functional.clustering import kmeans, name_clusters, spherical_kmeans
from holdfast.functional.distance import Cosine, Mahalanobis, SquaredEuclidean
from holdfast.recipes import recipe
from holdfast.rng import stream
from holdfast.search import APGD, PGD
from holdfast.threat import L2Threat, RowBall
from holdfast.training import train
from holdfast.types import ClusterNames, ClusterTask, Gallery

pytestmark = pytest.mark.property
ROWS = 60


def clusters(
    encoder: Any, x: Tensor, y: Tensor, references: Tensor, of: Tensor, k: int = 8, spherical: bool = False
) -> ClusterTask:
    """Queries among k-means clusters of the references, with both kinds of names."""
    with torch.no_grad():
        z, rows = encoder(x), encoder(references)
    found = (spherical_kmeans if spherical else kmeans)(rows, k, n_init=2)
    distance = Cosine() if spherical else SquaredEuclidean()
    own, numbers = distance.matrix(z, found.centroids).argmin(1), torch.arange(k)
    return ClusterTask(
        encoder=encoder, x=x, y=own, z=z, gallery=Gallery(found.centroids, numbers, numbers), cluster_of=own,
        self_index=torch.full((len(x),), -1), index=torch.arange(len(x)), distance=distance, truth=y,
        names=name_clusters(of, found.cluster_of, k), references=references, member_of=found.cluster_of,
        spherical=spherical,
    )  # fmt: skip


@pytest.fixture(scope="module")
def split() -> Any:
    return Digits(train_images=200).load()


@pytest.fixture(scope="module")
def single(split: Any) -> Any:
    """A small 1-Lipschitz encoder after two epochs of the recipe, in float64."""
    encoder = LipschitzEncoder(width=8, depth=1, units=32, embedding_dim=32)
    made = changed(changed(recipe("lipschitz"), "encoder", encoder), "data.train_images", 200)
    return copy.deepcopy(train(changed(made, "epochs", 2), split).encoder).double().eval()


@pytest.fixture(scope="module")
def joint() -> Any:
    """Fresh 1-Lipschitz members of different widths, side by side, in float64."""
    members = tuple(LipschitzEncoder(width=8, units=32, embedding_dim=e) for e in (32, 16))
    return Ensemble(members=members).build((1, 8, 8), seed=0).double().eval()


@pytest.fixture(scope="module", params=["single", "spherical", "joint"])
def task(request: pytest.FixtureRequest, split: Any, single: Any, joint: Any) -> ClusterTask:
    encoder = joint if request.param == "joint" else single
    x, of = split.train.x.double(), split.train.y
    queries = split.test.x[:ROWS].double()
    return clusters(encoder, queries, split.test.y[:ROWS], x, of, 8, spherical=request.param == "spherical")


def kept(made: ClusterTask, name: str, radius: Tensor, share: float, search: Any) -> Tensor:
    """Return whether queries hold under an attack at a share of every radius, (n,) bool."""
    balls = RowBall(threat=L2Threat(eps=1.0, bounds=None), radii=share * radius)
    outcome = run(made, CLUSTER_ATTACKS[name], search, balls, batch_size=len(made))
    moved = (outcome.x - made.x).flatten(1).norm(dim=1)
    assert bool((moved <= share * radius * (1 + 1e-9)).all())
    return hits(outcome.z, made) > 0


@pytest.mark.parametrize("name", ["A1", "A2", "A4"])
def test_no_attack_flips_a_query_inside_its_radius(name: str, task: ClusterTask) -> None:
    found = certify_task(task)
    assert bool(found.correct.all())
    assert float((found.radius > 0.05).double().mean()) > 0.5
    safe = kept(task, name, found.radius, 1 - 1e-9, APGD(steps=30, restarts=2))
    assert bool(safe[found.radius > 0].all())


def test_the_same_attack_flips_queries_outside(task: ClusterTask) -> None:
    found = certify_task(task)
    safe = kept(task, "A1", found.radius, 4.0, APGD(steps=30))
    assert float(safe[found.radius > 0].double().mean()) < 0.6


def test_names_that_are_one_to_one_make_accuracy_of_flips(task: ClusterTask) -> None:
    """Certified accuracy is "named rightly, and certified to stay"; majority names can only hold longer."""
    assert task.names is not None
    own, named, most = (certify_task(t) for t in (task, by_class(task), by_class(task, "majority")))
    right = task.names.hungarian[task.cluster_of] == task.truth
    assert 10 < int(right.sum()) < ROWS
    assert torch.equal(named.correct, right)
    assert torch.equal(named.radius, torch.where(right, own.radius, 0.0))
    assert bool((most.radius >= named.radius).all())
    assert torch.equal(hits(task.z, by_class(task)) > 0, right)
    safe = kept(by_class(task, "majority"), "A1", most.radius, 1 - 1e-9, APGD(steps=30))
    assert bool(safe[most.radius > 0].all())


def test_two_clusters_of_one_name_are_one_place(single: Any, split: Any) -> None:
    """The border between them falls away: radii grow where it was the nearest."""
    x, y = split.test.x[:ROWS].double(), torch.zeros(ROWS, dtype=torch.int64)
    made = clusters(single, x, y, split.train.x.double(), split.train.y, 4)
    names = ClusterNames(torch.tensor([0, 1, -1, -1]), torch.tensor([0, 0, 0, 1]))
    made = replace(made, names=names)
    narrow, wide = certify_task(made), certify_task(by_class(made, "majority"))
    near = made.cluster_of < 3
    assert bool((wide.radius >= narrow.radius)[near].all())
    assert float((wide.radius - narrow.radius)[near].max()) > 0.1
    assert not bool(wide.correct[~near].any())
    unknown = by_class(replace(made, truth=torch.full_like(y, -1)))
    assert not bool(certify_task(unknown).correct.any())  # not even in a cluster without a name
    with pytest.raises(UnknownName, match="naming"):
        by_class(made, "best")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="names"):
        by_class(replace(made, names=None))


class Isometry(nn.Module):
    """The pixels, rotated: the gain is 1 in every direction."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.linalg.qr(torch.randn(9, 9, generator=stream(0, "q"), dtype=torch.float64))[0]
        self.weight = nn.Parameter(weight)

    def lipschitz_constant(self) -> float:
        return 1.0 + 1e-12

    def rounding_error(self, dtype: torch.dtype) -> float:
        return 1e-12 if dtype == torch.float64 else 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_certificate_and_attack_meet_at_the_bisector(seed: int) -> None:
    """Two centroids, gain 1: the distance to the bisector, from below and from above."""
    x = torch.rand(20, 1, 3, 3, generator=stream(seed, "x"), dtype=torch.float64)
    made = clusters(Isometry(), x, torch.zeros(20, dtype=torch.int64), x, torch.arange(20) % 2, 2)
    c = made.gallery.z
    closed = ((made.z - c.mean(0)) @ (c[1] - c[0])).abs() / (c[1] - c[0]).norm()
    found = certify_task(made)
    assert bool((found.radius <= closed).all())
    assert torch.allclose(found.radius, closed, atol=1e-4)
    attacked = minimum_norm(made, None, L2Threat(eps=3.0, bounds=None))
    assert bool((attacked.radius >= closed * (1 - 1e-6)).all())
    assert bool((attacked.radius <= closed * 1.02).all())


def test_a_part_of_the_queries_has_the_same_radii(task: ClusterTask) -> None:
    rows = torch.tensor([3, 1, 40])
    assert torch.allclose(certify_task(task, task.rows(rows)).radius, certify_task(task).radius[rows])


# --- joint embeddings -----------------------------------------------------------------------------------


def test_a_joint_embedding_of_short_steps_takes_short_steps(joint: Any) -> None:
    parts = [joint.member(m).lipschitz_constant() for m in range(2)]
    constant = lipschitz_constant(joint)
    assert constant >= math.sqrt(sum(p * p for p in parts) / 2)
    assert constant == pytest.approx(math.sqrt(sum(p * p for p in parts) / 2), rel=1e-12)
    assert constant <= 1 + 1e-12
    g = stream(0, "pairs")
    x = torch.rand(200, 1, 8, 8, generator=g, dtype=torch.float64)
    other = (x + 0.1 * torch.randn(x.shape, generator=g, dtype=torch.float64)).clamp(0, 1)
    with torch.no_grad():
        ratio = (joint(x) - joint(other)).norm(dim=1) / (x - other).flatten(1).norm(dim=1)
    assert 0.5 < float(ratio.max()) <= constant


def test_rounding_of_a_joint_embedding_is_bounded(joint: Any) -> None:
    x = torch.rand(50, 1, 8, 8, generator=stream(0, "x"), dtype=torch.float64)
    apart = (embed_as(joint, x, torch.float32) - embed_as(joint, x, torch.float64)).norm(dim=1)
    bound = rounding_error(joint, torch.float32) + rounding_error(joint, torch.float64)
    assert 0 < float(apart.max()) <= bound
    assert bound >= max(rounding_error(joint.member(m), torch.float32) for m in range(2)) / math.sqrt(2)


def test_what_cannot_be_proven_is_refused(joint: Any, task: ClusterTask) -> None:
    plain = Ensemble(members=(SmallCNN(width=4, embedding_dim=4),) * 2).build((1, 8, 8), seed=0)
    assert is_proven(joint)
    assert not is_proven(plain)
    assert not is_proven(nn.Flatten())
    for prove in (lipschitz_constant, rounding_error):
        with pytest.raises(InvalidArgument, match="proven"):
            prove(plain)
    assert proves(joint, SquaredEuclidean())
    assert proves(joint, Cosine(), clusters=True)
    assert not proves(joint, Cosine())
    assert not proves(plain, SquaredEuclidean(), clusters=True)
    odd = replace(task, distance=Mahalanobis(torch.eye(task.z.shape[1], dtype=torch.float64)))
    with pytest.raises(InvalidArgument, match="distance"):
        certify_task(odd)


# --- sampling -------------------------------------------------------------------------------------------


class Unit(nn.Module):
    """Centred pixels of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.flatten(1) - 0.5, dim=1)


@pytest.fixture(scope="module")
def smooth(split: Any) -> ClusterTask:
    x, y = split.test.x[:24], split.test.y[:24]
    return clusters(Unit(), x, y, split.train.x, split.train.y, 6)


def test_smoothed_queries_stay_in_their_clusters_inside_the_radius(smooth: ClusterTask) -> None:
    s = Smoothing(sigma=0.25, n_select=50, n_certify=1000, alpha=1e-3)
    found, _ = certify_queries(smooth, s, "smoothing")
    assert float((found.radius > 0.02).double().mean()) > 0.3
    direct = certify_clusters(
        smooth.encoder, smooth.x, smooth.gallery.z, s, y=smooth.cluster_of, index=smooth.index
    )
    assert torch.allclose(direct.radius, found.radius, rtol=0.05, atol=0.01)  # another way to the same claim
    encoder = SmoothedEncoder(smooth.encoder, s.sigma, samples=16)
    tried = falsify(
        found, smooth, encoder, search=PGD(steps=10, alpha=0.3, keep="best"), bounds=None, copies=2000
    )
    assert tried.tried == int((found.radius > 0).sum())
    assert tried.holds, tried.words()
    bold = replace(found, radius=torch.full_like(found.radius, 2.0), correct=torch.ones(24).bool())
    assert not falsify(
        bold, smooth, encoder, search=PGD(steps=10, alpha=0.3, keep="best"), bounds=None, copies=500
    ).holds


def test_votes_of_clusters(smooth: ClusterTask) -> None:
    s = Smoothing(sigma=0.1, n_select=50, n_certify=500)
    found, _ = certify_queries(smooth.rows(slice(0, 8)), s, "votes")
    assert found.answer is not None
    sure = found.radius > 0
    assert int(sure.sum()) > 4
    assert torch.equal(found.answer[sure], smooth.cluster_of[:8][sure])


# --- the verdict ----------------------------------------------------------------------------------------


def test_the_verdict_accepts_sound_certificates_and_no_others(single: Any, split: Any) -> None:
    x, y = split.test.x[:ROWS].double(), split.test.y[:ROWS]
    made = clusters(single, x, y, split.train.x.double(), split.train.y)
    found = certify_task(made)
    search = PGD(steps=20, alpha=0.1, keep="best")
    bold = replace(found, radius=4 * found.radius)
    for certificate, wanted in ((found, "pass"), (bold, "fail")):
        e = Examination(task=made, search=search, threat=L2Threat(eps=0.5), certificate=certificate)
        assert CHECKS["R26"].run(e).status == wanted
    sound = Examination(task=made, search=search, threat=L2Threat(eps=0.5), certificate=found)
    assert CHECKS["R27"].run(sound).status == "pass"
