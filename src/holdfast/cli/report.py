"""``holdfast report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..report import write_report
from .output import print_json, print_text


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders with records.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    static: Annotated[
        bool, typer.Option("--static", help="Drawings only: a file without Plotly, 5 MB smaller.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the path as JSON.")] = False,
) -> None:
    """Write one self-contained HTML report about one or more runs."""
    path = write_report(runs, out, interactive=False if static else None)
    print_json({"report": str(path)}) if as_json else print_text(f"report: {path}")
