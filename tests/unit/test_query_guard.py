"""The online guard: copies, calibrated score, near-duplicate log, and what attacks do to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from holdfast.errors import HoldfastError, InvalidArgument
from holdfast.functional.conformal import conformal_place
from holdfast.functional.distance import Cosine, Euclidean
from holdfast.guard import (
    CalibratedGuard,
    Calibration,
    Copies,
    QueryGuard,
    QueryLog,
    WithCopies,
    evaluate_guard,
    first_is_wrong,
    near_duplicate_radius,
    queries_until_flagged,
)
from holdfast.guard.conformal import queries_needed
from holdfast.rng import Randomness, stream
from holdfast.search import NES, PGD, Square
from holdfast.threat import LinfThreat
from holdfast.types import Encoder, Gallery, Objective, RetrievalTask, Threat


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def images(n: int, *name: str | int, shape: tuple[int, ...] = (1, 3, 3)) -> Tensor:
    return torch.rand(n, *shape, generator=stream(0, *name))


# ---- copies --------------------------------------------------------------------------------------------


def test_a_shift_replicates_the_edge() -> None:
    x = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])[None, None]
    right = torch.tensor([[0.2, 0.3, 0.3], [0.5, 0.6, 0.6], [0.8, 0.9, 0.9]])
    rows = [[0, 0, 1], [0, 1, 2], [1, 2, 2]]
    possible = {tuple(x[0, 0][r][:, c].flatten().tolist()) for r in rows for c in rows}
    assert tuple(right.flatten().tolist()) in possible
    assert len(possible) == 9
    made = Copies(count=200, noise=0.0, shift=1)(x)
    assert made.shape == (200, 1, 1, 3, 3)
    assert {tuple(c.flatten().tolist()) for c in made} == possible


def test_noise_stays_inside_its_bound_and_the_box_and_reaches_near_both() -> None:
    x = images(2, "x", shape=(3, 8, 8))
    change = Copies(count=4, noise=0.1, shift=0)(x) - x
    assert 0.095 < float(change.max()) <= 0.1 + 1e-6
    assert -0.1 - 1e-6 <= float(change.min()) < -0.095
    dark = Copies(count=4, noise=0.1, shift=0)(torch.zeros_like(x))
    assert float(dark.min()) == 0.0


def test_copies_belong_to_seed_and_number_alone() -> None:
    x = images(3, "x", shape=(1, 6, 6))
    copies = Copies(count=4, noise=0.1, shift=2)
    assert torch.equal(copies(x)[:, 1:2], copies(x[1:2]))
    assert torch.equal(copies(x)[:2], replace(copies, count=2)(x))
    assert not torch.equal(copies(x), replace(copies, seed=1)(x))
    assert not torch.equal(copies(x)[0], copies(x)[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "count: need an integer >= 1"),
        ({"noise": -0.1}, "noise: need"),
        ({"noise": float("nan")}, "noise: need"),
        ({"shift": -1}, "shift: need"),
        ({"noise": 0.0, "shift": 0}, "noise, shift: need at least one above 0"),
        ({"seed": -1}, "seed: need"),
    ],
)
def test_copies_refuse(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Copies(**fields)  # type: ignore[arg-type]


def test_a_batch_that_is_no_images_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="images"):
        Copies()(torch.zeros(4, 9))
    guard = QueryGuard().calibrate(flat, images(200, "clean"), flat(images(20, "gallery")))
    with pytest.raises(InvalidArgument, match="images"):
        guard.score(torch.zeros(4, 9))


def test_the_wide_encoder_puts_the_image_first_then_each_copy() -> None:
    x, copies = images(5, "x"), Copies(count=3, noise=0.1)
    wide = WithCopies(flat, copies)(x).reshape(5, 4, 9)
    assert torch.equal(wide[:, 0], flat(x))
    for j in range(3):
        assert torch.equal(wide[:, 1 + j], flat(copies(x)[j]))


# ---- parts ---------------------------------------------------------------------------------------------

LINE = torch.tensor([[0.0], [1.0], [10.0]])


def test_parts_by_hand() -> None:
    guard = QueryGuard(copies=Copies(count=2), neighbours=2, top=1, distance=Euclidean(offset=0.0))
    z = torch.tensor([[0.4, 0.45, 0.9], [9.0, 8.0, 8.0]])  # the query and two copies
    want = torch.tensor([[(0.05 + 0.5) / 2, (0.4 + 0.6) / 2, 0.5], [1.0, (1 + 8) / 2, 0.0]])
    torch.testing.assert_close(guard.parts_of(z, LINE), want)
    assert guard.names == ("stability", "neighbours", "lists")
    own = guard.parts_of(z, LINE, torch.tensor([0, -1]))  # row 0 is the first query itself
    torch.testing.assert_close(own[0], torch.tensor([0.275, (0.6 + 9.6) / 2, 0.0]))


def test_lists_have_an_exact_value_and_a_gradient() -> None:
    guard = QueryGuard(copies=Copies(count=1), neighbours=1, top=2)
    gallery = torch.randn(12, 3, generator=stream(0, "g"))
    z = torch.randn(6, 6, generator=stream(1, "z")).requires_grad_(True)
    lists = guard.parts_of(z, gallery)[:, 2]
    near = [
        set(torch.cdist(p, gallery).topk(2, largest=False).indices[0].tolist()) for p in z.reshape(-1, 1, 3)
    ]
    want = [len(near[2 * i] - near[2 * i + 1]) / 2 for i in range(6)]
    torch.testing.assert_close(lists.detach(), torch.tensor(want))
    assert 0 < sum(want) < 6
    (grad,) = torch.autograd.grad(lists.sum(), z)
    assert bool((grad != 0).any(1).all())


def test_stability_of_a_linear_encoder_is_that_of_the_noise() -> None:
    copies = Copies(count=6, noise=0.2, shift=0)
    x = 0.3 + 0.4 * images(140, "x")  # far enough from 0 and 1: nothing is clipped
    noise = copies(torch.full((1, 1, 3, 3), 0.5)) - 0.5
    guard = QueryGuard(copies=copies).calibrate(flat, x, flat(images(30, "g")))
    assert guard.calibration.means[0] == pytest.approx(float(noise.flatten(1).norm(dim=1).mean()), abs=1e-5)
    assert guard.parts(x)["stability"].abs().max() < 0.01  # it does not vary and is not blown up


def test_parts_refuse_embeddings_of_another_width() -> None:
    with pytest.raises(InvalidArgument, match="8 copies of width 1"):
        QueryGuard().parts_of(torch.zeros(2, 8), LINE)


# ---- calibration ---------------------------------------------------------------------------------------


def test_the_conformal_place_by_hand() -> None:
    assert conformal_place(99, 0.01) == 99
    assert conformal_place(98, 0.01) == 99  # above n: too few
    assert conformal_place(200, 0.01) == 199
    assert conformal_place(19, 0.05) == 19
    assert conformal_place(9, 0.3) == 7  # floats say (9 + 1) * (1 - 0.3) = 7.0, in 0.1 steps not always
    assert [conformal_place(n, 0.1) for n in (9, 10, 19, 99)] == [9, 10, 18, 90]


@pytest.mark.parametrize("rate", [0.01, 0.03, 0.05, 0.1, 1 / 3, 0.5, 0.9])
def test_just_enough_clean_queries(rate: float) -> None:
    needed = queries_needed(rate)
    x, gallery = images(needed, "clean"), flat(images(10, "g"))
    guard = QueryGuard().calibrate(flat, x, gallery, rate)
    assert guard.calibration.n == needed
    with pytest.raises(InvalidArgument, match=f"at least {needed} clean queries") as error:
        QueryGuard().calibrate(flat, x[1:], gallery, rate)
    assert f"got {needed - 1}" in str(error.value)


def test_132_queries_for_one_in_a_hundred() -> None:
    assert queries_needed(0.01) == 132  # 33 set the scales, 99 the threshold


def test_the_threshold_is_an_order_statistic_of_queries_that_did_not_set_the_scales() -> None:
    x = images(400, "clean")
    guard = QueryGuard().calibrate(flat, x, flat(images(30, "g")), 0.1)
    scores = guard.score(x)[torch.arange(400) % 4 != 0]
    assert float(scores.sort().values[271 - 1]) == pytest.approx(guard.threshold, abs=1e-6)  # ceil(301 * 0.9)
    raw = torch.stack(list(guard.parts(x[::4]).values()), dim=1)
    torch.testing.assert_close(raw.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(raw.std(0), torch.ones(2), atol=1e-3, rtol=0)


def test_fresh_clean_queries_are_flagged_at_the_rate() -> None:
    gallery = flat(images(50, "g"))
    shares = []
    for i in range(30):
        guard = QueryGuard(copies=Copies(count=2)).calibrate(flat, images(80, "clean", i), gallery, 0.1)
        shares.append(float(guard.flags(images(200, "fresh", i)).double().mean()))
    assert 0.06 < sum(shares) / 30 < 0.11


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(rate: float) -> None:
    with pytest.raises(InvalidArgument, match="false_alarm: need a rate"):
        QueryGuard().calibrate(flat, images(200, "clean"), flat(images(10, "g")), rate)


def test_calibration_refuses_what_is_not_finite_or_does_not_fit() -> None:
    x, gallery = images(200, "clean"), flat(images(10, "g"))
    broken = x.clone()
    broken[7] = float("nan")
    with pytest.raises(InvalidArgument, match="finite distances"):
        QueryGuard().calibrate(flat, broken, gallery)
    with pytest.raises(InvalidArgument, match=r"images in \[0, 1\]"):
        QueryGuard().calibrate(flat, 255 * x, gallery)
    with pytest.raises(InvalidArgument, match="gallery"):
        QueryGuard().calibrate(flat, x, gallery[:0])
    with pytest.raises(InvalidArgument, match="self_index"):
        QueryGuard().calibrate(flat, x, gallery, self_index=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InvalidArgument, match="neighbours"):
        QueryGuard(neighbours=0)
    with pytest.raises(InvalidArgument, match="top"):
        QueryGuard(top=0)


# ---- score ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guard() -> CalibratedGuard:
    return QueryGuard(top=3).calibrate(flat, images(200, "clean"), flat(images(30, "g")), 0.05)


def test_the_score_is_the_largest_part(guard: CalibratedGuard) -> None:
    x = images(40, "x")
    parts = guard.parts(x)
    assert list(parts) == ["stability", "neighbours", "lists"]
    table = torch.stack(list(parts.values()), dim=1)
    assert torch.equal(guard.score(x), table.amax(1))
    assert len(set(table.argmax(1).tolist())) > 1
    assert torch.equal(guard.flags(x), guard.score(x) > guard.threshold)


def test_the_score_depends_on_the_image_alone(guard: CalibratedGuard) -> None:
    x = images(40, "x")
    whole = guard.score(x)
    torch.testing.assert_close(guard.score(x, batch_size=7), whole)
    torch.testing.assert_close(guard.score(x.flip(0)).flip(0), whole)
    torch.testing.assert_close(guard.score(x[3:4]), whole[3:4])
    assert guard.score(x[:0]).shape == (0,)


def test_the_differentiable_score_is_the_score(guard: CalibratedGuard) -> None:
    x = images(6, "x").requires_grad_(True)
    score = guard.score_of(guard.wide(x))
    torch.testing.assert_close(score.detach(), guard.score(x.detach()))
    (grad,) = torch.autograd.grad(score.sum(), x)
    step = x.detach() + 1e-3 * grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
    assert bool((grad.flatten(1) != 0).any(1).all())
    neighbours = guard.parts(x.detach())["neighbours"] == score.detach()
    assert bool((guard.score(step) > score.detach())[neighbours].all())


def test_far_queries_are_flagged_and_nan_is_too(guard: CalibratedGuard) -> None:
    x = images(4, "clean")
    x[1] = 1.0  # a corner of the cube, far from the gallery
    x[2] = float("nan")
    assert guard.flags(x).tolist()[1:3] == [True, True]


class Net(nn.Module):
    """Batch-norm, so that modes matter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.linear = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.linear(self.norm(x).flatten(1))
        return z


