"""The cost model: arithmetic, advice, stand-ins, and the command. Nothing asserts on time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from holdfast import config
from holdfast.adversaries import Fixed
from holdfast.bench.calibrate import (
    Pace,
    Stopwatch,
    Subject,
    _Enough,
    absent,
    attack_seconds,
    calibrate,
    made_up,
    mean_share,
    pace,
)
from holdfast.bench.cost import Choice, Costs, advise, predict
from holdfast.cli.options import changed
from holdfast.cli.plan import _sides, plan_command, search_steps
from holdfast.errors import DataError, InvalidArgument, UnknownName
from holdfast.evaluation import SUITES, retrieval_task
from holdfast.recipes import recipe
from holdfast.runs import default_search

COSTS = Costs(
    setup=2.0, batch=1.0, epoch=3.0, search_step=0.1, batches=10, half=0.5, half_attack=0.25, load=5.0,
    benign=0.01, attacks={"ers": {"CA+": 0.1, "ES": 0.2, "LTM": 0.3}, "core": {"CA+": 0.1, "ES": 0.2}},
    verdict=4.0, batch_most=1.5, train_bytes=1000, evaluate_bytes=600, base_bytes=400,
)  # fmt: skip
ASKED = Choice(epochs=4, steps=8, batch_pairs=64, suite="ers", queries=100)


def test_prediction_by_hand() -> None:
    found = predict(COSTS, ASKED)
    assert found.train == pytest.approx(2 + 4 * 10 * 1.0 + 4 * 3)
    assert found.evaluate == pytest.approx(5 + 100 * 0.01 + 100 * 0.6 + 4)
    assert found.seconds == pytest.approx(54 + 70)
    assert found.bytes == 1000
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert found.train_most == pytest.approx(54 + 40 * 0.5)
    assert predict(COSTS, ASKED, replace(ASKED, half=True)).train_most == pytest.approx(34 + 40 * 0.25)


@pytest.mark.parametrize(
    ("change", "train", "evaluate"),
    [
        ({"epochs": 1}, 2 + 10 + 3, 70),
        ({"steps": 3}, 2 + 40 * 0.5 + 12, 70),
        ({"half": True}, 2 + 40 * 0.5 + 12, 70),
        ({"suite": "core"}, 54, 5 + 1 + 30 + 4),
        ({"queries": 50}, 54, 5 + 0.5 + 30 + 4),
        ({"half_attack": True}, 54, 5 + 1 + 15 + 4),
    ],
)
def test_changes_by_hand(change: dict[str, object], train: float, evaluate: float) -> None:
    found = predict(COSTS, ASKED, replace(ASKED, **change))  # type: ignore[arg-type]
    assert (found.train, found.evaluate) == (pytest.approx(train), pytest.approx(evaluate))


def test_fewer_epochs_of_searches_that_grow_longer() -> None:
    costs = replace(COSTS, shorter=(0.5, 0.7, 0.9, 1.0))
    assert predict(costs, ASKED).train == pytest.approx(54)
    found = predict(costs, ASKED, replace(ASKED, epochs=2))
    assert found.train == pytest.approx(2 + 20 * 0.7 + 6)
    assert found.train_most == pytest.approx(2 + 20 * 1.5 + 6)
    advice = {a.change for a in advise(costs, ASKED, 110.0, None)}
    assert "train --epochs 3" in advice  # 108 s; without growth it would be 111


def test_memory_grows_with_the_batch() -> None:
    assert predict(COSTS, ASKED, replace(ASKED, batch_pairs=32)).train_bytes == 400 + 300
    assert predict(COSTS, ASKED, replace(ASKED, batch_pairs=128)).train_bytes == 400 + 1200


def test_no_advice_where_it_fits() -> None:
    assert advise(COSTS, ASKED, 124.1, 1000) == []
    assert advise(COSTS, ASKED, None, None) == []


def test_advice_fits_by_the_model_and_is_the_least_change() -> None:
    found = {a.change: a for a in advise(COSTS, ASKED, 110.0, None)}
    assert found["train --epochs 2"].fits  # 13 s an epoch: one less is not enough
    assert found["train --epochs 2"].prediction.seconds == pytest.approx(124 - 26 + 0, abs=1.1)
    assert found["train --steps 4"].prediction.seconds == pytest.approx(124 - 16)
    assert found["evaluate --suite core"].prediction.seconds == pytest.approx(124 - 30)
    assert found["train --precision bf16"].fits
    queries = next(a for name, a in found.items() if name.startswith("evaluate --queries"))
    assert queries.fits
    assert all(a.prediction.seconds < 124 for a in found.values())


def test_advice_puts_changes_together_where_none_suffices() -> None:
    found = advise(COSTS, ASKED, 30.0, None)
    assert [a.fits for a in found] == [True] + [False] * (len(found) - 1)
    # 124 s; bf16 takes 20 s from training and 45 from attacks, queries 8, the suite 3.75; epochs of 8 s stay
    assert (
        found[0].change
        == "train --precision bf16 --epochs 1, evaluate --precision bf16 --queries 50 --suite core"
    )
    assert found[0].prediction.seconds == pytest.approx(2 + 5 + 3 + 5 + 0.5 + 3.75 + 4)
    least = advise(COSTS, ASKED, 1.0, None)
    assert not any(a.fits for a in least)
    assert "--epochs 1" in least[0].change
    assert "--steps 1" in least[0].change


def test_advice_that_saves_nothing_is_not_given() -> None:
    useless = replace(COSTS, search_step=0.0005, half=0.99)
    names = {a.change for a in advise(useless, ASKED, 100.0, None)}
    assert not any("--steps" in name or name == "train --precision bf16" for name in names)
    assert names


def test_advice_that_fits_comes_first() -> None:
    fits = [a.fits for a in advise(COSTS, ASKED, 90.0, None)]
    assert fits == sorted(fits, reverse=True)
    assert {True, False} == set(fits)


def test_advice_on_memory() -> None:
    (batch, tiles) = advise(COSTS, ASKED, None, 500)
    assert batch.change == "train --batch 10"  # 64 * 100 / 600
    assert batch.prediction.train_bytes <= 500
    assert tiles.change == "evaluate --memory 100"
    assert not any(a.fits for a in advise(COSTS, ASKED, None, 300))


def test_an_unmeasured_suite_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="suite"):
        predict(COSTS, ASKED, replace(ASKED, suite="worst-case"))


def test_the_stopwatch_leaves_warm_up_out() -> None:
    moments = iter([0.0, 10.0, 16.0, 18.0, 20.0, 25.0, 26.0, 29.0])
    watch = Stopwatch(1e9, lambda: next(moments))
    for kind in ("step", "step", "step", "step", "epoch", "guard", "step"):
        watch({"kind": kind})
    # the guard counts to the batch before it: measured are 2, 2 + 1 and 3 s, warm-up took 10 and 6
    found = watch.pace()
    assert found.batch == pytest.approx(8 / 3)
    assert found.epoch == pytest.approx(5.0)
    assert found.setup == pytest.approx(16 - 2 * 8 / 3)
    assert found.batches == (10, 6, 2, 3, 3)
    assert found.early(4) == pytest.approx(2.5)
    assert found.early(1) == 10


def test_shares_of_what_moves() -> None:
    found = Pace(1.0, 1.0, None, (1.0, 1.0), passed=(10, 40), saved=(30, 0))
    assert found.whole == 40
    assert found.shares == [0.25, 1.0]


def _logistic(i: int, a: float, b: float) -> float:
    return 1 / (1 + math.exp(-(a + b * math.log(i + 1))))


@pytest.mark.parametrize("slope", [0.8, -0.8])
def test_a_share_that_changes_is_drawn_on(slope: float) -> None:
    every = [_logistic(i, -slope, slope) for i in range(400)]
    assert mean_share(every[:10], 400) == pytest.approx(sum(every) / 400)
    assert mean_share(every[:10], 4) == pytest.approx(sum(every[:4]) / 4)
    assert mean_share([1.0] * 10, 400) == pytest.approx(1.0, abs=1e-3)


def test_a_share_without_a_trend_stays() -> None:
    assert mean_share([0.2, 0.3, 0.2, 0.3, 0.2, 0.3, 0.25], 1000) == pytest.approx(0.25, abs=0.01)
    assert mean_share([0.5, 0.5], 1000) == pytest.approx(0.5)  # two batches show no trend
    assert mean_share([0.3, 0.7], 1000) < 0.6  # nor do these, and the second counts double


def test_the_stopwatch_wants_some_batches_unless_they_are_slow() -> None:
    ticks = iter(range(0, 1000, 2))
    watch = Stopwatch(5.0, lambda: float(next(ticks)))
    for _ in range(4):
        watch({"kind": "step"})
    with pytest.raises(_Enough):
        watch({"kind": "step"})
    slow = iter(range(0, 100000, 100))
    watch = Stopwatch(5.0, lambda: float(next(slow)))
    watch({"kind": "step"})
    with pytest.raises(_Enough):
        watch({"kind": "step"})
    assert watch.pace().batch == 100


@pytest.mark.parametrize(
    ("calls", "steps", "saved"),
    [
        ([], 8, 0),
        ([5] * 8, 8, 0),
        ([5, 5, 2], 8, 5 * 8 - 12),
        ([5, 1, 5, 1], 2, 8),
        ([5] * 16, 8, 0),  # two whole searches look like one long one
        ([3, 4, 4], 1, 0),
    ],
)
def test_rows_that_left_a_search_are_counted(calls: list[int], steps: int, saved: int) -> None:
    assert absent(calls, steps) == saved


def test_rows_that_left_are_seen_in_a_real_training() -> None:
    """A destination that is reached at once empties the search; random triplets of ACT never do."""
    subject = _small()
    easy = config.replace(subject.run, "defense.adversary.destination", Fixed(value=-2.0))
    assert sum(pace(easy, subject.split, 0.01, steps=2)[0].saved) > 0
    full = changed(recipe("act"), {"batch": 8, "steps": 2, "epochs": 2}, [])
    found = pace(full, subject.split, 0.01, steps=2)[0]
    assert sum(found.saved) == 0
    assert found.shares == [1.0] * len(found.batches)


def _small() -> Subject:
    split, _ = made_up((1, 8, 8), 4, 64, 32)
    run = changed(recipe("hm-ics"), {"batch": 8, "steps": 2, "epochs": 2}, [])
    return Subject(
        run=run, split=split, train_images=640, test_images=200, suite=SUITES["core"], steps=2,
        search=default_search(run.threat.eps, 4), queries=50,
        half=changed(run, {"precision": "bf16"}, []),
    )  # fmt: skip


def test_calibration_fills_every_constant() -> None:
    costs = calibrate(_small(), 0.2)
    assert costs.batches == 80  # of all 640 images, not of the 64 stand-ins
    assert costs.batch > 0
    assert costs.half is not None
    assert costs.half_attack is not None
    assert set(costs.attacks["core"]) == {"CA+", "CA-", "ES"}
    assert all(v > 0 for v in costs.attacks["core"].values())
    assert costs.base_bytes <= costs.train_bytes + 2**20  # pages come and go
    json.dumps(costs.__dict__)


def test_calibration_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pace(_small().run, _small().split, 0.01)
    assert torch.equal(before, torch.get_rng_state())


def test_short_searches_are_drawn_on_in_a_straight_line() -> None:
    """On a clock of 3 s for an attack and 2 for each of its steps, 40 steps cost 83."""
    subject = replace(_small(), search=default_search(0.1, 40))
    encoder = subject.run.encoder.build((1, 8, 8), 0).eval()
    task = retrieval_task(encoder, subject.split.test.x, subject.split.test.y)

    class Clock:
        now, passes = 0.0, 0

        def __call__(self) -> float:
            return 3.0 * self.calls + 2.0 * self.passes

        calls = 0

    clock = Clock()

    def counted(part: object, suite: object, search: object, *_: object, **__: object) -> list[object]:
        clock.calls += 1
        clock.passes += search.steps  # type: ignore[attr-defined]
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.bench.calibrate.run_suite", counted)
        found = attack_seconds(
            task.rows(slice(0, 10)), replace(subject, clock=clock), subject.run.threat, 1e-3
        )
    # so slow a clock leaves one query for each attack
    assert found == {label: pytest.approx(83.0) for label in ("CA+", "CA-", "ES")}


def test_made_up_images() -> None:
    split, missing = made_up((3, 16, 16), 5, 100000, 60)
    assert split.train.shape == (3, 16, 16)
    assert split.test.n_classes == 5
    assert missing == (100060 - len(split.train) - len(split.test)) * 3 * 16 * 16 * 4
    large, missing = made_up((3, 96, 96), 9000, 10**6, 20000)  # files, decoded when they are needed
    held = len(large.train) + len(large.test)
    assert missing == -held * 3 * 96 * 96 * 4
    assert held * 3 * 96 * 96 * 4 <= 2**29
    assert large.train.n_classes == len(large.train) // 2  # two of each at least


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (((1, 8), 4, 64, 32), "shape"),
        (((1, 8, 8), 1, 64, 32), "classes"),
        (((1, 8, 8), 40, 64, 100), "images"),
        (((1, 8, 8), 40, 100, 64), "test_images"),
    ],
)
def test_made_up_images_refuse(arguments: tuple[object, ...], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        made_up(*arguments)  # type: ignore[arg-type]


def test_search_steps_are_found_in_a_recipe() -> None:
    assert search_steps(recipe("plain")) == 0
    assert search_steps(changed(recipe("hm-ics"), {"steps": 5}, [])) == 5


@pytest.mark.parametrize("text", ["28x28", "1x28x0", "axbxc", "1x-2x3"])
def test_bad_shapes(text: str) -> None:
    with pytest.raises(InvalidArgument, match="shape"):
        _sides(text)
    assert _sides("3X224x8") == (3, 224, 8)


def _run(*arguments: str) -> object:
    app = typer.Typer()
    app.command()(plan_command)
    return CliRunner().invoke(app, [*arguments])


MADE_UP = ("--images", "60", "--shape", "1x8x8", "--classes", "4", "--calibration", "0.2s", "--batch", "8")


def test_the_command_plans_without_images() -> None:
    shown = _run("plain", *MADE_UP, "--attack-steps", "2", "--budget", "0.01s", "--memory", "1T")
    assert shown.exit_code == 0, shown.output  # type: ignore[attr-defined]
    assert "over the budget of 0 s; what to change" in shown.output  # type: ignore[attr-defined]
    assert "not enough" in shown.output  # type: ignore[attr-defined]
    plain = _run("plain", *MADE_UP, "--suite", "benign", "--json")
    found = json.loads(plain.stdout)  # type: ignore[attr-defined]
    assert found["prediction"]["train"] > 0
    assert found["costs"]["attacks"] == {"benign": {}}
    assert found["advice"] == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("plain", "--images", "60"), InvalidArgument),
        (("plain", *MADE_UP, "--suite", "cor"), UnknownName),
        (("plain", *MADE_UP, "--suite", "clustering"), InvalidArgument),
        (("plain", *MADE_UP, "--check", "full"), InvalidArgument),
        (("plain", *MADE_UP, "--attack-precision", "fp64"), InvalidArgument),
        (("plain", *MADE_UP, "--queries", "0"), InvalidArgument),
        (("plain", *MADE_UP, "--budget", "soon"), InvalidArgument),
        (("nobody",), UnknownName),
    ],
)
def test_the_command_refuses(arguments: tuple[str, ...], error: type[Exception]) -> None:
    assert isinstance(_run(*arguments).exception, error)  # type: ignore[attr-defined]


def test_images_that_are_not_here_say_how_to_plan(tmp_path: Path) -> None:
    found = _run("plain", "--data", "fashion-mnist", "--data-dir", str(tmp_path)).exception  # type: ignore[attr-defined]
    assert isinstance(found, DataError)
    assert "--images 60000 --shape 1x28x28 --classes 10" in str(found)
