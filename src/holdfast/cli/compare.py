"""``holdfast compare``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..comparison import Row, RunComparison, compare_runs, diff_lines
from ..config import number
from ..results.show import NAMES
from . import complete
from .output import live, print_json, print_rich, print_table


def compare_command(
    run_a: Annotated[
        Path,
        typer.Argument(metavar="RUN_A", help="Evaluated run folder.", autocompletion=complete.runs),
    ],
    run_b: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_B", help="Run folder, evaluated in the same way.", autocompletion=complete.runs
        ),
    ],
    suite: Annotated[
        str | None,
        typer.Option(help="Suite; by default the one evaluated last.", autocompletion=complete.suites),
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Radius; by default that evaluated last.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare two runs query by query, and say which differences are more than noise."""
    with live(quiet=as_json) as progress:
        found = compare_runs(
            run_a, run_b, suite=suite, eps=None if eps is None else number(eps),
            on_step=partial(progress.step, "compare"),
        )  # fmt: skip
    if as_json:
        print_json(found.to_plain())
        return
    print_table(comparison_table(found))
    for line in settings_lines(found):
        print_rich(line)


def comparison_table(found: RunComparison) -> Table:
    """Return a table with a row for each attacked measure, after the clean recall."""
    threat = found.settings["threat"]
    radius = f", eps {threat['eps']:.4g}" if isinstance(threat, dict) and "eps" in threat else ""
    notes = ["Shares in percent. Intervals and p are over queries, row by row, not over training seeds."]
    if found.differing:
        notes.append(f"Not the same in A and B: {', '.join(found.differing)}.")
    table = Table(
        title=f"A = {found.a}, B = {found.b}: {found.settings['suite']}{radius}",
        caption="\n".join(notes),
        title_justify="left",
        caption_justify="left",
    )
    for name in ("attack", "metric", "A", "B", "B - A", "95 % interval", "p", "in words"):
        table.add_column(name, justify="left" if name in ("attack", "metric", "in words") else "right")
    for row in found.shown:
        table.add_row(*_cells(row))
    return table


LOOKS = {"A better": "red", "B better": "green", "within noise": "dim"}
"""Colours of verdicts, seen from B; the words say the same."""


def settings_lines(found: RunComparison) -> list[Text]:
    """Return the settings of the trainings that differ: - what A has, + what B has."""
    if not found.changes:
        return []
    styles = {"-": "red", "+": "green"}
    lines = [Text(f"{sign} {line}", style=styles[sign]) for sign, line in diff_lines(found.changes)]
    return [Text(f"settings that differ: - A = {found.a}, + B = {found.b}", style="bold"), *lines]


def _cells(row: Row) -> list[str | Text]:
    return [
        "clean" if row.state == "clean" else row.attack,
        NAMES.get(row.metric, row.metric),
        *row.figures(),
        Text(row.verdict, style=LOOKS[row.verdict]),
    ]
