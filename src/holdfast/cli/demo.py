"""``holdfast demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..demonstration import demonstrate
from ..errors import InvalidArgument
from .options import use_threads
from .output import live, print_json, print_text
from .quickstart import quickstart_command, set_aside, show


def demo_command(
    data: Annotated[
        Path | None, typer.Option(help="Folder of your pictures, one folder for each class; else digits.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="By default runs/demo, or runs/quickstart.")] = None,
    seed: Annotated[int, typer.Option(help="Of both runs.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set an old result aside and start anew.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; small images train fastest with 1.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print records as JSON.")] = False,
) -> None:
    """Show on your own pictures what an attack does to an encoder, and to a hardened one."""
    if data is None:
        quickstart_command(out=out, seed=seed, fresh=fresh, threads=threads, as_json=as_json)
        return
    use_threads(threads)
    folder = out or Path("runs") / "demo"
    if folder.resolve().is_relative_to(data.resolve()):
        raise InvalidArgument("out", f"a folder outside {data}", str(folder))
    if fresh:
        set_aside(folder)
    with live(quiet=as_json) as progress:
        done = demonstrate(
            data,
            folder,
            seed=seed,
            on_file=lambda n, of: progress.step("look", f"{n} of {of} files", n, of),
            on_line=progress.training,
            on_chunk=progress.attacking,
        )
    if as_json:
        notes = {"images": done.images, "files": done.total, "classes": done.classes, "notes": done.notes}
        runs = {"report": str(done.runs.report), "records": done.runs.records, "reused": done.runs.reused}
        print_json({**runs, "recipe": str(done.recipe), **notes})
        return
    show(done.runs, f"{data}: {done.images} of {done.total} pictures in {done.classes} classes")
    for note in done.notes:
        print_text(f"seen in the pictures: {note}")
    print_text(f"recipe:  {done.recipe} (the one for your pictures at full length: holdfast init {data})")
