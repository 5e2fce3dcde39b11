"""``holdfast leaderboard``: show results, or run a track of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from ..errors import InvalidArgument
from ..files import write_text
from ..leaderboard import (
    TRACKS,
    Board,
    Places,
    TableTrack,
    add,
    boards,
    markdown,
    page,
    plot,
    read_entries,
    run_track,
)
from ..leaderboard.show import caption, cells, head
from .certify import names, whole
from .options import use_threads
from .output import live, print_json, print_table, print_text


class _ShowFirst(TyperGroup):
    """``leaderboard RESULTS`` is ``leaderboard show RESULTS``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ShowFirst,
    no_args_is_help=True,
    help="Rank runs by their records, or run a track and file its records.",
)


@app.command("show")
def show_command(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder with a file for each run.")],
    add_run: Annotated[
        list[Path] | None, typer.Option("--add", metavar="RUN", help="Add an evaluated run; may be repeated.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a static page.")] = None,
    picture: Annotated[
        Path | None, typer.Option("--plot", help="Draw what recipes trade: a .png or .svg file.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print as Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON.")] = False,
) -> None:
    """Rank runs by what their records say; every file is checked against its hash first."""
    added = [add(run, results) for run in add_run or []]
    found = boards(read_entries(results))
    if html is not None:
        write_text(html, page(found))
    if picture is not None:
        if picture.suffix not in (".png", ".svg"):
            raise InvalidArgument("plot", "a file that ends in .png or .svg", str(picture))
        plot(found, picture)
    if as_json:
        print_json({
            "boards": [asdict(board) for board in found],
            "added": [str(path) for path in added],
            "page": None if html is None else str(html),
            "plot": None if picture is None else str(picture),
        })  # fmt: skip
        return
    for path in added:
        print_text(f"added: {path}")
    if as_markdown:
        print_text(markdown(found))
    for board in [] if as_markdown else found:
        print_table(_table(board))
    for name, file in (("page", html), ("plot", picture)):
        if file is not None:
            print_text(f"{name}: {file}")


@app.command("run")
def run_command(
    track: Annotated[str, typer.Argument(metavar="TRACK", help="A name that `leaderboard tracks` lists.")],
    data_dir: Annotated[str | None, typer.Option(help="Folder with the data sets' files.")] = None,
    entries: Annotated[str | None, typer.Option(help="Some of the track's entries: plain,hm.")] = None,
    seeds: Annotated[str, typer.Option(help="Of training.")] = "0,1,2",
    runs: Annotated[Path, typer.Option(help="Folder of run folders; a stopped call goes on there.")] = Path(
        "runs/leaderboard"
    ),
    results: Annotated[Path, typer.Option(help="Folder of entries.")] = Path("results"),
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the files and rows as JSON.")] = False,
) -> None:
    """Train and measure every entry of a track over seeds; what is there already is used again."""
    use_threads(threads)
    places = Places(runs=runs, results=results, data_dir=data_dir)
    chosen = None if entries is None else names(entries)
    with live(quiet=as_json) as progress:

        def tell(label: str, words: str, done: int, steps: int) -> None:
            progress.step(f"{track}: {label}", words, done, steps)

        files = []
        for path in run_track(track, places, entries=chosen, seeds=whole("seeds", seeds), on_step=tell):
            files.append(path)
            if not as_json:
                print_text(f"filed: {path}")
    found = boards(read_entries(results / track))
    if as_json:
        print_json({"files": [str(path) for path in files], "boards": [asdict(board) for board in found]})
        return
    for board in found:
        print_table(_table(board))


@app.command("tracks")
def tracks_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the tracks, what they train, and what to know about them."""
    if as_json:
        print_json([
            {"name": t.name, "title": t.title, "entries": list(t.entries), "note": t.note}
            for t in TRACKS.values()
        ])  # fmt: skip
        return
    table = Table(title="tracks", title_justify="left")
    for heading in ("track", "what", "entries", "note"):
        table.add_column(heading)
    for track in TRACKS.values():
        what = f"{track.title}: {', '.join(track.tables)}" if isinstance(track, TableTrack) else track.title
        table.add_row(track.name, what, ", ".join(track.entries), track.note)
    print_table(table)


def _table(board: Board) -> Table:
    numbers = len(board.measures) + 1
    table = Table(
        title=board.terms.words(), caption=caption(board), title_justify="left", caption_justify="left"
    )
    for i, name in enumerate(head(board)):
        table.add_column(name, justify="right" if 1 <= i <= numbers else "left")
    for row in board.rows:
        table.add_row(*cells(board, row))
    return table
