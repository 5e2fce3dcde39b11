"""k-means, spherical k-means, names of clusters and their scores, by hand and against scikit-learn."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    normalized_mutual_info_score,
)
from torch import Tensor

from holdfast.errors import InvalidArgument
from holdfast.functional.clustering import (
    Clusters,
    _filled,
    _lloyd,
    agreement,
    ami,
    ari,
    assign,
    hungarian,
    kmeans,
    majority,
    name_clusters,
    nmi,
    purity,
    reclustered,
    spherical_kmeans,
)
from holdfast.functional.distance import Cosine, Euclidean
from holdfast.rng import stream


def blobs(dtype: torch.dtype = torch.float64, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    g = stream(0, "blobs")
    y = torch.randint(3, (60,), generator=g)
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]], dtype=dtype)
    return centres[y] + spread * torch.randn(60, 2, generator=g, dtype=torch.float64).to(dtype), y


def inertia(z: Tensor, found: Clusters) -> float:
    return float((z - found.centroids[found.cluster_of]).square().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_scikit_learn(dtype: torch.dtype) -> None:
    z, _ = blobs(dtype, spread=3.0)
    ours = kmeans(z.clone().requires_grad_(), 8, seed=3, n_init=9, max_iter=50)
    theirs = KMeans(8, random_state=3, n_init=9, max_iter=50).fit(z.numpy())
    assert ours.centroids.dtype == dtype
    assert ours.cluster_of.dtype == torch.int64
    torch.testing.assert_close(ours.centroids, torch.from_numpy(theirs.cluster_centers_).to(dtype))
    assert ours.cluster_of.tolist() == theirs.labels_.tolist()
    once = kmeans(z, 8, seed=3, n_init=1)
    assert inertia(z, ours) < inertia(z, once)  # the best start is kept


def test_far_blobs_are_found_again() -> None:
    z, y = blobs(spread=0.1)
    found = kmeans(z, 3, n_init=5)
    assert nmi(y, found.cluster_of) == pytest.approx(1)
    for cluster in range(3):
        torch.testing.assert_close(found.centroids[cluster], z[found.cluster_of == cluster].mean(0))
    assert torch.equal(assign(z, found.centroids, Euclidean()), found.cluster_of)


def test_the_seed_decides() -> None:
    z, _ = blobs(spread=3.0)
    assert torch.equal(kmeans(z, 8, seed=1).centroids, kmeans(z, 8, seed=1).centroids)
    assert not torch.equal(kmeans(z, 8, seed=1).centroids, kmeans(z, 8, seed=2).centroids)


def test_as_many_clusters_as_rows() -> None:
    z, _ = blobs()
    assert sorted(kmeans(z, 60).cluster_of.tolist()) == list(range(60))
    torch.testing.assert_close(kmeans(z, 1).centroids[0], z.mean(0))


def test_assignment_follows_the_distance() -> None:
    z, centroids = torch.tensor([[4.0, 1.0]]), torch.tensor([[0.5, 0.0], [4.0, 4.0]])
    assert assign(z, centroids, Euclidean()).tolist() == [1]
    assert assign(z, centroids, Cosine()).tolist() == [0]


def test_nmi_by_hand_and_as_scikit_learn() -> None:
    _, y = blobs()
    other = torch.randint(4, (60,), generator=stream(1))
    assert nmi(y, other) == pytest.approx(normalized_mutual_info_score(y.numpy(), other.numpy()))
    assert nmi(y, other) == pytest.approx(nmi(other, y))
    halves, quarters = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3])
    # I = ln 2, H = ln 2 and ln 4: the arithmetic mean gives 2/3 (the geometric one would give 0.707)
    assert nmi(halves, quarters) == pytest.approx(2 / 3)
    assert nmi(halves, torch.tensor([0, 1, 0, 1])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [0, -1, 61])
def test_bad_k(k: int) -> None:
    with pytest.raises(InvalidArgument, match="k: need 1 to 60"):
        kmeans(blobs()[0], k)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_must_be_finite(value: float) -> None:
    z, _ = blobs()
    z[5, 1] = value
    with pytest.raises(InvalidArgument, match="z: need finite"):
        kmeans(z, 3)


# Spherical k-means


def at(degrees: list[float], lengths: list[float] | None = None) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    rows = torch.stack([angle.cos(), angle.sin()], 1)
    return rows if lengths is None else rows * torch.tensor(lengths, dtype=torch.float64)[:, None]


def chords(z: Tensor, found: Clusters) -> float:
    return float((1 - F.normalize(z, dim=1) @ found.centroids.T).min(1).values.sum())


def test_spherical_by_hand() -> None:
    z = at([0, 20, 90, 100], [1, 50, 1, 9])  # lengths do not count
    found = spherical_kmeans(z.requires_grad_(), 2)
    by_angle = found.centroids[found.cluster_of[[0, 2]]]
    torch.testing.assert_close(by_angle, at([10, 95]))
    assert found.cluster_of[0] == found.cluster_of[1] != found.cluster_of[2] == found.cluster_of[3]
    assert chords(z.detach(), found) == pytest.approx(
        float(4 - 2 * at([10, 5])[:, 0].sum())  # 2 (1 - cos 10) + 2 (1 - cos 5)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spherical_as_k_means_on_the_sphere(dtype: torch.dtype) -> None:
    g = stream(3, "sphere")
    y = torch.arange(90) % 3
    z = F.normalize(torch.eye(3, dtype=dtype)[y] + 0.1 * torch.randn(90, 3, generator=g, dtype=dtype), dim=1)
    found = spherical_kmeans(z, 3, n_init=3)
    theirs = KMeans(3, n_init=3, random_state=0).fit(z.numpy())
    assert found.centroids.dtype == dtype
    assert ari(torch.from_numpy(theirs.labels_), found.cluster_of) == 1
    for cluster in range(3):
        mean = z[found.cluster_of == cluster].mean(0)
        torch.testing.assert_close(found.centroids[cluster], F.normalize(mean, dim=0))
        of_theirs = torch.from_numpy(theirs.cluster_centers_).to(dtype)
        assert float((of_theirs - mean).norm(dim=1).min()) < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_spherical_reaches_the_best_partition(seed: int) -> None:
    """The best centroid of a set is its mean direction, so the best sum is n - |sum_1| - |sum_2|."""
    u = F.normalize(torch.randn(8, 3, generator=stream(seed, "tiny"), dtype=torch.float64), dim=1)
    best = min(
        8 - float(u[m].sum(0).norm()) - float(u[~m].sum(0).norm())
        for m in (torch.tensor([False, *bits]) for bits in product([False, True], repeat=7))
    )
    assert chords(u, spherical_kmeans(u, 2, seed=seed, n_init=30)) == pytest.approx(best)


def test_more_starts_are_not_worse_and_the_seed_decides() -> None:
    z = torch.randn(80, 5, generator=stream(1, "starts"))
    one, ten = (chords(z, spherical_kmeans(z, 9, seed=4, n_init=n)) for n in (1, 10))
    assert ten < one
    assert torch.equal(spherical_kmeans(z, 9, seed=1).centroids, spherical_kmeans(z, 9, seed=1).centroids)
    assert not torch.equal(spherical_kmeans(z, 9, seed=1).centroids, spherical_kmeans(z, 9, seed=2).centroids)


def test_an_empty_cluster_gets_the_farthest_row() -> None:
    u, start = at([0, 1, 2, 30]), at([0, 0, 180])
    assert _filled(u, start, torch.zeros(4, dtype=torch.int64)).tolist() == [0, 0, 2, 1]
    centroids, loss = _lloyd(u, start, 50)
    assert loss < 1e-3
    torch.testing.assert_close(centroids[1], at([30])[0])
    # no cluster is robbed of its only row, however far it lies
    assert _filled(u, at([0, 90, 180]), torch.tensor([0, 0, 0, 1])).tolist() == [0, 0, 2, 1]


def test_fewer_directions_than_clusters() -> None:
    z = at([0, 0, 90, 90, 90])
    found = spherical_kmeans(z, 4)
    assert len(torch.unique(found.cluster_of)) == 2
    assert chords(z, found) == pytest.approx(0, abs=1e-12)
    assert bool(found.centroids.isfinite().all())


def test_members_that_cancel_out_leave_the_centroid() -> None:
    centroids, _ = _lloyd(at([0, 180]), at([90]), 5)
    torch.testing.assert_close(centroids, at([90]))


def test_spherical_k_of_one_and_of_all() -> None:
    z = at([10, 20, 60])
    torch.testing.assert_close(spherical_kmeans(z, 1).centroids, F.normalize(z.sum(0, keepdim=True), dim=1))
    assert sorted(spherical_kmeans(z, 3).cluster_of.tolist()) == [0, 1, 2]


def test_spherical_refuses() -> None:
    z = at([0, 20, 90])
    with pytest.raises(InvalidArgument, match="k: need 1 to 3"):
        spherical_kmeans(z, 4)
    with pytest.raises(InvalidArgument, match="n_init: need"):
        spherical_kmeans(z, 2, n_init=0)
    with pytest.raises(InvalidArgument, match="z: need finite"):
        spherical_kmeans(z / 0, 2)
    with pytest.raises(InvalidArgument, match="length > 0"):
        spherical_kmeans(torch.cat([z, torch.zeros(1, 2, dtype=torch.float64)]), 2)


# Names of clusters

TRUTH = torch.tensor([7, 7, 7, 7, 3, 3, 5, -1, -1])
FOUND = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3])


def test_names_by_hand() -> None:
    assert hungarian(TRUTH, FOUND, 5).tolist() == [7, 3, 5, -1, -1]  # 3 holds no labelled row, 4 no row
    assert majority(TRUTH, FOUND, 5).tolist() == [7, 3, 5, -1, -1]
    # two clusters of one class: only one of them may have its name
    truth, found = torch.tensor([1, 1, 1, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert majority(truth, found, 2).tolist() == [1, 1]
    assert hungarian(truth, found, 2).tolist() == [1, 0]
    names = name_clusters(truth, found, 2)
    assert (names.hungarian.tolist(), names.majority.tolist()) == ([1, 0], [1, 1])


def test_the_assignment_is_not_greedy() -> None:
    """Cluster 0 holds 5 of A and 4 of B, cluster 1 holds 4 of A: A to 1 and B to 0 agree on 8, not on 5."""
    truth = torch.tensor([0] * 5 + [1] * 4 + [0] * 4)
    found = torch.tensor([0] * 9 + [1] * 4)
    assert hungarian(truth, found, 2).tolist() == [1, 0]
    assert majority(truth, found, 2).tolist() == [0, 0]


def test_more_clusters_or_more_classes() -> None:
    truth = torch.tensor([0, 0, 0, 1, 1])
    assert hungarian(truth, torch.tensor([0, 0, 1, 2, 2]), 3).tolist() == [0, -1, 1]
    assert hungarian(torch.tensor([4, 4, 6, 8]), torch.tensor([1, 1, 0, 0]), 2).tolist() in ([6, 4], [8, 4])
    assert hungarian(torch.tensor([4, 4, 6]), torch.tensor([0, 0, 0]), 1).tolist() == [4]


def test_equal_votes_go_to_the_smallest_label() -> None:
    assert majority(torch.tensor([9, 2, 2, 9]), torch.tensor([0, 0, 1, 1]), 2).tolist() == [2, 2]


def test_nothing_known_nothing_named() -> None:
    names = name_clusters(torch.tensor([-1, -1]), torch.tensor([0, 1]), 2)
    assert (names.hungarian.tolist(), names.majority.tolist()) == ([-1, -1], [-1, -1])


@pytest.mark.parametrize("name", [hungarian, majority])
def test_names_refuse(name: object) -> None:
    assert callable(name)
    with pytest.raises(InvalidArgument, match="truth: need labels"):
        name(torch.zeros(3).long(), torch.zeros(4).long(), 1)
    for clusters in ([0, 2], [0, -1]):
        with pytest.raises(InvalidArgument, match="cluster_of: need numbers of clusters, 0 to 1"):
            name(torch.tensor([0, 1]), torch.tensor(clusters), 2)


# Scores


def test_scores_by_hand() -> None:
    # clusters {7 7 7}, {7 3 3}, {5}: 3 + 2 + 1 of 7 rows
    assert purity(TRUTH, FOUND) == pytest.approx(6 / 7)
    halves, other = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    # all pairs disagree: (0 - 2 * 2 / 6) / (2 - 2 * 2 / 6)
    assert ari(halves, other) == pytest.approx(-0.5)
    assert purity(halves, other) == 0.5
    assert purity(halves, torch.arange(4)) == 1


def test_scores_as_scikit_learn_without_unlabelled_rows() -> None:
    g = stream(5, "scores")
    truth, found = torch.randint(4, (60,), generator=g), torch.randint(5, (60,), generator=g)
    hidden = torch.rand(60, generator=g) < 0.3
    seen = truth.masked_fill(hidden, -1)
    for ours, theirs in (
        (nmi, normalized_mutual_info_score), (ami, adjusted_mutual_info_score), (ari, adjusted_rand_score),
    ):  # fmt: skip
        assert ours(seen, found) == pytest.approx(theirs(truth[~hidden].numpy(), found[~hidden].numpy()))
        assert ours(seen, found) != pytest.approx(theirs(truth.numpy(), found.numpy()))


@pytest.mark.parametrize("score", [purity, nmi, ami, ari])
def test_scores_refuse(score: object) -> None:
    assert callable(score)
    with pytest.raises(InvalidArgument, match="truth: need at least one labelled row"):
        score(torch.tensor([-1, -1]), torch.tensor([0, 1]))
    with pytest.raises(InvalidArgument, match="truth: need labels"):
        score(torch.tensor([0]), torch.tensor([0, 1]))


def test_agreement() -> None:
    scores = agreement(TRUTH, FOUND, 4)
    assert scores["accuracy"] == pytest.approx(6 / 7)
    assert scores["majority"] == pytest.approx(scores["purity"])
    assert scores["ari"] == ari(TRUTH, FOUND)
    split = agreement(torch.tensor([1, 1, 1, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    assert (split["accuracy"], split["majority"]) == (pytest.approx(4 / 6), pytest.approx(5 / 6))


# The transductive form


@pytest.mark.parametrize("spherical", [False, True])
def test_separated_clusters_are_found_by_every_seed(spherical: bool) -> None:
    z, y = blobs(spread=0.05)
    scores = reclustered(z + 1, y, 3, spherical=spherical)
    assert set(scores) == {"nmi", "ami", "ari", "purity", "accuracy", "majority"}
    for mean, sd in scores.values():
        assert mean == pytest.approx(1)
        assert sd == pytest.approx(0, abs=1e-12)


def test_reclustered_is_the_mean_over_seeds() -> None:
    z, y = blobs(spread=4.0)
    single = [reclustered(z, y, 6, seeds=[s], n_init=1)["nmi"] for s in (0, 1)]
    assert [sd for _, sd in single] == [0, 0]
    (a, _), (b, _) = single
    assert a == pytest.approx(nmi(y, kmeans(z, 6, 0).cluster_of))
    assert a != b
    mean, sd = reclustered(z, y, 6, seeds=[0, 1], n_init=1)["nmi"]
    assert mean == pytest.approx((a + b) / 2)
    assert sd == pytest.approx(abs(a - b) / 2**0.5)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("spherical", [False, True])
def test_collapsed_embeddings_score_as_one_cluster(spherical: bool) -> None:
    scores = reclustered(torch.ones(6, 2), torch.tensor([0, 0, 0, 0, 1, 1]), 2, (0, 1), spherical)
    assert scores["nmi"] == (0, 0)
    assert scores["accuracy"] == (pytest.approx(4 / 6), 0)


def test_reclustered_refuses() -> None:
    z, y = blobs()
    with pytest.raises(InvalidArgument, match="seeds: need at least one"):
        reclustered(z, y, 3, seeds=())
    with pytest.raises(InvalidArgument, match="k: need 1 to 60"):
        reclustered(z, y, 61)


def test_other_seeds_find_clusters_as_good_as_scikit_learn() -> None:
    z, _ = blobs(spread=3.0)
    theirs = KMeans(8, random_state=0, n_init=30).fit(z.numpy()).inertia_
    for seed in (1, 2, 3):
        assert inertia(z, kmeans(z, 8, seed=seed, n_init=30)) <= 1.01 * theirs