def test_nothing_is_left_behind() -> None:
    net = Net().train()
    net.linear.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    gallery = torch.randn(20, 4, generator=stream(0, "g"))
    state = torch.get_rng_state()
    guard = QueryGuard().calibrate(net, images(200, "clean"), gallery)
    score = guard.score(images(20, "x"))
    assert torch.equal(torch.get_rng_state(), state)
    assert not score.requires_grad
    assert net.training
    assert net.norm.training
    assert not net.linear.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_a_guard_survives_json(guard: CalibratedGuard) -> None:
    x = images(50, "x")
    data = json.loads(json.dumps(guard.to_dict(), allow_nan=False))
    again = CalibratedGuard.from_dict(data, flat, guard.gallery)
    assert again.calibration == guard.calibration
    assert torch.equal(again.score(x), guard.score(x))
    other = QueryGuard(distance=Cosine(), copies=Copies(count=2)).calibrate(flat, x, guard.gallery, 0.1)
    assert CalibratedGuard.from_dict(other.to_dict(), flat, guard.gallery).calibration == other.calibration


def test_damaged_data_are_refused(guard: CalibratedGuard) -> None:
    for change in (
        {"type": "Popen"},
        {"means": [0.0]},
        {"scales": [1.0, 0.0, 1.0]},
        {"threshold": float("inf")},
    ):
        with pytest.raises(HoldfastError):
            CalibratedGuard.from_dict({**guard.to_dict(), **change}, flat, guard.gallery)
    with pytest.raises(InvalidArgument, match="a Calibration"):
        CalibratedGuard.from_dict(guard.to_dict()["settings"], flat, guard.gallery)


