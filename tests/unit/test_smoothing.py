"""Smoothed embeddings: the bounds by hand, the conditions, and what each certificate certifies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom, norm
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.certify import (
    SmoothedEncoder,
    Smoothing,
    certify_clusters,
    certify_moving_pairs,
    certify_recall,
    certify_topk,
    certify_verification,
    gaussian,
    halfspaces,
    smoothed,
    smoothed_embeddings,
)
from holdfast.certify.gaussian import (
    ball_width,
    halfspace_radius,
    lower_proportion,
    rounded_down,
    staircase_radius,
)
from holdfast.certify.halfspaces import Halfspaces, Margins
from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Cosine, Euclidean, Mahalanobis, SquaredEuclidean
from holdfast.rng import seeded, stream
from holdfast.types import Gallery, RetrievalTask

QUICK = Smoothing(sigma=0.25, n_select=50, n_certify=400)


class Net(nn.Module):
    """A small normalised network in float64, so that the size of a batch does not change its numbers."""

    def __init__(self, width: int = 3, scale: float = 1.0) -> None:
        super().__init__()
        with seeded(0, "net"):
            self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, width)).double()
        self.scale = scale
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.scale * F.normalize(self.net(x.double()))


def inputs(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, generator=stream(seed, "inputs"))


def task(net: nn.Module, n: int = 4, m: int = 30, **more: Any) -> RetrievalTask:
    """Queries that stand in the gallery; the class is the nearest of three directions."""
    x = inputs(m)
    with torch.no_grad():
        z = net(x)
    y = z.argmax(1)
    fields: dict[str, Any] = {
        "encoder": net, "x": x[:n], "y": y[:n], "z": z[:n], "gallery": Gallery(z, y, torch.arange(m)),
        "self_index": torch.arange(n), "index": torch.arange(n), "distance": Euclidean(), **more,
    }  # fmt: skip
    return RetrievalTask(**fields)


# --- The bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "b"), [(1000, 0.149), (10_000, 0.047), (100_000, 0.015)])
def test_ball_of_the_reliability_page(n: int, b: float) -> None:
    assert ball_width(0.0, n, 1e-3) == pytest.approx(b, abs=6e-4)
    assert ball_width(0.0, n, 1e-3) >= 1 / math.sqrt(n) + math.sqrt(2 * math.log(1000) / n)


def test_ball_is_the_bound_of_bousquet_at_its_own_fixed_point() -> None:
    n, alpha, length = 5000, 0.01, 0.97
    b, log = ball_width(length, n, alpha), math.log(100)
    v = 1 - (length - b) ** 2
    expected = math.sqrt(v / n) + math.sqrt(2 * log * (v + 4 * math.sqrt(v / n)) / n) + 2 * log / (3 * n)
    assert b == pytest.approx(expected, abs=1e-8)
    assert b < 0.4 * ball_width(0.0, n, alpha)
    widths = [ball_width(x, n, alpha) for x in np.linspace(0, 1, 11)]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.4, 3.0])
def test_ball_fails_no_more_often_than_alpha(spread: float) -> None:
    """Over 1000 samples of vectors on a circle; and where it is wide, a fifth of it does fail."""
    alpha, n, rng = 0.1, 600, np.random.default_rng(0)
    angle = spread * rng.standard_normal((1000, n))
    mean = np.stack([np.cos(angle).mean(1), np.sin(angle).mean(1)], 1)
    true = np.array([math.exp(-(spread**2) / 2), 0.0])
    error = np.linalg.norm(mean - true, axis=1)
    width = np.array([ball_width(float(np.linalg.norm(m)), n, alpha) for m in mean])
    assert (error > width).mean() <= alpha
    assert spread < 0.1 or (error > width / 5).mean() > 0.05


@pytest.mark.parametrize("n", [1, 7, 50])
@pytest.mark.parametrize("alpha", [0.001, 0.2])
def test_clopper_pearson_is_that_of_scipy_and_covers_exactly(n: int, alpha: float) -> None:
    k = np.arange(n + 1)
    low = lower_proportion(k, n, alpha)
    assert low[0] == 0
    assert low[1:] == pytest.approx(beta.ppf(alpha, k[1:], n - k[1:] + 1), rel=1e-7)
    assert low[n] <= alpha ** (1 / n)
    for p in (0.01, 0.5, 0.9, 0.999, *(low[1:] - 1e-12)):
        assert binom.pmf(k, n, p)[low > p].sum() <= alpha


def test_halfspace_radius_by_hand() -> None:
    q = norm.ppf
    scores, thresholds = np.array([0.5, 0.9, 0.2, 0.1]), np.array([0.0, 0.3, -0.4, 0.2])
    expected = 0.5 * (q((1 + scores) / 2) - q((1 + thresholds) / 2))
    got = halfspace_radius(scores, thresholds, 0.5)
    assert got[:3] == pytest.approx(expected[:3], abs=1e-7)
    assert (got[:3] < expected[:3]).all()
    assert got[3] == 0  # the score is below the threshold
    lipschitz = 0.5 * math.sqrt(math.pi / 2) * (scores - thresholds)
    assert (got[:3] >= lipschitz[:3] - 1e-7).all()
    edges = halfspace_radius(np.array([0.5, 0.5, 0.5, -1.0, 0.5]), np.array([-1, -1.1, 1, -1, 0.5]), 1.0)
    assert edges.tolist() == [np.inf, np.inf, 0, 0, 0] or edges.tolist() == [edges[0], np.inf, 0, 0, 0]
    assert halfspace_radius(np.array([0.5]), np.array([np.inf]), 1.0).tolist() == [0]


def test_staircase_with_one_and_two_levels_by_hand() -> None:
    """One level: -1 + (1 + s) Phi(Phi^-1(p) - r / sigma) = 0 has a closed root."""
    p, s, sigma = 0.99, 0.6, 0.25
    expected = sigma * (norm.ppf(p) - norm.ppf(1 / (1 + s)))
    got = staircase_radius(np.array([[s]]), np.array([[p]]), np.array([-1.0]), sigma)
    assert float(got[0]) == pytest.approx(expected, abs=1e-7)
    assert got[0] < expected
    two = staircase_radius(np.array([[0.2, 0.6]]), np.array([[p, 0.9]]), np.array([-1.0]), sigma)
    r = float(two[0])
    value = -1 + 1.2 * norm.cdf(norm.ppf(p) - r / sigma) + 0.4 * norm.cdf(norm.ppf(0.9) - r / sigma)
    assert 0 <= value < 1e-7
    edges = staircase_radius(
        np.array([[0.5], [0.5], [0.5]]), np.array([[0.0], [0.6], [0.9]]), np.array([-1.0, -1.0, 0.1]), 1.0
    )
    assert edges.tolist() == [0, 0, np.inf]  # never reached; -1 + 1.5 * 0.6 < 0; cannot fall to 0
    with pytest.raises(InvalidArgument, match="levels"):
        staircase_radius(np.array([[0.5, 0.4]]), np.array([[0.9, 0.8]]), np.array([-1.0]), 1.0)


def test_rounding_is_down_and_keeps_the_ends() -> None:
    assert rounded_down(np.array([0.0, np.inf])).tolist() == [0, np.inf]
    assert 0.3 - 1e-8 < rounded_down(np.array([0.3]))[0] < 0.3


# --- Conditions --------------------------------------------------------------------------------------------


def test_nearer_by_hand_for_vectors_of_any_length() -> None:
    h = Halfspaces.nearer(torch.tensor([3.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 4.0], [3.0, 0.0]]))
    assert torch.allclose(h.u[:2], torch.tensor([[1.0, 0.0], [0.6, -0.8]], dtype=torch.float64))
    assert h.t.tolist() == [2.0, pytest.approx((9 - 16) / 10), math.inf]  # a duplicate cannot be beaten
    g = torch.randn(200, 2, generator=stream(0), dtype=torch.float64)
    p, q = torch.tensor([0.3, 0.9]).double(), torch.tensor([-0.2, 0.4]).double()
    h = Halfspaces.nearer(p, q[None])
    assert torch.equal((g @ h.u[0]) > h.t[0], (g - p).norm(dim=1) < (g - q).norm(dim=1))


def test_margins_are_group_minima_above_their_floor_and_below_the_margin_of_the_mean() -> None:
    gen = stream(0, "margins")
    u = F.normalize(torch.randn(20, 3, generator=gen, dtype=torch.float64))
    t = torch.rand(20, generator=gen, dtype=torch.float64) * 0.2
    z = F.normalize(torch.randn(500, 3, generator=gen, dtype=torch.float64))
    margins = Margins(Halfspaces(u, t), z[:100], groups=5, levels=6)
    each = z @ u.T - t
    assert len(margins.sizes) == 5
    assert sum(margins.sizes) == 20
    assert torch.allclose(margins.of(z).amin(1), each.amin(1))
    assert bool((margins.of(z) >= margins.floor).all())
    mean = z.mean(0)
    assert bool((margins.of(mean[None])[0] >= margins.of(z).mean(0)).all())  # Jensen
    assert bool((margins.levels.diff(dim=1) >= 0).all())
    margins.see(z[:300])
    margins.see(z[300:])
    assert torch.equal(margins.hits, (margins.of(z)[:, :, None] >= margins.levels + 1e-9).sum(0))
    alone = Margins(Halfspaces(u, t), z[:100], groups=64, levels=6)
    assert alone.sizes == [1] * 20


def test_an_encoder_that_never_changes_reaches_its_own_levels() -> None:
    """All n margins are alike: one level counts, and its p is alpha' ** (1 / n)."""
    x = inputs(1)
    got = certify_verification(lambda x: torch.ones(len(x), 1), x, torch.ones(1, 1), 0.5, QUICK)
    p = (QUICK.alpha / 2 / QUICK.levels) ** (1 / QUICK.n_certify)
    assert float(got.radius[0]) == pytest.approx(0.25 * (norm.ppf(p) - norm.ppf(0.75)), abs=1e-6)


