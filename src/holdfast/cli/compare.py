"""``holdfast compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..comparison import Row, RunComparison, compare_runs
from ..config import number
from .output import NAMES, print_json, print_table


def compare_command(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Evaluated run folder.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Run folder, evaluated in the same way.")],
    suite: Annotated[str | None, typer.Option(help="Suite; by default the one evaluated last.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius; by default that evaluated last.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare two runs query by query, and say which differences are more than noise."""
    found = compare_runs(run_a, run_b, suite=suite, eps=None if eps is None else number(eps))
    print_json(found.to_plain()) if as_json else print_table(comparison_table(found))


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
    clean = [r for r in found.rows if (r.state, r.metric) == ("clean", "recall@1")][:1]
    for row in [*clean, *(r for r in found.rows if r.state == "attacked")]:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    c, scale, digits = row.comparison, *((100, 1) if row.share else (1, 3))

    def show(value: float, sign: str = "") -> str:
        return f"{round(scale * value, digits) + 0.0:{sign}.{digits}f}"

    return [
        "clean" if row.state == "clean" else row.attack,
        NAMES.get(row.metric, row.metric),
        show(row.a),
        show(row.b),
        show(c.difference, "+"),
        f"{show(c.low)} to {show(c.high)}",
        "< 0.001" if c.p_value < 0.001 else f"{c.p_value:.2g}",
        row.verdict,
    ]
