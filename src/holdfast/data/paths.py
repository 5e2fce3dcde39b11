"""Files that others made: names in lists stay below their folder, sizes stay below a limit."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

from ..errors import CorruptFile, DataError

TEXT_LIMIT = 1 << 30
"""Most bytes of a text file that is read."""
UNPACKED = 1 << 28
"""Bytes to which any packed file may unpack [D]; larger ones need a packed file of some size:"""
RATIO = 100
"""a packed file may unpack to so many times its own size [D]. Pixels and tables stay below 20."""
SHOWN = 120
"""Characters of a name that a message shows, at most."""


class Readable(Protocol):
    """What can be read a part at a time."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes."""
        ...


def plain_file(path: str | Path, limit: int | None = None) -> int:
    """Return the size of a file in bytes; a pipe or a device, which may never end, is refused unopened.

    Raises
    ------
    DataError
        If there is no such file, or it is no plain one.
    CorruptFile
        If it has more than ``limit`` bytes.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(f"{shown(path)}: no such file") from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{shown(path)}: no such file (need a plain file, no folder, pipe or device)")
    if limit is not None and found.st_size > limit:
        raise CorruptFile(path, None, f"{found.st_size} bytes, limit is {limit}")
    return found.st_size


def most_unpacked(packed: int) -> int:
    """Return to how many bytes a packed file of a size may unpack; more is taken for a bomb.

    Examples
    --------
    >>> most_unpacked(1000), most_unpacked(10_000_000)
    (268435456, 1000000000)
    """
    return max(UNPACKED, RATIO * packed)


def unpacked(handle: Readable, path: Path, limit: int) -> bytearray:
    """Read a packed stream to its end.

    Raises
    ------
    CorruptFile
        As soon as it goes beyond ``limit`` bytes.
    """
    data = bytearray()
    while part := handle.read(1 << 20):
        data += part
        if len(data) > limit:
            raise CorruptFile(path, None, f"unpacks to more than {limit} bytes")
    return data


def shown(name: object, most: int = SHOWN) -> str:
    """Return a name for a message, of at most :data:`SHOWN` characters.

    Examples
    --------
    >>> shown("a.png"), len(shown("a" * 9000))
    ('a.png', 120)
    """
    text = str(name)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most - most // 2 - 3) :]}"


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
            raise DataError(f"path {shown(name)!r} leaves its folder {base}: need a plain relative path")
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
        except DataError:
            raise
        except (OSError, ValueError) as error:  # ValueError: what is no name of a file at all
            more, place = f"; {origin}" if origin else "", shown(Path(base) / name)
            raise DataError(f"missing image {shown(name)}: looked for {place}{more}") from error
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{shown(Path(base) / name)}: need a plain file")
        sizes.append(found.st_size)
    return tuple(sizes)


def _unsafe(name: str) -> bool:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    absolute = posix.is_absolute() or bool(windows.drive or windows.root)
    return not posix.parts or absolute or ".." in windows.parts or "\0" in name


def _stays(path: str, top: str, name: str) -> None:
    real = os.path.realpath(path)
    if real != top and not real.startswith(top.rstrip(os.sep) + os.sep):
        raise DataError(f"path {shown(name)!r} leaves its folder {top}: a link leads to {shown(real)}")


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
        plain_file(path, TEXT_LIMIT)
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
