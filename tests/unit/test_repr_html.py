"""What notebooks show: every text escaped, no script, the numbers that the text tables hold."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from holdfast.certify import Certificate
from holdfast.comparison import Change, Row, RunComparison, diff_lines
from holdfast.evaluation import compare
from holdfast.notebooks import LONGEST, Cell, lines_html, table_html
from holdfast.results import Record, Records, card_html, make, run_html

EVIL = "<script>alert(1)</script>&\"'"


class _Page(HTMLParser):
    """Tags, attributes, and the text of each cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.rows: list[list[str]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data


def read(html: str) -> _Page:
    """Parse, and hold what is true of every representation: well formed, no script, styles only."""
    page = _Page(html)
    assert page.open == []
    assert page.tags <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert page.attributes <= {"style", "scope"}
    return page


def rec(**fields: Any) -> Record:
    given: dict[str, Any] = {"run": "plain", "metric": "recall@1", "value": 0.5, "n": 8}
    if fields.get("attack", "none") != "none":
        given |= {"state": "attacked", "eps": 0.1, "norm": "linf", "steps": 8, "alpha": 0.05}
    return make(**{**given, **fields})


def test_a_table_holds_its_texts_in_order() -> None:
    page = read(table_html(["a", "b"], [["1", "2"], [Cell("x", "better"), "y"]], caption="C", note="N"))
    assert page.rows == [["a", "b"], ["1", "2"], ["x", "y"]]
    assert "C" in page.words
    assert "N" in page.words


def test_without_headings_there_is_no_head() -> None:
    assert "thead" not in read(table_html(["", ""], [["a", "b"]])).tags


def test_long_tables_are_cut_and_say_so() -> None:
    page = read(table_html(["i"], [[str(i)] for i in range(LONGEST + 3)]))
    assert len(page.rows) == 1 + LONGEST
    assert "3 more rows" in page.words
    assert "more rows" not in read(table_html(["i"], [[str(i)] for i in range(LONGEST)])).words


def test_differences_are_marked_by_signs_and_none_show_nothing() -> None:
    assert "- epochs = 8" in read(lines_html([("-", "epochs = 8")], "settings")).words
    assert lines_html([], "settings") == ""


@pytest.mark.parametrize("place", ["run", "dataset", "suite", "metric", "attack", "failed"])
def test_records_escape_every_field(place: str) -> None:
    fields: dict[str, Any] = {"attack": "ES", place: [EVIL] if place == "failed" else EVIL}
    if place == "failed":
        fields["verdict"] = "INVALID"
    page = read(Records([rec(**fields)])._repr_html_())
    assert EVIL in page.words


def test_records_are_a_list_that_shows_a_row_for_each_measure() -> None:
    found = Records(
        [
            rec(value=0.98, ci=[0.96, 0.99]),
            rec(attack="ES", state="clean", value=0.97),
            rec(attack="ES", value=0.1),
            rec(attack="ES", metric="shift", value=0.25, higher_is_robust=False),
            rec(run="hm", value=0.9),
        ]
    )
    assert isinstance(found, list)
    assert found == list(found)
    page = read(found._repr_html_())
    assert page.rows == [
        ["measure", "plain", "hm"],
        ["clean R@1", "98.0 % [96.0 %, 99.0 %]", "90.0 %"],
        ["ES R@1 (higher is robust)", "10.0 %", "–"],
        ["ES shift (lower is robust)", "0.250", "–"],
    ]
    assert "was not checked" in page.words


def test_slices_and_sums_stay_records() -> None:
    found = Records([rec(), rec(run="hm")])
    assert type(found[:1]) is Records
    assert found[:1] == [found[0]]
    assert type(found + found) is Records
    assert "no records" in read(Records()._repr_html_()).words


def test_several_radii_are_told_apart() -> None:
    rows = read(
        Records([rec(attack="ES", value=0.4), rec(attack="ES", eps=0.2, value=0.2)])._repr_html_()
    ).rows
    assert [row[0] for row in rows[1:]] == [
        "ES R@1 at linf 0.1 (higher is robust)",
        "ES R@1 at linf 0.2 (higher is robust)",
    ]


def test_the_verdict_that_counts_is_the_last() -> None:
    repaired = rec(attack="REPAIRED", verdict="TRUSTWORTHY")
    words = read(Records([rec(verdict="OVERESTIMATED", failed=["R9"]), repaired])._repr_html_()).words
    assert "after repairs: TRUSTWORTHY" in words
    assert "OVERESTIMATED" not in words


def test_a_card_shows_the_checks_that_failed_or_warn() -> None:
    about = {"detail": EVIL, "remedy": "more steps"}
    findings = [
        SimpleNamespace(id="R9", name="steps", status="fail", **about),
        SimpleNamespace(id="R10", name="restarts", status="warn", **about),
        SimpleNamespace(id="R1", name="noise", status="pass", **about),
    ]
    page = read(card_html([rec()], ["8 of 8 queries"], findings))
    assert ["R9", "steps", "failed", EVIL, "more steps"] in page.rows
    assert ["R10", "restarts", "warns", EVIL, "more steps"] in page.rows
    assert not any(row[0] == "R1" for row in page.rows)
    assert "8 of 8 queries" in page.words


def test_a_run_shows_what_was_changed_from_its_recipe() -> None:
    run = {"type": "Run", "name": EVIL, "epochs": 8, "threat": {"type": "LinfThreat", "eps": 0.2}}
    meta = {"run": run, "defaults": {**run, "epochs": 16}, "created": "2026-11-22T02:00:00Z"}
    page = read(run_html("runs/hm", meta, finished=False))
    assert ["changed: epochs", "8 (was 16)"] in page.rows
    assert ["training", "not finished"] in page.rows
    assert ["recipe", EVIL] in page.rows
    assert ["training", "trained"] in read(run_html("runs/hm", meta, finished=True)).rows


def certificate(**more: Any) -> Certificate:
    radius = torch.tensor([0.0, 0.25, 0.5, 1.0])
    return Certificate(radius=radius, correct=radius > 0, **more)


def test_a_certificate_shows_shares_at_radii() -> None:
    page = read(certificate(method=EVIL, alpha=0.001)._repr_html_())
    assert page.rows == [
        ["radius", "0", "0.25", "0.5", "0.75", "1"],
        ["right and certified", "75.0 %", "50.0 %", "25.0 %", "25.0 %", "0.0 %"],
    ]
    assert EVIL in page.words
    assert "probability 0.001" in page.words
    assert "probability" not in read(certificate()._repr_html_()).words


@pytest.mark.parametrize("radius", [[], [math.inf, math.inf], [0.0]])
def test_certificates_without_finite_radii_show_something(radius: list[float]) -> None:
    found = Certificate(radius=torch.tensor(radius), correct=torch.ones(len(radius), dtype=torch.bool))
    assert read(found._repr_html_()).rows[0] == ["radius", "0"]


def test_a_comparison_tells_better_and_worse_in_words() -> None:
    better = compare([0] * 40, [1] * 40)
    same = compare([0, 1] * 20, [0, 1] * 20)
    told: list[tuple[str, Any, str, bool]] = [
        ("ES", "clean", "recall@1", True),
        ("ES", "attacked", "recall@1", True),
        ("CA-", "attacked", "rank", False),
    ]
    rows = tuple(
        Row(
            attack=a, state=s, metric=m, higher_is_robust=h, a=0, b=1,
            comparison=same if s == "clean" else better,
        )
        for a, s, m, h in told
    )  # fmt: skip
    found = RunComparison(
        a=EVIL, b="hm", settings={"suite": "core"}, differing=(), fingerprints=("x", "y"), rows=rows,
        changes=(Change("epochs", 8, 16), Change("name", EVIL, None)),
    )  # fmt: skip
    page = read(found._repr_html_())
    assert [row[0] + " " + row[-1] for row in page.rows[1:]] == [
        "clean within noise",
        "ES B better",
        "CA- A better",
    ]
    assert EVIL in page.words
    assert f"- name = {EVIL}" in page.words
    assert "+ epochs = 16" in page.words
    assert found.to_plain()["changes"][0] == {"path": "epochs", "a": 8, "b": 16}


def test_what_one_run_alone_has_is_one_line() -> None:
    changes = (Change("a", 1, 2), Change("b", None, 3), Change("c", 4, None))
    assert diff_lines(changes) == [("-", "a = 1"), ("+", "a = 2"), ("+", "b = 3"), ("-", "c = 4")]
