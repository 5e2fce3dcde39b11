"""Memory as people write it, and a refusal that says what would be enough."""

from __future__ import annotations

import ctypes
import math

from ..errors import InvalidArgument

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def bytes_of(text: str | int, name: str = "memory") -> int:
    """Read an amount of memory: ``512M``, ``4G``, ``1.5GiB``; a bare number means bytes.

    Parameters
    ----------
    text
        Units are powers of 1024, upper or lower case, with or without ``B`` or ``iB``.
    name
        The argument that an error names.

    Raises
    ------
    InvalidArgument
        If it is no amount of at least one byte.

    Examples
    --------
    >>> bytes_of("4G") == 4 * 2**30, bytes_of("0.5 mib")
    (True, 524288)
    """
    body = str(text).strip().upper().removesuffix("B").removesuffix("I")
    unit = _UNITS.get(body[-1:], 1)
    try:
        value = float(body[:-1] if unit > 1 else body) * unit
    except ValueError:
        value = math.nan
    if not 1 <= value < 2**60:
        raise InvalidArgument(name, "an amount of memory such as 512M or 4G", text)
    return int(value)


def in_words(count: float) -> str:
    """Return bytes as people write them; :func:`bytes_of` reads it back, rounded up.

    Examples
    --------
    >>> in_words(3 * 2**29), in_words(100), in_words(2**20 + 1)
    ('1.5G', '100', '1.1M')
    """
    for letter, unit in reversed(_UNITS.items()):
        if count >= unit:
            return f"{math.ceil(count / unit * 10) / 10:g}{letter}"
    return f"{math.ceil(count)}"


def give_back() -> None:
    """Have the C library return freed blocks of a megabyte and more to the system at once.

    Else it keeps what it thinks will be used again, and a budget that counts live tensors is exceeded. Does
    nothing where the C library is not glibc.
    """
    try:
        ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, 2**20)
    except (OSError, AttributeError):
        return


def enough(memory: int | None, least: float, what: str) -> None:
    """Raise unless a budget covers the least that some work needs.

    Parameters
    ----------
    memory
        Bytes; ``None`` is no limit.
    least
        The smallest amount that works.
    what
        Needs it: ``"ranking one query against 1000000 rows"``.

    Raises
    ------
    InvalidArgument
        Naming the smallest amount that works.
    """
    if memory is not None and memory < least:
        raise InvalidArgument("memory", f"at least {in_words(least)} for {what}", in_words(memory))