# --- Noise -------------------------------------------------------------------------------------------------


def test_the_mean_is_that_of_unclipped_noise_from_named_streams() -> None:
    net, x = Net(), inputs(2)
    got = smoothed_embeddings(net, x, QUICK, index=[5, 9])
    seen = torch.cat(net.seen)
    assert seen.shape == (800, 4)
    noise = stream(QUICK.seed, "smoothing", "certify", 9)
    expected = x[1] + 0.25 * torch.stack([torch.randn(4, generator=noise) for _ in range(400)])
    assert torch.allclose(seen[400:], expected)
    assert float(seen.abs().max()) > 2  # outside [0, 1]
    assert torch.allclose(got[1], net(expected).mean(0))
    assert got.dtype == torch.float64
    assert float(got.norm(dim=1).max()) <= 1


@pytest.mark.parametrize("batch_size", [1, 7, 5000])
def test_results_do_not_depend_on_the_batch_size_or_on_neighbours(batch_size: int) -> None:
    whole = task(Net(), n=3)
    reference = certify_recall(whole, QUICK)
    assert int((reference.radius > 0).sum()) >= 2
    alone = certify_recall(whole.rows(torch.tensor([2, 0])), replace(QUICK, batch_size=batch_size))
    assert torch.allclose(alone.radius, reference.radius[[2, 0]], atol=1e-9)


