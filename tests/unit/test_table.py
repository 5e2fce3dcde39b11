from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import InvalidArgument
from holdfast.results import Grid, Record, Table, append, make

HOSTILE = "<b>|_$x$ & 50% #{~^}\\ \n`*"


def record(run: str, value: float, attack: str = "none", **fields: Any) -> Record:
    state = "clean" if attack == "none" else "attacked"
    eps = 0.0 if attack == "none" else 0.2
    base: dict[str, Any] = {"run": run, "value": value, "n": 10, "attack": attack, "state": state, "eps": eps}
    return make(**{"metric": "recall@1"} | base | fields)


@pytest.fixture
def table() -> Table:
    return Table(
        [
            record("plain", 0.98),
            record("plain", 0.07, "ES"),
            record("plain", 1.5, "ES", metric="shift", higher_is_robust=False),
            record("hm", 0.96),
            record("hm", 0.69, "ES"),
        ]
    )


def test_filter(table: Table) -> None:
    assert len(table.filter(run="plain")) == 3
    assert len(table.filter(run="plain", attack="ES", metric="shift")) == 1
    assert len(table.filter(metric=["shift", "map"], run={"plain", "hm"})) == 1
    assert len(table.filter(run="none")) == 0
    with pytest.raises(InvalidArgument, match="a field of a record"):
        table.filter(colour="red")


def test_pivot(table: Table) -> None:
    grid = table.pivot()
    assert grid.rows == ("plain", "hm")
    assert grid.columns == ("recall@1", "ES recall@1", "ES shift")
    assert grid.cells == ((0.98, 0.07, 1.5), (0.96, 0.69, None))
    assert table.pivot("attack").rows == ("none", "ES")


def test_pivot_averages_seeds_but_never_radii_suites_or_states() -> None:
    seeds = Table([record("a", 0.2, seed=0), record("a", 0.4, seed=1)]).pivot()
    assert seeds.cells[0][0] == pytest.approx(0.3)
    two = Table([record("a", 0.2, "ES", eps=0.1), record("a", 0.4, "ES", eps=0.2)]).pivot()
    assert two.columns == ("ES recall@1 linf 0.1", "ES recall@1 linf 0.2")
    steps = Table([record("a", 0.2, "ES", steps=8), record("a", 0.1, "ES", steps=32)]).pivot()
    assert steps.columns == ("ES recall@1 8 steps", "ES recall@1 32 steps")
    alphas = Table([record("a", 0.2, "ES", alpha=0.1), record("a", 0.1, "ES", alpha=0.2)]).pivot()
    assert alphas.columns == ("ES recall@1 of 0.1", "ES recall@1 of 0.2")
    suites = Table([record("a", 0.2), record("a", 0.4, suite="other")]).pivot()
    assert suites.columns == ("recall@1 [core]", "recall@1 [other]")
    states = Table([record("a", 0.2, "ES", state="clean", eps=0.0), record("a", 0.1, "ES")]).pivot()
    assert states.columns == ("ES recall@1 (clean)", "ES recall@1")


def test_rank_puts_the_best_for_the_defender_first(table: Table) -> None:
    assert [r["run"] for r in table.rank()] == ["plain", "hm"]
    assert [r["run"] for r in table.rank(attack="ES")] == ["hm", "plain"]
    more = Table([*table.records, record("hm", 0.9, "ES", metric="shift", higher_is_robust=False)])
    assert [r["run"] for r in more.rank("shift", "ES")] == ["hm", "plain"]


def test_text_is_aligned_and_marks_missing_cells(table: Table) -> None:
    lines = table.to_text(2).split("\n")
    assert lines[0] == "run    recall@1  ES recall@1  ES shift"
    assert lines[2] == "hm         0.96         0.69         –"
    assert len({len(line) for line in lines}) == 1


def test_markdown(table: Table) -> None:
    assert table.pivot().to_markdown(2).split("\n")[1:] == [
        "| :-- | --: | --: | --: |",
        "| plain | 0.98 | 0.07 | 1.50 |",
        "| hm | 0.96 | 0.69 | – |",
    ]


def test_csv_keeps_full_precision_and_leaves_missing_cells_empty() -> None:
    text = Table([record("a", 1 / 3), record("=cmd()", 0.1, "ES")]).pivot().to_csv()
    assert list(csv.reader(io.StringIO(text))) == [
        ["run", "recall@1", "ES recall@1"],
        ["a", repr(1 / 3), ""],
        ["'=cmd()", "", "0.1"],
    ]


def test_latex(table: Table) -> None:
    lines = table.pivot().to_latex(2).split("\n")
    assert lines[0] == r"\begin{tabular}{lrrr}"
    assert lines[-3] == r"hm & 0.96 & 0.69 & -- \\"
    assert lines[-1] == r"\end{tabular}"


def test_hostile_names_do_not_break_a_layout() -> None:
    grid = Grid("run", ("a|b", HOSTILE), (HOSTILE,), ((0.5, None),))
    assert len(grid.to_text().split("\n")) == 2
    markdown = grid.to_markdown().split("\n")
    assert len(markdown) == 3
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in markdown)
    assert "<b>" not in grid.to_markdown()
    latex = grid.to_latex().split("\n")
    assert len(latex) == 7
    body = re.sub(
        r"\\(textbackslash|textless|textgreater|textasciitilde|textasciicircum)\{\}|\\[&%$#_{}]", "", latex[4]
    )
    assert set(body) & set("%$#_{}~^<>") == set()
    assert body.count("&") == 2
    parsed = list(csv.reader(io.StringIO(grid.to_csv())))
    assert parsed[1][0] == HOSTILE


def test_an_empty_table_has_a_heading_only() -> None:
    assert Table([]).to_text() == "run"
    assert Table([]).pivot().to_csv() == "run\n"


def test_read_takes_the_last_of_repeated_measurements(tmp_path: Path) -> None:
    append(tmp_path / "a.jsonl", [record("a", 0.1), record("a", 0.2)])
    append(tmp_path / "b.jsonl", [record("b", 0.3)])
    table = Table.read([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert [(r["run"], r["value"]) for r in table.records] == [("a", 0.2), ("b", 0.3)]
