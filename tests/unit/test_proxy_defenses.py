"""Defenses of classifiers on a softmax over proxies: by hand on a linear encoder, then what all promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import encoders
from holdfast.adversaries import CrossEntropyClimb, DivergenceClimb, LossClimb, Ramp
from holdfast.adversaries.logits import divergence
from holdfast.defenses import (
    AdversarialTraining,
    BoostedCrossEntropy,
    CleanCrossEntropy,
    CleanLoss,
    Divergence,
    FreeTraining,
    LogitPairing,
    MisclassifiedDivergence,
    Mixup,
    NoisyStart,
    ProxyTraining,
    StaticSources,
    WeightPerturbation,
)
from holdfast.defenses.proxies.mart import boosted_cross_entropy
from holdfast.defenses.proxies.mixup import beta_draw
from holdfast.defenses.proxies.sources import class_margin
from holdfast.encoders import SmallCNN
from holdfast.errors import HoldfastError, InvalidArgument, RunError
from holdfast.functional.distance import Euclidean
from holdfast.losses import Consistency, Margin, MultiSimilarity, ProxyAnchor, Triplet
from holdfast.miners import Random
from holdfast.rng import seeded, stream
from holdfast.schedules import Linear
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import BatchView, Context, Progress, Step

ROWS, CLASSES, WIDTH, EPS = 12, 3, 3, 0.1
THREAT = LinfThreat(eps=EPS)
PAL = ProxyAnchor(alpha=8.0)
SEARCH = PGD(steps=3, alpha=0.05, random_start=True)
HALF = (0.5**0.5, 0.5**0.5)


class Line(nn.Module):
    """A linear encoder of 2x2 images."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, WIDTH)
        self.shape = (1, 2, 2)
        self.embedding_dim = WIDTH
        self.seen: list[tuple[bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, len(x)))
        z: Tensor = self.head(x.flatten(1))
        return z


class Found:
    """A search that knows its answer and keeps what it was given."""

    def __init__(self, x: Tensor | None = None) -> None:
        self.x, self.calls = x, 0

    def __call__(
        self, encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None
    ) -> Tensor:
        self.calls += 1
        self.encoder, self.objective, self.threat = encoder, objective, threat
        return x0 if self.x is None else self.x


def context(defense: Any, encoder: nn.Module | None = None, seed: int = 0, **more: Any) -> Context:
    with seeded(0, "line"):
        encoder = encoder or Line()
        y = torch.arange(ROWS).remainder(CLASSES)
        learnable = defense.setup(encoder, y)
    x = torch.rand(ROWS, 1, 2, 2, generator=stream(0, "x"))
    return Context(
        encoder=encoder, bare=encoder, x=x, y=y, index=torch.arange(ROWS), distance=Euclidean(),
        learnable=learnable, generator=stream(seed, "step"), **more,
    )  # fmt: skip


def once(defense: Any, ctx: Context) -> Step:
    (step,) = defense.losses(ctx)
    return step


def moved_images(ctx: Context) -> Tensor:
    return THREAT.noise(ctx.x, stream(5))


def outcome(defense: Any, **more: Any) -> tuple[float, list[Tensor]]:
    """Return the loss of a fresh start, and its gradients."""
    ctx = context(defense, **more)
    step = once(defense, ctx)
    parameters = [*ctx.encoder.parameters(), ctx.learnable["loss"].proxies]
    return float(step.loss.detach()), list(torch.autograd.grad(step.loss, parameters))  # type: ignore[arg-type]


def same(a: tuple[float, list[Tensor]], b: tuple[float, list[Tensor]], exact: bool = True) -> bool:
    close = torch.equal if exact else lambda u, v: torch.allclose(u, v, atol=1e-6)
    value = a[0] == b[0] if exact else a[0] == pytest.approx(b[0], rel=1e-6)
    return value and all(close(u, v) for u, v in zip(a[1], b[1], strict=True))


def at(**more: Any) -> ProxyTraining:
    parts = {"loss": PAL, "adversary": LossClimb(loss=PAL), "search": SEARCH, "threat": THREAT, **more}
    return ProxyTraining(**parts)


def trades(**more: Any) -> ProxyTraining:
    search = NoisyStart(steps=3, alpha=0.05)
    extra = (Divergence(),)
    return at(**{"adversary": DivergenceClimb(), "search": search, "on": "clean", "extra": extra, **more})