def test_selection_and_certification_draw_fresh_noise() -> None:
    net = Net()
    certify_recall(task(net, n=1), replace(QUICK, n_select=400, batch_size=400))
    select, certify = net.seen[-2:]
    assert len(select) == len(certify) == 400
    shared = (select[:, None] == certify[None]).all(2).any()
    assert not bool(shared)
    again = Net()
    certify_recall(task(again, n=1), replace(QUICK, n_select=400, batch_size=400, seed=1))
    assert not torch.equal(again.seen[-1], certify)


def test_smoothed_encoder_draws_anew_averages_and_passes_gradients() -> None:
    x = inputs(3).requires_grad_(True)
    encoder = SmoothedEncoder(Net(), sigma=0.25, samples=8)
    first, second = encoder(x), encoder(x)
    assert not torch.equal(first, second)
    assert torch.equal(SmoothedEncoder(Net(), sigma=0.25, samples=8)(x), first)
    assert torch.autograd.grad(first.sum(), x)[0].abs().min() > 0
    calm = SmoothedEncoder(Net(), sigma=0.0, samples=2)
    assert torch.allclose(calm(x), Net()(x))
    with torch.no_grad():
        many = SmoothedEncoder(Net(), sigma=0.25, samples=2000)(x[:1])
    assert float((many - smoothed_embeddings(Net(), x[:1].detach(), QUICK)).norm()) < 0.1


