"""Findings, the rule of the verdict, the run of an examination, and repairs."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from holdfast.errors import DataError, InvalidArgument
from holdfast.evaluation import SUITES, retrieval_task, run_suite
from holdfast.evaluation.verdict import (
    CHECKS,
    CONTROLS,
    Examination,
    Finding,
    GradientKiller,
    RandomInput,
    Unavailable,
    Verdict,
    conduct,
    examine,
    judge,
    repair,
)
from holdfast.evaluation.verdict.compare import beats, share, tolerance
from holdfast.evaluation.verdict.examine import _run
from holdfast.evaluation.verdict.material import MeanEmbedding
from holdfast.evaluation.verdict.searches import changed, in_double, stretched
from holdfast.evaluation.verdict.table import Check
from holdfast.evaluation.verdict.texts import TEXTS, at_least, at_most
from holdfast.functional.distance import Euclidean
from holdfast.rng import stream
from holdfast.schedules import Linear
from holdfast.search import APGD, PGD, Averaged, Square
from holdfast.threat import LinfThreat
from holdfast.types import Gallery, RetrievalTask


def finding(name: str = "R4", status: Any = "pass", **more: Any) -> Finding:
    return Finding(id=name, name="x", status=status, **{"group": TEXTS[name].group, **more})


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x.flatten(1) - 0.5, dim=1)


def blobs(encoder: Any = None, n: int = 96) -> RetrievalTask:
    """Images of eight classes, four pixels wide."""
    generator = stream(0, "blobs")
    centres = torch.rand(8, 1, 4, 4, generator=generator).round()
    y = torch.arange(n) % 8
    x = (centres[y] + 0.1 * torch.rand(n, 1, 4, 4, generator=generator)).clamp(0, 1)
    return retrieval_task(encoder or Centred(), x, y)


def border(encoder: Any = None, n: int = 24) -> RetrievalTask:
    """Queries that break where the first pixel moves by 0.2."""
    y = torch.arange(n) % 2
    x = torch.stack([0.3 + 0.4 * y, torch.full((n,), 0.5)], 1)[:, None, :, None]
    two = torch.arange(2)
    return RetrievalTask(
        encoder=encoder or Pixels(), x=x, y=y, z=x.flatten(1),
        gallery=Gallery(torch.tensor([[0.1, 0.5], [0.9, 0.5]]), two, two),
        self_index=torch.full((n,), -1), index=torch.arange(n), distance=Euclidean(),
    )  # fmt: skip


BEST = PGD(steps=20, alpha=0.025, keep="best")
NEAR = LinfThreat(eps=0.05)


# --- the rule -------------------------------------------------------------------------------------------


INVALID = ("R1", "R2", "R3", "R15", "R22", "R23", "R25", "R26", "R27", "R30", "R36")
THIN = ("R6", "R10", "R32", "R33")


@pytest.mark.parametrize("name", CHECKS)
def test_the_word_of_a_single_failure(name: str) -> None:
    word = "INVALID" if name in INVALID else "VACUOUS" if name == "R24" else "OVERESTIMATED"
    assert judge([finding("R8"), finding(name, "fail")]) == ("UNDERPOWERED" if name in THIN else word)
    assert CHECKS[name].group == TEXTS[name].group


def test_the_worst_word_wins() -> None:
    order = ["R32", "R4", "R24", "R2"]
    words = ["UNDERPOWERED", "OVERESTIMATED", "VACUOUS", "INVALID"]
    for last in range(1, 5):
        findings = [finding(name, "fail") for name in order[:last]]
        assert judge(findings) == judge(findings[::-1]) == words[last - 1]


def test_two_warnings_are_trusted_and_three_are_not() -> None:
    good = [finding("R1"), finding("R5", "warn"), finding("R6", "warn")]
    assert judge(good) == "TRUSTWORTHY"
    assert judge([*good, finding("R7", "warn")]) == "UNDERPOWERED"
    assert judge([*good, finding("R7", "skipped")]) == "TRUSTWORTHY"
    assert judge([*good, finding("R7", "skipped", owed=True)]) == "UNDERPOWERED"


def test_nothing_that_ran_is_not_trusted() -> None:
    assert judge([]) == judge([finding("R1", "skipped")]) == "UNDERPOWERED"
    assert judge([finding("R1", "skipped", owed=True)]) == "UNDERPOWERED"


def test_a_verdict_knows_what_failed_and_what_to_do() -> None:
    verdict = Verdict.of([finding("R4", "fail", remedy="use Square"), finding("R5", "warn"), finding("R6")])
    assert (verdict.word, verdict.failed, verdict.warned) == ("OVERESTIMATED", ("R4",), ("R5",))
    assert verdict.fixes == {"R4": "use Square"}
    assert verdict["R5"].status == "warn"
    with pytest.raises(KeyError):
        verdict["R7"]


def test_a_verdict_goes_through_json_unchanged() -> None:
    there = Verdict.of(
        [finding("R4", "fail", value=0.5, detail="d", remedy="r"), finding("R24"), finding("R1", "skipped")],
        1.5,
    )
    plain = json.loads(json.dumps(there.to_plain(), allow_nan=False))
    assert plain["verdict"] == "OVERESTIMATED"
    assert plain["failed"] == ["R4"]
    assert plain["fixes"] == {"R4": "r"}
    assert Verdict.from_plain(plain) == there


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "FINE"}, {"findings": [{"id": "R1"}]}, {"findings": None}, {"seconds": "long"},
        {"findings": [{"id": "R1", "name": "x", "status": "pass", "new": 1}]},
    ],
)  # fmt: skip
def test_a_broken_verdict_is_refused(change: dict[str, Any]) -> None:
    plain = Verdict.of([finding()]).to_plain()
    with pytest.raises(DataError, match="verdict"):
        Verdict.from_plain({**plain, **change})
    with pytest.raises(DataError, match="verdict"):
        Verdict.from_plain({k: v for k, v in plain.items() if k not in change})


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"status": "good"}, "status"), ({"value": math.nan}, "value"), ({"group": "TRUSTWORTHY"}, "group"),
        ({"owed": True}, "owed"),
    ],
)  # fmt: skip
def test_bad_findings_are_refused(bad: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        finding(**bad)


def test_bad_verdicts_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="word"):
        Verdict(word="FINE", findings=())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="findings"):
        Verdict.of([finding(), finding()])


# --- statistics -----------------------------------------------------------------------------------------


def test_mcnemar_is_exact_and_one_sided() -> None:
    a = torch.tensor([True] * 8 + [False] * 2 + [True] * 5)
    b = torch.tensor([False] * 8 + [True] * 2 + [True] * 5)
    assert beats(a, b) == pytest.approx(sum(math.comb(10, k) for k in (8, 9, 10)) / 2**10)
    assert beats(a, b) == pytest.approx(binomtest(8, 10, alternative="greater").pvalue)
    assert beats(b, a) > 0.98
    assert beats(a, a) == 1.0


def test_tolerance() -> None:
    assert tolerance(0.0, 100) == 0.01
    assert tolerance(0.5, 100) == pytest.approx(0.082)
    assert tolerance(0.5, 10**6) == 0.01
    assert share(torch.tensor([True, False, False, False])) == 0.25
    assert share(torch.zeros(0, dtype=torch.bool)) == 0.0


def test_rounding_decides_no_grade() -> None:
    assert 0.39 - 0.36 > 0.03
    assert at_most(0.39 - 0.36, 0.01, 0.03) == "warn"
    assert at_most(0.0301, 0.01, 0.03) == "fail"
    assert at_most(1e-9, 0.0, 0.01) == "warn"
    assert [at_least(v, 0.9, 0.8) for v in (0.9, 0.899, 0.8, 0.799)] == ["pass", "warn", "warn", "fail"]


# --- searches -------------------------------------------------------------------------------------------


def test_a_changed_search_keeps_what_it_does_not_have() -> None:
    assert changed(APGD(steps=3), keep="best", alpha=1.0, steps=4) == APGD(steps=4)
    assert stretched(PGD(alpha=0.1), 2.0) == PGD(alpha=0.2)
    assert stretched(PGD(alpha=Linear(start=0.2, stop=0.0)), 2.0).alpha(0.5) == pytest.approx(0.2)  # type: ignore[attr-defined]
    assert stretched(APGD(), 2.0) == APGD()
    plain = lambda *rest: rest[1]  # noqa: E731
    assert changed(plain, steps=3) is plain  # type: ignore[arg-type]


def test_double_precision_leaves_the_encoder_alone() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    double = in_double(replace(border(encoder), z=torch.zeros(24, 3)))
    z = double.encoder(double.x)
    assert z.dtype == double.z.dtype == torch.float64
    assert torch.allclose(z.float(), encoder(border().x), atol=1e-6)
    assert all(
        torch.equal(v, before[k]) and v.dtype == torch.float32 for k, v in encoder.state_dict().items()
    )
    assert encoder.training


def test_a_mean_embedding_is_the_mean() -> None:
    class Counter(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + self.calls

    assert MeanEmbedding(Counter(), 4)(torch.zeros(1, 2)).tolist() == [[2.5, 2.5]]


# --- the examination ------------------------------------------------------------------------------------


def test_the_sample_holds_right_queries_alone() -> None:
    made = border()
    wrong = made.z.clone()
    wrong[5:9] = 1 - wrong[5:9]
    e = Examination(task=replace(made, z=wrong), search=BEST, threat=NEAR, queries=10)
    assert len(e.rows) == 10
    assert not set(e.rows.tolist()) & set(range(5, 9))
    assert torch.equal(e.part.index, e.rows)
    again = replace(e, again=1)
    assert torch.equal(again.rows, e.rows)  # other draws on the same queries
    other = replace(e, seed=1)
    assert not torch.equal(other.rows, e.rows)


def test_no_right_query_leaves_checks_out() -> None:
    made = border()
    nobody = replace(made, z=1 - made.z)
    with pytest.raises(Unavailable, match="no query is right"):
        _ = Examination(task=nobody, search=BEST, threat=NEAR).rows
    verdict = examine(nobody, search=BEST, threat=NEAR)
    assert verdict["R4"].status == "skipped"
    assert verdict["R24"].status == "fail"


def test_chance_is_that_of_a_random_order() -> None:
    made = blobs(n=80)  # 10 of each class, the query itself left out
    assert Examination(task=made, search=BEST, threat=NEAR).chance == pytest.approx(9 / 79)
    assert Examination(task=border(), search=BEST, threat=NEAR).chance == pytest.approx(0.5)


def test_a_small_suite_gets_a_small_sample() -> None:
    made = blobs(n=480)
    results = run_suite(made, SUITES["core"], PGD(steps=1, alpha=0.05), NEAR)
    assert len(Examination(task=made, results=results, search=BEST, threat=NEAR).rows) == 80
    assert len(Examination(task=made, search=BEST, threat=NEAR).rows) == 200
    assert len(Examination(task=made, results=results, search=BEST, threat=NEAR, queries=7).rows) == 7


def test_the_sample_stays_within_the_queries_that_a_suite_covered() -> None:
    made = blobs()
    rows = torch.arange(3, 60, 3)
    part = run_suite(made.rows(rows), SUITES["core"], BEST, NEAR)
    covered = [result._replace(rows=rows) for result in part]
    e = Examination(task=made, results=covered, search=BEST, threat=NEAR, queries=96)
    assert e.rows.tolist() == rows[Examination(task=made, search=BEST, threat=NEAR).right[rows]].tolist()
    whole = run_suite(made, SUITES["core"], BEST, NEAR)
    full = Examination(task=made, results=whole, search=BEST, threat=NEAR, queries=96)
    both = torch.isin(full.rows, e.rows)
    assert torch.equal(full.stored["ES"][both], e.stored["ES"])


def test_attacks_do_not_depend_on_the_other_queries() -> None:
    e = Examination(task=blobs(), search=PGD(steps=3, alpha=0.02, random_start=True), threat=NEAR)
    whole = e.strike(e.part, "x")
    some = torch.tensor([1, 4, 30])
    part = e.strike(e.part.rows(some), "x")
    assert torch.allclose(part.x, whole.x[some], atol=1e-6)


def test_a_watched_attack_shows_its_iterates() -> None:
    e = Examination(
        task=border(), search=PGD(steps=4, alpha=0.0625, keep="best"), threat=LinfThreat(eps=0.25)
    )
    hit = e.primary
    assert hit.trace is not None
    assert hit.trace.shape == (24, 5)
    # d(own) - d(other): -0.4 at the start, and twice the step more with every step
    assert torch.allclose(hit.trace[0], torch.tensor([-0.4, -0.275, -0.15, -0.025, 0.1]), atol=1e-6)
    assert hit.success.all()
    assert e.found["primary"].all()


@pytest.mark.parametrize(
    "bad",
    [
        {"level": "slow"}, {"queries": 0}, {"passes": 0}, {"threat": LinfThreat(eps=0.0)},
        {"task": border(n=24).rows(slice(0, 0))},
    ],
)  # fmt: skip
def test_bad_examinations_are_refused(bad: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"task": border(), "search": BEST, "threat": NEAR, **bad}
    with pytest.raises(InvalidArgument):
        Examination(**fields)


def test_results_of_another_task_are_refused() -> None:
    results = run_suite(blobs(), SUITES["core"], PGD(steps=1, alpha=0.05), NEAR)
    with pytest.raises(InvalidArgument, match="results"):
        examine(border(), results, search=BEST, threat=NEAR)
    with pytest.raises(InvalidArgument, match="budget"):
        examine(border(), search=BEST, threat=NEAR, budget_seconds=0.0)


# --- the run --------------------------------------------------------------------------------------------


def test_a_sane_encoder_is_only_underpowered() -> None:
    made = blobs()
    results = run_suite(made, SUITES["ers"], BEST, NEAR)
    told: list[str] = []
    verdict = examine(made, results, search=BEST, threat=NEAR, on_finding=lambda f: told.append(f.id))
    assert [f.id for f in verdict.findings] == list(CHECKS)
    assert set(told) == set(CHECKS)
    assert set(verdict.failed) <= {"R32"}
    assert verdict["R11"].status == "skipped"
    assert not verdict["R11"].owed
    assert verdict["R25"].status == verdict["R22"].status == "pass"
    assert verdict.seconds >= sum(f.seconds for f in verdict.findings) > 0
    json.dumps(verdict.to_plain(), allow_nan=False)
    repeated = examine(made, results, search=BEST, threat=NEAR)
    assert [(f.status, f.value) for f in repeated.findings] == [(f.status, f.value) for f in verdict.findings]


def test_an_examination_leaves_no_trace() -> None:
    made = blobs(nn.Sequential(nn.Flatten(), nn.Linear(16, 8)))
    encoder = made.encoder
    assert isinstance(encoder, nn.Module)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    examine(made, search=BEST, threat=NEAR, queries=16)
    assert torch.equal(torch.rand(3), expected)
    assert encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_a_broken_graph_is_a_finding_and_other_errors_are_errors() -> None:
    verdict = examine(border(GradientKiller(Pixels(), detach=True)), search=BEST, threat=NEAR)
    assert verdict["R4"].status == "fail"
    assert verdict["R9"].status == "skipped"
    assert "cannot climb" in verdict["R9"].detail

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("a mistake in the encoder")

    with pytest.raises(RuntimeError, match="a mistake"):
        examine(border(Broken()), search=BEST, threat=NEAR)


def test_checks_without_time_are_owed() -> None:
    verdict = examine(border(), search=BEST, threat=NEAR, budget_seconds=1e-9)
    owed = {f.id for f in verdict.findings if f.owed}
    assert verdict.word == "UNDERPOWERED"
    assert {"R4", "R8", "R14"} <= owed
    assert not owed & {"R17", "R21", "R26", "R33"}  # another level, or nothing handed in
    assert examine(border(), search=BEST, threat=NEAR, budget_seconds=600)["R4"].status == "pass"


def test_cheap_checks_go_first() -> None:
    told: list[str] = []
    examine(border(), search=BEST, threat=NEAR, on_finding=lambda f: told.append(f.id))
    costs = [CHECKS[name].cost for name in told]
    assert costs == sorted(costs)


def test_only_what_cannot_run_is_skipped() -> None:
    def stops(e: Examination) -> Finding:
        raise Unavailable("hand in more")

    e = Examination(task=border(), search=BEST, threat=NEAR)
    skipped = _run(Check("R1", stops, "quick", 0, "INVALID"), e)
    assert (skipped.status, skipped.detail, skipped.owed) == ("skipped", "hand in more", False)


# --- repairs --------------------------------------------------------------------------------------------


def repaired(e: Examination, *only: str, budget: float | None = None) -> Any:
    """Repair what a verdict with some failures asks for."""
    return repair(e, Verdict.of([finding(name, "fail") for name in only]), budget)


def at_border(encoder: Any = None, **more: Any) -> Examination:
    fields: dict[str, Any] = {"search": BEST, "threat": LinfThreat(eps=0.25), **more}
    return Examination(task=border(encoder), **fields)


def test_steps_are_doubled_until_nothing_is_added() -> None:
    e = at_border(search=PGD(steps=5, alpha=0.01))  # the border is 20 steps away
    first = conduct(e)
    assert "R9" not in first.failed  # ten steps do not reach it either
    found = repaired(e, "R9")
    assert found.applied == {"R9": "10 steps"}
    e = at_border(search=PGD(steps=12, alpha=0.01))
    first = conduct(e)
    assert "R9" in first.failed
    found = repair(e, first)
    assert found.applied["R9"] == "24 steps"
    assert found.search.steps == 24
    assert found.success.all()
    assert "R9" not in found.verdict.failed
    assert torch.equal(found.rows, e.rows)


def test_no_more_than_the_most_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["holdfast.evaluation.verdict.repair"], "MOST_STEPS", 40)
    assert repaired(at_border(search=PGD(steps=40, alpha=0.25)), "R9").applied == {}
    found = repaired(at_border(search=PGD(steps=30, alpha=1e-4)), "R10")
    assert found.applied == {"R10": "40 steps"}


def test_square_takes_the_place_of_a_dead_gradient() -> None:
    e = at_border(GradientKiller(Pixels()))
    first = conduct(e)
    assert {"R4", "R16"} <= set(first.failed)
    found = repair(e, first)
    assert isinstance(found.search, Square)
    assert found.success.all()
    assert found.verdict["R4"].status == "warn"
    assert "R16" not in found.verdict.failed
    graph = at_border(GradientKiller(Pixels(), detach=True))
    found = repair(graph, conduct(graph))
    assert found.success.all()
    assert found.verdict["R14"].status == "pass"


def test_square_is_added_to_a_bad_gradient() -> None:
    class Uphill(nn.Module):  # the gradient points the wrong way
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)
            return 2 * z.detach() - z

    e = at_border(Uphill())
    first = conduct(e)
    assert {"R5", "R14", "R16"} <= set(first.failed)
    assert first["R4"].status == "pass"
    found = repair(e, first)
    assert isinstance(found.search, PGD)
    assert found.success.all()
    assert found.verdict["R5"].status == "warn"
    assert not {"R5", "R14", "R16"} & set(found.verdict.failed)


def test_other_repairs_change_the_search() -> None:
    last = at_border(search=PGD(steps=20, alpha=0.025))
    assert repaired(last, "R23").search.keep == "best"
    assert repaired(last, "R11").search.restarts == 10
    adaptive = repaired(last, "R12").search
    assert isinstance(adaptive, APGD)
    assert adaptive.steps == 20
    assert repaired(at_border(search=adaptive), "R12").applied == {}


def test_the_union_becomes_the_score() -> None:
    e = at_border(threat=LinfThreat(eps=0.15))
    half = torch.arange(24) < 12
    e.found["another attack"] = half
    assert not e.primary.success.any()
    assert torch.equal(replace(e, union=True).scored, half)
    found = repaired(e, "R17")
    assert found.applied == {"R17": "the union of all attacks seen is the score"}
    assert torch.equal(found.success, half)
    assert set(e.found) == {"another attack", "primary"}  # the first examination stays as it was


def test_a_random_encoder_is_decided_by_its_mean() -> None:
    noisy = RandomInput(Pixels(), noise=0.02)
    e = at_border(noisy, search=PGD(steps=10, alpha=0.05), queries=8)
    first = conduct(e)
    assert first.word == "INVALID"
    assert "R1" in first.failed
    found = repair(e, first)
    assert isinstance(found.search.gradient, Averaged)
    assert found.verdict["R1"].status == "warn"
    assert found.verdict["R2"].status == "pass"
    assert found.success.all()


def test_what_cannot_be_repaired_is_left_alone() -> None:
    e = at_border()
    first = Verdict.of([finding("R24", "fail"), finding("R32", "fail")])
    found = repair(e, first)
    assert found.applied == {}
    assert found.verdict is first
    assert found.search is e.search
    with pytest.raises(InvalidArgument, match="budget"):
        repair(e, first, 0.0)


def test_a_repair_keeps_to_its_budget() -> None:
    found = repaired(at_border(), "R9", "R17", budget=1e-9)
    assert found.applied == {}
    assert found.verdict.failed == ("R9", "R17")


def test_the_controls_are_callables_of_an_encoder() -> None:
    x = torch.rand(3, 1, 4, 4, generator=stream(0, "x"))
    for name, broken in CONTROLS.items():
        z = broken(Centred())(x)
        assert z.shape == (3, 16), name
        assert torch.isfinite(z).all()
    assert np.isclose(CONTROLS["collapsed"](Centred())(x)[:, 0].min().item(), 1.0, atol=1e-2)