def mart(**more: Any) -> ProxyTraining:
    extra = (MisclassifiedDivergence(),)
    loss = BoostedCrossEntropy(alpha=8.0)
    return at(**{"loss": loss, "adversary": CrossEntropyClimb(), "extra": extra, **more})


# --- By hand: two proxies along the axes, unit embeddings -------------------------------------------------


def hand(clean: tuple[float, float], now: tuple[float, float], y: int) -> BatchView:
    return BatchView(torch.tensor([now]), torch.tensor([clean]), torch.tensor([y]))


def axes(alpha: float) -> Any:
    learnt = ProxyAnchor(alpha=alpha).setup(2, 2)
    learnt.proxies.data = torch.tensor([[2.0, 0.0], [0.0, 0.5]])  # their lengths must not count
    return learnt


def test_divergence_by_hand() -> None:
    """Halves against three quarters and a quarter."""
    value = Divergence().value(hand(HALF, (1.0, 0.0), 0), axes(math.log(3)), Euclidean())
    assert value.tolist() == pytest.approx([math.log(2 / 3**0.5)])
    assert Divergence().weight == 6.0
    back = Divergence().value(hand((1.0, 0.0), HALF, 0), axes(math.log(3)), Euclidean())
    assert back.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    same_again = Divergence().value(hand(HALF, HALF, 0), axes(32.0), Euclidean())
    assert same_again.tolist() == pytest.approx([0.0], abs=1e-6)


def test_logit_pairing_by_hand() -> None:
    """Logits (sqrt 2, sqrt 2) and (2, 0)."""
    value = LogitPairing().value(hand(HALF, (1.0, 0.0), 0), axes(2.0), Euclidean())
    assert value.tolist() == pytest.approx([8 - 4 * 2**0.5])


def test_clean_cross_entropy_by_hand() -> None:
    for y, share in ((0, 0.75), (1, 0.25)):
        value = CleanCrossEntropy().value(hand((1.0, 0.0), HALF, y), axes(math.log(3)), Euclidean())
        assert value.tolist() == pytest.approx([-math.log(share)])


@pytest.mark.parametrize(("clean", "share"), [(HALF, 0.5), ((1.0, 0.0), 0.25), ((0.0, 1.0), 0.75)])
def test_the_term_of_mart_by_hand(clean: tuple[float, float], share: float) -> None:
    """The divergence times what the clean image leaves to the other class."""
    view = hand(clean, (1.0, 0.0), 0)
    plain = Divergence().value(view, axes(math.log(3)), Euclidean())
    value = MisclassifiedDivergence().value(view, axes(math.log(3)), Euclidean())
    assert value.tolist() == pytest.approx([share * float(plain.detach())], abs=1e-7)


@pytest.mark.parametrize(("y", "expected"), [(0, (0.7, 0.8)), (1, (0.2, 0.3)), (2, (0.1, 0.3))])
def test_boosted_cross_entropy_by_hand(y: int, expected: tuple[float, float]) -> None:
    value = boosted_cross_entropy(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([y]))
    assert value.tolist() == pytest.approx([-math.log(expected[0]) - math.log(expected[1])])


def test_boosted_cross_entropy_stays_finite() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    value = boosted_cross_entropy(logits, torch.tensor([1]))
    assert value.tolist() == pytest.approx([200 + 200 - math.log(2)])
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert bool(grad.isfinite().all())
    random = torch.randn(50, 7, generator=stream(0), dtype=torch.float64)
    y = torch.arange(50) % 7
    p = random.softmax(1)
    others = p.scatter(1, y[:, None], 0.0).amax(1)
    naive = -p.gather(1, y[:, None])[:, 0].log() - (1 - others).log()
    assert torch.allclose(boosted_cross_entropy(random, y), naive)


def test_the_learnt_form_of_boosted_cross_entropy() -> None:
    learnt: Any = BoostedCrossEntropy(alpha=2.0).setup(2, 2)
    z, y = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    rows = learnt(z, y, Euclidean())
    assert torch.equal(rows, boosted_cross_entropy(learnt.logits(z), y))
    assert torch.equal(learnt(z, y, Euclidean(), torch.tensor([0.0, 2.0])), rows * torch.tensor([0.0, 2.0]))
    with pytest.raises(InvalidArgument, match="y: need labels 0 to 1"):
        learnt(z, torch.tensor([0, 2]), Euclidean())
    with pytest.raises(InvalidArgument, match="setup"):
        BoostedCrossEntropy()(z, y, Euclidean())
    with pytest.raises(InvalidArgument, match="n_classes: need an integer >= 2"):
        BoostedCrossEntropy().setup(2, 1)


