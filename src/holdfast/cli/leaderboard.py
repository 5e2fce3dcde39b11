"""``holdfast leaderboard``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..files import write_text
from ..leaderboard import Board, add, boards, markdown, page, read_entries
from ..leaderboard.show import caption, cells, head
from .output import print_json, print_table, print_text


def leaderboard_command(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder with a file for each run.")],
    add_run: Annotated[
        list[Path] | None, typer.Option("--add", metavar="RUN", help="Add an evaluated run; may be repeated.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a static page.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print as Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON.")] = False,
) -> None:
    """Rank runs by what their records say; every file is checked against its hash first."""
    added = [add(run, results) for run in add_run or []]
    found = boards(read_entries(results))
    if html is not None:
        write_text(html, page(found))
    if as_json:
        print_json({
            "boards": [asdict(board) for board in found],
            "added": [str(path) for path in added],
            "page": None if html is None else str(html),
        })  # fmt: skip
        return
    for path in added:
        print_text(f"added: {path}")
    if as_markdown:
        print_text(markdown(found))
    for board in [] if as_markdown else found:
        print_table(_table(board))
    if html is not None:
        print_text(f"page: {html}")


def _table(board: Board) -> Table:
    numbers = len(board.measures) + 1
    table = Table(
        title=board.track.words(), caption=caption(board), title_justify="left", caption_justify="left"
    )
    for i, name in enumerate(head(board)):
        table.add_column(name, justify="right" if 1 <= i <= numbers else "left")
    for row in board.rows:
        table.add_row(*cells(board, row))
    return table