# ---- attacks on the guard ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Push:
    """Raise the only coordinate."""

    def target(self, task: RetrievalTask, generator: Randomness = None) -> None:
        return None

    def gain(self, z: Tensor, target: None, task: RetrievalTask) -> Tensor:
        assert z.shape == task.z.shape  # also while the guard is being evaded
        return z[:, 0]

    def measure(self, z: Tensor, target: None, task: RetrievalTask) -> dict[str, Tensor]:
        return {"place": self.gain(z, target, task)}


def on_the_line(n: int = 12) -> tuple[CalibratedGuard, RetrievalTask]:
    """One-pixel images; class 0 is stored from 0.20 to 0.39, class 1 from 0.40 to 0.60, nothing beyond."""
    gallery = torch.linspace(0.2, 0.6, 41)[:, None]
    labels = (gallery[:, 0] > 0.395).long()
    clean = 0.2 + 0.4 * torch.rand(200, 1, 1, 1, generator=stream(0, "clean"))
    guard = QueryGuard(copies=Copies(count=2, noise=0.02, shift=0), neighbours=3)
    x = torch.linspace(0.25, 0.35, n)[:, None, None, None]
    task = RetrievalTask(
        encoder=flat,
        x=x,
        y=torch.zeros(n, dtype=torch.int64),
        z=flat(x),
        gallery=Gallery(gallery, labels, torch.arange(41)),
        self_index=torch.full((n,), -1),
        index=torch.arange(n),
        distance=Euclidean(),
    )
    return guard.calibrate(flat, clean, gallery, 0.05), task