def test_class_margin_by_hand() -> None:
    """Class means 1 and 11 on a line."""
    z, y = torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([4, 4, 7, 7])
    gain = class_margin(z, y, Euclidean())
    assert gain(z).tolist() == pytest.approx([1 - 11, 1 - 9, 1 - 9, 1 - 11])
    assert gain(torch.tensor([[4.0], [6.0], [4.0], [11.0]])).tolist() == pytest.approx([-4, 0, 4, -10])
    alone = class_margin(z, torch.zeros(4), Euclidean())
    assert alone(z).tolist() == pytest.approx([6, 4, 4, 6])


# --- What the losses are made of ---------------------------------------------------------------------------


def parts(defense: Any) -> tuple[Context, Tensor, Tensor, Tensor]:
    """Return a context, images found by the search, and embeddings of the clean and the found ones."""
    ctx = context(defense)
    x = moved_images(ctx)
    return ctx, x, ctx.bare(ctx.x), ctx.bare(x)


def test_trades_is_clean_loss_and_divergence() -> None:
    ctx, x, clean, now = parts(trades())
    learnt: Any = ctx.learnable["loss"]
    step = once(trades(search=Found(x)), ctx)
    wanted = learnt(clean, ctx.y, ctx.distance).mean()
    total = wanted + 6 * divergence(learnt.logits(clean), learnt.logits(now)).mean()
    assert float(step.loss.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert step.logs["loss"] == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert step.logs["total"] == pytest.approx(float(total.detach()), rel=1e-6)
    assert step.logs["loss"] < step.logs["total"]
    for name, z in (("moved_error", now), ("clean_error", clean)):
        wrong = learnt.logits(z).argmax(1) != ctx.y
        assert step.logs[name] == pytest.approx(float(wrong.float().mean()))


def test_logit_pairing_is_moved_loss_and_squares() -> None:
    defense = at(extra=(LogitPairing(weight=0.25),))
    ctx, x, clean, now = parts(defense)
    learnt: Any = ctx.learnable["loss"]
    step = once(replace(defense, search=Found(x)), ctx)
    squares = (learnt.logits(clean) - learnt.logits(now)).square().sum(1).mean()
    total = learnt(now, ctx.y, ctx.distance).mean() + 0.25 * squares
    assert float(step.loss.detach()) == pytest.approx(float(total.detach()), rel=1e-6)


def test_mart_is_boosted_cross_entropy_and_weighted_divergence() -> None:
    ctx, x, clean, now = parts(mart())
    learnt: Any = ctx.learnable["loss"]
    step = once(mart(search=Found(x)), ctx)
    logits, found = learnt.logits(clean), learnt.logits(now)
    own = logits.softmax(1)[torch.arange(ROWS), ctx.y]
    total = (boosted_cross_entropy(found, ctx.y) + 5 * divergence(logits, found) * (1 - own)).mean()
    assert float(step.loss.detach()) == pytest.approx(float(total.detach()), rel=1e-6)


def test_terms_of_weight_zero_leave_the_loss_alone() -> None:
    plain = outcome(ProxyTraining(loss=PAL))
    assert same(outcome(trades(extra=(Divergence(weight=0.0),))), plain, exact=False)
    attacked = outcome(at())
    assert attacked[0] > plain[0]
    assert same(outcome(at(extra=(LogitPairing(weight=0.0),))), attacked, exact=False)
    assert not same(outcome(at(extra=(LogitPairing(weight=0.1),))), attacked, exact=False)
    without = outcome(mart(extra=()))
    assert same(outcome(mart(extra=(MisclassifiedDivergence(weight=0.0),))), without, exact=False)


def test_without_terms_it_is_adversarial_training() -> None:
    fields: dict[str, Any] = {"adversary": LossClimb(loss=PAL), "search": SEARCH, "threat": THREAT}
    assert same(outcome(at()), outcome(AdversarialTraining(loss=PAL, **fields)))
    assert same(outcome(ProxyTraining(loss=PAL)), outcome(AdversarialTraining(loss=PAL)))
    mixed = at(extra=(Consistency(weight=0.5),))
    assert same(outcome(mixed), outcome(AdversarialTraining(loss=PAL, extra=mixed.extra, **fields)))


def test_the_clean_loss_beside() -> None:
    defense = at(extra=(CleanLoss(weight=0.5),))
    ctx, x, clean, now = parts(defense)
    learnt: Any = ctx.learnable["loss"]
    step = once(replace(defense, search=Found(x)), ctx)
    wanted = (learnt(now, ctx.y, ctx.distance) + 0.5 * learnt(clean, ctx.y, ctx.distance)).mean()
    assert float(step.loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)


# --- Inner searches ----------------------------------------------------------------------------------------


def test_what_is_climbed() -> None:
    found = Found()
    for defense in (trades(search=found), mart(search=found)):
        ctx = context(defense)
        once(defense, ctx)
        learnt: Any = ctx.learnable["loss"]
        clean, now = ctx.bare(ctx.x), ctx.bare(moved_images(ctx))
        if isinstance(defense.adversary, DivergenceClimb):
            wanted = divergence(learnt.logits(clean), learnt.logits(now))
        else:
            wanted = F.cross_entropy(learnt.logits(now), ctx.y, reduction="none")
        assert found.objective(now).shape == (ROWS,)
        assert torch.allclose(found.objective(now), wanted)


def test_the_divergence_is_flat_at_the_clean_image_and_noise_helps() -> None:
    found = Found()
    ctx = context(trades())
    once(trades(search=found), ctx)
    near = NoisyStart(steps=0)(ctx.bare, ctx.x, found.objective, THREAT, stream(0))
    moved = NoisyStart(steps=3, alpha=0.05)(ctx.bare, ctx.x, found.objective, THREAT, stream(0))
    values, slopes = [], []
    for x in (ctx.x, near, moved):
        leaf = x.clone().requires_grad_(True)
        value = found.objective(ctx.bare(leaf)).mean()
        values.append(float(value.detach()))
        slopes.append(float(torch.autograd.grad(value, leaf)[0].norm()))
    assert values == pytest.approx([0.0, 0.0, values[2]], abs=1e-4)
    assert values[2] > 0.01
    assert slopes[0] < 1e-3 * slopes[1]
    assert float((moved - ctx.x).abs().max()) <= EPS + 1e-6


def test_noisy_start() -> None:
    x = torch.full((400, 1, 2, 2), 0.5)
    start = NoisyStart(steps=0, sigma=0.01)(nn.Flatten(), x, lambda z: z.sum(1), THREAT, stream(0))
    assert float((start - x).std()) == pytest.approx(0.01, rel=0.05)
    again = NoisyStart(steps=0, sigma=0.01)(nn.Flatten(), x, lambda z: z.sum(1), THREAT, stream(0))
    assert torch.equal(start, again)
    far = NoisyStart(steps=0, sigma=10.0)(nn.Flatten(), x, lambda z: z.sum(1), THREAT, stream(0))
    assert float((far - x).abs().max()) == pytest.approx(EPS)
    given = NoisyStart(steps=0)(nn.Flatten(), x, lambda z: z.sum(1), THREAT, stream(0), start=x + 0.02)
    assert torch.equal(given, x + 0.02)
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidArgument, match="sigma"):
            NoisyStart(sigma=sigma)


