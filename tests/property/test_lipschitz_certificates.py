"""No attack of the library succeeds inside a Lipschitz certificate, and no search finds a gain above 1."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.attacks import (
    CentroidGain,
    EmbeddingShift,
    FirstPlaceMargin,
    RankMargin,
    TripletGain,
    hits,
    run,
)
from holdfast.certify import LipschitzCertifier, certify_lipschitz, lipschitz_constant
from holdfast.config import replace
from holdfast.data import Digits
from holdfast.encoders import LipschitzEncoder
from holdfast.evaluation import retrieval_task
from holdfast.recipes import recipe
from holdfast.rng import stream
from holdfast.search import APGD, PGD
from holdfast.threat import L2Threat, RowBall
from holdfast.training import train

pytestmark = pytest.mark.property
ROWS = 60


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Tensor, Tensor]:
    """A small encoder after two epochs of the recipe, in float64, and test images."""
    encoder = LipschitzEncoder(width=8, depth=1, units=32, embedding_dim=32)
    made = replace(recipe("lipschitz"), "encoder", encoder)
    made = replace(replace(made, "data.train_images", 200), "epochs", 2)
    split = Digits(train_images=200).load()
    result = train(made, split).encoder
    return copy.deepcopy(result).double().eval(), split.test.x[:ROWS].double(), split.test.y[:ROWS]


def attacked(trained: Any, attack: Any, radius: Tensor, share: float, search: Any, k: int = 1) -> Tensor:
    """Return whether Recall@k survives at a share of every radius, (n,)."""
    encoder, x, y = trained
    task = retrieval_task(encoder, x, y)
    balls = RowBall(threat=L2Threat(eps=1.0, bounds=None), radii=share * radius)
    outcome = run(task, attack, search, balls, batch_size=ROWS)
    moved = (outcome.x - x).flatten(1).norm(dim=1)
    assert bool((moved <= share * radius * (1 + 1e-9)).all())
    assert float((moved / radius.clamp_min(1e-12)).max()) > 0.99 * share  # the attack used its budget
    return hits(outcome.z, task, k)


ATTACKS: dict[str, Any] = {
    "rank": RankMargin(),
    "triplet": TripletGain(),
    "centroid": CentroidGain(),
    "shift": EmbeddingShift(),
    "first": FirstPlaceMargin(),
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_no_attack_on_ranks_succeeds_inside_the_radius(name: str, trained: Any) -> None:
    encoder, x, y = trained
    found = certify_lipschitz(encoder, x, y)
    assert float((found.radius > 0.05).double().mean()) > 0.7
    search = PGD(steps=20, alpha=0.2, random_start=name == "shift", restarts=2, keep="best")
    safe = attacked(trained, ATTACKS[name], found.radius, 1 - 1e-9, search)
    assert bool((safe[found.radius > 0] == 1).all())


def test_the_same_attack_succeeds_well_outside(trained: Any) -> None:
    """So that the test above can fail: at three times the radius many queries fall."""
    encoder, x, y = trained
    found = certify_lipschitz(encoder, x, y)
    safe = attacked(trained, RankMargin(), found.radius, 3.0, APGD(steps=30))
    assert float(safe[found.radius > 0].mean()) < 0.7


def test_recall_at_three_holds_inside_its_larger_radius(trained: Any) -> None:
    encoder, x, y = trained
    one, three = certify_lipschitz(encoder, x, y), certify_lipschitz(encoder, x, y, k=3)
    assert bool((three.radius >= one.radius).all())
    assert float((three.radius - one.radius).mean()) > 0.01
    search = PGD(steps=20, alpha=0.2, restarts=2, keep="best")
    safe = attacked(trained, RankMargin(k=3), three.radius, 1 - 1e-9, search, k=3)
    assert bool((safe[three.radius > 0] == 1).all())


def test_the_half_space_distance_is_reached_where_the_gain_is_one() -> None:
    """On the identity encoder the bisector is reached just outside the radius and not inside."""
    x = torch.rand(30, 1, 3, 3, generator=stream(0), dtype=torch.float64)
    y = torch.arange(30) % 2
    z = x.flatten(1)
    found = LipschitzCertifier(constant=1.0).clusters(z, z[:2])
    assert found.answer is not None
    for share, flips in ((1 - 1e-9, False), (1 + 1e-6, True)):
        p, q = z[found.answer], z[1 - found.answer]
        away = (q - p) / (q - p).norm(dim=1, keepdim=True)
        moved = z + share * found.radius[:, None] * away
        changed = LipschitzCertifier(constant=1.0).clusters(moved, z[:2]).answer != found.answer
        assert bool(changed.all()) is flips
        assert bool(changed.any()) is flips
    assert len(y) == len(found)


def test_sets_clusters_and_verification_hold_inside(trained: Any) -> None:
    encoder, x, _ = trained
    constant = lipschitz_constant(encoder)
    with torch.no_grad():
        z = encoder(x)
    certifier = LipschitzCertifier(constant=constant, slack=2 * encoder.rounding_error())
    gallery, rows, distance = z[20:], x[:20], float(torch.cdist(z[:20], z[20:40]).median())
    cases = {
        "top": lambda q: certifier.top_k(q, gallery, k=3),
        "clusters": lambda q: certifier.clusters(q, gallery[:5]),
        "verification": lambda q: certifier.verification(q, z[20:40], distance),
    }
    for name, certify in cases.items():
        found = certify(z[:20])
        assert float(found.radius.max()) > 0.01, name
        rivals = z[20:40]

        def towards(moved: Tensor, rivals: Tensor = rivals) -> Tensor:
            return -(moved - rivals).norm(dim=1)

        balls = RowBall(threat=L2Threat(eps=1.0, bounds=None), radii=found.radius * (1 - 1e-9))
        for sign in (1, -1):
            adversarial = PGD(steps=20, alpha=0.2, keep="best")(
                encoder, rows, lambda m, sign=sign: sign * towards(m), balls
            )
            with torch.no_grad():
                answer = certify(encoder(adversarial)).answer
            assert answer is not None
            assert found.answer is not None
            kept = (answer.reshape(20, -1).sort(1).values == found.answer.reshape(20, -1).sort(1).values).all(
                1
            )
            assert bool(kept[found.radius > 0].all()), name


def test_the_gain_is_at_most_one_for_every_pair_that_a_search_finds(trained: Any) -> None:
    encoder, x, _ = trained
    start = (x + 1e-2 * torch.randn(x.shape, generator=stream(1), dtype=torch.float64)).requires_grad_()
    far = start.detach().clone()
    best = torch.zeros(len(x), dtype=torch.float64)
    for step in range(60):  # ascent on the ratio itself, which no search of the library climbs
        far = far.detach().requires_grad_()
        ratio = (encoder(far) - encoder(x)).norm(dim=1) / (far - x).flatten(1).norm(dim=1)
        (grad,) = torch.autograd.grad(ratio.sum(), far)
        best = best.maximum(ratio.detach())
        length = (far - x).detach().flatten(1).norm(dim=1)[:, None, None, None]
        unit = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]
        far = far + length * 0.5 * 0.95**step * unit
    assert float(best.max()) <= 1 + 1e-9
    assert float(best.max()) > 0.9  # the bound is not idle
    assert float(best.max()) <= lipschitz_constant(encoder) + 1e-9
