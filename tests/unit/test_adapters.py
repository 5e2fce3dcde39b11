"""Loops of other people made adversarial: two lines, no traces; and their miners as ours."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.adapters import DEFENSES, harden, harden_trainer
from holdfast.adapters.harden import paired
from holdfast.adversaries import Alternate, Collapse, LossClimb, Shift
from holdfast.attacks import ATTACKS
from holdfast.attacks.run import run
from holdfast.config import from_plain, to_plain
from holdfast.data import DataSplit, Digits, PairSampler
from holdfast.defenses import AdversarialTraining
from holdfast.errors import DataError, InvalidArgument, MissingExtra, UnknownName
from holdfast.evaluation import retrieval_task
from holdfast.functional.distance import Euclidean
from holdfast.losses import PML, MultiSimilarity, Triplet
from holdfast.miners import FromPMLMiner, Hardest, PMLMiner
from holdfast.recipes import recipe
from holdfast.rng import stream
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.training import train

TWO_EACH = torch.tensor([0, 0, 1, 1, 2, 2])


class Push(nn.Module):
    """Minus the first coordinate, the mean over the batch: its gradient is known."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        self.sizes.append(len(z))
        return -z[:, 0].mean()


class Pairwise(nn.Module):
    """The margin loss of a loop: positives near, negatives away, coupled over the batch."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return MultiSimilarity()(F.normalize(z, dim=1), y, Euclidean()).mean()


def linear(weights: list[list[float]]) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(len(weights[0]), len(weights), bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor(weights))
    return net


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(256, 16),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Any:
    return Digits().load()


def batches(y: Tensor, epochs: int, pairs: int = 40) -> Iterator[Tensor]:
    for epoch in range(epochs):
        yield from PairSampler(pairs).epoch(y, stream(0, "loop", epoch))


def test_climbing_a_linear_loss_moves_every_pixel_to_its_border() -> None:
    """-w.x is raised most by -eps * sign(w); pixels beyond the box stay at the box."""
    loss, x = Push(), torch.tensor([[[[0.5, 0.5, 0.02]]], [[[0.5, 0.98, 0.5]]]])
    hard = harden(linear([[1.0, -2.0, 3.0]]), loss, eps=0.1)
    moved, y = hard(x, torch.tensor([0, 1]))
    assert torch.allclose(moved, torch.tensor([[[[0.4, 0.6, 0.0]]], [[[0.4, 1.0, 0.4]]]]))
    assert y.tolist() == [0, 1]
    assert hard.signal == {"eps": 0.1}
    assert loss.sizes == []  # what it remembers is put back


def test_the_search_sees_the_whole_batch_and_the_loops_miner() -> None:
    seen: list[tuple[int, Any]] = []

    def loss(z: Tensor, y: Tensor, mined: Any) -> Tensor:
        seen.append((len(z), mined))
        return z.square().sum()

    hard = harden(linear([[1.0, 1.0]]), loss, eps=0.1, steps=3, miner=lambda z, y: ("mined", len(y)))
    hard(torch.rand(6, 1, 1, 2), TWO_EACH)
    assert seen == [(6, ("mined", 6))] * 3


def test_shift_of_a_linear_model() -> None:
    """The l2 search moves along the gradient by exactly eps."""
    x = torch.full((2, 1, 1, 2), 0.5)
    hard = harden(linear([[3.0, 4.0]]), eps=0.1, norm="l2", defense="est", normalize=False)
    moved, _ = hard(x, [0, 1])
    assert torch.allclose((moved - x).flatten(1).abs(), torch.tensor([[0.06, 0.08]] * 2), atol=1e-6)


def loop(hardened: dict[str, Any] | None, digits: Any, epochs: int = 1, seed: int = 0) -> nn.Module:
    """Train a network on digits; ``hardened`` holds the options of the first of the two lines."""
    x_all, y_all = digits.train.x[:400], digits.train.y[:400]
    model, loss_func = network(seed), Pairwise()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    if hardened is not None:
        hard = harden(model, loss_func, **hardened)  # the first line
    model.train()
    for rows in batches(y_all, epochs):
        x, y = x_all[rows], y_all[rows]
        if hardened is not None:
            x, y = hard(x, y)  # the second line
        optimizer.zero_grad()
        loss = loss_func(model(x), y)
        loss.backward()
        optimizer.step()
    return model.eval()


def recall(model: nn.Module, digits: Any, eps: float) -> tuple[float, float]:
    """Recall@1 of 100 test digits among the training images, clean and under ES."""
    unit = lambda x: F.normalize(model(x), dim=1)  # noqa: E731
    test, train = digits.test, digits.train
    task = retrieval_task(unit, test.x[:100], test.y[:100], gallery=train.x, gallery_y=train.y)
    found = run(task, ATTACKS["ES"], PGD(steps=10, alpha=eps / 4, keep="best"), LinfThreat(eps=eps))
    return float(found.clean["recall@1"].mean()), float(found.attacked["recall@1"].mean())


def test_two_lines_harden_a_loop(digits: Any) -> None:
    plain = recall(loop(None, digits, epochs=4), digits, 0.15)
    hardened = recall(loop({"eps": 0.15, "steps": 4}, digits, epochs=4), digits, 0.15)
    assert plain[0] > 0.85
    assert hardened[0] > 0.85
    assert hardened[1] > plain[1] + 0.25, (plain, hardened)


@pytest.mark.parametrize("defense", ["loss", "hm"])
def test_radius_zero_is_the_plain_loop_to_the_bit(digits: Any, defense: str) -> None:
    plain, same = (loop(o, digits).state_dict() for o in (None, {"eps": 0.0, "defense": defense}))
    assert all(torch.equal(plain[name], same[name]) for name in plain)


@pytest.mark.parametrize("defense", sorted(DEFENSES))
def test_no_traces(digits: Any, defense: str) -> None:
    model, loss = network(), Pairwise()
    model[1].eval()  # frozen by the loop, and so it stays
    modes = [m.training for m in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    x, y = digits.train.x[:40].clone(), digits.train.y[:40]
    kept = x.clone()
    moved, labels = harden(model, loss, eps=0.1, steps=2, defense=defense, random_start=True)(x, y)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert not moved.requires_grad
    assert len(moved) == len(labels)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


def test_a_loss_that_draws_leaves_the_loops_own_draws_alone() -> None:
    def drawn(hardened: bool) -> list[float]:
        model = linear([[1.0]])
        torch.manual_seed(0)
        seen: list[float] = []

        def loss(z: Tensor, y: Tensor) -> Tensor:
            seen.append(float(torch.rand(())))
            return z.sum()

        if hardened:
            harden(model, loss, eps=0.1, steps=2)(torch.rand(2, 1, 1, 1), [0, 1])
        else:
            torch.rand(2, 1, 1, 1)
        return [*seen, float(torch.rand(()))]

    assert drawn(True)[-1] == drawn(False)[-1]
    assert drawn(True) == drawn(True)
    assert len(drawn(True)) == 3


def test_rows_stay_in_the_ball_and_seeds_decide(digits: Any) -> None:
    x, y = digits.train.x[:20], digits.train.y[:20]

    def moved(seed: int, calls: int = 1) -> Tensor:
        hard = harden(network(), Pairwise(), eps=0.1, steps=1, random_start=True, seed=seed)
        return [hard(x, y)[0] for _ in range(calls)][-1]

    assert float((moved(0) - x).abs().max()) <= 0.1 + 1e-6
    assert torch.equal(moved(0), moved(0))
    assert not torch.equal(moved(0), moved(1))
    assert not torch.equal(moved(0), moved(0, calls=2))


def test_the_radius_grows_over_the_ramp() -> None:
    x, hard = torch.full((2, 1, 1, 1), 0.5), harden(linear([[1.0]]), Push(), eps=0.2, ramp=4)
    sizes = [round(float((hard(x, [0, 1])[0] - x).abs().max()), 5) for _ in range(6)]
    assert sizes == [0.05, 0.1, 0.15, 0.2, 0.2, 0.2]


def test_standardised_images_move_by_eps_in_pixels(digits: Any) -> None:
    pixels, y = digits.train.x[:20].expand(-1, 3, -1, -1), digits.train.y[:20]
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.5)
    shift, scale = (torch.tensor(v)[:, None, None] for v in (mean, std))
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    outside = lambda x: inner((x - shift) / scale)  # noqa: E731, the same model on pixels
    wanted, _ = harden(outside, Pairwise(), eps=0.05, steps=2)(pixels, y)
    got, _ = harden(inner, Pairwise(), eps=0.05, steps=2, mean=mean, std=std)((pixels - shift) / scale, y)
    assert torch.allclose(got * scale + shift, wanted, atol=1e-4)
    assert float((got * scale + shift - pixels).abs().max()) == pytest.approx(0.05, abs=1e-5)


def test_triplet_defenses_give_back_the_images_of_their_triplets(digits: Any) -> None:
    y = torch.tensor([0, 1, 0, 1, 2, 2, 2])
    x = torch.stack([torch.full((1, 8, 8), 0.1 * (i + 1)) for i in range(7)])
    hard = harden(network(), eps=0.02, steps=2, defense="act")
    moved, labels = hard(x, y)
    assert moved.shape == (9, 1, 8, 8)  # three pairs; the third image of class 2 has no partner
    assert hard.indices is not None
    a, p, n = hard.indices
    assert labels[a].tolist() == labels[p].tolist() == [0, 1, 2]
    assert bool((labels[n] != labels[a]).all())
    assert torch.equal(moved[a], x[[0, 1, 4]])  # anchors rest
    assert 0 < float((moved[p] - x[[2, 3, 5]]).abs().max()) <= 0.02 + 1e-6
    assert hard.signal["loss"] > 0
    harden(network(), eps=0.02, steps=1, defense=Collapse())(x, y)
    turns = harden(network(), eps=0.02, steps=1, defense=Alternate(parts=(Shift(), Collapse())))
    assert [len(turns(x, y)[0]) for _ in range(3)] == [7, 9, 7]
    assert turns.indices is None


def test_the_gradual_adversary_follows_the_last_loss(digits: Any) -> None:
    x, y = digits.train.x[:40], digits.train.y[:40]
    hard = harden(network(), eps=0.05, steps=1, defense="hm", miner=Hardest())
    hard(x, y)
    first = hard.signal["loss"]
    moved = hard(x, y)[0]
    hard.step, hard.signal["loss"] = 1, first  # as it was before the second batch: resumed
    assert torch.equal(hard(x, y)[0], moved)


def test_rows_two_by_two_and_batches_without_triplets() -> None:
    assert paired(TWO_EACH).tolist() == [0, 1, 2, 3, 4, 5]
    hard = harden(linear([[1.0]]), eps=0.1, defense="min-max")
    for y in ([0, 1, 2], [0, 0, 1], [3, 3, 3]):
        with pytest.raises(DataError, match="two classes with two rows"):
            hard(torch.rand(3, 1, 1, 1), y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -1.0}, InvalidArgument, "eps"),
        ({"norm": "l1"}, UnknownName, "norm"),
        ({"defense": "hm-ics"}, UnknownName, "defense"),
        ({"defense": 3}, InvalidArgument, "defense"),
        ({"loss_func": None}, InvalidArgument, "loss_func"),
        ({"ramp": -1}, InvalidArgument, "ramp"),
        ({"mean": (0.5,)}, InvalidArgument, "mean, std"),
        ({"mean": (0.5,), "std": (0.0,)}, InvalidArgument, "std"),
        ({"model": None}, InvalidArgument, "model"),
        ({"steps": -1}, InvalidArgument, "steps"),
    ],
)
def test_what_harden_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        harden(**{"model": linear([[1.0]]), "loss_func": Push(), "eps": 0.1, **options})


def test_what_a_hardener_refuses() -> None:
    hard = harden(linear([[1.0]]), Push(), eps=0.1)
    x = torch.rand(2, 1, 1, 1)
    for bad, y in ((x * 255, [0, 1]), (x.long(), [0, 1]), (x, [0]), (x - 2, [0, 1])):
        with pytest.raises(InvalidArgument, match="x"):
            hard(bad, y)
    with pytest.raises(InvalidArgument, match="one number"):
        harden(linear([[1.0]]), lambda z, y: z @ z.T, eps=0.1)(x, [0, 1])


class Memory(nn.Module):
    """A loss that remembers: in a buffer, a number, a list and a dictionary."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(4))
        self.count, self.logs, self.parts = 0, list[float](), {"n": 0}

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        self.count += 1
        self.rows[self.count % 4] = 1.0
        self.rows = self.rows.clone()
        self.logs.append(1.0)
        self.parts["n"] = self.count
        self.late = z.sum()
        return z.sum()