SEARCH = PGD(steps=60, alpha=0.01, keep="best")
FAR = LinfThreat(eps=0.4)


@pytest.mark.parametrize("attacker_seed", [None, 7])
def test_the_naive_attack_is_caught_and_the_adaptive_one_stops_in_time(attacker_seed: int | None) -> None:
    guard, task = on_the_line()
    report = evaluate_guard(guard, task, Push(), SEARCH, FAR, lams=(0.001, 1.0), attacker_seed=attacker_seed)
    assert report.rows.tolist() == list(range(12))
    torch.testing.assert_close(report.naive.x, task.x + 0.4)  # the end of the ball, outside the stored region
    assert report.naive.broken_share.value == 1
    assert report.naive.escaped_share.value == 0
    assert report.naive.detected_share is not None
    assert report.naive.detected_share.value == 1
    assert report.adaptive.escaped_share.value == 1
    assert bool((report.adaptive.lam > 0).all())
    assert bool(((report.adaptive.x > 0.395) & (report.adaptive.x < 0.62)).all())
    assert not bool(guard.flags(report.adaptive.x).any())
    assert report.false_alarm.value == float(guard.flags(task.x).float().mean())
    assert report.false_alarm.n == 12


def test_too_small_a_weight_changes_nothing_and_the_naive_point_stays() -> None:
    guard, task = on_the_line()
    report = evaluate_guard(guard, task, Push(), SEARCH, FAR, lams=(1e-9,))
    assert report.adaptive.escaped_share.value == 0
    assert report.adaptive.broken_share.value == 1
    assert bool((report.adaptive.lam == 0).all())
    assert torch.equal(report.adaptive.x, report.naive.x)