def test_modes_and_weights_are_left_as_they_were() -> None:
    net = Net().train()
    certify_recall(task(net), QUICK)
    assert all(module.training for module in net.modules())
    assert all(p.grad is None for p in net.parameters())


# --- Certificates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["ball", "levels"])
def test_recall_is_the_formula_on_the_ball(bound: Any) -> None:
    """With the ball alone: max over p of min over q by brute force from the mean."""
    net = Net()
    t = task(net)
    s = replace(QUICK, bound=bound)
    got = certify_recall(t, s, candidates=100)
    means = smoothed_embeddings(net, t.x, s)
    alpha = s.alpha if bound == "ball" else s.alpha / 2
    for i, mean in enumerate(means):
        width = ball_width(float(mean.norm()), s.n_certify, alpha)
        best = 0.0
        for p in range(30):
            if p == i or t.gallery.y[p] != t.y[i]:
                continue
            rivals = t.gallery.z[t.gallery.y != t.y[i]]
            radii = Halfspaces.nearer(t.gallery.z[p], rivals).radii(mean, width, s.sigma)
            best = max(best, float(radii.min()))
        if bound == "ball":
            assert float(got.radius[i]) == pytest.approx(best, abs=1e-12)
        else:
            assert float(got.radius[i]) >= best
    assert got.method == "smoothing"
    assert got.norm == 2
    assert got.alpha == s.alpha
    assert not bool(got.exact_rows().any())
    assert torch.equal(got.correct, got.radius > 0)
    assert torch.equal(got.answer, torch.where(got.correct, t.y, -1))


def test_levels_are_worth_more_than_the_ball_and_more_samples_more_than_few() -> None:
    t = task(Net(), n=8)
    few = certify_recall(t, QUICK)
    assert few.radius.mean() > 1.3 * certify_recall(t, replace(QUICK, bound="ball")).radius.mean()
    assert certify_recall(t, replace(QUICK, n_certify=4000)).radius.mean() > few.radius.mean()


def test_competitors_beyond_the_shortlist_and_chunks() -> None:
    t = task(Net())
    full = certify_recall(t, QUICK)
    short = certify_recall(t, replace(QUICK, competitors=1))
    ball = certify_recall(t, replace(QUICK, bound="ball", alpha=QUICK.alpha / 2))
    assert bool((short.radius >= ball.radius - 1e-12).all())
    assert float(short.radius.mean()) < float(full.radius.mean())


def test_chunks_of_the_gallery_do_not_change_radii(monkeypatch: pytest.MonkeyPatch) -> None:
    t = task(Net())
    whole = certify_recall(t, QUICK), certify_topk(t, 2, QUICK)
    monkeypatch.setattr(smoothed, "CHUNK", 3)
    parts = certify_recall(t, QUICK), certify_topk(t, 2, QUICK)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a.radius, b.radius, atol=1e-9)


