"""Names of files that stand in lists: they must exist and must not lead out of their folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import CorruptFile, DataError


def sizes_inside(base: str | Path, names: Sequence[str], origin: str = "") -> tuple[int, ...]:
    """Return the size in bytes of every file, after checking that each lies below ``base``.

    Parameters
    ----------
    base
        A folder.
    names
        Paths relative to it, parts joined by ``/``.
    origin
        What a message adds about where a missing file should come from.

    Raises
    ------
    DataError
        If a name is absolute or holds ``..``, if a link (of the file or of a folder above it) leads out of
        ``base``, or if a file is missing or not a plain file; the message names it.
    """
    top = os.path.realpath(base)
    known: set[str] = set()
    sizes = []
    for name in names:
        if _unsafe(name):
            raise DataError(f"path {name!r} leaves its folder {base}: need a plain relative path")
        path = f"{top}/{name}"
        folder = path.rpartition("/")[0]
        if folder not in known:
            _stays(folder, top, name)
            known.add(folder)
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                _stays(path, top, name)
                found = os.stat(path)
        except OSError as error:
            more = f"; {origin}" if origin else ""
            raise DataError(f"missing image {name}: looked for {Path(base) / name}{more}") from error
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{Path(base) / name}: need a plain file")
        sizes.append(found.st_size)
    return tuple(sizes)


def _unsafe(name: str) -> bool:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    absolute = posix.is_absolute() or bool(windows.drive or windows.root)
    return not posix.parts or absolute or ".." in windows.parts or "\0" in name


def _stays(path: str, top: str, name: str) -> None:
    real = os.path.realpath(path)
    if real != top and not real.startswith(top.rstrip(os.sep) + os.sep):
        raise DataError(f"path {name!r} leaves its folder {top}: a link leads to {real}")


def read_table(path: Path, kinds: Sequence[Callable[[str], Any]], skip: int = 0) -> list[tuple[Any, ...]]:
    """Read a text file of columns between white space.

    Parameters
    ----------
    path
        UTF-8.
    kinds
        What each column is turned into: ``int`` or ``str``.
    skip
        Lines of header. Empty lines after them are passed over.

    Raises
    ------
    CorruptFile
        If a line has another number of columns, a number is none, or the text is not UTF-8.
    """
    rows = []
    end = 0
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CorruptFile(path, None, str(error.strerror)) from error
    for number, line in enumerate(lines, 1):
        start, end = end, end + len(line) + 1
        if number <= skip or not line.strip():
            continue
        try:
            cells = line.decode("utf-8").split()
            if len(cells) != len(kinds):
                raise CorruptFile(path, start, f"line {number}: need {len(kinds)} columns, got {len(cells)}")
            rows.append(tuple(kind(cell) for kind, cell in zip(kinds, cells, strict=True)))
        except CorruptFile:
            raise
        except ValueError as error:
            raise CorruptFile(path, start, f"line {number}: {error}") from error
    return rows