def test_the_adaptive_attack_is_never_weaker_and_stays_inside_the_threat() -> None:
    guard, task = on_the_line()
    for eps in (0.02, 0.1, 0.2):
        report = evaluate_guard(guard, task, Push(), SEARCH, LinfThreat(eps=eps), lams=(0.01, 1.0))
        naive, adaptive = report.naive, report.adaptive
        assert bool(((naive.broken & ~naive.flagged) <= (adaptive.broken & ~adaptive.flagged)).all())
        assert bool((naive.broken <= adaptive.broken).all())
        assert float((adaptive.x - task.x).abs().max()) <= eps + 1e-6
    small = evaluate_guard(guard, task, Push(), SEARCH, LinfThreat(eps=0.02), lams=(1.0,))
    assert small.naive.broken_share.value == 0
    assert small.naive.detected_share is None


def test_reports_do_not_depend_on_batch_size() -> None:
    guard, task = on_the_line()
    a, b = (evaluate_guard(guard, task, Push(), SEARCH, FAR, lams=(1.0,), batch_size=s) for s in (128, 5))
    torch.testing.assert_close(a.adaptive.x, b.adaptive.x)
    assert torch.equal(a.adaptive.flagged, b.adaptive.flagged)


def test_queries_that_are_wrong_when_clean_are_not_attacked() -> None:
    guard, task = on_the_line()
    y = task.y.clone()
    y[[2, 5]] = 1
    report = evaluate_guard(guard, replace(task, y=y), Push(), SEARCH, FAR, lams=(1.0,))
    assert report.rows.tolist() == [i for i in range(12) if i not in (2, 5)]
    assert report.naive.broken_share.n == 10
    assert report.false_alarm.n == 12
    with pytest.raises(InvalidArgument, match="not broken when clean"):
        evaluate_guard(guard, replace(task, y=1 - task.y), Push(), SEARCH, FAR)


def test_evaluation_refuses_what_does_not_belong_together() -> None:
    guard, task = on_the_line()
    with pytest.raises(InvalidArgument, match="the encoder"):
        evaluate_guard(guard, replace(task, encoder=nn.Flatten()), Push(), SEARCH, FAR)
    short = Gallery(*(part[:40] for part in task.gallery))
    with pytest.raises(InvalidArgument, match="gallery"):
        evaluate_guard(guard, replace(task, gallery=short), Push(), SEARCH, FAR)
    for lams in ((), (0.0,), (float("inf"),)):
        with pytest.raises(InvalidArgument, match="lams"):
            evaluate_guard(guard, task, Push(), SEARCH, FAR, lams=lams)
    with pytest.raises(InvalidArgument, match="slack"):
        evaluate_guard(guard, task, Push(), SEARCH, FAR, slack=-1.0)


def test_ties_count_as_wrong() -> None:
    _, task = on_the_line(1)
    tied = replace(task, gallery=Gallery(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 1]), torch.arange(2)))
    assert first_is_wrong(torch.tensor([[1.0]]), tied).tolist() == [True]
    assert first_is_wrong(torch.tensor([[0.9]]), tied).tolist() == [False]


def test_calibrations_of_another_length_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="means: need 2 finite numbers"):
        Calibration(
            settings=QueryGuard(), means=(0.0,), scales=(1.0, 1.0), threshold=1.0, false_alarm=0.1, n=9
        )


