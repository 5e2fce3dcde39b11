"""What every evaluation attack of the table promises; a new entry is tested by being listed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks import ATTACKS, Outcome, run
from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.evaluation import SUITES, Entry, Suite, retrieval_task
from holdfast.functional.distance import DISTANCES
from holdfast.rng import RowStreams, stream
from holdfast.search import PGD, Square
from holdfast.threat import L2Threat, LinfThreat
from holdfast.types import Attack, Gallery, PairwiseDistance, RetrievalTask

EVERY_ATTACK = pytest.mark.parametrize("name", list(ATTACKS))
EVERY_TASK = pytest.mark.parametrize("place", ["inside", "outside"])
# Targets that follow from the clean embeddings alone:
NOTHING_IS_DRAWN = {"GTM", "GTT", "TARGET1", "TRIPLET", "CENTROID", "FIRST", "LIST"}
BY_VALUES = {name for name, attack in ATTACKS.items() if not getattr(attack, "differentiable", True)}
WITHOUT_LABELS = {("unlabelled", "ES")}  # its recall is measured and, for want of labels, not reported
FITTED: dict[str, dict[str, Any]] = {
    "SPQA+": {"stiffness": 200.0},
    "SPQA-": {"stiffness": 200.0},
    "SPFOA5": {"keep": 200.0},
    "FOA2": {"top": 0.2},
}
"""Settings that suit sixty rows: the table's are for thousands, of which one percent is more than a pair."""
WEIGHT_ONE: dict[str, dict[str, Any]] = {
    "SPQA+": {"stiffness": 0.0},
    "SPQA-": {"stiffness": 0.0},
    "SPFOA5": {"keep": 1e-12},
}
"""Finite differences would follow the weight too, through which no gradient runs by design."""
SEARCH = PGD(steps=6, alpha=0.03)
THREAT = LinfThreat(eps=0.1)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = Digits().load().test
    return test.x[:60].double(), test.y[:60]


@pytest.fixture(scope="module")
def tasks(digits: tuple[Tensor, Tensor]) -> dict[str, RetrievalTask]:
    """Thirty queries that stand in a gallery of sixty, and twenty against a gallery of forty others."""
    x, y = digits
    encoder = SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=3).double()
    whole = retrieval_task(encoder, x, y)
    apart = replace(
        whole.rows(slice(40, 60)),
        gallery=Gallery(whole.z[:40], y[:40], torch.arange(40)),
        self_index=torch.full((20,), -1),
    )
    return {"inside": whole.rows(slice(0, 30)), "outside": apart}


def aimed(name: str, task: RetrievalTask, seed: int = 0) -> Any:
    return ATTACKS[name].target(task, RowStreams(seed, name, "target", index=task.index))


def plain(suite: Suite) -> list[Entry]:
    """The entries that attack retrieval; composites and clusters have their own tests."""
    return [entry for entry in suite.entries if not hasattr(entry.attack, "run") and not suite.clusters]


def fitted(name: str, settings: dict[str, dict[str, Any]] = FITTED) -> Any:
    attack: Any = ATTACKS[name]
    return replace(attack, **settings.get(name, {}))


def search_for(name: str, search: PGD = SEARCH) -> Any:
    """The search itself, or one that needs no gradient where the gain has none."""
    return Square(queries=16) if name in BY_VALUES else search


def attacked(
    name: str, task: RetrievalTask, batch_size: int = 128, search: PGD = SEARCH, **settings: Any
) -> Outcome:
    settings = {"attack": ATTACKS[name], "threat": THREAT, **settings}
    return run(task, label=name, batch_size=batch_size, search=search_for(name, search), **settings)


def elsewhere(task: RetrievalTask, seed: int = 1) -> Tensor:
    """Unit embeddings near those of the queries, within the spread of the gallery."""
    noise = torch.randn(task.z.shape, dtype=task.z.dtype, generator=stream(seed, "elsewhere"))
    return F.normalize(task.z + 0.3 * task.gallery.z.std(0).mean() * noise, dim=1)


def parts(target: Any, rows: Any = slice(None)) -> list[Tensor]:
    """The tensors of a target, one row for each query: a target is none, a tensor or a tuple of tensors."""
    tensors = [] if target is None else [target] if isinstance(target, Tensor) else list(target)
    return [values[rows] for values in tensors]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(u, v) if u.dtype == torch.int64 else torch.allclose(u, v, rtol=0, atol=1e-7)
        for u, v in zip(a, b, strict=True)
    )


def test_the_table_holds_the_public_names() -> None:
    assert {"CA+", "CA-", "ES"} <= set(ATTACKS)


