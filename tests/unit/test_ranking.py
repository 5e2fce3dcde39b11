"""Ranks and precision against a slow re-enactment, scikit-learn, and hand numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from holdfast.errors import DataError, InvalidArgument
from holdfast.functional.distance import DISTANCES, Euclidean, SquaredEuclidean
from holdfast.functional.ranking import (
    RetrievalScores,
    chunks,
    fraction_closer,
    nearest,
    retrieval_scores,
    without_self,
)
from holdfast.rng import stream

D = SquaredEuclidean()


def slow_scores(
    d: np.ndarray, y: np.ndarray, gallery_y: np.ndarray, own: np.ndarray
) -> dict[str, list[float]]:
    """Query by query, place by place; equal distances keep the order of the gallery."""
    out: dict[str, list[float]] = {"first": [], "ap": [], "map_at_r": [], "ap10": []}
    for i in range(len(d)):
        listed = [j for j in range(d.shape[1]) if j != own[i]]
        listed.sort(key=lambda j: (d[i, j], j))
        matches = [bool(gallery_y[j] == y[i]) for j in listed]
        total = sum(matches)
        precisions, seen = [], 0
        for place, match in enumerate(matches, 1):
            seen += match
            precisions.append(seen / place if match else 0.0)
        out["first"].append(matches.index(True) if total else d.shape[1])
        out["ap"].append(sum(precisions) / total if total else 0.0)
        out["map_at_r"].append(sum(precisions[:total]) / total if total else 0.0)
        out["ap10"].append(sum(precisions[:10]) / 10)
    return out


def crowd(n: int = 40, m: int = 60, classes: int = 5, seed: int = 0) -> tuple[Tensor, ...]:
    """Embeddings on a coarse integer grid: exact arithmetic, and many ties and duplicates."""
    g = stream(seed, "ranking")
    z = torch.randint(-2, 3, (n, 3), generator=g).double()
    gallery_z = torch.randint(-2, 3, (m, 3), generator=g).double()
    y, gallery_y = (torch.randint(classes, (k,), generator=g) for k in (n, m))
    return z, y, gallery_z, gallery_y


def agree(scores: RetrievalScores, slow: dict[str, list[float]], tolerance: float = 1e-12) -> None:
    assert scores.first_match.tolist() == slow["first"]
    for ours, key in zip(scores[1:], ("ap", "map_at_r", "ap10"), strict=True):
        np.testing.assert_allclose(ours.double().numpy(), slow[key], rtol=0, atol=tolerance)


@pytest.mark.parametrize("seed", range(4))
def test_against_the_slow_form_with_ties(seed: int) -> None:
    z, y, gallery_z, gallery_y = crowd(seed=seed)
    own = torch.full((40,), -1)
    slow = slow_scores(D.matrix(z, gallery_z).numpy(), y.numpy(), gallery_y.numpy(), own.numpy())
    agree(retrieval_scores(z, y, gallery_z, gallery_y, D), slow)
    agree(retrieval_scores(z, y, gallery_z, gallery_y, D, self_index=own), slow)


@pytest.mark.parametrize("seed", range(4))
def test_against_the_slow_form_with_self(seed: int) -> None:
    z, y, gallery_z, gallery_y = crowd(seed=seed)
    own = torch.randperm(60, generator=stream(seed))[:40]
    own[::3] = -1  # some queries are not in the gallery
    gallery_z[own[own >= 0]], gallery_y[own[own >= 0]] = z[own >= 0], y[own >= 0]
    slow = slow_scores(D.matrix(z, gallery_z).numpy(), y.numpy(), gallery_y.numpy(), own.numpy())
    agree(retrieval_scores(z, y, gallery_z, gallery_y, D, self_index=own), slow)


@pytest.mark.parametrize("name", DISTANCES)
def test_average_precision_is_that_of_scikit_learn(name: str) -> None:
    g = stream(0, "sklearn")
    z, gallery_z = (torch.randn(k, 4, generator=g, dtype=torch.float64) for k in (25, 80))
    y, gallery_y = (torch.randint(6, (k,), generator=g) for k in (25, 80))
    ours = retrieval_scores(z, y, gallery_z, gallery_y, DISTANCES[name]).average_precision
    d = DISTANCES[name].matrix(z, gallery_z)
    theirs = [average_precision_score((gallery_y == y[i]).numpy(), -d[i].numpy()) for i in range(25)]
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12)  # float64 stays float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_follow_the_dtype(dtype: torch.dtype) -> None:
    z, y, gallery_z, gallery_y = crowd()
    scores = retrieval_scores(z.to(dtype), y, gallery_z.to(dtype), gallery_y, D)
    assert [column.dtype for column in scores] == [torch.int64, dtype, dtype, dtype]
    slow = slow_scores(D.matrix(z, gallery_z).numpy(), y.numpy(), gallery_y.numpy(), np.full(40, -1))
    agree(scores, slow, 1e-6 if dtype == torch.float32 else 1e-12)


def line(places: list[float]) -> Tensor:
    return torch.tensor(places, dtype=torch.float64)[:, None]


def test_by_hand() -> None:
    # one query at 0; matches stand at places 2, 3 and 6 of 6
    gallery_y = torch.tensor([1, 0, 0, 1, 1, 0])
    scores = retrieval_scores(line([0]), torch.tensor([0]), line([1, 2, 3, 4, 5, 6]), gallery_y, D)
    precisions = [1 / 2, 2 / 3, 3 / 6]
    assert scores.first_match.tolist() == [1]
    assert float(scores.average_precision) == pytest.approx(sum(precisions) / 3)
    assert float(scores.map_at_r) == pytest.approx((1 / 2 + 2 / 3) / 3)  # R = 3
    assert float(scores.average_precision_10) == pytest.approx(sum(precisions) / 10)
    assert [bool(scores.recall(k)) for k in (1, 2, 6)] == [False, True, True]


def test_r_ten_divides_by_ten_whatever_the_class_size() -> None:
    places = line([float(i) for i in range(1, 16)])
    everything = torch.zeros(15, dtype=torch.int64)
    y = torch.tensor([0])
    assert float(retrieval_scores(line([0]), y, places, everything, D).average_precision_10) == 1
    few = retrieval_scores(line([0]), y, places[:4], everything[:4], D)
    assert float(few.average_precision_10) == pytest.approx(0.4)
    assert float(few.map_at_r) == 1
    late = everything.clone()
    late[:10] = 1  # matches at places 11 to 15 do not count among ten
    assert float(retrieval_scores(line([0]), y, places, late, D).average_precision_10) == 0


def test_a_query_without_any_match() -> None:
    scores = retrieval_scores(line([0, 0]), torch.tensor([7, 1]), line([1, 2]), torch.tensor([1, 1]), D)
    assert scores.first_match.tolist() == [2, 0]
    for column in scores[1:]:
        assert float(column[0]) == 0
        assert bool(torch.isfinite(column).all())
    assert scores.recall(100).tolist() == [False, True]  # more than the gallery holds


def test_the_only_match_is_oneself() -> None:
    z, y = line([0, 1, 1.5]), torch.tensor([0, 1, 1])
    scores = retrieval_scores(z, y, z, y, D, self_index=torch.arange(3))
    assert scores.first_match.tolist() == [3, 0, 0]
    assert scores.average_precision.tolist() == [0, 1, 1]


@pytest.mark.parametrize("name", DISTANCES)
def test_self_is_left_out_by_index_among_exact_duplicates(name: str) -> None:
    """Rows 0 to 3 are one point; the copy with another label comes first in the gallery."""
    z = torch.tensor([[1.0, 2.0]] * 4 + [[-2.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 2, 0])
    scores = retrieval_scores(z, y, z, y, DISTANCES[name], self_index=torch.arange(5))
    # query 1: list 0, 2, 3, 4; its match is second. By smallest distance row 0 would go and 1 match itself.
    assert scores.first_match.tolist() == [3, 1, 1, 5, 0]
    _, rows = nearest(z, z, 4, DISTANCES[name], torch.arange(5))
    for query in range(5):
        assert sorted(rows[query].tolist()) == [j for j in range(5) if j != query]


@pytest.mark.parametrize("chunk", [1, 7, 39, 40, 1000])
def test_chunks_do_not_change_results(chunk: int) -> None:
    z, y, gallery_z, gallery_y = crowd()
    own = torch.arange(40)
    whole = retrieval_scores(z, y, gallery_z, gallery_y, D, own, chunk=10_000)
    parts = retrieval_scores(z, y, gallery_z, gallery_y, D, own, chunk=chunk)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    d_whole, _ = nearest(z, gallery_z, 5, D, own, chunk=10_000)
    d_parts, _ = nearest(z, gallery_z, 5, D, own, chunk=chunk)
    assert torch.equal(d_whole, d_parts)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    z, y, gallery_z, gallery_y = crowd()
    ours = retrieval_scores(z, y.to(dtype), gallery_z, gallery_y.to(dtype), D)
    wide = retrieval_scores(z, y, gallery_z, gallery_y, D)
    assert all(torch.equal(a, b) for a, b in zip(ours, wide, strict=True))


def test_nothing_to_rank() -> None:
    one, y = line([0]), torch.tensor([0])
    with pytest.raises(DataError, match="gallery"):
        retrieval_scores(one, y, one, y, D, self_index=torch.tensor([0]))
    with pytest.raises(DataError, match="gallery"):
        retrieval_scores(one, y, one[:0], y[:0], D)
    with pytest.raises(DataError, match="queries"):
        retrieval_scores(one[:0], y[:0], one, y, D)
    assert retrieval_scores(one, y, one, y, D).first_match.tolist() == [0]


def test_bad_k() -> None:
    z, y, gallery_z, gallery_y = crowd()
    with pytest.raises(InvalidArgument, match="k: need an integer >= 1"):
        retrieval_scores(z, y, gallery_z, gallery_y, D).recall(0)
    outside, inside = torch.full((40,), -1), torch.arange(40)
    assert nearest(z, gallery_z, 60, D, outside)[1].shape == (40, 60)
    assert nearest(z, gallery_z, 59, D, inside)[1].shape == (40, 59)
    for k, own in ((0, outside), (61, outside), (60, inside)):
        with pytest.raises(InvalidArgument, match="k: need 1 to"):
            nearest(z, gallery_z, k, D, own)


def test_nearest_by_hand() -> None:
    gallery = line([5, 0, 2, 9, 3])
    d, rows = nearest(line([2.25, 9]), gallery, 3, D, torch.tensor([-1, 3]))
    assert rows.tolist() == [[2, 4, 1], [0, 4, 2]]
    assert d.tolist() == [[0.0625, 0.5625, 5.0625], [16, 36, 49]]


def test_without_self_copies() -> None:
    d = torch.zeros(3, 2)
    changed = without_self(d, torch.tensor([1, -1, 0]))
    assert changed.tolist() == [[0, torch.inf], [0, 0], [torch.inf, 0]]
    assert not bool(d.any())


def test_fraction_closer_counts_strictly() -> None:
    gallery = torch.tensor([[[0.1, 0.5, 0.5, 0.9], [1.0, 2.0, 3.0, 4.0]]], dtype=torch.float64)  # (1, 2, 4)
    for d, share in ((0.5, 0.25), (0.1, 0.0), (0.6, 0.75), (2.0, 1.0)):
        assert fraction_closer(torch.tensor([[d, d]], dtype=torch.float64), gallery)[0, 0] == share
    assert fraction_closer(torch.tensor([[0.5, 2.5]]).double(), gallery).tolist() == [[0.25, 0.5]]


def test_chunks() -> None:
    assert [list(range(7))[rows] for rows in chunks(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks(0, 3)) == []
    with pytest.raises(InvalidArgument, match="size"):
        chunks(3, 0)


def test_ties_keep_the_order_of_the_gallery() -> None:
    z, gallery = line([0]), line([1, -1, 1])
    y = torch.tensor([0])
    for place in range(3):
        gallery_y = torch.ones(3, dtype=torch.int64)
        gallery_y[place] = 0
        assert retrieval_scores(z, y, gallery, gallery_y, Euclidean()).first_match.tolist() == [place]