def test_a_loss_with_a_memory_does_not_see_the_search() -> None:
    loss = Memory()
    loss(torch.ones(2, 1), torch.tensor([0, 1]))
    rows, logs, parts, late = loss.rows, loss.logs, loss.parts, loss.late
    harden(linear([[1.0]]), loss, eps=0.1, steps=5)(torch.rand(2, 1, 1, 1), [0, 1])
    assert loss.count == 1
    assert loss.rows is rows
    assert loss.rows.tolist() == [0, 1, 0, 0]
    assert loss.logs is logs
    assert loss.logs == [1.0]
    assert loss.parts is parts
    assert loss.parts == {"n": 1}
    assert loss.late is late
    with pytest.raises(ZeroDivisionError):  # and after an error as well
        harden(linear([[1.0]]), _Failing(loss), eps=0.1)(torch.rand(2, 1, 1, 1), [0, 1])
    assert loss.count == 1


class _Failing(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        self.loss(z, y)
        raise ZeroDivisionError


def test_a_loop_in_the_form_of_oml() -> None:
    """OML's batches are dictionaries, and its miner stands inside the criterion."""

    class Criterion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._last_logs: dict[str, float] = {}

        def forward(self, features: Tensor, labels: Tensor | list[int]) -> Tensor:
            y = torch.as_tensor(labels)
            far = torch.cdist(features, features)
            self._last_logs.update(n=len(y))
            return (far * (y[:, None] == y)).mean() - (far * (y[:, None] != y)).mean()

    torch.manual_seed(0)
    model, criterion = linear(torch.randn(3, 4).tolist()), Criterion()
    batch = {"input_tensors": torch.rand(6, 1, 2, 2), "labels": TWO_EACH}
    hard = harden(model, criterion, eps=0.1)
    before = criterion(model(batch["input_tensors"]), batch["labels"]).item()
    x, y = hard(batch["input_tensors"], batch["labels"])
    assert criterion(model(x), y).item() > before + 0.01
    assert float((x - batch["input_tensors"]).abs().max()) <= 0.1 + 1e-6


def trainer_of(get_batch: Callable[[], Any], **more: Any) -> Any:
    parts = {"models": {"trunk": nn.Flatten(), "embedder": nn.Linear(4, 2)}, "get_batch": get_batch}
    return SimpleNamespace(**{**parts, "loss_funcs": {"metric_loss": Pairwise()}, "mining_funcs": {}, **more})


def test_trainers_are_hardened_once_and_only_if_they_fit() -> None:
    batch = (torch.rand(6, 1, 2, 2), TWO_EACH)
    trainer = trainer_of(lambda: batch)
    hard = harden_trainer(trainer, eps=0.1)
    x = trainer.get_batch()[0]
    assert 0 < float((x - batch[0]).abs().max()) <= 0.1 + 1e-6
    assert hard.step == 1
    with pytest.raises(InvalidArgument, match="not hardened yet"):
        harden_trainer(trainer, eps=0.1)
    with pytest.raises(InvalidArgument, match="trunk"):
        harden_trainer(trainer_of(lambda: batch, models={}), eps=0.1)
    with pytest.raises(InvalidArgument, match="loss_func"):
        harden_trainer(trainer_of(lambda: batch, loss_funcs={}), eps=0.1)
    streams = trainer_of(lambda: (*batch, TWO_EACH))
    harden_trainer(streams, eps=0.1)
    with pytest.raises(InvalidArgument, match="images, labels"):
        streams.get_batch()


def test_a_real_trainer_of_pytorch_metric_learning(digits: Any) -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses, miners, trainers

    net = network()
    data = [(x, int(y)) for x, y in zip(digits.train.x[:120], digits.train.y[:120], strict=True)]

    def trainer() -> Any:
        torch.manual_seed(0)
        return trainers.MetricLossOnly(
            models={"trunk": net},
            optimizers={"trunk_optimizer": torch.optim.Adam(net.parameters(), lr=1e-3)},
            batch_size=60,
            loss_funcs={"metric_loss": losses.TripletMarginLoss(margin=0.2)},
            dataset=data,
            mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
            data_device="cpu",
            dataloader_num_workers=0,
        )

    hardened = trainer()
    hard = harden_trainer(hardened, eps=0.1, steps=2)
    hardened.train(num_epochs=2)
    assert hard.step == 4
    assert hard.signal["eps"] == 0.1
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), embedding_size=16, memory_size=64)
    memory(net(digits.train.x[:30]), digits.train.y[:30])
    kept = memory.embedding_memory.clone()
    harden(net, memory, eps=0.1, steps=2)(digits.train.x[30:60], digits.train.y[30:60])
    assert memory.queue_idx == 30
    assert torch.equal(memory.embedding_memory, kept)