def test_self_matches_are_left_out_by_index() -> None:
    """A gallery of one own row and one rival: with the self-match the query is right, without it never."""
    net = Net()
    t = task(net, n=1)
    rival = int(torch.nonzero(t.gallery.y != t.y[0])[0])
    rows = torch.tensor([0, rival])
    small = Gallery(t.gallery.z[rows], t.gallery.y[rows], rows)
    assert not bool(certify_recall(replace(t, gallery=small), QUICK).correct[0])
    seen = certify_recall(replace(t, gallery=small, self_index=torch.tensor([-1])), QUICK)
    assert bool(seen.correct[0])


def test_galleries_without_rivals_or_without_matches() -> None:
    t = task(Net(), n=2)
    alike = t.gallery._replace(y=t.y[0].expand(30))
    first = certify_recall(replace(t, gallery=alike), QUICK)
    assert first.radius[0] == math.inf
    assert bool(first.correct[0])
    other = t.gallery._replace(y=torch.full((30,), 77))
    none = certify_recall(replace(t, gallery=other), QUICK)
    assert none.radius.tolist() == [0, 0]
    assert none.answer is not None
    assert none.answer.tolist() == [-1, -1]


def test_duplicates_in_another_class_cannot_be_certified() -> None:
    """Every row stands in the gallery under two labels: a tie that counts against the certificate."""
    t = task(Net(), n=2, self_index=torch.tensor([-1, -1]))
    double = Gallery(t.gallery.z.repeat(2, 1), torch.cat([t.gallery.y, t.gallery.y + 5]), torch.arange(60))
    assert certify_recall(replace(t, gallery=double), QUICK).radius.tolist() == [0, 0]


def test_recall_at_k_grows_with_k_and_spares_the_hardest_rivals() -> None:
    t = task(Net(), n=6)
    for bound in ("ball", "levels"):
        s = replace(QUICK, bound=bound)
        radii = [certify_recall(t, s, k=k).radius for k in (1, 3, 10)]
        assert bool((radii[1] >= radii[0] - 1e-9).all())
        assert float(radii[2].mean()) > float(radii[1].mean()) > float(radii[0].mean())
    rivals = int((t.gallery.y != t.y[0]).sum())
    assert certify_recall(t.rows(torch.tensor([0])), QUICK, k=rivals + 1).radius[0] == math.inf


def test_cosine_ignores_the_lengths_of_gallery_vectors() -> None:
    t = task(Net())
    scale = torch.linspace(0.5, 3, 30, dtype=torch.float64)[:, None]
    longer = replace(t, gallery=t.gallery._replace(z=t.gallery.z * scale))
    unit = certify_recall(t, QUICK)
    cosine = certify_recall(replace(longer, distance=Cosine()), QUICK)
    assert torch.allclose(unit.radius, cosine.radius, atol=1e-9)
    assert not torch.allclose(certify_recall(longer, QUICK).radius, unit.radius, atol=1e-3)
    squared = certify_recall(replace(t, distance=SquaredEuclidean()), QUICK)
    assert torch.equal(squared.radius, unit.radius)


def test_top_1_of_centroids_is_cluster_assignment() -> None:
    net = Net()
    centroids = 0.8 * torch.eye(3, dtype=torch.float64)
    t = task(net, n=5, gallery=Gallery(centroids, torch.arange(3), torch.arange(3)))
    t = replace(t, self_index=torch.full((5,), -1))
    x = t.x
    top = certify_topk(t, 1, QUICK)
    clusters = certify_clusters(net, x, centroids, QUICK)
    assert torch.equal(top.radius > 0, clusters.radius > 0)
    kept = torch.where(top.correct, clusters.radius, torch.zeros(()).double())
    assert torch.allclose(top.radius, kept)
    assert top.answer is not None
    assert clusters.answer is not None
    assert torch.equal(top.answer[:, 0], clusters.answer)
    wrong = certify_clusters(net, x, centroids, QUICK, y=(clusters.answer + 1) % 3)
    assert not bool(wrong.correct.any())
    assert wrong.radius.tolist() == [0] * 5
    nearest = (smoothed_embeddings(net, x, QUICK)[:, None] - centroids).norm(dim=2).argmin(1)
    assert torch.equal(torch.where(clusters.correct, nearest, -1), clusters.answer)