def test_ramp_and_ease() -> None:
    found, spy = Found(), PGD(steps=2, alpha=0.05)
    for step, share in ((0, 0.1), (4, 0.5), (9, 1.0), (19, 1.0)):
        now = at(ramp=0.5, search=spy, monitor=spy).at(Progress(step, 20, 0, 1))
        assert now.threat.eps == pytest.approx(share * EPS)
        assert now.search.alpha == pytest.approx(share * 0.05)
        assert now.monitor.alpha == pytest.approx(share * 0.05)
    assert at().at(Progress(0, 20, 0, 1)).threat.eps == EPS
    assert ProxyTraining(loss=PAL, ramp=0.5).at(Progress(0, 20, 0, 1)).threat is None
    for defense in (at(search=found), trades(search=found), WeightPerturbation(part=at(search=found))):
        once(defense, context(defense, signal={"ease": 0.5}))
        assert found.threat.eps == EPS / 2
    ramp = Ramp(part=THREAT, field="eps", schedule=Linear(start=0.0, stop=1.0))
    defense = WeightPerturbation(part=at(search=found, threat=ramp, ramp=1.0))
    once(defense, context(defense, progress=Progress(4, 20, 5, 10)))
    assert found.threat.eps == pytest.approx(0.5 * EPS * 5 / 20)  # each factor once


# --- Mix-Up ------------------------------------------------------------------------------------------------