def given(*rows: list[int]) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    return lambda z, y: tuple(torch.tensor(role, dtype=torch.long) for role in rows)


def mined(miner: Any, y: Tensor = TWO_EACH, each: int | None = None, seed: int = 0) -> list[list[int]]:
    rows = FromPMLMiner(miner, each=each)(torch.zeros(len(y), 2), y, Euclidean(), stream(seed))
    return [list(t) for t in zip(*(role.tolist() for role in rows), strict=True)]


def test_triplets_of_a_miner_are_kept_or_drawn() -> None:
    three = given([0, 0, 2], [1, 1, 3], [2, 3, 0])
    assert sorted(mined(three)) == [[0, 1, 2], [0, 1, 3], [2, 3, 0]]
    once = [mined(three, each=1, seed=s) for s in range(20)]
    assert all(len(t) == 2 and t[1] == [2, 3, 0] for t in once)
    assert {t[0][2] for t in once} == {2, 3}


def test_pairs_of_a_miner_become_triplets() -> None:
    """Anchor 0 has one positive and two negatives; 2 has no negative, 4 no positive: they are left out."""
    pairs = given([0, 2], [1, 3], [0, 0, 4], [2, 5, 1])
    assert mined(pairs) == [[0, 1, 2], [0, 1, 5]]
    assert {t[0][2] for t in (mined(pairs, each=1, seed=s) for s in range(20))} == {2, 5}


