"""What every training adversary, and the defense of every recipe, promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.adversaries import (
    ADVERSARIES,
    Collapse,
    Fixed,
    Gradual,
    HardnessManipulation,
    Mined,
    MinMax,
    MixedBoundary,
    Shift,
)
from holdfast.data import Digits
from holdfast.defenses import AdversarialTraining
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.functional.distance import Euclidean
from holdfast.functional.hardness import hardness
from holdfast.losses import IntraClassStructure, Margin, MultiSimilarity, ProxyAnchor, Triplet
from holdfast.miners import MINERS, GradualSemihard, Hardest, Random, Semihard
from holdfast.recipes import RECIPES
from holdfast.rng import seeded, stream
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import Context, Progress, Roles, Step, Triplets, TripletView

ROWS, PAIRS = 24, 12
THREAT = LinfThreat(eps=0.1)
TRIPLETS = Triplets(torch.arange(0, ROWS, 2), torch.arange(1, ROWS, 2), torch.arange(0, ROWS, 2).roll(-1))


class Given:
    """A miner that returns known triplets."""

    def __call__(self, *args: Any, **kwargs: Any) -> Triplets:
        return TRIPLETS


class Spy:
    """A search that keeps what it was given and what it returned."""

    def __init__(self, inner: Any = None) -> None:
        self.inner, self.calls = inner or PGD(steps=3, alpha=0.05), 0

    def __call__(
        self, encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None
    ) -> Tensor:
        self.calls += 1
        self.encoder, self.x0, self.threat = encoder, x0.clone(), threat
        self.x: Tensor = self.inner(encoder, x0, objective, threat, generator)
        return self.x


class Never:
    """A search that must not be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("there is nothing to search for")