@EVERY_ATTACK
@EVERY_TASK
@pytest.mark.parametrize("distance", list(DISTANCES.values()), ids=list(DISTANCES))
def test_gain_is_one_finite_differentiable_value_for_each_query(
    name: str, place: str, tasks: dict[str, RetrievalTask], distance: PairwiseDistance
) -> None:
    task = replace(tasks[place], distance=distance)
    attack, target = ATTACKS[name], aimed(name, task)
    for start in (task.z, elsewhere(task)):
        z = start.clone().requires_grad_()
        gain = attack.gain(z, target, task)
        assert gain.shape == (len(task),)
        assert gain.dtype == z.dtype
        assert bool(torch.isfinite(gain).all())
        assert gain.requires_grad != (name in BY_VALUES)
        if name in BY_VALUES:
            continue
        (grad,) = torch.autograd.grad(gain.sum(), z)
        assert bool(torch.isfinite(grad).all())
    if name in BY_VALUES:
        return
    assert bool((grad != 0).any(1).float().mean() > 0.5)  # away from the clean place most queries can climb

    moved = elsewhere(task)[:6].requires_grad_()
    part, few = task.rows(slice(0, 6)), aimed(name, task.rows(slice(0, 6)))
    attack = fitted(name, WEIGHT_ONE)
    assert torch.autograd.gradcheck(lambda z: attack.gain(z, few, part), (moved,), eps=1e-7, atol=1e-4)


@EVERY_ATTACK
@EVERY_TASK
def test_the_gain_of_a_query_depends_on_its_own_embedding_alone(
    name: str, place: str, tasks: dict[str, RetrievalTask]
) -> None:
    task = tasks[place]
    target = aimed(name, task)
    z = elsewhere(task).requires_grad_()
    others = torch.arange(len(task)) != 4
    gain = ATTACKS[name].gain(z, target, task)
    moved = torch.where(others[:, None], elsewhere(task, seed=2), z)
    assert torch.allclose(ATTACKS[name].gain(moved, target, task)[4], gain[4], rtol=1e-9, atol=1e-9)
    if name not in BY_VALUES:
        (grad,) = torch.autograd.grad(gain[4], z)
        assert not bool(grad[others].any())


@EVERY_ATTACK
@EVERY_TASK
def test_measures_are_named_values_for_each_query(
    name: str, place: str, tasks: dict[str, RetrievalTask]
) -> None:
    task = tasks[place]
    for z in (task.z, elsewhere(task)):
        measures = ATTACKS[name].measure(z, aimed(name, task), task)
        assert measures
        for metric, values in measures.items():
            assert isinstance(metric, str)
            assert values.shape == (len(task),)
            assert bool(torch.isfinite(values).all())
            assert float(values.min()) >= (-1 if metric in ("cosine", "kendall") else 0)
            if metric != "shift":
                assert float(values.max()) <= 1
            if metric.startswith(("recall@", "retain@")) or metric == "accuracy":
                assert set(values.tolist()) <= {0.0, 1.0}


def test_every_measure_of_every_suite_has_a_direction(tasks: dict[str, RetrievalTask]) -> None:
    assert SUITES["benign"].entries == ()
    assert [entry.label for entry in SUITES["core"].entries] == ["CA+", "CA-", "ES"]
    task = tasks["inside"]
    for suite in SUITES.values():
        assert len({entry.label for entry in suite.entries}) == len(suite.entries)
        for entry in plain(suite):
            target = entry.attack.target(task, RowStreams(0, "target", index=task.index))
            measures = set(entry.attack.measure(task.z, target, task))
            reported = set(entry.higher_is_robust)
            assert reported
            assert (
                reported < measures if (suite.name, entry.label) in WITHOUT_LABELS else reported == measures
            )
            assert all(type(higher) is bool for higher in entry.higher_is_robust.values())


@pytest.mark.parametrize("suite", [name for name, suite in SUITES.items() if plain(suite)])
def test_directions_are_those_in_which_attacks_push(suite: str, tasks: dict[str, RetrievalTask]) -> None:
    for entry in plain(SUITES[suite]):
        outcome = run(tasks["inside"], entry.attack, SEARCH, THREAT)
        for metric, higher in entry.higher_is_robust.items():
            before, after = (float(m[metric].mean()) for m in (outcome.clean, outcome.attacked))
            assert after < before if higher else after > before, (entry.label, metric)