def test_mixup_of_nothing_is_plain_training() -> None:
    """Beta(a, a) with a tiny a is a coin: the batch itself, or the batch in another order."""
    plain = outcome(ProxyTraining(loss=PAL))
    shares = set()
    for seed in range(6):
        defense = Mixup(loss=PAL, concentration=1e-9)
        shares.add(round(once(defense, context(defense, seed=seed)).logs["mix"], 9))
        assert same(outcome(defense, seed=seed), plain, exact=False)
    assert shares == {0.0, 1.0}


def test_mixup_mixes_images_and_losses() -> None:
    defense = Mixup(loss=PAL)
    ctx = context(defense)
    step = once(defense, ctx)
    draws = stream(0, "step")
    share, order = beta_draw(1.0, draws), torch.randperm(ROWS, generator=draws)
    assert 0.05 < share < 0.95
    assert step.logs["mix"] == share
    learnt: Any = ctx.learnable["loss"]
    z = ctx.bare(share * ctx.x + (1 - share) * ctx.x[order])
    wanted = share * learnt(z, ctx.y, ctx.distance).mean()
    wanted = wanted + (1 - share) * learnt(z, ctx.y[order], ctx.distance).mean()
    assert float(step.loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert ctx.encoder.seen[0] == (True, ROWS)  # type: ignore[index]


@pytest.mark.parametrize("a", [0.2, 1.0, 5.0])
def test_beta_draws(a: float) -> None:
    draws = stream(0, "beta")
    values = torch.tensor([beta_draw(a, draws) for _ in range(2000)], dtype=torch.float64)
    assert 0 <= float(values.min()) <= float(values.max()) <= 1
    assert float(values.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(values.var()) == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.1)


# --- Adversarial weight perturbation -----------------------------------------------------------------------


def test_no_perturbation_is_the_defense_inside() -> None:
    for part in (at(), trades(), mart(), at(extra=(LogitPairing(),))):
        assert same(outcome(WeightPerturbation(part=part, gamma=0.0)), outcome(part))
        assert not same(outcome(WeightPerturbation(part=part, gamma=0.1)), outcome(part), exact=False)


def test_the_loss_rises_to_first_order_as_it_must() -> None:
    """By gamma times the sum over layers of weight norm times gradient norm; biases rest."""
    gamma = 1e-3
    plain, grads = outcome(at())
    weight, weight_grad = context(at()).encoder.head.weight, grads[0]  # type: ignore[union-attr]
    moved = outcome(WeightPerturbation(part=at(), gamma=gamma))[0]
    rise = gamma * float((weight.norm() * weight_grad.norm()).detach())  # type: ignore[operator]
    assert moved - plain == pytest.approx(rise, rel=0.05)
    defense = WeightPerturbation(part=at(), gamma=gamma)
    logs = once(defense, context(defense)).logs
    assert logs["unmoved_loss"] == pytest.approx(plain)
    assert logs["loss"] == pytest.approx(moved)


def test_the_gradient_is_that_of_the_moved_weights_and_meets_the_weights() -> None:
    gamma, found = 0.1, Found()
    defense = WeightPerturbation(part=at(search=found), gamma=gamma)
    ctx = context(defense)
    found.x = moved_images(ctx)
    learnt: Any = ctx.learnable["loss"]
    parameters = [*ctx.encoder.parameters(), learnt.proxies]
    ours = torch.autograd.grad(once(defense, ctx).loss, parameters)
    copy: Any = deepcopy(ctx.encoder)
    loss = learnt(copy(found.x), ctx.y, ctx.distance).mean()
    (grad,) = torch.autograd.grad(loss, [copy.head.weight])
    with torch.no_grad():
        copy.head.weight += gamma * copy.head.weight.norm() * grad / grad.norm()
    loss = learnt(copy(found.x), ctx.y, ctx.distance).mean()
    wanted = torch.autograd.grad(loss, [*copy.parameters(), learnt.proxies])
    assert all(torch.allclose(u, v, atol=1e-6) for u, v in zip(ours, wanted, strict=True))
    assert found.calls == 1


class Normed(nn.Module):
    """Batch-norm and dropout: state and modes that a pass may disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.rest = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, WIDTH)).eval()
        self.shape, self.embedding_dim = (1, 2, 2), WIDTH

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.rest(self.body(x))
        return z


def test_moving_the_weights_leaves_no_trace() -> None:
    found = Found()
    states = []
    for defense in (at(search=found), WeightPerturbation(part=at(search=found), gamma=0.0),
                    WeightPerturbation(part=at(search=found), gamma=0.2)):  # fmt: skip
        with seeded(0, "normed"):
            encoder = Normed()
        before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
        ctx = context(defense, encoder)
        found.x = moved_images(ctx)
        once(defense, ctx)
        assert all(torch.equal(p, before[name]) for name, p in encoder.named_parameters())
        assert all(p.grad is None for p in encoder.parameters())
        assert encoder.body.training
        assert not encoder.rest.training
        states.append({name: b.clone() for name, b in encoder.named_buffers()})
    assert states[0]["body.2.num_batches_tracked"] == 1
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[2]["body.2.num_batches_tracked"] == 1  # the pass at the moved weights alone


def test_a_flat_loss_moves_no_weight() -> None:
    defense = WeightPerturbation(part=at(search=Found()), gamma=0.5)
    encoder = Line()
    nn.init.zeros_(encoder.head.weight)  # a layer of norm 0 moves by 0
    step = once(defense, context(defense, encoder))
    assert step.logs["loss"] == pytest.approx(step.logs["unmoved_loss"], rel=1e-6)


# --- Static sources ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two trained-looking encoders of 2x2 images of different widths; the second as a run folder."""
    folder = tmp_path_factory.mktemp("sources")
    encoders.save(encoders.LinearEncoder(5).build((1, 2, 2), 1), folder / "one.safetensors")
    encoders.save(encoders.LinearEncoder(2).build((1, 2, 2), 2), folder / "run" / "encoder.safetensors")
    return str(folder / "one.safetensors"), str(folder / "run")


def static(sources: tuple[str, ...], **more: Any) -> StaticSources:
    parts = {"loss": PAL, "search": PGD(steps=3, alpha=0.05), "threat": THREAT, **more}
    return StaticSources(sources=sources, **parts)


def test_each_batch_attacks_one_encoder(files: tuple[str, str]) -> None:
    found = Found()
    defense = static(files, search=found)
    drawn: dict[float, int] = {}
    for seed in range(60):
        ctx = context(defense, seed=seed)
        logs = once(defense, ctx).logs
        sources: Any = ctx.learnable["sources"]
        drawn[logs["source"]] = drawn.get(logs["source"], 0) + 1
        attacked = ctx.bare if logs["source"] < 0 else sources[int(logs["source"])]
        assert found.encoder is attacked
        if logs["source"] < 0:
            learnt: Any = ctx.learnable["loss"]
            wanted = learnt(ctx.bare(ctx.x), ctx.y, ctx.distance).mean()[None]
        else:
            wanted = class_margin(attacked(ctx.x), ctx.y, ctx.distance)(attacked(ctx.x))
        assert torch.allclose(found.objective(attacked(ctx.x)), wanted)
    assert set(drawn) == {-1.0, 0.0, 1.0}
    assert min(drawn.values()) > 8


def test_examples_of_a_source_fool_the_source_and_train_the_encoder(files: tuple[str, str]) -> None:
    defense = static(files)
    seed = next(s for s in range(20) if once(defense, context(defense, seed=s)).logs["source"] == 0)
    ctx = context(defense, seed=seed)
    x: list[Tensor] = []
    ctx.encoder.register_forward_pre_hook(lambda module, args: x.append(args[0].detach()))
    step = once(defense, ctx)
    moved, clean = x[-1].chunk(2)
    assert torch.equal(clean, ctx.x)
    source, learnt = ctx.learnable["sources"][0], ctx.learnable["loss"]  # type: ignore[index]
    gain = class_margin(source(ctx.x), ctx.y, ctx.distance)
    assert float(gain(source(moved)).mean()) > float(gain(source(clean)).mean()) + 0.01
    assert 0 < float((moved - clean).abs().max()) <= EPS + 1e-6
    both = learnt(ctx.bare(moved), ctx.y, ctx.distance) + learnt(ctx.bare(clean), ctx.y, ctx.distance)
    assert float(step.loss.detach()) == pytest.approx(float(both.mean().detach()), rel=1e-6)
    alone = once(static(files, clean=0.0), context(defense, seed=seed)).loss
    moved_loss = learnt(ctx.bare(moved), ctx.y, ctx.distance).mean()
    assert float(alone.detach()) == pytest.approx(float(moved_loss.detach()), rel=1e-6)


def test_sources_are_static(files: tuple[str, str]) -> None:
    ctx = context(static(files))
    sources: Any = ctx.learnable["sources"]
    before = {k: v.clone() for k, v in sources.state_dict().items()}
    assert not any(p.requires_grad for p in sources.parameters())
    sources.train()
    once(static(files), ctx).loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in sources.parameters())
    assert all(module.training for module in sources.modules())
    assert all(torch.equal(v, before[k]) for k, v in sources.state_dict().items())
    assert [source.embedding_dim for source in sources] == [5, 2]


