"""What must hold for every attack of the table: the invariants of the reliability page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.attacks import ATTACKS, Outcome, hits, run
from holdfast.certify import Certificate
from holdfast.data import Digits
from holdfast.encoders import LipschitzEncoder, SmallCNN
from holdfast.evaluation import SUITES, retrieval_task
from holdfast.evaluation.audit import ALLOWED, audit_images
from holdfast.evaluation.query_certificates import certify_task
from holdfast.rng import RowStreams
from holdfast.search import PGD, Square
from holdfast.threat import L2Threat, LinfThreat
from holdfast.types import RetrievalTask

EVERY = pytest.mark.parametrize("name", list(ATTACKS))
RADII = (0.0, 0.02, 0.05, 0.1)
HIGHER = {
    (entry.label, metric): higher
    for suite in ("core", "ers", "unlabelled")
    for entry in SUITES[suite].entries
    for metric, higher in entry.higher_is_robust.items()
}
"""Attack and measure -> whether a high value after the attack means a robust encoder."""


COARSE = {"SPQA+", "SPQA-", "FOA5", "SPFOA5"}
"""Steep penalties, or ten pairs at once: eight steps of half the radius overshoot more as the radius grows.
Of these only the values at radius 0 and at the largest are compared, and warm starts below."""


def task_of(spec: Any, n: int = 60, queries: int = 24) -> RetrievalTask:
    test = Digits().load().test
    encoder = spec.build((1, 8, 8), seed=0).double().eval()
    return retrieval_task(encoder, test.x[:n].double(), test.y[:n]).rows(slice(0, queries))


@pytest.fixture(scope="module")
def task() -> RetrievalTask:
    return task_of(SmallCNN(width=4, embedding_dim=8))


@pytest.fixture(scope="module")
def curves(task: RetrievalTask) -> dict[str, list[Outcome]]:
    """Every attack at rising radii."""
    return {name: [attacked(name, task, LinfThreat(eps=eps)) for eps in RADII] for name in ATTACKS}


def search_for(name: str, eps: float, steps: int = 8) -> Any:
    if not getattr(ATTACKS[name], "differentiable", True):
        return Square(queries=24)
    return PGD(steps=steps, alpha=4 * eps / steps, keep="best")


def attacked(name: str, task: RetrievalTask, threat: Any, **settings: Any) -> Outcome:
    return run(task, ATTACKS[name], search_for(name, threat.eps, **settings), threat, label=name)


def gain(name: str, task: RetrievalTask, z: Tensor) -> Tensor:
    """What the attack climbed, with the targets that :func:`holdfast.attacks.run` chose."""
    target = ATTACKS[name].target(task, RowStreams(0, name, "target", index=task.index))
    return ATTACKS[name].gain(z, target, task)


@EVERY
def test_robust_is_at_most_clean(name: str, task: RetrievalTask, curves: Any) -> None:
    for outcome in curves[name]:
        change = gain(name, task, outcome.z) - gain(name, task, task.z)
        assert float(change.min()) >= -1e-9  # the best point is kept, and the clean one was looked at
        for metric, values in outcome.attacked.items():
            if (name, metric) in HIGHER:
                better = (values - outcome.clean[metric]).double().mean() * (
                    1 if HIGHER[name, metric] else -1
                )
                assert float(better) <= 0.01, metric


@EVERY
def test_radius_zero_is_clean_to_the_bit(name: str, task: RetrievalTask, curves: Any) -> None:
    for outcome in (curves[name][0], attacked(name, task, L2Threat(eps=0.0), steps=2)):
        assert torch.equal(outcome.x, task.x)
        again = run(task, ATTACKS[name], _stay, LinfThreat(eps=0.0), label=name)
        assert torch.equal(outcome.z, again.z)
        for metric, values in outcome.attacked.items():
            assert torch.equal(values, again.attacked[metric]), metric


def _stay(encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None) -> Tensor:
    return x0.clone()


@EVERY
def test_more_room_never_helps_the_defense(name: str, task: RetrievalTask, curves: Any) -> None:
    """In the mean over the queries, within a hundredth of what the largest radius gains."""
    means = [float(gain(name, task, outcome.z).mean()) for outcome in curves[name]]
    room = means[-1] - means[0]
    assert room > 0
    if name not in COARSE:
        assert all(b >= a - 0.01 * room for a, b in pairwise(means)), means


@dataclass(frozen=True)
class Around:
    """A ball around other images than those that the search begins at."""

    ball: LinfThreat
    centre: Tensor

    @property
    def eps(self) -> float:
        return self.ball.eps

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        return self.ball.project(x, self.centre)

    def direction(self, grad: Tensor) -> Tensor:
        return self.ball.direction(grad)

    def rows(self, which: Tensor) -> Around:
        return Around(self.ball, self.centre[which])


@EVERY
def test_begun_where_a_smaller_radius_ended_no_query_loses(
    name: str, task: RetrievalTask, curves: Any
) -> None:
    if not getattr(ATTACKS[name], "differentiable", True):
        pytest.skip("the search without gradient starts at the clean image")
    target = ATTACKS[name].target(task, RowStreams(0, name, "target", index=task.index))
    x = curves[name][1].x
    values = [ATTACKS[name].gain(curves[name][1].z, target, task)]
    for eps in RADII[2:]:
        search = search_for(name, eps, steps=4)
        place: Any = Around(LinfThreat(eps=eps), task.x)
        x = search(task.encoder, x, lambda z: ATTACKS[name].gain(z, target, task), place)
        assert audit_images(x, task.x, place.ball).outside == 0
        with torch.no_grad():
            values.append(ATTACKS[name].gain(task.encoder(x), target, task))
    for before, after in pairwise(values):
        scale = before.abs().clamp_min(1)
        assert float(((after - before) / scale).min()) >= -1e-9
    assert float((values[-1] - values[0]).mean()) > 0


@EVERY
def test_every_returned_image_is_allowed(name: str, task: RetrievalTask, curves: Any) -> None:
    for eps, outcome in zip(RADII, curves[name], strict=True):
        found = audit_images(outcome.x, task.x, LinfThreat(eps=eps))
        assert (found.images, found.outside) == (len(task), 0)
        assert found.worst <= ALLOWED
    for place in (L2Threat(eps=0.4), LinfThreat(eps=0.3, bounds=None)):
        assert audit_images(attacked(name, task, place, steps=3).x, task.x, place).outside == 0


@pytest.fixture(scope="module")
def certified() -> tuple[RetrievalTask, Certificate]:
    """An encoder with a proven constant, and the radius of every query."""
    task = task_of(LipschitzEncoder(width=4, units=16, embedding_dim=8))
    single = replace(task, encoder=task.encoder.float(), x=task.x.float(), z=task.z)
    whole = retrieval_task(single.encoder, Digits().load().test.x[:60], Digits().load().test.y[:60])
    certificate = certify_task(whole, whole.rows(slice(0, 24)))
    return whole.rows(slice(0, 24)), certificate


@EVERY
def test_certified_is_at_most_empirical(name: str, certified: tuple[RetrievalTask, Certificate]) -> None:
    task, certificate = certified
    radius = certificate.radius
    assert int((radius > 0).sum()) >= 8
    for share in (0.5, 0.999):
        r = float(radius[radius > 0].median()) * share
        inside = certificate.correct & (radius > r)
        outcome = attacked(name, task, L2Threat(eps=r), steps=4)
        held = hits(outcome.z, task) > 0
        assert bool(held[inside].all())
        assert float((radius > r).double().mean()) <= float(held.double().mean())
