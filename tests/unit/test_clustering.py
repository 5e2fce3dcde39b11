"""k-means and mutual information against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from holdfast.errors import InvalidArgument
from holdfast.functional.clustering import Clusters, assign, kmeans, nmi
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