@EVERY_ATTACK
@EVERY_TASK
def test_targets_belong_to_the_sample_numbers(name: str, place: str, tasks: dict[str, RetrievalTask]) -> None:
    task, attack = tasks[place], ATTACKS[name]
    wide: Any = replace(attack, top=0.2) if hasattr(attack, "top") else attack  # more than one to choose from

    def aimed(task: RetrievalTask, seed: int = 0) -> list[Tensor]:
        return parts(wide.target(task, RowStreams(seed, name, "target", index=task.index)))

    target = aimed(task)
    assert all(len(values) == len(task) for values in target)
    assert same(target, aimed(task))
    order = torch.randperm(len(task), generator=stream(0, "order"))
    for rows in (order, slice(5, 9)):
        assert same(parts(tuple(target), rows), aimed(task.rows(rows)))
    drawn = target and name not in NOTHING_IS_DRAWN
    renamed = replace(task, index=task.index + 1000)
    assert bool(drawn) != same(target, aimed(renamed))
    assert bool(drawn) != same(target, aimed(task, seed=1))


@EVERY_ATTACK
@EVERY_TASK
@pytest.mark.parametrize("threat", [THREAT, L2Threat(eps=0.5)], ids=["linf", "l2"])
def test_attacks_climb_and_stay_inside_the_threat(
    name: str, place: str, tasks: dict[str, RetrievalTask], threat: LinfThreat | L2Threat
) -> None:
    task = tasks[place]
    attack = fitted(name)
    search = PGD(steps=6, alpha=threat.eps / 3)
    outcome = attacked(name, task, attack=attack, threat=threat, search=search)
    assert outcome.x.shape == task.x.shape
    assert float(threat.size(outcome.x, task.x).max()) <= threat.eps + 1e-9
    assert float(threat.size(outcome.x, task.x).max()) > threat.eps / 2
    assert 0 <= float(outcome.x.min()) <= float(outcome.x.max()) <= 1
    target = attack.target(task, RowStreams(0, name, "target", index=task.index))
    gain = attack.gain(outcome.z, target, task).mean()
    assert float(gain) > float(attack.gain(task.z, target, task).mean()) + 1e-4
    with torch.no_grad():
        assert torch.allclose(outcome.z, task.encoder(outcome.x), rtol=0, atol=1e-12)


@EVERY_ATTACK
@EVERY_TASK
@pytest.mark.parametrize("random_start", [False, True])
def test_outcomes_do_not_depend_on_batches_nor_on_other_queries(
    name: str, place: str, tasks: dict[str, RetrievalTask], random_start: bool
) -> None:
    task = tasks[place]
    search = replace(SEARCH, random_start=random_start)
    whole = attacked(name, task, search=search)
    order = torch.randperm(len(task), generator=stream(1, "order"))
    pairs = [
        (attacked(name, task, batch_size=1, search=search), slice(None)),
        (attacked(name, task, batch_size=7, search=search), slice(None)),
        (attacked(name, task.rows(slice(11, 17)), search=search), slice(11, 17)),
        (attacked(name, task.rows(order), search=search), order),
    ]
    for other, rows in pairs:
        assert torch.allclose(other.x, whole.x[rows], rtol=0, atol=1e-9)
        assert torch.allclose(other.z, whole.z[rows], rtol=0, atol=1e-9)
        for state in ("clean", "attacked"):
            there, here = getattr(other, state), getattr(whole, state)
            assert list(there) == list(here)
            for metric, values in there.items():
                assert torch.allclose(values, here[metric][rows], rtol=0, atol=1e-9), (state, metric)
    if random_start or name in BY_VALUES:
        assert not torch.allclose(whole.x, attacked(name, task, search=search, seed=1).x, atol=1e-6)


@EVERY_ATTACK
def test_radius_zero_leaves_everything_as_it_was(name: str, tasks: dict[str, RetrievalTask]) -> None:
    outcome = attacked(name, tasks["inside"], threat=LinfThreat(eps=0.0))
    assert torch.equal(outcome.x, tasks["inside"].x)
    for metric, values in outcome.attacked.items():
        assert torch.allclose(values, outcome.clean[metric], rtol=0, atol=1e-9), metric


