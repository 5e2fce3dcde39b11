"""Writing that loses nothing: whole files appear at once, lines are appended whole."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import stat
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from .errors import CorruptFile

_log = logging.getLogger(__name__)
_UMASK = os.umask(0)  # can only be read by setting it
os.umask(_UMASK)

UNREADABLE = (
    ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError, OSError, RuntimeError,
    MemoryError, SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise for torn archives, flipped bits, single arrays, pickles, encrypted members."""

JSON_LIMIT = 1 << 26
"""Most bytes of a JSON file [D]; what Holdfast writes stays below a hundredth."""
LINES_LIMIT = 1 << 29
"""Most bytes of a file of JSON lines [D]."""
DEEPEST = 100
"""Levels of a JSON value [D]."""
UNPACKED, RATIO = 1 << 28, 100
"""An archive may unpack to the first, in bytes, or to so many times its size [D]."""


class Refused(ValueError):
    """JSON that is well formed and that Holdfast never writes."""


def loads(text: str | bytes) -> Any:
    """Read a JSON value as strictly as it is written: no name twice, no NaN, no number of 400 digits.

    Raises
    ------
    json.JSONDecodeError, UnicodeDecodeError
        If it is no JSON.
    Refused
        If it is JSON that Holdfast never writes, or is nested more than :data:`DEEPEST` times.
    """
    plain = text.decode("utf-8") if isinstance(text, bytes) else text
    if plain.count("[") + plain.count("{") > DEEPEST and _depth(plain) > DEEPEST:
        raise Refused(f"nested more than {DEEPEST} times")
    try:
        return json.loads(
            plain, object_pairs_hook=_pairs, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
    except RecursionError as error:
        raise Refused(f"nested more than {DEEPEST} times") from error


def _depth(text: str) -> int:
    """Return how deep brackets are nested, those in quoted text not counted."""
    deep = most = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"|[][{}]', text):
        deep += (mark in "[{") - (mark in "]}")
        most = max(most, deep)
    return most


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused("a name comes twice in one object")
    return found


def _constant(text: str) -> Any:
    raise Refused(f"{text} is no number of JSON")


def _integer(text: str) -> int:
    if len(text) > 40:
        raise Refused("a whole number of more than 40 digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Refused(f"{text[:20]} is beyond the largest float")
    return value


def _plain(path: Path, limit: int) -> Path:
    """Refuse pipes and devices, which may never end, and files that are too large."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise CorruptFile(path, None, "need a plain file")
    if found.st_size > limit:
        raise CorruptFile(path, None, f"{found.st_size} bytes, limit is {limit}")
    return path


_SYSTEM = re.compile(r"\(os error (\d+)\)")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it takes the name when the block ends without an error.

    Readers see the old file or the new one, never a part of it, even if the process is killed.
    Where a writer tells an error of the system in words, as safetensors does, it is raised as ``OSError``.
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
    except Exception as error:
        found = _SYSTEM.search(str(error))
        if isinstance(error, OSError) or found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(path: Path) -> bool:
    """Return whether a file is one that :func:`replacing` left behind in a process that was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


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
    data = _plain(Path(path), JSON_LIMIT).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile(path, error.start, f"not UTF-8: {error.reason}") from error
    try:
        return loads(text)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise CorruptFile(path, offset, f"not JSON: {error.msg}") from error
    except Refused as error:
        raise CorruptFile(path, None, str(error)) from error


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
    with _plain(Path(path), sys.maxsize).open("rb") as handle:  # a missing file stays a FileNotFoundError
        try:
            weigh(handle)
            with np.load(handle, allow_pickle=False) as file:
                return {name: characters(file[name]) for name in file.files}
        except UNREADABLE as error:
            raise CorruptFile(path, None, f"need an .npz archive of plain arrays ({error})") from error


def characters(array: np.ndarray) -> np.ndarray:
    """Return an array of a file; refuse text that holds no characters, on which Python fails."""
    if array.dtype.kind == "U" and array.nbytes:
        codes = np.frombuffer(array.tobytes(), np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if int(codes.max()) > sys.maxunicode:
            raise ValueError("text of numbers that are no characters")
    return array


def weigh(handle: BinaryIO) -> None:
    """Look at an archive before it is read: what it unpacks to, its names, and what its arrays promise.

    Raises
    ------
    ValueError
        If it unpacks to far more than it is, holds a name twice, or an array promises more than its member
        holds, so that memory would be taken for nothing. What zipfile raises passes.
    """
    size = handle.seek(0, os.SEEK_END)
    with zipfile.ZipFile(handle) as archive:
        members = archive.infolist()
        total, most = sum(info.file_size for info in members), max(UNPACKED, RATIO * size)
        if total > most:
            raise ValueError(f"unpacks to {total} bytes, limit is {most}")
        if len({info.filename for info in members}) < len(members):
            raise ValueError("a member comes twice")
        for info in members:
            with archive.open(info) as member:
                version = npy.read_magic(member)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(member)
            if any(type(n) is not int or n < 0 for n in shape):
                raise ValueError(f"{info.filename} has no shape")
            if dtype.itemsize * math.prod(shape) > info.file_size or math.prod(shape) > 1 << 40:
                raise ValueError(f"{info.filename} promises more than it holds")
    handle.seek(0)


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

    A torn line, which a killed writer or a full disk leaves, is skipped, and a warning is logged.

    Raises
    ------
    CorruptFile
        If a line is complete JSON but not an object.
    """
    values: list[dict[str, Any]] = []
    end = 0
    for number, line in enumerate(_plain(Path(path), LINES_LIMIT).read_bytes().split(b"\n"), start=1):
        start, end = end, end + len(line) + 1
        if not line.strip():
            continue
        try:
            value = loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            _log.warning("%s: line %d is torn and left out", path, number)
            continue
        except Refused as error:
            raise CorruptFile(path, start, str(error)) from error
        if not isinstance(value, dict):
            raise CorruptFile(path, start, f"need a JSON object on each line, got {type(value).__name__}")
        values.append(value)
    return values
