"""Names that the shell completes: of tables, and of run folders below the working folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Names = Callable[[str], list[str]]
_HELD = ("run.json", "records.jsonl")
MANY = 2000
"""Folders that are looked into for one completion, at most."""


def among(known: Iterable[str]) -> Names:
    """Return what completes names that are known."""
    names = sorted(known)
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def recipes(incomplete: str) -> list[str]:
    """Complete a recipe, with the prefix of a data set too."""
    from ..recipes import RECIPES, SETTINGS

    settings = ["fashion" if name == "fashion-mnist" else name for name in SETTINGS]
    known = [*RECIPES, *(f"{setting}-{name}" for setting in settings for name in RECIPES)]
    plain = [name for name in RECIPES if name.startswith(incomplete)]
    return plain or [name for name in known if name.startswith(incomplete)]


def suites(incomplete: str) -> list[str]:
    """Complete the name of a suite."""
    from ..evaluation import SUITES

    return among(SUITES)(incomplete)


def datasets(incomplete: str) -> list[str]:
    """Complete a data set that recipes have settings for."""
    from ..data import DATASETS
    from ..recipes import SETTINGS

    return among({*SETTINGS, *DATASETS})(incomplete)


def tables(incomplete: str) -> list[str]:
    """Complete a table of data to certify."""
    from ..data.tabular import TABLES

    return among([*TABLES, "csv:", "npz:"])(incomplete)


def encoders(incomplete: str) -> list[str]:
    """Complete the name of an encoder."""
    from ..encoders import ENCODERS

    return among(ENCODERS)(incomplete)


def runs(incomplete: str) -> list[str]:
    """Complete a run folder: those below the folder that is written so far, down to the second level."""
    start = incomplete.rpartition("/")[0]
    base = Path(f"{start}/") if incomplete.startswith("/") or start else Path()
    found: dict[str, Any] = {}
    level = [base]
    looked = 0
    for _ in range(3):
        below: list[Path] = []
        for folder in level:
            below += _folders(folder)
            looked += 1
            if looked > MANY:
                return sorted(found)
        found |= {str(f): None for f in below if any((f / name).is_file() for name in _HELD)}
        level = [f for f in below if str(f) not in found]
    return sorted(name for name in found if name.startswith(incomplete.removeprefix("./")))


def _folders(folder: Path) -> list[Path]:
    try:
        return [f for f in folder.iterdir() if not f.name.startswith(".") and f.is_dir()]
    except OSError:
        return []