# ---- the log -------------------------------------------------------------------------------------------


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_counts_by_hand() -> None:
    log = QueryLog(radius=0.5, limit=2, capacity=3, distance=Euclidean())
    counts = log.add(column(0.0, 0.1, 9.0, 0.2, 0.3))
    assert counts.tolist() == [0, 1, 0, 2, 2]  # the last: 0.0 is forgotten, 0.1 and 0.2 are left
    assert log.flags(counts).tolist() == [False, False, False, True, True]
    assert log.add(column(0.0)).tolist() == [2]
    assert (len(log), log.seen) == (3, 6)


def test_the_radius_itself_does_not_count() -> None:
    log = QueryLog(radius=0.5, limit=1)
    assert log.add(column(0.0, 0.5, 0.25)).tolist() == [0, 0, 2]


def test_clients_are_told_apart() -> None:
    log = QueryLog(radius=1.0, limit=1)
    assert log.add(column(0, 0, 0, 0), client=["a", "b", "a", "b"]).tolist() == [0, 0, 1, 1]
    assert log.add(column(0), client="a").tolist() == [2]
    assert log.add(column(0), client=1).tolist() == [0]
    assert log.add(column(0), client="1").tolist() == [0]
    assert log.add(column(0)).tolist() == [7]  # of everybody
    with pytest.raises(InvalidArgument, match="one for each of 2"):
        log.add(column(0, 0), client=["a"])


N = 300


def brute(z: Tensor, clients: Sequence[str], radius: float, capacity: int) -> list[int]:
    near = ((z[:, None] - z[None]).norm(dim=2) < radius).tolist()
    counts = []
    for i in range(len(z)):
        earlier = range(max(0, i - capacity), i)
        counts.append(sum(near[i][j] and clients[i] == clients[j] for j in earlier))
    return counts


@pytest.mark.parametrize("capacity", [1, 40, 1000])
@pytest.mark.parametrize("cut", [1, 64, N])
def test_counts_agree_with_a_plain_loop_however_the_queries_are_cut(capacity: int, cut: int) -> None:
    z = torch.rand(N, 2, generator=stream(0, "z"))
    clients = ["ab"[int(i)] for i in torch.randint(2, (N,), generator=stream(0, "c"))]
    log = QueryLog(radius=0.2, limit=1, capacity=capacity)
    got = [log.add(z[i : i + cut], clients[i : i + cut]) for i in range(0, N, cut)]
    assert torch.cat(got).tolist() == brute(z, clients, 0.2, capacity)


def test_memory_is_bounded() -> None:
    log = QueryLog(radius=1.0, limit=1, capacity=10)
    log.add(torch.zeros(3, 4))
    held = {name: v.numel() for name, v in vars(log).items() if isinstance(v, Tensor)}
    log.add(torch.zeros(500, 4), client=[f"client {i}" for i in range(500)])
    assert {name: v.numel() for name, v in vars(log).items() if isinstance(v, Tensor)} == held
    assert held["_z"] == 40
    assert not any(isinstance(v, dict | list | set) for v in vars(log).values())
    assert len(log.fresh()) == 0
    assert len(log) == 10


def test_the_log_refuses() -> None:
    log = QueryLog(radius=1.0)
    log.add(torch.zeros(1, 4))
    with pytest.raises(InvalidArgument, match=r"\(n, 4\)"):
        log.add(torch.zeros(1, 3))
    with pytest.raises(InvalidArgument, match="finite"):
        log.add(torch.full((1, 4), float("nan")))
    assert log.add(torch.zeros(0, 4)).tolist() == []
    for fields in ({"radius": 0.0}, {"radius": float("inf")}, {"limit": 0}, {"limit": 5, "capacity": 4}):
        with pytest.raises(InvalidArgument):
            QueryLog(**{"radius": 1.0, **fields})  # type: ignore[arg-type]


def test_the_radius_is_a_quantile_of_nearest_neighbours() -> None:
    z = column(0.0, 1.0, 3.0, 7.0)  # nearest: 1, 1, 2, 4
    assert near_duplicate_radius(z, 0.2) == pytest.approx(1.0)
    assert near_duplicate_radius(z, 0.6) == pytest.approx(2.0)
    assert near_duplicate_radius(z, 0.8) == pytest.approx(4.0)
    with pytest.raises(InvalidArgument, match="at least 9 clean queries"):
        near_duplicate_radius(z, 0.1)
    with pytest.raises(InvalidArgument, match="distinct"):
        near_duplicate_radius(column(0.0, 0.0, 3.0, 7.0), 0.2)
    with pytest.raises(InvalidArgument, match="quantile"):
        near_duplicate_radius(z, 1.0)


