"""``holdfast quickstart``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..quickstart import Quickstart, quickstart
from .options import use_threads
from .output import judged, live, print_json, print_table, print_text, score_table


def quickstart_command(
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Train on the digits 0 to 4, test on the unseen 5 to 9.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="By default runs/quickstart[-zero-shot].")] = None,
    seed: Annotated[int, typer.Option(help="Of both runs.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set an old result aside and start anew.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 8-pixel images train fastest with 1.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print records as JSON.")] = False,
) -> None:
    """Train an undefended and a hardened encoder on digits, attack both, write a report."""
    use_threads(threads)
    folder = out or Path("runs") / ("quickstart-zero-shot" if zero_shot else "quickstart")
    if fresh:
        set_aside(folder)
    with live(quiet=as_json) as progress:
        done = quickstart(
            folder,
            zero_shot=zero_shot,
            seed=seed,
            on_line=progress.training,
            on_chunk=progress.attacking,
            on_step=progress.step,
        )
    if as_json:
        print_json({"report": str(done.report), "records": done.records, "reused": done.reused})
        return
    show(done, f"digits, {'unseen classes 5 to 9' if zero_shot else 'all classes'}")


def show(done: Quickstart, title: str) -> None:
    """Print the table, the verdicts and where everything is."""
    eps = max(r["eps"] for r in done.records)
    print_table(score_table(done.records, f"{title}; l-inf attacks, eps {eps:.3g} (pixels in [0, 1])"))
    for line in judged(done.records):
        print_text(line)
    if done.reused:
        print_text(f"used again, same settings: {', '.join(done.reused)} (--fresh trains anew)")
    print_text(f"records: {done.records_path}")
    print_text(f"report:  {done.report.resolve()}")


def set_aside(folder: Path) -> None:
    """Rename a folder, if it is there, so that its name is free."""
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}.{time.strftime('%Y%m%dT%H%M%S')}"))
