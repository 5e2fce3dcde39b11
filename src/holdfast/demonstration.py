"""The quickstart on one's own pictures: a small copy of them, two encoders, attacks and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .data.decode import decode
from .data.folder import list_images
from .errors import RunError
from .files import read_json, replacing, write_json, write_text
from .quickstart import Quickstart, quickstart
from .recipes import recipe
from .starter import Choice, Look, choose, findings, look, recipe_text

IMAGES = 400
"""Pictures that the demonstration looks at; of more, a part spread evenly is taken."""
SIDE = 32
"""Side of their copies, in pixels."""
SEEN = 6_000
"""Pictures that each encoder is shown in all its epochs, about: a minute or two on one core."""
LIST = "pictures.json"


@dataclass(frozen=True)
class Demonstration:
    """What the demonstration left behind.

    Attributes
    ----------
    runs
        Records, report and what was used again; see :class:`~holdfast.quickstart.Quickstart`.
    recipe
        The recipe of both runs, a starter for one of your own.
    images, total
        Pictures copied, and image files in the folder.
    classes
        Classes among the copies.
    notes
        What was found in the pictures that needs attention, and left out.
    """

    runs: Quickstart
    recipe: Path
    images: int
    total: int
    classes: int
    notes: tuple[str, ...]


def demonstrate(
    data: str | Path,
    out: str | Path = "runs/demo",
    *,
    seed: int = 0,
    images: int = IMAGES,
    side: int = SIDE,
    changes: Sequence[tuple[str, Any]] = (),
    on_file: Callable[[int, int], None] | None = None,
    on_line: Callable[[str, dict[str, Any]], None] | None = None,
    on_chunk: Callable[[str, str, int, int], None] | None = None,
) -> Demonstration:
    """Train ``plain`` and ``hm-ics`` on small copies of pictures, attack both with eps 8/255, and report.

    Parameters
    ----------
    data
        Folder with a folder for each class. Nothing in it is changed.
    out
        Folder of the copies, the recipe, the runs and the report. Finished parts of the same pictures and
        settings are used again, a stopped one goes on.
    seed
        Of both runs.
    images, side
        How many pictures are copied at most, about, and the side of the copies in pixels.
    changes
        ``(path, value)`` settings that both runs shall have.
    on_file, on_line, on_chunk
        Progress: files looked at and of all; of training and evaluation as for
        :func:`~holdfast.quickstart.quickstart`.

    Raises
    ------
    RunError
        If ``out`` holds a demonstration of other pictures or settings.
    DataError
        If the pictures cannot be trained on; see :func:`~holdfast.starter.choose`.
    """
    data, out = Path(data), Path(out)
    known, file = out / LIST, out / "recipe.py"
    mark = {"data": _signature(data), "images": images, "side": side}
    if known.exists():
        told = read_json(known)
        if {key: told.get(key) for key in mark} != mark:
            raise RunError(
                f"{out}: holds a demonstration of other pictures or settings",
                hint="choose another --out, or set the old one aside with --fresh",
            )
    else:
        found = look(data, most=images, on_file=on_file)
        chosen = choose(found)
        small = _small(chosen, side)
        used = _copy(found, chosen, out / "pictures", small.side)
        write_text(file, recipe_text(found, small, file=str(file), root=out / "pictures"))
        notes = [finding.text for finding in findings(found)]
        told = {
            **mark,
            "used": used,
            "total": found.total,
            "classes": len({*found.counts()}.difference(chosen.small)),
            "notes": notes,
        }
        write_json(known, told)
    runs = [recipe(f"{file}:plain"), recipe(f"{file}:run")]
    done = quickstart(out, seed=seed, runs=runs, changes=changes, on_line=on_line, on_chunk=on_chunk)
    return Demonstration(done, file, told["used"], told["total"], told["classes"], tuple(told["notes"]))


def _signature(data: Path) -> str:
    """Return a hash of the names, sizes and dates of all class images."""
    digest = hashlib.sha256(str(data.resolve()).encode(errors="surrogateescape"))
    for side, classes in (list_images(data, empty=True) if data.is_dir() else {}).items():
        for label, names in classes.items():
            for name in names:
                found = (data / f"{side}{label}" / name).stat()
                line = json.dumps([side, label, name, found.st_size, found.st_mtime_ns])
                digest.update(line.encode())
    return digest.hexdigest()


def _small(chosen: Choice, side: int) -> Choice:
    """Return the choice for the copies: smaller, all of them whole, and shorter training."""
    return replace(
        chosen,
        side=min(side, chosen.side),
        memory=True,
        broken="refuse",
        leave_out=(),
        epochs=min(60, max(2, round(SEEN / chosen.train))),
    )


def _copy(found: Look, chosen: Choice, to: Path, side: int) -> int:
    """Copy what can be used, upright, squeezed to a square; return the number of pictures."""
    left_out = set(chosen.leave_out)
    kept = [p for p in found.pictures if p.name not in left_out and p.label not in chosen.small]
    for picture in kept:
        small = decode(found.root / picture.name, side, upright=True, draft=True)
        _save(small, to / f"{picture.name}.png")
    return len(kept)


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as temporary, temporary.open("wb") as handle:
        image.save(handle, format="PNG")