def test_few_clean_queries_are_flagged() -> None:
    z = torch.randn(400, 6, generator=stream(0, "z"))
    radius = near_duplicate_radius(z[:200], 0.05)
    log = QueryLog(radius=radius, limit=1)
    assert float(log.flags(log.add(z[200:])).float().mean()) < 0.1


# ---- black-box attacks against the log -------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """Send points at equal steps to the right, return the last."""

    step: float
    steps: int

    def __call__(
        self, encoder: Encoder, x0: Tensor, objective: Objective, threat: Threat, generator: Randomness = None
    ) -> Tensor:
        for i in range(self.steps):
            x = x0 + self.step * i
            objective(encoder(x))
        return x


def test_a_walk_by_hand() -> None:
    _, task = on_the_line(1)  # at 0.25; wrong from 0.395 on
    log = QueryLog(radius=0.045, limit=2)
    watched = queries_until_flagged(log, task, Push(), Walk(0.02, 20), FAR)
    assert watched.sent.tolist() == [21]  # and the result once more
    assert watched.flagged_at.tolist() == [3]
    assert watched.broken_at.tolist() == [9]  # 0.25 + 8 * 0.02 = 0.41
    assert watched.escaped_share.value == 0
    wide = queries_until_flagged(log, task, Push(), Walk(0.05, 8), FAR)
    assert wide.flagged_at.tolist() == [float("inf")]  # steps wider than the radius are never seen
    assert wide.broken_at.tolist() == [4]
    assert wide.escaped_share.value == 1
    assert wide.flagged_share.value == 0
    assert len(log) == 0


def test_points_outside_the_threat_do_not_break() -> None:
    _, task = on_the_line(1)
    log = QueryLog(radius=0.045, limit=2)
    watched = queries_until_flagged(log, task, Push(), Walk(0.02, 20), LinfThreat(eps=0.1))
    assert watched.broken_at.tolist() == [float("inf")]
    assert watched.broken_share.value == 0


def test_nes_breaks_and_is_flagged_first() -> None:
    _, task = on_the_line(3)
    search = PGD(steps=12, alpha=0.02, gradient=NES(samples=4, sigma=0.01))
    watched = queries_until_flagged(QueryLog(radius=0.01, limit=3), task, Push(), search, FAR)
    assert watched.sent.tolist() == [12 * 9 + 1] * 3
    assert watched.broken_share.value == 1
    assert watched.flagged_share.value == 1
    assert bool((watched.flagged_at < watched.broken_at).all())
    again = queries_until_flagged(
        QueryLog(radius=0.01, limit=3), task.rows(torch.tensor([1])), Push(), search, FAR
    )
    assert again.flagged_at[0] == watched.flagged_at[1]  # its own streams, its own log


def test_a_random_search_is_watched_too() -> None:
    _, task = on_the_line(2)
    log = QueryLog(radius=0.01, limit=1)
    watched = queries_until_flagged(log, task, Push(), Square(queries=20), FAR)
    assert watched.sent.tolist() == [21, 21]
    assert watched.broken_share.value == 1
    assert bool((watched.flagged_at <= 21).all())  # the result is sent once more


@pytest.mark.parametrize("bad", [lambda t: replace(t, y=1 - t.y), lambda t: t.rows(torch.tensor([]).long())])
def test_only_whole_queries_can_be_attacked(bad: Callable[[RetrievalTask], RetrievalTask]) -> None:
    _, task = on_the_line(2)
    with pytest.raises(InvalidArgument, match="not broken when clean"):
        queries_until_flagged(QueryLog(radius=0.1), bad(task), Push(), Walk(0.1, 2), FAR)


def test_a_search_by_gradients_is_no_black_box() -> None:
    _, task = on_the_line(1)
    with pytest.raises(InvalidArgument, match="NES"):
        queries_until_flagged(QueryLog(radius=0.1), task, Push(), PGD(steps=2), FAR)
