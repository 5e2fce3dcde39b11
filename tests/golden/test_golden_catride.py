"""Numbers of the released CA-TRIDE code: perturbed images and training losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.adversaries import Alternate, AnchorPerturbation, CandidatePerturbation, Ramp
from holdfast.defenses import AdversarialTraining
from holdfast.functional.collapse import collapseness
from holdfast.functional.distance import Euclidean
from holdfast.losses import HalfBatch, Triplet
from holdfast.schedules import Linear
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import Context, Progress, Triplets

pytestmark = pytest.mark.golden
Golden = dict[str, np.ndarray]


def t(golden: Golden, key: str) -> Tensor:
    return torch.from_numpy(golden[key])


class Spy:
    """A search that keeps what it returned."""

    def __init__(self, inner: PGD) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.x = self.inner(*args, **kwargs)
        return self.x


def perturb(golden: Golden, step: int, sharpness: float, encoder: nn.Module) -> tuple[Tensor, float]:
    """Run one training step of the released settings at epoch 4 of 8; return images, loss, encoder."""
    eps, alpha, _ = golden["train.budget"]
    progress = Progress(step=step, steps=80, epoch=4, epochs=8)
    ramp = Ramp(part=PGD(steps=16, alpha=float(alpha)), field="alpha", schedule=Linear(start=0.0, stop=1.0))
    assert ramp.at(progress).alpha == pytest.approx(float(alpha) / 2)
    spy = Spy(ramp.at(progress))
    rows = t(golden, "batch.index")
    defense = AdversarialTraining(
        loss=Triplet(margin=0.2),
        miner=lambda *_: Triplets(*t(golden, "miner.hard")),
        adversary=Alternate(
            parts=(
                CandidatePerturbation(sharpness=sharpness),
                AnchorPerturbation(sharpness=sharpness, sign="released"),
            )
        ),
        search=spy,
        threat=LinfThreat(eps=float(eps)),
        extra=(HalfBatch(),),
    )
    context = Context(
        encoder=encoder, bare=encoder, x=t(golden, "gallery.x")[rows], y=t(golden, "gallery.y")[rows],
        index=rows, distance=Euclidean(), progress=progress,
    )  # fmt: skip
    (made,) = defense.losses(context)
    return spy.x, float(made.loss.detach())


@pytest.mark.parametrize("sharpness", [10.0, 2.0])
@pytest.mark.parametrize(("step", "key"), [(0, "cap.lambda{}.epoch4of8.pn"), (1, "anp.lambda{}.epoch4of8.a")])
def test_perturbations(golden: Golden, golden_net: nn.Module, step: int, key: str, sharpness: float) -> None:
    ours, loss = perturb(golden, step, sharpness, golden_net)
    theirs = t(golden, "catride." + key.format(int(sharpness)))
    assert float(((ours - theirs).abs() <= 1e-6).double().mean()) >= 0.995
    if sharpness == 10.0:
        name = "cap" if step == 0 else "anp"
        assert loss == pytest.approx(float(golden[f"catride.loss_after_{name}"]), abs=1e-4)
    x = t(golden, "gallery.x")[t(golden, "batch.index")]
    a, p, n = (x[row] for row in t(golden, "miner.hard"))

    def measure(moved: Tensor) -> float:
        anchor, positive, negative = (a, *moved.chunk(2)) if step == 0 else (moved, p, n)
        z = [golden_net(v).detach() for v in (anchor, positive, negative)]
        d = Euclidean()
        return float(collapseness(d.rowwise(z[0], z[1]), d.rowwise(z[0], z[2]), sharpness))

    assert measure(ours) == pytest.approx(measure(theirs), abs=1e-4)


def test_first_epoch_is_unperturbed() -> None:
    ramp = Ramp(part=PGD(steps=16, alpha=0.1), field="alpha", schedule=Linear(start=0.0, stop=1.0))
    assert ramp.at(Progress(step=3, steps=80, epoch=0, epochs=8)).alpha == 0.0
