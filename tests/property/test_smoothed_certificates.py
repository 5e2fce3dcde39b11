"""Smoothed and vote certificates against closed forms and attacks: never too large more often than stated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from torch import Tensor
from torch.nn import functional as F

from holdfast.certify import (
    Certificate,
    SmoothedEncoder,
    Smoothing,
    certify_clusters,
    certify_moving_pairs,
    certify_recall,
    certify_topk,
    certify_verification,
    certify_votes,
)
from holdfast.functional.distance import Euclidean
from holdfast.rng import RowStreams, stream
from holdfast.search import PGD, Averaged
from holdfast.threat import L2Threat, RowBall
from holdfast.types import Gallery, RetrievalTask

pytestmark = pytest.mark.property

SIGMA, DISTANCE = 0.5, 0.8
W = torch.tensor([0.6, 0.8])


def side(x: Tensor) -> Tensor:
    """Return 1 behind a plane, else 0; x = DISTANCE * W lies DISTANCE before it."""
    return (x @ W > 0).long()


def ends(x: Tensor) -> Tensor:
    """Return the unit embedding +1 or -1: the smoothed one is 2 Phi(d / sigma) - 1."""
    return 2.0 * side(x)[:, None] - 1


CENTROIDS = torch.tensor([[-1.0], [1.0]])
SHIFTED = torch.tensor([[-0.5], [1.5]])  # in the middle 0.5, so the smoothed answer is 1 where Phi > 3/4


def by_clusters(centroids: Tensor) -> Callable[[Tensor, Smoothing], Certificate]:
    return lambda x, s: certify_clusters(ends, x, centroids, s, y=torch.ones(len(x)))


def by_verification(x: Tensor, s: Smoothing) -> Certificate:
    same = torch.ones(len(x), dtype=torch.bool)
    return certify_verification(ends, x, torch.ones(len(x), 1), 0.5, s, same=same)


def by_votes(x: Tensor, s: Smoothing) -> Certificate:
    return certify_votes(side, x, s, y=torch.ones(len(x)))


AT_3_QUARTERS = DISTANCE - SIGMA * float(norm.ppf(0.75))
CLOSED: dict[str, tuple[Callable[[Tensor, Smoothing], Certificate], float]] = {
    "clusters": (by_clusters(CENTROIDS), DISTANCE),
    "clusters not of length 1": (by_clusters(SHIFTED), AT_3_QUARTERS),
    "verification": (by_verification, AT_3_QUARTERS),
    "votes": (by_votes, DISTANCE),
}


@pytest.mark.parametrize("name", list(CLOSED))
@pytest.mark.parametrize("bound", ["ball", "levels"])
def test_half_space_radii_exceed_the_truth_at_most_as_often_as_stated(
    name: str, bound: Literal["ball", "levels"]
) -> None:
    """Independent certificates of one point, each with a failure rate of 1/10."""
    certify, truth = CLOSED[name]
    alpha, runs = 0.1, 120
    s = Smoothing(sigma=SIGMA, n_select=10, n_certify=60, alpha=alpha, bound=bound, levels=3)
    got = certify((DISTANCE * W).expand(runs, 2), s)
    failures = int((got.radius > truth).sum())
    assert failures <= binom.ppf(0.999, runs, alpha)
    assert float(got.radius.max()) > truth / 10  # certificates of nothing would never fail


@pytest.mark.parametrize("name", list(CLOSED))
def test_half_space_radii_approach_the_truth_from_below(name: str) -> None:
    certify, truth = CLOSED[name]
    x = (DISTANCE * W).expand(2, 2)
    s = Smoothing(sigma=SIGMA, n_select=50, alpha=1e-4, batch_size=20_000, levels=3)
    mean = [float(certify(x, replace(s, n_certify=n)).radius.mean()) for n in (200, 2000, 30_000)]
    assert mean[0] < mean[1] < mean[2] < truth
    assert mean[2] > truth - 0.03


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    sigma=st.floats(0.05, 2), distance=st.floats(-1, 3), seed=st.integers(0, 10_000),
    bound=st.sampled_from(["ball", "levels"]), levels=st.integers(2, 20), n=st.integers(1, 300),
    middle=st.floats(-1.2, 1.2),
)  # fmt: skip
def test_any_setting_stays_below_the_closed_form(
    sigma: float, distance: float, seed: int, bound: Any, levels: int, n: int, middle: float
) -> None:
    """With alpha = 1e-9 no failure is ever seen; thresholds beyond -1 and 1 included."""
    s = Smoothing(sigma=sigma, n_select=20, n_certify=n, alpha=1e-9, seed=seed, bound=bound, levels=levels)
    x = (sigma * distance * W)[None]
    centroids = torch.tensor([[middle - 0.3], [middle + 0.3]], dtype=torch.float64)
    got = certify_clusters(ends, x, centroids, s)
    threshold = float(centroids.mean())
    value = 2 * float(norm.cdf(distance)) - 1
    assert got.answer is not None
    answer = int(got.answer[0])
    if answer < 0:
        assert float(got.radius[0]) == 0
        return
    truth = sigma * (distance - float(norm.ppf((1 + min(max(threshold, -1.0), 1.0)) / 2)))
    assert answer == int(value > threshold)
    assert float(got.radius[0]) <= abs(truth) + 1e-6


# --- No attack succeeds inside ------------------------------------------------------------------------------

FEATURES, WIDTH, ROWS, QUERIES = 6, 4, 24, 8
MATRIX = torch.randn(WIDTH, FEATURES, generator=stream(3, "matrix"))


def linear(x: Tensor) -> Tensor:
    """Return the unit vector of a linear map."""
    return F.normalize(x @ MATRIX.T)


def linear_task() -> RetrievalTask:
    centres = torch.randn(4, FEATURES, generator=stream(0, "centres"))
    y = torch.arange(ROWS) % 4
    x = centres[y] + 0.3 * torch.randn(ROWS, FEATURES, generator=stream(0, "rows"))
    return RetrievalTask(
        encoder=linear, x=x[:QUERIES], y=y[:QUERIES], z=linear(x[:QUERIES]),
        gallery=Gallery(linear(x), y, torch.arange(ROWS)), self_index=torch.arange(QUERIES),
        index=torch.arange(QUERIES), distance=Euclidean(),
    )  # fmt: skip


TASK = linear_task()
OWN = torch.arange(ROWS) == TASK.self_index[:, None]
S = Smoothing(sigma=0.5, n_select=100, n_certify=3000, alpha=1e-3, batch_size=3000)
COPIES = 4000
NOISE = 4 / math.sqrt(COPIES)
"""What the mean of so many copies may be off by, four times over."""


def smoothed(x: Tensor, seed: int = 99) -> Tensor:
    """Return the mean embedding of many copies, all at once."""
    noise = torch.randn(COPIES, *x.shape, generator=stream(seed, "exact"))
    return linear((x + S.sigma * noise).flatten(0, 1)).reshape(COPIES, len(x), -1).mean(0)


def distances(z: Tensor) -> Tensor:
    return torch.cdist(z.double(), TASK.gallery.z.double()).masked_fill(OWN, math.inf)


def recall_gain(z: Tensor) -> Tensor:
    """Return the distance of the nearest row of the class minus that of the nearest other row."""
    d, same = distances(z), TASK.gallery.y == TASK.y[:, None]
    return d.masked_fill(~same, math.inf).amin(1) - d.masked_fill(same, math.inf).amin(1)


def topk_gain(k: int) -> Callable[[Tensor], Tensor]:
    members = distances(smoothed(TASK.x)).argsort(dim=1)[:, :k]

    def gain(z: Tensor) -> Tensor:
        d = distances(z)
        inside = torch.zeros_like(d, dtype=torch.bool).scatter(1, members, True)
        return d.masked_fill(~inside, -math.inf).amax(1) - d.masked_fill(inside, math.inf).amin(1)

    return gain


def attacked(gain: Callable[[Tensor], Tensor], radius: Tensor, seed: int) -> Tensor:
    """Return the gain on the smoothed embedding after expectation over transformation inside the radii."""
    threat = RowBall(threat=L2Threat(eps=0.0, bounds=None), radii=radius.clamp_max(5.0).float())
    search = PGD(steps=12, alpha=0.25, random_start=True, keep="best", gradient=Averaged(samples=2))
    target = SmoothedEncoder(linear, S.sigma, samples=40, seed=seed)
    moved = search(target, TASK.x, gain, threat, RowStreams(seed, "attack", index=TASK.index))
    assert bool(((moved - TASK.x).norm(dim=1) <= radius + 1e-5).all())
    return gain(smoothed(moved))


@pytest.mark.parametrize("bound", ["ball", "levels"])
@pytest.mark.parametrize("what", ["recall", "top 2"])
def test_no_attack_on_the_smoothed_encoder_succeeds_inside_the_radius(what: str, bound: Any) -> None:
    s = replace(S, bound=bound)
    got = certify_recall(TASK, s) if what == "recall" else certify_topk(TASK, 2, s)
    gain = recall_gain if what == "recall" else topk_gain(2)
    held = got.radius > 0
    assert int(held.sum()) >= 2
    inside = torch.stack([attacked(gain, 0.999 * got.radius, seed) for seed in range(2)]).amax(0)
    assert bool((inside[held] < NOISE).all())
    for seed in range(20):
        u = F.normalize(torch.randn(QUERIES, FEATURES, generator=stream(seed, "direction")), dim=1)
        moved = TASK.x + 0.999 * got.radius.float()[:, None] * u
        assert bool((gain(smoothed(moved))[held] < NOISE).all())
    if bound == "levels":  # the same attack does succeed further out
        assert bool((attacked(gain, 6 * got.radius, 0)[held] > NOISE).any())


def test_votes_of_the_nearest_row_hold_against_moved_inputs() -> None:
    def label(x: Tensor) -> Tensor:
        return TASK.gallery.y[torch.cdist(linear(x), TASK.gallery.z).argmin(1)]

    got = certify_votes(label, TASK.x, S, y=TASK.y)
    assert int(got.correct.sum()) >= 4
    for seed in range(3):  # the worst of several attacks on the embedding, judged by votes
        threat = RowBall(threat=L2Threat(eps=0.0, bounds=None), radii=0.999 * got.radius.float())
        search = PGD(steps=12, alpha=0.25, random_start=seed > 0, keep="best")
        moved = search(linear, TASK.x, recall_gain, threat, RowStreams(seed, index=TASK.index))
        for i in torch.nonzero(got.correct).squeeze(1):
            noise = torch.randn(4000, FEATURES, generator=stream(seed, "votes", int(i)))
            share = float((label(moved[i] + S.sigma * noise) == TASK.y[i]).float().mean())
            assert share > 0.5 - 4 * 0.5 / math.sqrt(4000)


def test_pairs_hold_when_both_sides_move() -> None:
    x, other = TASK.x, TASK.x.roll(-4, 0)  # rows four apart are of one class
    got = certify_moving_pairs(linear, x, other, 0.3, S)
    held = got.radius > 0
    assert int(held.sum()) >= 4
    assert got.answer is not None
    answer = got.answer.bool()
    for seed in range(20):
        u = F.normalize(torch.randn(QUERIES, 2 * FEATURES, generator=stream(seed)), dim=1)
        share = torch.rand(QUERIES, 1, generator=stream(seed, "share"))
        a, b = F.normalize(u[:, :FEATURES], dim=1) * share, F.normalize(u[:, FEATURES:], dim=1) * (1 - share)
        r = 0.999 * got.radius.float()[:, None]
        score = (smoothed(x + r * a) * smoothed(other + r * b, seed=98)).sum(1)
        off = torch.where(answer, 0.3 - score, score - 0.3)
        assert bool((off[held] < 2 * NOISE).all())


def test_more_noise_copies_certify_more_in_the_mean_and_radii_scale_with_the_inputs() -> None:
    means = [float(certify_recall(TASK, replace(S, n_certify=n)).radius.mean()) for n in (100, 600, 4000)]
    assert means[0] < means[1] < means[2]
    half = replace(TASK, x=TASK.x / 2)  # embeddings are the same: the map is linear, then normalised
    small = certify_recall(half, replace(S, sigma=S.sigma / 2)).radius
    assert torch.allclose(small, certify_recall(TASK, S).radius / 2, atol=1e-4)
