"""Every image that an attack returns is looked at, kept or not, and one outside the threat stops it all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.data import Digits
from holdfast.encoders import MLP
from holdfast.errors import HoldfastError
from holdfast.evaluation import SUITES, retrieval_task, run_suite
from holdfast.evaluation.audit import ALLOWED, ConstraintAudit, audit_images, excess, refuse_outside
from holdfast.evaluation.suite import attack_again
from holdfast.patch import PatchThreat
from holdfast.search import PGD
from holdfast.threat import L2Threat, LinfThreat
from holdfast.types import RetrievalTask

X0 = torch.full((3, 4), 0.5)


def moved(*first: float) -> Tensor:
    x = X0.clone()
    x[1, : len(first)] += torch.tensor(first)
    return x


def test_hand_numbers() -> None:
    linf, l2 = LinfThreat(eps=0.25), L2Threat(eps=0.5)
    assert excess(moved(0.25, -0.5), X0, linf).tolist() == [-0.25, 0.25, -0.25]
    assert excess(moved(0.3, 0.4), X0, l2).tolist() == pytest.approx([-0.5, 0, -0.5], abs=1e-7)
    assert excess(moved(0.75), X0, LinfThreat(eps=1.0))[1] == 0.25  # above 1: outside the box
    assert excess(moved(-0.75), X0, LinfThreat(eps=1.0))[1] == 0.25
    assert excess(moved(0.75), X0, LinfThreat(eps=1.0, bounds=None))[1] == -0.25
    assert audit_images(moved(0.5), X0, linf) == ConstraintAudit(3, 1, 0.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("threat", [LinfThreat(eps=9.0, bounds=None), L2Threat(eps=9.0)])
def test_what_is_not_finite_is_outside(bad: float, threat: Any) -> None:
    found = audit_images(moved(bad), X0, threat)
    assert (found.outside, found.worst) == (1, math.inf)
    assert audit_images(X0[:, :2], X0, threat).outside == 3  # of another shape
    with pytest.raises(HoldfastError, match=r"A1: 1 of 3 .* not finite"):
        refuse_outside("A1", moved(bad), X0, threat)


def test_rounding_is_allowed_and_no_more() -> None:
    threat = LinfThreat(eps=0.25)
    assert audit_images(moved(0.25 + ALLOWED / 2), X0, threat).outside == 0
    assert audit_images(moved(0.25 + 4 * ALLOWED), X0, threat).outside == 1
    wide = LinfThreat(eps=100.0, bounds=None)
    assert audit_images(moved(100 + 50 * ALLOWED), X0, wide).outside == 0


def test_parts_of_large_inputs_and_no_images_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x, threat = moved(0.5), LinfThreat(eps=0.25)
    whole = excess(x, X0, threat)
    monkeypatch.setattr("holdfast.evaluation.audit._IMAGES", 5)
    assert torch.equal(excess(x, X0, threat), whole)
    assert audit_images(x[:0], X0[:0], threat) == ConstraintAudit(0, 0, 0.0)


@pytest.fixture(scope="module")
def task() -> RetrievalTask:
    test = Digits().load().test
    return retrieval_task(
        MLP(hidden=(8,), embedding_dim=4).build((1, 8, 8), seed=0), test.x[:20], test.y[:20]
    )


def cheating(encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None) -> Tensor:
    """Make the image of the last query grey, which is far away."""
    x = x0.clone()
    x[-1] = 0.5
    return x


@pytest.mark.parametrize("keep", [True, False, None])
def test_an_image_outside_stops_a_suite_whether_it_is_kept_or_not(
    task: RetrievalTask, tmp_path: Path, keep: bool | None
) -> None:
    with pytest.raises(HoldfastError, match=r"CA\+: 1 of 16 attacked images lie outside") as caught:
        run_suite(
            task, SUITES["core"], cheating, LinfThreat(eps=0.1), chunk=16, folder=tmp_path, keep_images=keep
        )
    assert "threat.project" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []  # nothing is stored
    entry = SUITES["core"].entries[0]
    with pytest.raises(HoldfastError, match="outside"):  # exhibits come from here
        attack_again(task.rows(slice(0, 16)), entry, cheating, LinfThreat(eps=0.1))


def test_patches_are_looked_at_where_they_are(task: RetrievalTask) -> None:
    threat = PatchThreat(height=2, width=2, place="random")
    found = run_suite(task, SUITES["core"], PGD(steps=2, alpha=0.2), threat, chunk=7)
    changed = (found[0].outcome.x != task.x).flatten(1).sum(1)
    assert int(changed.max()) <= 4
    with pytest.raises(HoldfastError, match="outside"):
        run_suite(task, SUITES["core"], cheating, threat)