def test_ramp_and_ease_reach_every_source(files: tuple[str, str]) -> None:
    found = Found()
    for seed in range(8):
        more = {"signal": {"ease": 0.5}, "progress": Progress(4, 20, 0, 1)}
        once(static(files, search=found, ramp=0.5), context(static(files), seed=seed, **more))
        assert found.threat.eps == pytest.approx(0.25 * EPS)


def test_sources_that_cannot_be_used(files: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"defense\.sources: need files of trained encoders or run fo"):
        context(static(()))
    with pytest.raises(RunError, match="no such file"):
        context(static((str(tmp_path / "none"),)))
    with pytest.raises(RunError, match="no such file"):
        context(static((str(tmp_path),)))
    encoders.save(SmallCNN(width=2).build((1, 8, 8), 0), tmp_path / "other.safetensors")
    with pytest.raises(InvalidArgument, match=r"encoders of images \(1, 2, 2\).*\(1, 8, 8\)"):
        context(static((files[0], str(tmp_path / "other.safetensors"))))
    with pytest.raises(InvalidArgument, match="sources: need a tuple of paths"):
        static("one.safetensors")  # type: ignore[arg-type]


# --- What all of them promise ------------------------------------------------------------------------------

ALL: dict[str, Callable[[tuple[str, ...]], Any]] = {
    "proxy": lambda files: ProxyTraining(loss=PAL),
    "at": lambda files: at(),
    "fast": lambda files: at(search=PGD(steps=1, alpha=1.25 * EPS, random_start=True), monitor=SEARCH),
    "trades": lambda files: trades(),
    "alp": lambda files: at(extra=(LogitPairing(),)),
    "mart": lambda files: mart(),
    "mixup": lambda files: Mixup(loss=PAL),
    "awp": lambda files: WeightPerturbation(part=at()),
    "awp of trades": lambda files: WeightPerturbation(part=trades()),
    "sources": lambda files: static(files, search=SEARCH),
}
EVERY = pytest.mark.parametrize("name", list(ALL))


