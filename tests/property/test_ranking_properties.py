"""What holds for every ranking."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.functional.distance import DISTANCES, Mahalanobis, SquaredEuclidean
from holdfast.functional.ranking import RetrievalScores, fraction_closer, nearest, retrieval_scores
from holdfast.rng import stream

pytestmark = pytest.mark.property
quick = settings(derandomize=True, deadline=None, max_examples=50)

seeds = st.integers(0, 10_000)
sizes = st.tuples(st.integers(1, 6), st.integers(2, 30), st.integers(1, 5))
names = st.sampled_from(sorted(DISTANCES))


def crowd(size: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, m, classes = size
    g = stream(seed, "ranking properties")
    z, gallery_z = (torch.randn(k, 4, generator=g, dtype=torch.float64) for k in (n, m))
    y, gallery_y = (torch.randint(classes, (k,), generator=g) for k in (n, m))
    return z, y, gallery_z, gallery_y


def same(a: RetrievalScores, b: RetrievalScores) -> None:
    assert torch.equal(a.first_match, b.first_match)
    for ours, theirs in zip(a[1:], b[1:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@quick
@given(sizes, seeds, names)
def test_the_order_of_the_gallery_is_irrelevant_without_ties(
    size: tuple[int, int, int], seed: int, name: str
) -> None:
    z, y, gallery_z, gallery_y = crowd(size, seed)
    d = DISTANCES[name]
    order = torch.randperm(size[1], generator=stream(seed))
    where = order.argsort()  # where each old row has gone
    own = torch.randint(-1, size[1], (size[0],), generator=stream(seed, "own"))
    moved = torch.where(own >= 0, where[own], -1)
    same(
        retrieval_scores(z, y, gallery_z, gallery_y, d, own),
        retrieval_scores(z, y, gallery_z[order], gallery_y[order], d, moved),
    )
    d_old, rows_old = nearest(z, gallery_z, size[1] - 1, d, own)
    d_new, rows_new = nearest(z, gallery_z[order], size[1] - 1, d, moved)
    torch.testing.assert_close(d_old, d_new, atol=1e-12, rtol=0)
    assert torch.equal(rows_old, order[rows_new])


@quick
@given(sizes, seeds, names, st.sampled_from([1e-3, 0.5, 7.0, 1e4]))
def test_only_the_order_of_distances_counts(
    size: tuple[int, int, int], seed: int, name: str, scale: float
) -> None:
    z, y, gallery_z, gallery_y = crowd(size, seed)
    d = DISTANCES[name]
    same(
        retrieval_scores(z, y, gallery_z, gallery_y, d),
        retrieval_scores(scale * z, y, scale * gallery_z, gallery_y, d),
    )


@quick
@given(sizes, seeds)
def test_monotone_distances_rank_alike(size: tuple[int, int, int], seed: int) -> None:
    z, y, gallery_z, gallery_y = crowd(size, seed)
    squared = retrieval_scores(z, y, gallery_z, gallery_y, SquaredEuclidean())
    same(squared, retrieval_scores(z, y, gallery_z, gallery_y, DISTANCES["euclidean"]))
    identity = Mahalanobis(torch.eye(4, dtype=torch.float64))
    same(squared, retrieval_scores(z, y, gallery_z, gallery_y, identity))


@quick
@given(sizes, seeds, names)
def test_ranges_and_bounds(size: tuple[int, int, int], seed: int, name: str) -> None:
    z, y, gallery_z, gallery_y = crowd(size, seed)
    scores = retrieval_scores(z, y, gallery_z, gallery_y, DISTANCES[name])
    total = (gallery_y == y[:, None]).sum(1)
    for column in scores[1:]:
        assert bool(((column >= 0) & (column <= 1 + 1e-12)).all())
    assert bool((scores.map_at_r <= scores.average_precision + 1e-12).all())  # MAP@R leaves terms out
    assert bool((scores.average_precision_10 <= total.clamp(max=10) / 10 + 1e-12).all())
    assert torch.equal(scores.average_precision > 0, total > 0)
    reciprocal = 1 / (scores.first_match + 1)
    assert bool((scores.average_precision >= (reciprocal / total.clamp_min(1) - 1e-6) * (total > 0)).all())


@quick
@given(sizes, seeds, names)
def test_recall_grows_with_k(size: tuple[int, int, int], seed: int, name: str) -> None:
    z, y, gallery_z, gallery_y = crowd(size, seed)
    scores = retrieval_scores(z, y, gallery_z, gallery_y, DISTANCES[name])
    recalls = [scores.recall(k) for k in range(1, size[1] + 3)]
    for fewer, more in pairwise(recalls):
        assert bool((fewer <= more).all())
    has_match = (gallery_y == y[:, None]).any(1)
    assert torch.equal(recalls[size[1] - 1], has_match)  # the whole gallery
    assert torch.equal(recalls[-1], has_match)


@quick
@given(sizes, seeds, names)
def test_drawing_all_matches_to_the_query_is_perfect(
    size: tuple[int, int, int], seed: int, name: str
) -> None:
    z, y, gallery_z, gallery_y = crowd(size, seed)
    for query in range(size[0]):
        match = gallery_y == y[query]
        if not bool(match.any()):
            continue
        drawn = torch.where(match[:, None], z[query] + 1e-3 * gallery_z, -z[query] + 1e-3 * gallery_z)
        scores = retrieval_scores(z[query, None], y[query, None], drawn, gallery_y, DISTANCES[name])
        assert bool(scores.recall(1))
        assert float(scores.average_precision) == pytest.approx(1)
        assert float(scores.map_at_r) == pytest.approx(1)


@quick
@given(sizes, seeds, names, st.integers(1, 7))
def test_queries_do_not_see_each_other(size: tuple[int, int, int], seed: int, name: str, chunk: int) -> None:
    z, y, gallery_z, gallery_y = crowd(size, seed)
    whole = retrieval_scores(z, y, gallery_z, gallery_y, DISTANCES[name])
    same(whole, retrieval_scores(z, y, gallery_z, gallery_y, DISTANCES[name], chunk=chunk))
    first = retrieval_scores(z[:1], y[:1], gallery_z, gallery_y, DISTANCES[name])
    same(RetrievalScores(*(column[:1] for column in whole)), first)


@quick
@given(sizes, seeds)
def test_the_normalised_rank_is_the_place_in_the_list(size: tuple[int, int, int], seed: int) -> None:
    z, _, gallery_z, _ = crowd(size, seed)
    d = SquaredEuclidean().matrix(z, gallery_z)
    places = d.argsort(1).argsort(1)
    share = fraction_closer(d, d[:, None, :].expand(-1, size[1], -1))
    torch.testing.assert_close(share, places.double() / size[1])