def test_top_k_sets_need_every_member_to_beat_every_other_row() -> None:
    t = task(Net(), n=3)
    s = replace(QUICK, bound="ball")
    got = certify_topk(t, 4, s)
    means = smoothed_embeddings(t.encoder, t.x, s)
    certified = 0
    for i, mean in enumerate(means):
        d = (t.gallery.z - mean).norm(dim=1)
        d[i] = math.inf
        inside = d.argsort()[:4]
        outside = torch.tensor([j for j in range(30) if j not in [i, *inside.tolist()]])
        width = ball_width(float(mean.norm()), s.n_certify, s.alpha)
        radii = [Halfspaces.nearer(t.gallery.z[p], t.gallery.z[outside]).radii(mean, width, s.sigma)
                 for p in inside]  # fmt: skip
        best = float(torch.cat(radii).min())
        assert got.answer is not None
        if best > 0:
            certified += 1
            assert float(got.radius[i]) == pytest.approx(best, abs=1e-12)
            assert got.answer[i].tolist() == sorted(inside.tolist())
        else:
            assert got.answer[i].tolist() == [-1] * 4
    sets = certify_topk(t, 29, QUICK)  # all but the query itself: nothing can enter
    assert sets.radius.tolist() == [math.inf] * 3


def test_verification_on_both_sides_of_the_threshold() -> None:
    net, x = Net(), inputs(4)
    reference = 2 * net(x).detach()  # of length 2
    same = certify_verification(net, x, reference, 0.6, QUICK, same=torch.ones(4, dtype=torch.bool))
    apart = certify_verification(net, x, -reference, 0.6, QUICK)
    assert same.answer is not None
    assert apart.answer is not None
    assert same.answer.tolist() == [1] * 4
    assert apart.answer.tolist() == [0] * 4
    s = replace(QUICK, bound="ball")
    mean = smoothed_embeddings(net, x, s)
    width = np.array([ball_width(float(m.norm()), s.n_certify, s.alpha) for m in mean])
    score = (mean * reference / 2).sum(1).numpy()
    assert certify_verification(net, x, reference, 0.6, s).radius.numpy() == pytest.approx(
        halfspace_radius(score - width, np.full(4, 0.3), s.sigma)
    )
    assert certify_verification(net, x, -reference, 0.6, s).radius.numpy() == pytest.approx(
        halfspace_radius(score - width, np.full(4, -0.3), s.sigma)
    )
    never = certify_verification(net, x, reference, -2.5, QUICK)  # below every possible score
    assert never.radius.tolist() == [math.inf] * 4
    wrong = certify_verification(net, x, reference, 0.6, QUICK, same=torch.zeros(4, dtype=torch.bool))
    assert not bool(wrong.correct.any())


def test_pairs_that_both_move() -> None:
    net, x = Net(), inputs(4)
    s = replace(QUICK, n_certify=2000)
    got = certify_moving_pairs(net, x, x, 0.2, s, same=torch.ones(4, dtype=torch.bool))
    a = smoothed_embeddings(net, x, s)
    b = smoothed_embeddings(net, x, s, purpose="certify other")
    assert not torch.equal(a, b)
    for i in range(4):
        la, lb = float(a[i].norm()), float(b[i].norm())
        wa, wb = (ball_width(v, 2000, s.alpha / 2) for v in (la, lb))
        error = wa * lb + min(1, la + wa) * wb
        expected = (float(a[i] @ b[i]) - 0.2 - error) * s.sigma * math.sqrt(math.pi / 2)
        assert float(got.radius[i]) == pytest.approx(max(expected, 0), abs=1e-7)
        assert float(got.radius[i]) <= max(expected, 0)
    assert bool((got.radius > 0).any())
    one = certify_verification(net, x, b, 0.2, replace(s, bound="ball"))
    assert bool((one.radius > got.radius).all())  # who may move both sides moves further
    assert bool((certify_moving_pairs(net, x, x, 1.0, s).radius == 0).all())


