"""Which precision an evaluation searches in, that it asks once, and that its checks know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.evaluation import SUITES, retrieval_task
from holdfast.evaluation.card import WORTH, Plan, measure, settled
from holdfast.evaluation.verdict import CHECKS, Examination
from holdfast.results import record
from holdfast.rng import stream
from holdfast.search import PGD, Square
from holdfast.threat import LinfThreat
from holdfast.types import RetrievalTask

THREAT = LinfThreat(eps=0.1)
ENOUGH = -(-WORTH // len(SUITES["ers"].entries))
"""Queries from which the suite is worth a trial."""


def queries(n: int) -> RetrievalTask:
    encoder = SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=0).eval()
    x = torch.rand(n, 1, 8, 8, generator=stream(0, "images"))
    return retrieval_task(encoder, x, torch.arange(n) % 3)


def plan(name: str = "ers", **more: Any) -> Plan:
    return Plan(suite=SUITES[name], search=PGD(steps=2, alpha=0.05), threat=THREAT, precision="auto", **more)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Pretend that this processor has bfloat16; count how often R31 is asked."""
    calls: list[bool] = []
    monkeypatch.setattr("holdfast.search.precision.native_bfloat16", lambda device: True)
    real = CHECKS["R31"].run

    def counted(e: Examination) -> Any:
        calls.append(True)
        return real(e)

    monkeypatch.setattr("holdfast.evaluation.card.precision_check", counted)
    return calls


def test_a_small_suite_is_not_worth_the_trial(asked: list[bool]) -> None:
    few = ENOUGH - 1
    assert settled(queries(few), plan(), {}, None).precision == "fp32"
    assert asked == []


def test_the_published_suite_and_searches_without_gradient_stay_in_float32(asked: list[bool]) -> None:
    task = queries(ENOUGH)
    assert settled(task, plan("ers-robrank"), {}, None).precision == "fp32"
    assert settled(task, replace(plan(), search=Square(queries=10)), {}, None).precision == "fp32"
    assert asked == []


def test_what_was_found_is_kept_for_the_other_processes(asked: list[bool], tmp_path: Path) -> None:
    task = queries(ENOUGH)
    first = settled(task, plan(), {"data": "a"}, tmp_path)
    assert first.precision in ("fp32", "bf16")
    assert len(asked) == 1
    assert settled(task, plan(), {"data": "a"}, tmp_path) == first
    assert len(asked) == 1
    settled(task, plan(), {"data": "b"}, tmp_path)  # another evaluation asks for itself
    assert len(asked) == 2


def test_without_labels_nobody_can_tell(asked: list[bool]) -> None:
    found = settled(queries(ENOUGH), plan("ers", labelled=False), {}, None)
    assert (found.precision, asked) == ("fp32", [])


def test_a_word_that_was_asked_for_stays() -> None:
    assert settled(queries(4), replace(plan(), precision="bf16"), {}, None).precision == "bf16"


def test_every_record_tells_the_precision() -> None:
    chosen = replace(plan("core"), precision="bf16", level="off")
    found = measure(queries(24), chosen, {"run": "a"}, {})
    assert {r["precision"] for r in found.records} == {"bf16"}


def test_records_of_before_were_float32(tmp_path: Path) -> None:
    made = record.make(run="a", metric="recall@1", value=0.5, n=2)
    old = {name: value for name, value in made.items() if name != "precision"}
    record.append(tmp_path / "r.jsonl", [old])  # type: ignore[list-item]
    assert record.read(tmp_path / "r.jsonl")[0]["precision"] == "fp32"
    with pytest.raises(InvalidArgument, match="precision"):
        record.make(run="a", metric="recall@1", value=0.5, n=2, precision="fp8")


@pytest.mark.parametrize(("precision", "status"), [("fp32", "fail"), ("bf16", "pass")])
def test_silent_success_is_judged_in_the_precision_of_the_search(
    precision: Any, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point that the search saw broken is one that it may return, though float32 says otherwise."""
    e = Examination(task=queries(60), results=[], search=plan().search, threat=THREAT, precision=precision)
    none = torch.zeros(len(e.part), dtype=torch.bool)
    e.__dict__["primary"] = e.primary._replace(ever=~none, success=none)  # seen broken, measured right

    y, gallery = e.part.y, e.part.gallery
    wrong = torch.stack([gallery.z[gallery.y != label][0] for label in y])

    def misled(encoder: Any, precision: str) -> Any:
        return lambda x: wrong  # in low precision every image looks like one of another class

    monkeypatch.setattr("holdfast.evaluation.verdict.pipeline.in_precision", misled)
    assert CHECKS["R23"].run(e).status == status


def test_what_is_reported_is_computed_in_whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = torch.backends.mkldnn.conv
    if not hasattr(conv, "fp32_precision"):
        pytest.skip("this PyTorch has one switch for all products")
    seen: list[str] = []

    def encoder(x: torch.Tensor) -> torch.Tensor:
        seen.append(conv.fp32_precision)
        return x.flatten(1)

    before, x = conv.fp32_precision, torch.rand(6, 1, 8, 8, generator=stream(0, "images"))
    try:
        conv.fp32_precision = "bf16"
        holdfast.evaluate(encoder, x, torch.arange(6) % 2, suite="core", verdict="off", search=plan().search)
        assert conv.fp32_precision == "bf16"
    finally:
        conv.fp32_precision = before
    assert set(seen) == {"ieee"}