@EVERY
def test_gradient_to_encoder_and_proxies_and_no_trace(name: str, files: tuple[str, str]) -> None:
    defense = ALL[name](files)
    ctx = context(defense)
    x, y = ctx.x.clone(), ctx.y.clone()
    ctx.encoder.train()
    trained = [*ctx.encoder.parameters(), ctx.learnable["loss"].proxies]
    step = once(defense, ctx)
    assert step.loss.shape == ()
    assert math.isfinite(float(step.loss.detach()))
    assert all(type(v) is float and math.isfinite(v) for v in step.logs.values())
    assert ctx.signal["loss"] == step.logs["loss"]
    assert all(p.grad is None for p in trained)  # type: ignore[union-attr]
    step.loss.backward()  # type: ignore[no-untyped-call]
    for p in trained:
        assert bool(p.grad.isfinite().all() & (p.grad != 0).any())  # type: ignore[union-attr]
    assert all(module.training for module in ctx.encoder.modules())
    assert torch.equal(ctx.x, x)
    assert torch.equal(ctx.y, y)


@EVERY
def test_one_training_pass_for_each_loss(name: str, files: tuple[str, str]) -> None:
    defense = ALL[name](files)
    ctx = context(defense)
    once(defense, ctx)
    rows = [n for training, n in ctx.encoder.seen if training]  # type: ignore[union-attr]
    both = 2 * ROWS if name in ("trades", "alp", "mart", "awp of trades", "sources") else ROWS
    assert rows == [both] * (2 if name.startswith("awp") else 1)


@EVERY
def test_the_generator_decides_everything(name: str, files: tuple[str, str]) -> None:
    defense = ALL[name](files)
    rng = torch.get_rng_state()
    assert same(outcome(defense), outcome(defense))
    assert torch.equal(torch.get_rng_state(), rng)
    others = {outcome(defense, seed=seed)[0] for seed in range(4)}
    assert (len(others) > 1) == (name != "proxy")


@EVERY
def test_what_is_not_a_number_does_not_pass(name: str, files: tuple[str, str]) -> None:
    """An error, or a loss that the trainer refuses."""
    defense = ALL[name](files)
    encoder = Line()
    nn.init.constant_(encoder.head.weight, math.nan)
    try:
        step = once(defense, context(defense, encoder))
    except InvalidArgument:
        return
    assert not math.isfinite(float(step.loss.detach()))


