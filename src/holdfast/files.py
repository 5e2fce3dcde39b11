"""Writing that loses nothing: whole files appear at once, lines are appended whole."""

from __future__ import annotations

import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CorruptFile

_UMASK = os.umask(0)  # can only be read by setting it
os.umask(_UMASK)

UNREADABLE = (
    ValueError, TypeError, AttributeError, KeyError, EOFError, OSError, RuntimeError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise for torn archives, flipped bits, single arrays, pickles, encrypted members."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it takes the name when the block ends without an error.

    Readers see the old file or the new one, never a part of it, even if the process is killed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process number alone is the same in several containers that share the folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file at once."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write plain data as indented JSON at once; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    CorruptFile
        If the file is not valid JSON in UTF-8; names the byte.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile(path, error.start, f"not UTF-8: {error.reason}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise CorruptFile(path, offset, f"not JSON: {error.msg}") from error


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as one ``.npz`` file at once."""
    with replacing(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **arrays)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file; objects are refused, so nothing in it can run.

    Raises
    ------
    CorruptFile
        If the file is no whole archive of plain arrays.
    """
    with Path(path).open("rb") as handle:  # a missing file stays a FileNotFoundError
        try:
            with np.load(handle, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except UNREADABLE as error:
            raise CorruptFile(path, None, f"need an .npz archive of plain arrays ({error})") from error


def append_lines(path: str | Path, values: Iterable[dict[str, Any]]) -> None:
    """Append one JSON line for each value in a single write, and sync.

    A last line that a killed process left without its line end is ended first, so it cannot spoil the next.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(value, allow_nan=False) + "\n" for value in values).encode()
    with path.open("ab+") as handle:
        if handle.tell() > 0:
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                data = b"\n" + data
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read JSON lines.

    A torn line, which a killed writer leaves, is skipped.

    Raises
    ------
    CorruptFile
        If a line is complete JSON but not an object.
    """
    values: list[dict[str, Any]] = []
    end = 0
    for line in Path(path).read_bytes().split(b"\n"):
        start, end = end, end + len(line) + 1
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue  # the torn tail of a killed writer
        if not isinstance(value, dict):
            raise CorruptFile(path, start, f"need a JSON object on each line, got {type(value).__name__}")
        values.append(value)
    return values
