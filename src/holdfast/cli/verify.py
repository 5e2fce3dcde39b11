"""``holdfast verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..results.table import printable
from ..verify import verify_run
from . import complete
from .options import use_threads
from .output import live, print_json, print_text


def verify_command(
    run: Annotated[Path, typer.Argument(help="Run folder with records.", autocompletion=complete.runs)],
    records: Annotated[
        int, typer.Option(help="Records whose attack or certificate is made again; 0 for none.")
    ] = 10,
    queries: Annotated[int, typer.Option(help="Queries that each of these is repeated on.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; bits depend on them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look whether the records of a run hold: compute them again, a sample of them from the images on."""
    use_threads(threads)
    with live(quiet=as_json) as progress:
        found = verify_run(
            run, records=records, queries=queries, seed=seed, device=device,
            on_step=lambda *at: progress.step(run.name, *at),
        )  # fmt: skip
    if as_json:
        print_json(found.to_plain())
    else:
        for check in found.checks:
            if check.queries or not check.holds:
                word = "?" if check.holds is None else "ok" if check.holds else "BROKEN"
                print_text(printable(f"{word:>6}  {check.what}: {check.detail}"))
        for line in found.differences:
            print_text(f"  note  {printable(line)}: values are compared within a tolerance, not bit for bit")
        print_text(found.words())
    if not found.holds:
        raise typer.Exit(1)
