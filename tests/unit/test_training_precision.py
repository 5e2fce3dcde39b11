"""Training in bfloat16: the networks alone, never what is computed from their embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from holdfast.data import Digits, PairSampler
from holdfast.encoders import Ensemble, Heads, SmallCNN
from holdfast.encoders.ensemble import JointEncoder
from holdfast.functional.distance import Cosine
from holdfast.search import frozen
from holdfast.threat import LinfThreat
from holdfast.training import Run, train
from holdfast.training.precision import for_training
from holdfast.types import Context, Step

SMALL = SmallCNN(width=4, embedding_dim=8)
X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def test_full_precision_is_the_encoder_itself() -> None:
    encoder = SMALL.build((1, 8, 8), 0)
    assert for_training(encoder, "fp32") is encoder


def test_embeddings_are_those_of_autocast_in_float32() -> None:
    encoder = SMALL.build((1, 8, 8), 0)
    low = for_training(encoder, "bf16")
    with torch.autocast("cpu", torch.bfloat16):
        wanted = encoder(X).float()
    z = low(X)
    assert z.dtype == torch.float32
    assert torch.equal(z, wanted)
    assert 1e-5 < off(z, encoder(X)) < 0.05
    z.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in encoder.parameters())


@pytest.mark.parametrize("spec", [Ensemble(members=(SMALL, SMALL)), Heads(part=SMALL, count=2)])
def test_members_compute_in_low_precision_too(spec: Any) -> None:
    whole = spec.build((1, 8, 8), 0)
    low: Any = for_training(whole, "bf16")
    assert isinstance(whole, JointEncoder)
    assert len(low) == 2
    assert bool(low)
    assert (low.widths, low.embedding_dim, low.spec) == (whole.widths, 16, spec)
    parts = low.split(low(X))
    for m in range(2):
        z = low.member(m)(X)
        assert 1e-5 < off(z, whole.member(m)(X)) < 0.05
        assert off(z, parts[m]) < 0.01
    assert {id(p) for p in low.parameters()} == {id(p) for p in whole.parameters()}


def test_a_view_leaves_modes_and_missing_names_to_the_encoder() -> None:
    encoder = SMALL.build((1, 8, 8), 0)
    low = for_training(encoder, "bf16")
    with frozen(low):
        assert not any(module.training for module in encoder.modules())
    assert all(module.training for module in encoder.modules())
    assert not hasattr(low, "member")
    with pytest.raises(AttributeError, match="nothing"):
        _ = low.nothing


@dataclass(frozen=True, kw_only=True)
class Spy:
    """Compares what a defense computes under training in bfloat16 with float32."""

    seen: ClassVar[list[tuple[bool, float, float]]] = []

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        return nn.ModuleDict()

    def losses(self, ctx: Context) -> Iterator[Step]:
        z = ctx.encoder(ctx.x)
        d = ctx.distance.matrix(z, z)
        exact = ctx.distance.matrix(z.double(), z.double())
        weights: Any = ctx.bare
        self.seen.append((torch.is_autocast_enabled("cpu"), off(d, exact), off(z, weights.encoder(ctx.x))))
        yield Step(d.mean(), {"loss": float(d.detach().mean())})


def test_distances_of_a_defense_are_float32() -> None:
    """Cosine distances of bfloat16 products are off by a hundredth; those of float32 by a millionth."""
    Spy.seen.clear()
    run = Run(
        name="spy", data=Digits(train_images=20), defense=Spy(), threat=LinfThreat(eps=0.1),
        sampler=PairSampler(10), encoder=SMALL, epochs=1, device="cpu", precision="bf16", distance=Cosine(),
    )  # fmt: skip
    train(run, run.data.load())
    assert len(Spy.seen) == 2
    for autocast, error, rounding in Spy.seen:
        assert not autocast
        assert error < 1e-5
        assert rounding > 1e-5  # and the network itself was in bfloat16