class Mixed(nn.Module):
    """A training module with a frozen batch norm, a moving one, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.moving, self.still = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(64, 6)
        self.train()
        self.still.eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.drop(self.still(self.moving(x)).flatten(1))))


@EVERY_ATTACK
@pytest.mark.parametrize("random_start", [False, True])
def test_the_encoder_is_left_without_a_trace(
    name: str, digits: tuple[Tensor, Tensor], random_start: bool
) -> None:
    x, y = digits
    encoder = Mixed().double()
    encoder.head.weight.grad = torch.full_like(encoder.head.weight, 7.0)
    modes = {path: module.training for path, module in encoder.named_modules()}
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    kept_x, rng = x.clone(), torch.get_rng_state()
    task = retrieval_task(encoder, x[:20], y[:20])
    outcome = attacked(name, task, search=replace(SEARCH, random_start=random_start, restarts=2))
    assert {path: module.training for path, module in encoder.named_modules()} == modes
    assert modes["moving"]
    assert not modes["still"]
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    assert bool((encoder.head.weight.grad == 7).all())
    others = [p for path, p in encoder.named_parameters() if path != "head.weight"]
    assert all(p.grad is None for p in others)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, kept_x)
    assert not outcome.x.requires_grad
    assert not outcome.z.requires_grad


@EVERY_ATTACK
def test_a_failing_attack_restores_modes_too(name: str, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    encoder = Mixed().double()
    task = retrieval_task(encoder, x[:20], y[:20])
    encoder.head.weight.data.fill_(torch.nan)
    with pytest.raises(InvalidArgument, match="finite values"):
        attacked(name, task)
    assert encoder.training
    assert encoder.moving.training
    assert not encoder.still.training


@EVERY_ATTACK
def test_a_task_without_queries_is_refused(name: str, tasks: dict[str, RetrievalTask]) -> None:
    with pytest.raises(InvalidArgument, match="at least one query"):
        attacked(name, tasks["inside"].rows(slice(0, 0)))


def test_attack_fields_are_checked() -> None:
    ca = ATTACKS["CA+"]
    for field, bad in (("direction", "sideways"), ("w", 0), ("top", 0.0), ("top", 1.5)):
        with pytest.raises(InvalidArgument, match=field):
            replace(ca, **{field: bad})  # type: ignore[type-var]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_candidate_attack_by_hand(direction: str) -> None:
    """One candidate at 0, queries at 1 and 4; gallery at 0, 1, 4, 6 on a line."""
    z = torch.tensor([[0.0], [1.0], [4.0], [6.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1])
    task = RetrievalTask(
        encoder=lambda x: x, x=z[:1], y=y[:1], z=z[:1], gallery=Gallery(z, y, torch.arange(4)),
        self_index=torch.tensor([0]), index=torch.tensor([0]), distance=DISTANCES["euclidean"],
    )  # fmt: skip
    attack: Attack[RetrievalTask, Any] = replace(ATTACKS["CA+"], direction=direction, w=2)  # type: ignore[type-var]
    target = attack.aimed(task, torch.tensor([[1, 2]]))  # type: ignore[attr-defined]
    now = torch.tensor([[0.5]], dtype=torch.float64)
    # From the query 1 the gallery lies at 1, 0, 3, 5 and the candidate at 0.5; from 4 at 4, 3, 0, 2 and 3.5.
    up = -((0.5 + 0) + (0.5 + 3.5 + 1.5)) / 8
    down = -((0.5 + 2.5 + 4.5) + (0.5)) / 8
    assert float(attack.gain(now, target, task)) == pytest.approx(up if direction == "up" else down)
    assert attack.measure(now, target, task)["rank"].tolist() == [pytest.approx((1 / 4 + 3 / 4) / 2)]


def test_down_takes_the_candidate_among_its_nearest_without_itself(tasks: dict[str, RetrievalTask]) -> None:
    task = tasks["inside"]
    attack = replace(ATTACKS["CA-"], top=0.1, w=3)  # type: ignore[type-var]
    target = attack.target(task, RowStreams(0, "t", index=task.index))
    d = torch.cdist(task.z, task.gallery.z)
    d[torch.arange(30), task.self_index] = torch.inf
    nearest = d.argsort(1)[:, :6]
    assert bool((target.rows[:, :, None] == nearest[:, None, :]).any(2).all())
    assert not bool((target.rows == task.self_index[:, None]).any())


def test_a_search_in_bf16_is_measured_in_full_precision(tasks: dict[str, RetrievalTask]) -> None:
    """The outcome's measures are those of the encoder itself, and a shift still starts from its own place."""
    task = tasks["inside"]
    search, threat = PGD(steps=3, alpha=0.02), LinfThreat(eps=0.05)
    attack = ATTACKS["ES"]
    low, full = (run(task, attack, search, threat, precision=p) for p in ("bf16", "fp32"))
    with torch.no_grad():
        z = task.encoder(low.x)
    assert torch.equal(low.attacked["shift"], attack.measure(z, None, task)["shift"])
    assert float(low.attacked["shift"].mean()) >= 0.8 * float(full.attacked["shift"].mean())
    first = [run(task, attack, PGD(steps=1, alpha=0.02), threat, precision=p).x for p in ("bf16", "fp32")]
    assert float((first[0] == first[1]).float().mean()) > 0.9  # the same direction, up to rounding
    with pytest.raises(InvalidArgument, match="precision"):
        run(task, attack, search, threat, precision="fp8")  # type: ignore[arg-type]
