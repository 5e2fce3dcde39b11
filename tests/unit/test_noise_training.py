"""Training on noisy images: what the defense inside sees, and the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.config import from_plain, to_plain
from holdfast.config import replace as replace_path
from holdfast.defenses import AdversarialTraining, NoiseTraining
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Euclidean
from holdfast.losses import ProxyAnchor, Triplet
from holdfast.miners import Random
from holdfast.recipes import recipe
from holdfast.rng import stream
from holdfast.runs import allowed_types
from holdfast.training import train
from holdfast.types import Context, Roles, Step

PLAIN = AdversarialTraining(loss=Triplet(margin=0.2), miner=Random())


@dataclass(frozen=True)
class Spy:
    """A defense that keeps the images it is shown."""

    seen: list[Tensor]

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        return nn.ModuleDict()

    def losses(self, ctx: Context) -> Iterator[Step]:
        self.seen.append(ctx.x)
        yield Step(ctx.x.sum(), {})
        yield Step(ctx.x.sum(), {})


def context(n: int = 12, **more: Any) -> Context:
    x = torch.rand(n, 1, 8, 8, generator=stream(0, "x"))
    encoder = SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), 0)
    return Context(
        encoder=encoder, bare=encoder, x=x, y=torch.arange(n) // 2, index=torch.arange(n),
        distance=Euclidean(), **{"generator": stream(0, "step"), **more},
    )  # fmt: skip


def test_the_defense_inside_sees_unclipped_noise_of_the_generator() -> None:
    spy, ctx = Spy([]), context()
    clean = ctx.x.clone()
    steps = list(NoiseTraining(part=spy, sigma=0.5).losses(ctx))
    assert len(steps) == 2  # all steps of the part are handed on
    expected = clean + 0.5 * torch.randn(clean.shape, generator=stream(0, "step"))
    assert torch.allclose(spy.seen[0], expected)
    assert float(spy.seen[0].min()) < -0.2
    assert float(spy.seen[0].max()) > 1.2
    assert torch.equal(ctx.x, clean)
    list(NoiseTraining(part=spy, sigma=0.5).losses(context(generator=stream(1, "step"))))
    assert not torch.equal(spy.seen[0], spy.seen[1])


def test_sigma_0_is_the_defense_inside_on_the_same_images() -> None:
    spy = Spy([])
    list(NoiseTraining(part=spy, sigma=0.0).losses(context()))
    assert torch.equal(spy.seen[0], context().x)


def test_the_loss_is_that_of_the_noisy_batch_with_gradient_to_every_weight() -> None:
    ctx = context(signal={})
    (step,) = NoiseTraining(part=PLAIN, sigma=0.25).losses(ctx)
    step.loss.backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in ctx.encoder.parameters())
    generator = stream(0, "step")
    noisy = ctx.x + 0.25 * torch.randn(ctx.x.shape, generator=generator)
    z = ctx.encoder(noisy)
    rows = Random()(z.detach(), ctx.y, Euclidean(), generator)
    expected = Triplet(margin=0.2)(roles_of(z, rows), Euclidean()).mean()
    assert float(step.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def roles_of(z: Tensor, rows: Any) -> Any:
    return Roles(*(z[role] for role in rows))


def test_learnable_parts_of_the_defense_inside_are_its_own() -> None:
    defense = NoiseTraining(part=AdversarialTraining(loss=ProxyAnchor()), sigma=0.1)
    parts = defense.setup(nn.Embedding(1, 8), torch.arange(5))
    assert sum(p.numel() for p in parts.parameters()) == 8 * 5


def test_the_recipe_is_plain_training_on_noise_and_can_be_stored() -> None:
    run = recipe("noise")
    assert run.defense == NoiseTraining(part=recipe("plain").defense, sigma=0.25)
    assert from_plain(to_plain(run), allowed_types()) == run


def test_the_recipe_trains() -> None:
    run = replace(
        replace_path(replace_path(recipe("noise"), "data.train_images", 40), "sampler.batch_pairs", 20),
        epochs=1,
    )
    lines: list[dict[str, Any]] = []
    data = run.data.load()
    result = train(run, data, on_line=lines.append)
    assert result.steps >= 1
    assert all(math.isfinite(v) for line in lines for v in line.values() if isinstance(v, float))
    calm = train(replace_path(run, "defense.sigma", 0.0), data)
    weights = result.encoder.state_dict(), calm.encoder.state_dict()
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
def test_impossible_noise_is_refused(sigma: float) -> None:
    with pytest.raises(InvalidArgument, match="sigma"):
        NoiseTraining(part=PLAIN, sigma=sigma)
