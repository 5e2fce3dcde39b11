"""``holdfast init``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from ..errors import DataError, InvalidArgument
from ..files import write_text
from ..starter import Choice, Look, choose, findings, look, recipe_text
from .output import live, print_json, print_text


def init_command(
    photos: Annotated[
        Path, typer.Argument(metavar="PHOTOS", help="Folder of pictures; its folders are the classes.")
    ],
    out: Annotated[Path, typer.Option(help="Recipe file to write.")] = Path("recipe.py"),
    force: Annotated[bool, typer.Option("--force", help="Write over a recipe that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look at a folder of pictures and write a recipe to start from."""
    if out.suffix != ".py":
        raise InvalidArgument("out", "the name of a .py file", str(out))
    if out.exists() and not force:
        raise InvalidArgument("out", "a file that is not there yet, or --force", str(out))
    with live(quiet=as_json) as progress:
        found = look(photos, on_file=lambda n, of: progress.step("look", f"{n} of {of} files", n, of))
    wrong = findings(found)
    if not as_json:
        for line in [*_seen(found), *(f"  - {f.text}\n    {f.remedy}" for f in wrong)]:
            print_text(line)
    try:
        chosen = choose(found)
    except DataError:
        if not as_json:
            print_text("")
        raise
    write_text(out, recipe_text(found, chosen, file=str(out)))
    if as_json:
        choice, seen = asdict(chosen), {**found.plain(), "findings": [asdict(f) for f in wrong]}
        print_json({"recipe": str(out), "found": seen, "choice": choice})
        return
    for line in _chosen(chosen, out):
        print_text(line)


def _seen(found: Look) -> Iterator[str]:
    """Yield the counts."""
    counts = found.counts()
    total = len(found.pictures) + len(found.broken)
    yield f"{found.root}: {len(found.pictures)} of {total} pictures can be used"
    if not found.flat and counts:
        few, many = min(counts, key=lambda k: counts[k]), max(counts, key=lambda k: counts[k])
        middle = median(counts.values())
        sides = ", in train/ and test/" if found.sided else ""
        yield f"  classes   {len(counts)}{sides}"
        ends = f" (median), from {counts[few]} in {few} to {counts[many]} in {many}"
        yield f"  in each   {middle:g}{ends if counts[few] < counts[many] else ''}"
    if found.pictures:
        area = sorted(found.pictures, key=lambda p: p.width * p.height)
        width, height = median(p.width for p in area), median(p.height for p in area)
        first, last = area[0], area[-1]
        ends = f" (median), from {first.width} x {first.height} to {last.width} x {last.height}"
        same = len({(p.width, p.height) for p in area}) == 1
        yield f"  pixels    {width:.0f} x {height:.0f}{'' if same else ends}"
        kinds = found.plain()["kinds"]
        yield f"  kinds     {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items(), key=_size))}"
    yield "to look at:" if findings(found) else "nothing wrong was found"


def _size(item: tuple[str, int]) -> int:
    return -item[1]


def _chosen(chosen: Choice, out: Path) -> Iterator[str]:
    """Yield what the recipe does, and the next commands."""
    closed = chosen.protocol == "closed"
    words = "every class on both sides" if closed else "tested on classes that training never saw"
    yield ""
    yield f"{out}: hm-ics, eps 8/255, {chosen.side} x {chosen.side} pixels, {chosen.epochs} epochs"
    yield f"  {chosen.train} pictures train, {chosen.test} test; {words}"
    if chosen.small:
        more = ", ..." if len(chosen.small) > 5 else ""
        yield f"  left out, too few pictures: {', '.join(chosen.small[:5])}{more}"
    if chosen.leave_out:
        yield f"  left out by name, as doubtful or double: {len(chosen.leave_out)}"
    yield "next:"
    yield f"  holdfast plan {out}                        # what it costs here"
    yield f"  holdfast train {out} --out runs/mine       # then: holdfast evaluate runs/mine"