def test_weights_that_overflow_are_named() -> None:
    class Steep(Line):
        """Finite values whose gradient is not."""

        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return z + (self.head.weight - self.head.weight.detach()).abs().sqrt().sum()

    defense = WeightPerturbation(part=at(search=Found()))
    with pytest.raises(InvalidArgument, match=r"weights: need a finite gradient, got .* in head\.weight"):
        once(defense, context(defense, Steep()))


def test_free_training_of_proxies() -> None:
    defense = FreeTraining(loss=PAL, threat=THREAT, replays=3)
    ctx = context(defense)
    losses = []
    for step in defense.losses(ctx):
        step.loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(step.loss.detach()))
    assert len(losses) == 3
    assert losses[0] < losses[1]  # nothing was stepped on: the images alone have moved
    assert ctx.learnable["loss"].proxies.grad is not None  # type: ignore[union-attr]


def test_fast_training_is_watched() -> None:
    defense = ALL["fast"](())
    for step, watched in ((0, True), (1, False), (10, True)):
        logs = once(defense, context(defense, progress=Progress(step, 20, 0, 1))).logs
        assert ("monitor_gain" in logs) == watched


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "pairs": (lambda: ProxyTraining(loss=MultiSimilarity()), "loss: need a loss with proxies"),
    "a learnt boundary": (lambda: ProxyTraining(loss=Margin(), miner=Random()), "need a loss with proxies"),
    "mixed pairs": (lambda: Mixup(loss=MultiSimilarity()), "loss: need a loss with proxies"),
    "pairs and sources": (lambda: static((), loss=MultiSimilarity()), "loss: need a loss with proxies"),
    "no search": (lambda: at(search=None), "search, threat"),
    "no threat": (lambda: static((), threat=None), "search, threat"),
    "a ramp beyond": (lambda: at(ramp=1.5), "ramp"),
    "a ramp of sources": (lambda: static((), ramp=-0.1), "ramp"),
    "a clean weight": (lambda: static((), clean=math.inf), "clean"),
    "no concentration": (lambda: Mixup(loss=PAL, concentration=0.0), "concentration"),
    "gamma": (lambda: WeightPerturbation(part=at(), gamma=-1.0), "gamma"),
    "gamma nan": (lambda: WeightPerturbation(part=at(), gamma=math.nan), "gamma"),
    "nothing to move": (lambda: WeightPerturbation(part=ProxyTraining(loss=PAL)), "part: need Adversarial"),
    "another defense": (lambda: WeightPerturbation(part=Mixup(loss=PAL)), "part: need Adversarial"),  # type: ignore[arg-type]
    "triplets": (lambda: WeightPerturbation(part=AdversarialTraining(
        loss=Triplet(), miner=Random(), adversary=LossClimb(loss=Triplet(), moves="apn"), search=SEARCH,
        threat=THREAT)), "part: need a loss that reads a batch"),
    "roles": (lambda: DivergenceClimb(moves="apn"), "moves"),
    "roles too": (lambda: CrossEntropyClimb(moves="p"), "moves"),
    "sharpness": (lambda: BoostedCrossEntropy(alpha=0.0), "alpha"),
    **{f"weight {w} of {t.__name__}": (lambda t=t, w=w: t(weight=w), "weight: need a finite number >= 0")
       for t in (Divergence, LogitPairing, MisclassifiedDivergence, CleanLoss, CleanCrossEntropy)
       for w in (-1.0, math.inf, math.nan)},
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_bad_arguments(name: str) -> None:
    build, reason = REFUSED[name]
    with pytest.raises(InvalidArgument, match=reason):
        build()


def test_proxies_that_are_not_there() -> None:
    for adversary in (DivergenceClimb(), CrossEntropyClimb()):
        defense = AdversarialTraining(
            loss=MultiSimilarity(), adversary=adversary, search=SEARCH, threat=THREAT
        )
        with pytest.raises(InvalidArgument, match="loss: need a loss with proxies"):
            once(defense, context(defense))
    defense = AdversarialTraining(
        loss=PAL, adversary=LossClimb(loss=PAL), search=SEARCH, threat=THREAT, extra=(Divergence(),)
    )
    with pytest.raises(HoldfastError, match="extra: need ProxyTraining"):
        once(defense, context(defense))
