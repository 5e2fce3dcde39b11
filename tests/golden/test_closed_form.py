"""On a linear encoder the best attack is known; the loop must reach it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.adversaries import Collapse
from holdfast.attacks import EmbeddingShift, run
from holdfast.functional.distance import Euclidean
from holdfast.rng import stream
from holdfast.schedules import Linear
from holdfast.search import NES, PGD
from holdfast.threat import L2Threat, LinfThreat
from holdfast.types import Context, Gallery, RetrievalTask, Roles, TripletView

pytestmark = pytest.mark.golden

N, D, E = 7, 12, 4
EPS = 0.1
SCHEDULES = pytest.mark.parametrize(
    "search",
    [
        PGD(steps=20, alpha=EPS / 4),
        PGD(steps=1, alpha=5 * EPS),
        PGD(steps=15, alpha=Linear(start=EPS, stop=0.0), random_start=True),
        PGD(steps=20, alpha=EPS / 4, restarts=3, keep="best"),
    ],
    ids=["small steps", "one long step", "schedule, random start", "restarts, best"],
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=stream(seed, "closed form"), dtype=torch.float64)


W = rand(E, D, seed=1) - 0.5
G = rand(N, E, seed=2) - 0.5  # every query climbs in its own direction
X = rand(N, D)


def encoder(x: Tensor) -> Tensor:
    return x.flatten(1) @ W.T


def gain(z: Tensor) -> Tensor:
    return (z * G).sum(1)


@SCHEDULES
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0), (0.2, 0.6)])
def test_linf_optimum_of_a_linear_gain(search: PGD, bounds: Any) -> None:
    """x0 + eps * sign(W^T g): the box cuts every pixel on its own, so clipping keeps the optimum."""
    x0 = X if bounds is None else X.clamp(*bounds)
    best = x0 + EPS * torch.sign(G @ W)
    best = best if bounds is None else best.clamp(*bounds)
    x = search(encoder, x0, gain, LinfThreat(eps=EPS, bounds=bounds), stream(0))
    torch.testing.assert_close(x, best, atol=1e-12, rtol=0)
    if bounds is None:
        rise = gain(encoder(x)) - gain(encoder(x0))
        torch.testing.assert_close(rise, EPS * (G @ W).abs().sum(1))


@SCHEDULES
def test_l2_optimum_of_a_linear_gain(search: PGD) -> None:
    """x0 + eps * unit(W^T g); from a random start along the sphere, which takes some steps."""
    pull = G @ W
    best = X + EPS * pull / pull.norm(dim=1, keepdim=True)
    x = search(encoder, X, gain, L2Threat(eps=EPS, bounds=None), stream(0))
    rise = gain(encoder(x)) - gain(encoder(X))
    exact = EPS * pull.norm(dim=1)
    if search.random_start:
        assert bool((rise > 0.999 * exact).all())
    else:
        torch.testing.assert_close(x, best, atol=1e-12, rtol=0)
        torch.testing.assert_close(rise, exact)


def test_images_are_attacked_as_wholes() -> None:
    """The l2 ball is one for all channels and pixels of an image."""
    x0 = X.reshape(N, 3, 2, 2)
    x = PGD(steps=3, alpha=EPS)(encoder, x0, gain, L2Threat(eps=EPS, bounds=None))
    pull = (G @ W).reshape(x0.shape)
    scale = pull.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(x, x0 + EPS * pull / scale, atol=1e-12, rtol=0)


def test_groups_of_rows_reach_the_optimum_of_collapse() -> None:
    """-d(p, n) in one dimension: p and n meet half way, or come as near as the budget allows."""
    w = torch.tensor([[1.0, -1.0]], dtype=torch.float64)  # |w|_1 = 2
    p = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    n = torch.tensor([[0.9, 0.1], [0.52, 0.48]], dtype=torch.float64)  # embeddings 0.8 and 0.04
    ctx = Context(
        encoder=torch.nn.Identity(), bare=torch.nn.Identity(), x=p, y=p, index=p, distance=Euclidean()
    )

    def objective(z: Tensor) -> Tensor:
        roles = Roles(z[:2], z[:2], z[2:])
        return Collapse().gain(TripletView(roles, roles), ctx)

    search = PGD(steps=100, alpha=0.001, keep="best")
    x = search(lambda x: x @ w.T, torch.cat([p, n]), objective, LinfThreat(eps=EPS))
    left = ((x[:2] - x[2:]) @ w.T).abs()[:, 0]
    assert float(left[0]) == pytest.approx(0.8 - 2 * EPS * 2, abs=1e-9)
    assert float(left[1]) < 0.005


THREATS = pytest.mark.parametrize(
    ("threat", "dual"),
    [(LinfThreat(eps=EPS, bounds=None), 1), (L2Threat(eps=EPS, bounds=None), 2)],
    ids=["linf", "l2"],
)


def shift_task(embed: Any, x: Tensor) -> RetrievalTask:
    y = torch.arange(len(x)) // 2
    z = embed(x)
    return RetrievalTask(
        encoder=embed, x=x, y=y, z=z, gallery=Gallery(z, y, torch.arange(len(x))),
        self_index=torch.arange(len(x)), index=torch.arange(len(x)), distance=Euclidean(),
    )  # fmt: skip


@THREATS
@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_embedding_shift_in_one_dimension(threat: Any, dual: int, batch_size: int) -> None:
    """|w delta| is at most eps times the dual norm of w."""
    w = W[:1]
    best = EPS * float(w.norm(p=dual))
    search = PGD(steps=20, alpha=EPS / 4)
    by_hand = search(lambda x: x @ w.T, X, lambda z: (z - X @ w.T + 1e-6).norm(dim=1), threat)
    assert ((by_hand - X) @ w.T).abs()[:, 0].tolist() == pytest.approx([best] * N)

    task = shift_task(lambda x: x @ w.T, X)
    outcome = run(task, EmbeddingShift(), search, threat, batch_size=batch_size)
    assert outcome.attacked["shift"].tolist() == pytest.approx([best] * N, abs=2e-6)
    assert float(outcome.clean["shift"].max()) <= 2e-6
    torch.testing.assert_close(outcome.x, by_hand)
    torch.testing.assert_close(outcome.z, outcome.x @ w.T)


@pytest.mark.parametrize("random_start", [False, True])
def test_embedding_shift_l2_reaches_the_largest_singular_value(random_start: bool) -> None:
    """In several dimensions the best shift is eps * sigma_max(W): a power iteration."""
    sigma = float(torch.linalg.matrix_norm(W, ord=2))
    search = PGD(steps=200, alpha=EPS, random_start=random_start)
    outcome = run(shift_task(encoder, X), EmbeddingShift(), search, L2Threat(eps=EPS, bounds=None))
    assert outcome.attacked["shift"].tolist() == pytest.approx([EPS * sigma] * N, rel=1e-4)
    assert float((outcome.x - X).norm(dim=1).max()) <= EPS * (1 + 1e-12)


def test_no_shift_beats_the_bound_in_the_box() -> None:
    w = W[:1]
    threat = LinfThreat(eps=EPS)
    outcome = run(shift_task(lambda x: x @ w.T, X), EmbeddingShift(), PGD(steps=20, alpha=EPS / 4), threat)
    up, down = (
        ((X + side * EPS * torch.sign(w)).clamp(0, 1) - X) @ w.T for side in (1.0, -1.0)
    )  # the two corners
    best = torch.maximum(up.abs(), down.abs())[:, 0]
    shift = outcome.attacked["shift"]
    assert bool((shift <= best + 2e-6).all())
    # the loop climbs on one side and reaches that side's corner exactly
    torch.testing.assert_close(shift, up.abs()[:, 0], atol=2e-6, rtol=0)
    both = run(
        shift_task(lambda x: x @ w.T, X), EmbeddingShift(),
        PGD(steps=20, alpha=EPS / 4, restarts=8), threat,
    )  # fmt: skip
    torch.testing.assert_close(both.attacked["shift"], best, atol=2e-6, rtol=0)


def test_queries_alone_come_near_the_optimum() -> None:
    search = PGD(steps=30, alpha=EPS / 5, gradient=NES(samples=40))
    x = search(encoder, X, gain, LinfThreat(eps=EPS, bounds=None), stream(0))
    rise = gain(encoder(x)) - gain(encoder(X))
    assert bool((rise > 0.9 * EPS * (G @ W).abs().sum(1)).all())