def test_a_miner_that_finds_nothing_gets_random_triplets() -> None:
    found = mined(given([], [], []), y=torch.tensor([0, 0, 1, 2]), each=2)
    assert [t[:2] for t in found] == [[0, 1], [0, 1], [1, 0], [1, 0]]
    assert {t[2] for t in found} <= {2, 3}
    with pytest.raises(DataError, match="without triplets"):
        mined(given([], [], []), y=torch.tensor([0, 1, 2]))


def test_what_a_miner_draws_follows_the_generator() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()

    def drawing(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return torch.tensor([0]), torch.tensor([1]), torch.randint(2, 6, (1,))

    negatives = [mined(drawing, seed=s)[0][2] for s in range(20)]
    assert negatives == [mined(drawing, seed=s)[0][2] for s in range(20)]
    assert len(set(negatives)) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_miners_refuse_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ({"miner": 3}, {"each": 0}, {"options": (("a",),)}, {"options": (("a", 1), ("a", 2))}):
        with pytest.raises(InvalidArgument):
            PMLMiner(**bad)
    for bad in ({"miner": "TripletMarginMiner"}, {"miner": given([0]), "each": 1.5}):
        with pytest.raises(InvalidArgument):
            FromPMLMiner(**bad)
    with pytest.raises(InvalidArgument, match="3 or 4 tensors"):
        mined(given([0], [1]))
    with pytest.raises(InvalidArgument, match="z, y"):
        FromPMLMiner(given([0]))(torch.zeros(2, 2), torch.zeros(3), Euclidean())
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.miners", None)
    with pytest.raises(MissingExtra, match=r"holdfast\[pml\]"):
        PMLMiner()(torch.zeros(6, 2), TWO_EACH, Euclidean())


def test_every_miner_of_the_package_and_settings_as_plain_data() -> None:
    package = pytest.importorskip("pytorch_metric_learning.miners")
    miner = PMLMiner(miner="TripletMarginMiner", options=(("margin", 0.3),), each=None)
    assert from_plain(to_plain(miner), {"PMLMiner": PMLMiner}) == miner
    z, y = torch.randn(24, 4, generator=stream(0)), torch.arange(24) // 4
    rows = miner(z, y, Euclidean())
    expected = package.TripletMarginMiner(margin=0.3)(z, y)
    assert {tuple(t) for t in torch.stack(list(rows), 1).tolist()} == {
        tuple(t) for t in torch.stack(list(expected), 1).tolist()
    }
    for name in ("BatchHardMiner", "MultiSimilarityMiner", "DistanceWeightedMiner", "HDCMiner"):
        a, p, n = PMLMiner(miner=name)(z, y, Euclidean(), stream(1))
        assert 0 < len(a) <= 24
        assert bool((y[a] == y[p]).all() and (a != p).all() and (y[n] != y[a]).all())
    with pytest.raises(UnknownName, match="TripletMarginMiner"):
        PMLMiner(miner="TripletMarginMine")(z, y, Euclidean())
    with pytest.raises(InvalidArgument, match="accepts"):
        PMLMiner(miner="HDCMiner", options=(("colour", 1),))(z, y, Euclidean())


def test_losses_and_miners_of_the_package_are_training_objectives(digits: Any) -> None:
    pytest.importorskip("pytorch_metric_learning")
    small = DataSplit(digits.train.first(120), digits.test, "digits", "closed")
    mined = AdversarialTraining(
        loss=Triplet(), miner=PMLMiner(miner="BatchHardMiner"), adversary=Collapse(),
        search=PGD(steps=1, alpha=0.1), threat=LinfThreat(eps=0.1),
    )  # fmt: skip
    proxies = PML(loss="ProxyAnchorLoss")
    climbed = AdversarialTraining(
        loss=proxies, adversary=LossClimb(loss=proxies), search=PGD(steps=1, alpha=0.1),
        threat=LinfThreat(eps=0.1),
    )  # fmt: skip
    for defense in (mined, climbed):
        lines: list[dict[str, Any]] = []
        run = replace(recipe("plain"), defense=defense, epochs=2, sampler=PairSampler(30))
        train(run, small, on_line=lines.append)
        losses = [line["loss"] for line in lines if line["kind"] == "epoch"]
        assert losses[1] < losses[0]


def test_a_miner_of_the_package_chooses_the_triplets_of_a_loop(digits: Any) -> None:
    package = pytest.importorskip("pytorch_metric_learning.miners")
    x, y = digits.train.x[:30], digits.train.y[:30]
    hard = harden(network(), eps=0.1, steps=1, defense="min-max", miner=package.BatchHardMiner())
    moved, labels = hard(x, y)
    assert len(moved) == len(labels) == 3 * 30
