"""What holds for every clustering, its names and its scores."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.functional.clustering import (
    agreement,
    hungarian,
    kmeans,
    majority,
    purity,
    spherical_kmeans,
)
from holdfast.functional.distance import Cosine, SquaredEuclidean
from holdfast.inference import ClusterIndex
from holdfast.rng import stream

pytestmark = pytest.mark.property
quick = settings(derandomize=True, deadline=None, max_examples=60)
few = settings(derandomize=True, deadline=None, max_examples=20)

seeds = st.integers(0, 10_000)


def clustering(seed: int, n: int, k: int, classes: int) -> tuple[Tensor, Tensor]:
    g = stream(seed, "clustering properties")
    return torch.randint(classes, (n,), generator=g), torch.randint(k, (n,), generator=g)


@quick
@given(seeds, st.integers(1, 25), st.integers(1, 5), st.integers(1, 5))
def test_the_assignment_is_the_best_of_all(seed: int, n: int, k: int, classes: int) -> None:
    truth, found = clustering(seed, n, k, classes)
    names = hungarian(truth, found, k)
    labels = [*range(classes), *[-1] * max(0, k - classes)]
    best = max(int((torch.tensor(p)[found] == truth).sum()) for p in set(permutations(labels, k)))
    assert int((names[found] == truth).sum()) == best
    named = names[names >= 0].tolist()
    assert len(named) == len(set(named))


@quick
@given(seeds, st.integers(1, 25), st.integers(1, 5), st.integers(1, 5))
def test_the_majority_is_the_best_of_each_cluster(seed: int, n: int, k: int, classes: int) -> None:
    truth, found = clustering(seed, n, k, classes)
    names = majority(truth, found, k)
    for cluster in range(k):
        members = truth[found == cluster]
        counts = torch.bincount(members, minlength=classes)
        assert int(names[cluster]) == (int(counts.argmax()) if len(members) else -1)
    assert float((names[found] == truth).double().mean()) == pytest.approx(purity(truth, found))


@quick
@given(seeds, st.integers(2, 40), st.integers(1, 6), st.integers(1, 6))
def test_scores_know_neither_numbers_nor_order(seed: int, n: int, k: int, classes: int) -> None:
    truth, found = clustering(seed, n, k, classes)
    scores = agreement(truth, found, k)
    g = stream(seed, "order")
    rows, of_clusters, of_classes = (torch.randperm(size, generator=g) for size in (n, k, classes))
    renamed = agreement(of_classes[truth][rows], of_clusters[found][rows], k)
    assert renamed == pytest.approx(scores, abs=1e-9)
    assert scores["accuracy"] <= scores["majority"] + 1e-12
    assert scores["majority"] == pytest.approx(scores["purity"])
    hidden = torch.cat([truth, torch.full((3,), -1)])
    more = torch.cat([found, found[:1].expand(3)])
    assert agreement(hidden, more, k) == pytest.approx(scores, abs=1e-12)


@quick
@given(seeds, st.integers(1, 6))
def test_a_renamed_truth_scores_one(seed: int, classes: int) -> None:
    truth, _ = clustering(seed, 30, 1, classes)
    found = torch.randperm(classes, generator=stream(seed, "names"))[truth]
    assert agreement(truth, found, classes) == pytest.approx(
        dict.fromkeys(agreement(truth, found, classes), 1.0)
    )


@few
@given(seeds, st.integers(1, 6), st.booleans())
def test_a_fixed_point_of_lloyd(seed: int, k: int, spherical: bool) -> None:
    """Every row has its nearest centroid, and every centroid is the mean of its members."""
    z = torch.randn(40, 3, generator=stream(seed, "fixed point"), dtype=torch.float64)
    found = (spherical_kmeans if spherical else kmeans)(z, k, seed=seed)
    rows = F.normalize(z, dim=1) if spherical else z
    distance = Cosine() if spherical else SquaredEuclidean()
    assert torch.equal(distance.matrix(z, found.centroids).argmin(1), found.cluster_of)
    means = torch.stack([rows[found.cluster_of == c].mean(0) for c in range(k)])
    torch.testing.assert_close(found.centroids, F.normalize(means, dim=1) if spherical else means)


@few
@given(seeds, st.integers(1, 5), st.sampled_from(["kmeans", "spherical", "prototype"]))
def test_a_prediction_is_of_one_row(seed: int, batch: int, inference: str) -> None:
    g = stream(seed, "rows")
    z, y = torch.randn(30, 4, generator=g), torch.arange(30) % 4
    queries = torch.randn(17, 4, generator=g)
    index = ClusterIndex(inference=inference, n_init=1).fit(z, y)  # type: ignore[arg-type]
    whole = index.predict(queries)
    parts = np.concatenate([index.predict(part) for part in queries.split(batch)])
    np.testing.assert_array_equal(parts, whole)
    order = torch.randperm(17, generator=g)
    np.testing.assert_array_equal(index.predict(queries[order]), whole[order])
    nearest = index.distance.matrix(queries.double(), torch.from_numpy(index.cluster_centers_).double())
    np.testing.assert_array_equal(whole, nearest.argmin(1))


@few
@given(seeds)
def test_prototypes_do_not_depend_on_the_order(seed: int) -> None:
    g = stream(seed, "prototypes")
    z, y = torch.randn(30, 4, generator=g, dtype=torch.float64), torch.randint(-1, 5, (30,), generator=g)
    order = torch.randperm(30, generator=g)
    a, b = (ClusterIndex(inference="prototype").fit(z[o], y[o]) for o in (torch.arange(30), order))
    np.testing.assert_allclose(a.cluster_centers_, b.cluster_centers_, atol=1e-12)
    assert a.names_ is not None
    assert a.names_.majority.tolist() == y[y >= 0].unique().tolist()