class Pixels(nn.Module):
    """Embeddings are the pixels themselves; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, x.detach().clone()))
        return x.flatten(1)


class SpyLoss:
    """A triplet loss that keeps its roles."""

    reads = "triplets"

    def __call__(self, z: Roles, distance: Any) -> Tensor:
        self.z = z
        return Triplet()(z, distance)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Twelve pairs of five classes, in pair layout; neighbouring pairs differ in class."""
    train = Digits().load().train
    rows = [train.y.eq(c).nonzero()[:6, 0] for c in range(5)]
    order = [rows[c % 5][2 * (i // 5) : 2 * (i // 5) + 2] for i, c in enumerate(range(PAIRS))]
    index = torch.cat(order)
    return train.x[index], train.y[index]


def network(seed: int = 0) -> nn.Module:
    return SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed)


def context(images: tuple[Tensor, Tensor], encoder: nn.Module | None = None, **more: Any) -> Context:
    encoder = encoder or network()
    more = {"generator": stream(0, "step", 0), "progress": Progress(0, 10, 0, 8), "signal": {}, **more}
    x, y = images
    return Context(
        encoder=encoder, bare=encoder, x=x.clone(), y=y.clone(), index=torch.arange(ROWS),
        distance=Euclidean(), **more,
    )  # fmt: skip


def defend(adversary: Any, **more: Any) -> AdversarialTraining:
    more = {"loss": Triplet(), "miner": Random(), "search": Spy(), "threat": THREAT, **more}
    return AdversarialTraining(adversary=adversary, **more)


def once(defense: AdversarialTraining, ctx: Context) -> Step:
    (step,) = defense.losses(ctx)
    return step


DEFENSES: dict[str, Callable[[], AdversarialTraining]] = {
    **{f"adversary {n}": lambda a=a: defend(a, search=PGD(steps=3, alpha=0.05))
       for n, a in ADVERSARIES.items()},
    **{f"recipe {n}": lambda make=make: make().defense for n, make in RECIPES.items()
       if type(make().defense) is AdversarialTraining},
}  # fmt: skip
EVERY_DEFENSE = pytest.mark.parametrize("name", list(DEFENSES))


def test_the_tables_hold_the_public_names() -> None:
    assert {"plain", "est", "act", "hm", "hm-ics"} <= set(RECIPES)
    moves = {name: ADVERSARIES[name].moves for name in ("shift", "collapse", "minmax", "hardness")}
    assert moves == {"shift": "x", "collapse": "pn", "minmax": "apn", "hardness": "apn"}


@EVERY_DEFENSE
def test_one_finite_loss_with_gradient_to_every_weight(name: str, images: tuple[Tensor, Tensor]) -> None:
    ctx = context(images, signal={"loss": 0.0})
    ctx.encoder.train()
    step = once(DEFENSES[name](), ctx)
    assert step.loss.shape == ()
    assert math.isfinite(float(step.loss.detach()))
    assert float(step.loss.detach()) > 0
    assert all(p.grad is None for p in ctx.encoder.parameters())  # the search left nothing
    step.loss.backward()
    for path, p in ctx.encoder.named_parameters():
        assert p.grad is not None, path
        assert bool(torch.isfinite(p.grad).all()), path
        assert bool((p.grad != 0).any()), path
    assert all(type(value) is float and math.isfinite(value) for value in step.logs.values())
    assert ctx.signal["loss"] == step.logs["loss"]
    assert all(module.training for module in ctx.encoder.modules())


@EVERY_DEFENSE
def test_the_generator_decides_everything(name: str, images: tuple[Tensor, Tensor]) -> None:
    rng = torch.get_rng_state()
    steps, grads = [], []
    for seed in (0, 0):
        ctx = context(images, generator=stream(seed, "step"), signal={"loss": 0.0})
        steps.append(once(DEFENSES[name](), ctx))
        grads.append(torch.autograd.grad(steps[-1].loss, list(ctx.encoder.parameters())))
    assert torch.equal(steps[0].loss, steps[1].loss)
    assert steps[0].logs == steps[1].logs
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    others = [float(once(DEFENSES[name](), context(images, generator=stream(s, "step"))).loss.detach())
              for s in range(1, 5)]  # fmt: skip
    if not name.startswith(("recipe hm-h-", "recipe lipschitz")):  # hardest rows leave nothing to chance
        assert any(other != float(steps[0].loss.detach()) for other in others)
    assert torch.equal(torch.get_rng_state(), rng)


@EVERY_DEFENSE
def test_images_and_labels_of_the_batch_are_not_touched(name: str, images: tuple[Tensor, Tensor]) -> None:
    ctx = context(images)
    once(DEFENSES[name](), ctx)
    assert torch.equal(ctx.x, images[0])
    assert torch.equal(ctx.y, images[1])
    assert not ctx.x.requires_grad


@pytest.mark.parametrize("name", list(ADVERSARIES))
def test_the_search_raises_the_gain_inside_the_threat(name: str, images: tuple[Tensor, Tensor]) -> None:
    gains: list[Tensor] = []

    class Watched:
        """The adversary, keeping its gains."""

        moves, target = ADVERSARIES[name].moves, ADVERSARIES[name].target

        def gain(self, z: Any, ctx: Context) -> Tensor:
            gains.append(ADVERSARIES[name].gain(z, ctx))
            return gains[-1]

    spy = Spy(PGD(steps=5, alpha=0.03))
    once(defend(Watched(), search=spy, miner=Given()), context(images, signal={"loss": 0.0}))
    assert all(gain.shape == gains[0].shape for gain in gains)
    assert len(gains[0]) in (ROWS if ADVERSARIES[name].moves == "x" else PAIRS, 1)  # 1: a coupled gain
    assert float(gains[-1].detach().mean()) > float(gains[0].detach().mean())
    assert spy.threat is THREAT
    assert 0 < float((spy.x - spy.x0).abs().max()) <= THREAT.eps + 1e-6
    assert 0 <= float(spy.x.min()) <= float(spy.x.max()) <= 1


ORDERS = ["".join(p) for k in (1, 2, 3) for p in permutations("apn", k)]


@pytest.mark.parametrize("moves", ORDERS)
def test_only_the_roles_that_move_are_moved(moves: str, images: tuple[Tensor, Tensor]) -> None:
    """With pixels as embeddings, what reaches gain and loss is seen to the pixel."""

    def mark(encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any) -> Tensor:
        assert torch.equal(x0, torch.cat([images[0][TRIPLETS["apn".index(role)]] for role in moves]))
        marks = torch.arange(1, len(moves) + 1).repeat_interleave(PAIRS).reshape(-1, 1, 1, 1) / 10
        objective(encoder(x0 * 0 + marks))
        return x0 * 0 + marks

    views: list[TripletView] = []

    class Watched(MinMax):
        """Keeps what it is shown."""

        def gain(self, z: TripletView, ctx: Context) -> Tensor:
            views.append(z)
            return super().gain(z, ctx)

    ctx, loss = context(images, Pixels()), SpyLoss()
    once(defend(Watched(moves=moves), loss=loss, miner=Given(), search=mark), ctx)
    (view,) = views
    for place, role in enumerate("apn"):
        clean = images[0][TRIPLETS[place]].flatten(1)
        expected = torch.full_like(clean, (moves.index(role) + 1) / 10) if role in moves else clean
        assert torch.equal(view.now[place], expected), role
        assert torch.equal(view.clean[place], clean), role
        assert torch.equal(loss.z[place], expected), role


def test_every_row_moves_under_shift(images: tuple[Tensor, Tensor]) -> None:
    ctx, spy = context(images), Spy()
    seen: list[Tensor] = []
    ctx.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    once(defend(Shift(), search=spy), ctx)
    assert torch.equal(spy.x0, images[0])
    assert torch.equal(seen[-1], spy.x)
    assert bool((spy.x != images[0]).flatten(1).any(1).all())


@pytest.mark.parametrize(
    ("adversary", "extra", "rows"),
    [
        (None, (), ROWS),
        (Shift(), (), ROWS),
        (Collapse(), (), 3 * PAIRS),
        (MinMax(), (), 3 * PAIRS),
        (HardnessManipulation(), (), 3 * PAIRS),
        (HardnessManipulation(), (IntraClassStructure(),), 5 * PAIRS),  # a', p', n', clean a and p
        (Collapse(), (IntraClassStructure(),), 4 * PAIRS),  # p', n', clean a and p
        (MinMax(moves="a"), (IntraClassStructure(),), 4 * PAIRS),  # a', clean a, p and n
        (MinMax(), (IntraClassStructure(), IntraClassStructure()), 5 * PAIRS),
    ],
)
def test_one_training_forward_of_what_is_read_and_no_more(
    adversary: Any, extra: tuple[Any, ...], rows: int, images: tuple[Tensor, Tensor]
) -> None:
    encoder = Pixels().train()
    threat = {"search": Spy(lambda e, x, *rest: x + 0.01), "threat": THREAT} if adversary else {}
    defense = AdversarialTraining(loss=Triplet(), miner=Given(), adversary=adversary, extra=extra, **threat)
    once(defense, context(images, encoder))
    in_training = [x for training, x in encoder.seen if training]
    assert [len(x) for x in in_training] == [rows]
    assert len(encoder.seen) == (1 if adversary is None else 2)  # the other one mines
    if extra and adversary.moves == "apn":
        clean = torch.cat([images[0][TRIPLETS.anchor], images[0][TRIPLETS.positive]])
        assert torch.equal(in_training[0][3 * PAIRS :], clean)


def test_structure_term_is_added_with_gradient_to_the_clean_side(images: tuple[Tensor, Tensor]) -> None:
    weight = 3.0
    ctx = context(images)
    term = IntraClassStructure(weight=weight)
    spy = Spy(PGD(steps=5, alpha=0.05))
    step = once(defend(MinMax(), miner=Given(), search=spy, extra=(term,)), ctx)
    a, p, n = (ctx.encoder(part) for part in spy.x.chunk(3))
    clean = Roles(*(ctx.encoder(ctx.x[rows]) for rows in TRIPLETS))
    loss = Triplet()(Roles(a, p, n), ctx.distance).mean()
    structure = term(TripletView(Roles(a, p, n), clean), ctx.distance).mean()
    assert float(structure.detach()) > 0
    assert float(step.loss.detach()) == pytest.approx(float((loss + structure).detach()), abs=1e-6)
    assert step.logs["loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert step.logs["total"] == pytest.approx(float(step.loss.detach()), abs=1e-6)
    assert ctx.signal["loss"] == step.logs["loss"]  # gradual adversaries do not see the structure term
    parameters = list(ctx.encoder.parameters())
    ours = torch.autograd.grad(step.loss, parameters)
    wanted = torch.autograd.grad(loss + structure, parameters)
    assert all(torch.allclose(u, v, atol=1e-5) for u, v in zip(ours, wanted, strict=True))


def test_searches_see_the_bare_module_in_evaluation_mode(images: tuple[Tensor, Tensor]) -> None:
    bare = network()
    wrapper = nn.Sequential(bare)
    modes: list[bool] = []
    bare.register_forward_hook(lambda module, args, out: modes.append(module.training))
    calls: list[int] = []
    wrapper.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    ctx = replace(context(images), encoder=wrapper, bare=bare)
    wrapper.train()
    spy = Spy()
    once(defend(MinMax(), search=spy), ctx)
    assert spy.encoder is bare
    assert calls == [3 * PAIRS]  # the loss alone goes through the wrapper
    assert modes == [False] * 4 + [True]  # mining, three steps, the loss


# --- Hardness manipulation ---------------------------------------------------------------------------------


def test_no_pixel_moves_where_the_target_is_reached(images: tuple[Tensor, Tensor]) -> None:
    spy = Spy(PGD(steps=4, alpha=0.05))
    step = once(defend(HardnessManipulation(destination=Fixed(value=-2.5)), search=spy), context(images))
    assert torch.equal(spy.x, spy.x0)
    assert step.logs["target"] == pytest.approx(-2.5)
    assert step.logs["hardness"] == pytest.approx(step.logs["clean_hardness"], abs=1e-6)


def test_each_triplet_stops_at_its_own_target(images: tuple[Tensor, Tensor]) -> None:
    ctx = context(images)
    with torch.no_grad():
        z = ctx.encoder(ctx.x)
    before = hardness(Roles(*(z[rows] for rows in TRIPLETS)), ctx.distance)
    reached = torch.arange(PAIRS) % 2 == 0

    def level(z: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return torch.where(reached, before - 0.01, before + 0.5)

    spy = Spy(PGD(steps=4, alpha=0.02))
    once(defend(HardnessManipulation(destination=level), miner=Given(), search=spy), ctx)
    still = ((spy.x - spy.x0) == 0).flatten(1).all(1).reshape(3, PAIRS)
    assert torch.equal(still.all(0), reached)
    assert torch.equal(still.any(0), reached)
    with torch.no_grad():
        after = hardness(Roles(*ctx.encoder(spy.x).chunk(3)), ctx.distance)
    assert bool((after[~reached] > before[~reached]).all())


def test_gain_of_hardness_manipulation_by_hand() -> None:
    z = Roles(*(torch.tensor(v)[:, None] for v in ([0.0, 0.0], [1.0, 1.0], [0.5, 3.0])))  # H = 0.5 and -2
    ctx = context((torch.zeros(ROWS, 1, 8, 8), torch.zeros(ROWS).long()))
    view = TripletView(z, z, torch.tensor([0.0, -1.5]))
    assert HardnessManipulation().gain(view, ctx).tolist() == pytest.approx([0.0, -0.25], abs=1e-5)
    assert MinMax().gain(view, ctx).tolist() == pytest.approx([0.5, -2.0], abs=1e-5)
    assert Collapse().gain(view, ctx).tolist() == pytest.approx([-0.5, -2.0], abs=1e-5)


@pytest.mark.parametrize(
    ("signal", "power", "expected"),
    [
        ({}, 1.0, -0.2),
        ({"loss": 2.0}, 1.0, -0.2),
        ({"loss": 0.1}, 1.0, -0.1),
        ({"loss": 0.0}, 1.0, 0.0),
        ({"loss": 0.1}, 2.0, -0.05),
        ({"loss": 0.1}, 0.5, -0.2 * math.sqrt(0.5)),
    ],
)
def test_gradual_target_follows_the_last_loss(
    signal: dict[str, float], power: float, expected: float, images: tuple[Tensor, Tensor]
) -> None:
    ctx = context(images, signal=signal)
    z = torch.zeros(ROWS, 8)
    assert Gradual(power=power)(z, ctx.y, ctx).tolist() == [pytest.approx(expected, abs=1e-7)]
    adversary = HardnessManipulation(destination=Gradual(power=power))
    target = adversary.target(z, ctx.y, TRIPLETS, ctx)
    assert target.tolist() == [pytest.approx(expected, abs=1e-7)] * PAIRS
    step = once(defend(adversary), ctx)
    assert step.logs["target"] == pytest.approx(expected, abs=1e-6)


def test_gradual_target_in_a_sequence_of_steps(images: tuple[Tensor, Tensor]) -> None:
    defense = defend(HardnessManipulation(), extra=(IntraClassStructure(weight=5.0),))
    ctx = context(images)
    expected = -0.2
    for _ in range(3):
        step = once(defense, ctx)
        assert step.logs["target"] == pytest.approx(expected, abs=1e-6)
        expected = -min(0.2, step.logs["loss"])


@pytest.mark.parametrize("name", list(MINERS))
def test_mined_target_is_aligned_with_the_anchors(name: str, images: tuple[Tensor, Tensor]) -> None:
    ctx = context(images)
    with torch.no_grad():
        z = ctx.encoder(ctx.x)
    rows = MINERS[name](z, ctx.y, ctx.distance, stream(3))
    expected = [float(torch.dist(z[a], z[p]) - torch.dist(z[a], z[n])) for a, p, n in zip(*rows, strict=True)]
    assert rows.anchor.tolist() == TRIPLETS.anchor.tolist()
    destination = Mined(miner=MINERS[name])
    adversary = HardnessManipulation(destination=destination)
    target = adversary.target(z, ctx.y, TRIPLETS, replace(ctx, generator=stream(3)))
    assert target.tolist() == pytest.approx(expected, abs=1e-4)

    for signal, rise in (({}, 0.0), ({"loss": 0.1}, 0.05), ({"loss": 0.0}, 0.1)):
        mixed = HardnessManipulation(destination=MixedBoundary(miner=MINERS[name]))
        target = mixed.target(z, ctx.y, TRIPLETS, replace(ctx, generator=stream(3), signal=signal))
        assert target.tolist() == pytest.approx([value + rise for value in expected], abs=1e-4)


def test_a_hard_destination_is_approached_by_each_anchor(images: tuple[Tensor, Tensor]) -> None:
    ctx, spy = context(images), Spy(PGD(steps=5, alpha=0.02))
    adversary = HardnessManipulation(destination=Mined(miner=Hardest()))
    step = once(defend(adversary, miner=Random(), search=spy), ctx)
    assert step.logs["clean_hardness"] < step.logs["hardness"]
    assert step.logs["clean_hardness"] < step.logs["target"]


# --- Without an adversary, batch losses, learnable parts ---------------------------------------------------


def test_plain_training_is_the_loss_of_clean_triplets(images: tuple[Tensor, Tensor]) -> None:
    ctx = context(images)
    defense = AdversarialTraining(loss=Triplet(), miner=Given(), search=Never(), threat=THREAT)
    step = once(defense, ctx)
    z = ctx.encoder(ctx.x)
    expected = Triplet()(Roles(*(z[rows] for rows in TRIPLETS)), ctx.distance).mean()
    assert float(step.loss.detach()) == float(expected.detach())
    assert set(step.logs) == {"loss", "hardness"}


@pytest.mark.parametrize("loss", [MultiSimilarity(), ProxyAnchor()], ids=["multi-similarity", "proxy-anchor"])
def test_batch_losses_under_shift(loss: Any, images: tuple[Tensor, Tensor]) -> None:
    spy = Spy()
    defense = AdversarialTraining(loss=loss, adversary=Shift(), search=spy, threat=THREAT)
    with seeded(0, "learnable"):
        learnable = defense.setup(nn.Embedding(1, 8), torch.arange(5))
    ctx = context(images, learnable=learnable)
    step = once(defense, ctx)
    ready = learnable["loss"] if hasattr(loss, "setup") else loss
    expected = ready(ctx.encoder(spy.x), ctx.y, ctx.distance).mean()
    clean = ready(ctx.encoder(ctx.x), ctx.y, ctx.distance).mean()
    assert float(step.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert abs(float((step.loss - clean).detach())) > 1e-4
    parameters = [*ctx.encoder.parameters(), *learnable.parameters()]
    grads = torch.autograd.grad(step.loss, parameters)
    assert all(bool(torch.isfinite(g).all()) and bool((g != 0).any()) for g in grads)
    assert [tuple(p.shape) for p in learnable.parameters()] == ([(5, 8)] if hasattr(loss, "setup") else [])


@pytest.mark.parametrize("adversary", [None, Shift(), HardnessManipulation()], ids=["none", "shift", "hm"])
def test_margin_loss_learns_its_boundary(adversary: Any, images: tuple[Tensor, Tensor]) -> None:
    threat = {"search": Spy(), "threat": THREAT} if adversary else {}
    defense = AdversarialTraining(
        loss=Margin(margin=0.0, beta=0.6), miner=Random(), adversary=adversary, **threat
    )
    learnable = defense.setup(nn.Embedding(1, 8), torch.arange(5))
    ctx = context(images, learnable=learnable)
    learnable["loss"].beta.data.fill_(0.001)  # the learnt boundary counts, not the initial one
    step = once(defense, ctx)
    (beta,) = torch.autograd.grad(step.loss, list(learnable.parameters()), retain_graph=True)
    assert float(beta) != 0
    learnable["loss"].beta.data.fill_(0.6)
    other = once(defense, context(images, learnable=learnable))
    assert float(other.loss.detach()) != pytest.approx(float(step.loss.detach()), abs=1e-3)
    assert len(defend(MinMax()).setup(nn.Embedding(1, 8), torch.arange(5))) == 0


def test_gradual_miners_follow_the_progress(images: tuple[Tensor, Tensor]) -> None:
    seen: list[Progress] = []

    class Asked:
        """A miner of one moment."""

        def at(self, progress: Progress) -> Any:
            seen.append(progress)
            return Given()

        def __call__(self, *args: Any, **kwargs: Any) -> Triplets:
            raise AssertionError("the moment was not asked for")

    progress = Progress(7, 10, 6, 8)
    for adversary in (None, Shift(), MinMax()):
        threat = {"search": Spy(), "threat": THREAT} if adversary else {}
        defense = AdversarialTraining(loss=Triplet(), miner=Asked(), adversary=adversary, **threat)
        once(defense, context(images, progress=progress))
        assert seen == [progress]
        seen.clear()

    def logs(miner: Any, epoch: int) -> dict[str, float]:
        ctx = context(images, progress=Progress(0, 10, epoch, 8), generator=stream(2))
        return once(AdversarialTraining(loss=Triplet(), miner=miner), ctx).logs

    late, fixed = logs(GradualSemihard(margin=0.02), 6), Semihard(margin=0.02 * (1 - 6 / 16) ** 2)
    assert late == logs(fixed, 0)
    assert logs(GradualSemihard(margin=0.02), 0) == logs(Semihard(margin=0.02), 0)
    assert late != logs(GradualSemihard(margin=0.02), 0)


# --- Impossible combinations -------------------------------------------------------------------------------

SEARCH: dict[str, Any] = {"search": PGD(steps=1), "threat": THREAT}


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: AdversarialTraining(loss=Triplet()), "miner: need a miner, because the loss reads triplets"),
        (lambda: AdversarialTraining(loss=object(), miner=Random()), "loss: need a loss whose attribute"),
        (lambda: AdversarialTraining(loss=MultiSimilarity(), miner=Random()), "miner: need none"),
        (lambda: defend(Shift(), loss=ProxyAnchor(), miner=Random()), "miner: need none"),
        (lambda: defend(MinMax(), search=None), "search, threat: need both"),
        (lambda: defend(MinMax(), threat=None), "search, threat: need both"),
        (lambda: AdversarialTraining(loss=MultiSimilarity(), adversary=Collapse(), **SEARCH), "reads"),
        (lambda: defend(Shift(), extra=(IntraClassStructure(),)), "extra: need an adversary that moves"),
        (lambda: defend(None, extra=(IntraClassStructure(),)), "extra: need nothing without an adversary"),
        (lambda: defend(MinMax(moves="")), "moves"),
        (lambda: defend(MinMax(moves="aa")), "moves"),
        (lambda: defend(MinMax(moves="apq")), "moves"),
        (lambda: defend(MinMax(moves="xa")), "moves"),
        (lambda: defend(MinMax(moves="x")), "moves"),
        (lambda: defend(HardnessManipulation(moves="x")), "moves"),
        (lambda: defend(Collapse(moves="x")), "moves"),
        (lambda: defend(Collapse(moves="a")), "moves"),  # its gain does not depend on the anchor
        (lambda: defend(Shift(moves="px")), "moves"),
    ],
)  # fmt: skip
def test_impossible_combinations_are_refused_with_the_reason(build: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        build()