# --- Bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sigma", 0.0), ("sigma", -1.0), ("sigma", math.nan), ("sigma", math.inf), ("n_select", 0),
        ("n_certify", 0), ("batch_size", 0), ("alpha", 0.0), ("alpha", 1.0), ("seed", -1), ("bound", "best"),
        ("levels", 1), ("groups", 0), ("competitors", 0),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=field):
        replace(QUICK, **{field: value})


def test_embeddings_that_are_not_bounded_by_1_are_refused() -> None:
    x = inputs(2)
    with pytest.raises(InvalidArgument, match="length at most 1"):
        smoothed_embeddings(Net(scale=1.01), x, QUICK)
    assert float(smoothed_embeddings(Net(scale=1 + 1e-6), x, QUICK).norm(dim=1).max()) <= 1
    assert float(smoothed_embeddings(Net(scale=0.5), x, QUICK).norm(dim=1).max()) <= 0.5
    with pytest.raises(InvalidArgument, match="NaN or infinity"):
        smoothed_embeddings(lambda x: x * math.nan, x, QUICK)
    with pytest.raises(InvalidArgument, match="embeddings"):
        smoothed_embeddings(lambda x: x[0], x, QUICK)


def test_bad_arguments_are_refused() -> None:
    net = Net()
    t = task(net)
    z = t.gallery.z
    cases: list[tuple[Any, str]] = [
        (lambda: certify_recall(t, QUICK, k=0), "k: need"),
        (lambda: certify_recall(t, QUICK, candidates=0), "candidates"),
        (lambda: certify_recall(replace(t, distance=Mahalanobis(torch.eye(3))), QUICK), "distance"),
        (lambda: certify_recall(replace(t, gallery=t.gallery._replace(z=z * math.nan)), QUICK), "gallery"),
        (lambda: certify_recall(replace(t, gallery=Gallery(z[:0], t.y[:0], t.y[:0])), QUICK), "gallery"),
        (lambda: certify_topk(t, 0, QUICK), "k: need 1 to 29"),
        (lambda: certify_topk(t, 30, QUICK), "k: need 1 to 29"),
        (lambda: certify_clusters(net, t.x, z[0], QUICK), "centroids"),
        (lambda: certify_clusters(net, t.x, z, QUICK, y=t.y[:2]), "y: need"),
        (lambda: certify_clusters(net, t.x, z, QUICK, index=[1]), "index"),
        (lambda: certify_clusters(net, t.x[:0], z, QUICK), "x: need at least one"),
        (lambda: certify_verification(net, t.x, z[:3], 0.5, QUICK), "reference"),
        (lambda: certify_verification(net, t.x, 0 * z[:4], 0.5, QUICK), "length above 0"),
        (lambda: certify_verification(net, t.x, z[:4], math.nan, QUICK), "threshold"),
        (lambda: certify_moving_pairs(net, t.x, t.x[:2], 0.5, QUICK), "other"),
        (lambda: certify_moving_pairs(net, t.x, t.x, math.inf, QUICK), "threshold"),
        (lambda: SmoothedEncoder(net, sigma=-0.1), "sigma"),
        (lambda: SmoothedEncoder(net, sigma=0.1, samples=0), "samples"),
        (lambda: lower_proportion(np.array([3]), 2, 0.1), "k: need"),
        (lambda: lower_proportion(np.array([1]), 2, 0.0), "alpha"),
    ]
    for call, reason in cases:
        with pytest.raises(InvalidArgument, match=reason):
            call()
    assert gaussian.TOLERANCE == halfspaces.TOLERANCE
