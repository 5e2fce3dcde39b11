"""What holds for every search, whatever the images, the radius and the steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from holdfast.rng import RowStreams, seeded, stream
from holdfast.schedules import Cycle, HalfCosine, Linear
from holdfast.search import NES, PGD, SPSA, Autograd
from holdfast.threat import L2Threat, LinfThreat

pytestmark = pytest.mark.property
quick = settings(derandomize=True, deadline=None, max_examples=40)
few = settings(derandomize=True, deadline=None, max_examples=15)

with seeded(0, "property"):
    NET = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(4, 3),
    ).double().eval()  # fmt: skip
with seeded(0, "property", "single"):
    SINGLE = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

radii = st.sampled_from([0.0, 1e-7, 8 / 255, 0.3, 2.0])
lengths = st.sampled_from([0.0, 1e-8, 1 / 255, 0.37, 3.0, 1e6])
alphas = st.one_of(
    lengths,
    st.builds(Linear, start=lengths, stop=lengths),
    st.builds(HalfCosine, start=lengths, stop=lengths),
    st.builds(Cycle, values=st.tuples(lengths, lengths)),
)
gradients = st.sampled_from([Autograd(), NES(samples=2), SPSA(samples=2)])
threats = st.builds(lambda make, eps: make(eps=eps), st.sampled_from([LinfThreat, L2Threat]), radii)
searches = st.builds(
    PGD,
    steps=st.integers(0, 4),
    alpha=alphas,
    random_start=st.booleans(),
    restarts=st.integers(1, 2),
    keep=st.sampled_from(["last", "best"]),
    gradient=gradients,
)
seeds = st.integers(0, 10_000)


def images(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images of all kinds: inside the box, and with many pixels at its ends."""
    x = torch.rand(n, 1, 4, 4, generator=stream(seed, "images"), dtype=torch.float64)
    x[::2] = (2 * x[::2] - 0.5).clamp(0, 1)
    return x.to(dtype)


def away_from(clean: Tensor) -> Any:
    """The gain of an embedding shift, row by row; `clean` must be permuted alike."""
    return lambda z: (z - clean + 1e-6).norm(dim=1)


@quick
@given(searches, threats, seeds, st.sampled_from([torch.float32, torch.float64]))
def test_the_result_is_in_the_ball_and_in_the_box(
    search: PGD, threat: Any, seed: int, dtype: torch.dtype
) -> None:
    net = SINGLE if dtype == torch.float32 else NET
    x0 = images(4, seed, dtype)
    x = search(net, x0, away_from(net(x0).detach()), threat, RowStreams(seed, index=range(4)))
    assert x.shape == x0.shape
    assert x.dtype == dtype
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    slack = 4 * torch.finfo(dtype).eps
    assert float(threat.size(x.double(), x0.double()).max()) <= threat.eps * (1 + slack) + slack


@quick
@given(threats, seeds, lengths, st.sampled_from([torch.float32, torch.float64]))
def test_noise_and_projections_are_in_the_ball_and_in_the_box(
    threat: Any, seed: int, length: float, dtype: torch.dtype
) -> None:
    x0 = images(5, seed, dtype)
    far = x0 + length * torch.randn(x0.shape, generator=stream(seed, "far"), dtype=dtype)
    slack = 4 * torch.finfo(dtype).eps
    for x in (threat.noise(x0, stream(seed)), threat.project(far, x0)):
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
        assert float(threat.size(x.double(), x0.double()).max()) <= threat.eps * (1 + slack) + slack
    assert torch.equal(threat.project(x0, x0), x0)


@quick
@given(searches, threats, seeds, st.permutations(range(5)))
def test_permuting_rows_permutes_results(search: PGD, threat: Any, seed: int, order: list[int]) -> None:
    x0 = images(5, seed)
    clean = NET(x0).detach()
    straight = search(NET, x0, away_from(clean), threat, RowStreams(seed, index=range(5)))
    shuffled = search(NET, x0[order], away_from(clean[order]), threat, RowStreams(seed, index=order))
    torch.testing.assert_close(shuffled, straight[order], atol=1e-9, rtol=0)


@quick
@given(searches, threats, seeds)
def test_rows_attacked_alone_and_together_are_the_same(search: PGD, threat: Any, seed: int) -> None:
    x0 = images(4, seed)
    clean = NET(x0).detach()
    together = search(NET, x0, away_from(clean), threat, RowStreams(seed, index=range(4)))
    for row in range(4):
        one = slice(row, row + 1)
        alone = search(NET, x0[one], away_from(clean[one]), threat, RowStreams(seed, index=[row]))
        torch.testing.assert_close(alone, together[one], atol=1e-9, rtol=0)


def grouped(clean: Tensor) -> Any:
    """Two rows to each group, coupled inside it."""
    half = len(clean) // 2
    return lambda z: (z[:half] - z[half:]).square().sum(1) + (z - clean)[:half, 0]


@quick
@given(searches, threats, seeds, st.integers(1, 3))
def test_more_steps_never_hurt_the_best(search: PGD, threat: Any, seed: int, more: int) -> None:
    # a number for alpha: a schedule over the fraction done takes other steps when there are more of them
    best = replace(search, keep="best", alpha=0.05, restarts=1)
    x0 = images(6, seed)
    for objective in (away_from(NET(x0).detach()), grouped(NET(x0).detach())):
        values = []
        for steps in (best.steps, best.steps + more):
            x = replace(best, steps=steps)(NET, x0, objective, threat, RowStreams(seed, index=range(6)))
            values.append(objective(NET(x)).detach())
        assert bool((values[1] >= values[0] - 1e-12).all())


@quick
@given(searches, threats, seeds)
def test_the_best_is_never_worse_than_the_start(search: PGD, threat: Any, seed: int) -> None:
    best = replace(search, keep="best", random_start=False)
    x0 = images(6, seed)
    objective = grouped(NET(x0).detach())
    x = best(NET, x0, objective, threat, stream(seed))
    assert bool((objective(NET(x)) >= objective(NET(x0)) - 1e-12).all())


@quick
@given(searches, threats, seeds, st.integers(1, 2))
def test_more_restarts_never_hurt(search: PGD, threat: Any, seed: int, more: int) -> None:
    x0 = images(6, seed)
    for objective in (away_from(NET(x0).detach()), grouped(NET(x0).detach())):
        values = []
        for restarts in (search.restarts, search.restarts + more):
            streams = RowStreams(seed, index=range(6))
            x = replace(search, restarts=restarts)(NET, x0, objective, threat, streams)
            values.append(objective(NET(x)).detach())
        assert bool((values[1] >= values[0] - 1e-12).all())


@few
@given(searches, threats, seeds)
def test_the_same_name_gives_the_same_result(search: PGD, threat: Any, seed: int) -> None:
    x0 = images(3, seed)
    objective = away_from(NET(x0).detach())
    one, two = (search(NET, x0, objective, threat, RowStreams(seed, index=range(3))) for _ in range(2))
    assert torch.equal(one, two)
