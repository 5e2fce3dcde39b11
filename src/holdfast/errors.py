"""Every error that Holdfast raises on purpose.

::

    HoldfastError
    ├── InvalidArgument      (also a ValueError)  an argument is outside what was required
    │   └── UnknownName      a name that no table holds; lists near matches
    ├── DataError            (also a ValueError)  images, labels or files that cannot be used
    │   └── CorruptFile      a file that cannot be read: names the file and the offset
    ├── RunError             a run folder that exists, is missing, or is of another schema
    └── MissingExtra         (also an ImportError)  an optional package is not installed

    HoldfastWarning          (a UserWarning)

A message names the argument, says what was required, and what came.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class HoldfastError(Exception):
    """Root of all errors raised on purpose; the command line turns it into one line and exit code 2."""


class InvalidArgument(HoldfastError, ValueError):
    """An argument is outside what was required.

    Parameters
    ----------
    argument
        Name of the argument as the caller knows it.
    required
        What would have been accepted.
    got
        What came; shown with ``repr``.

    Examples
    --------
    >>> raise InvalidArgument("eps", "a number >= 0", -1)
    Traceback (most recent call last):
    ...
    holdfast.errors.InvalidArgument: eps: need a number >= 0, got -1
    """

    def __init__(self, argument: str, required: str, got: Any) -> None:
        self.argument = argument
        super().__init__(f"{argument}: need {required}, got {got!r}")


class UnknownName(InvalidArgument):
    """A name that no table holds.

    Parameters
    ----------
    kind
        What was looked up: ``"attack"``, ``"recipe"``.
    name
        The name that was not found.
    known
        The names that the table holds.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        lowered = {n.lower(): n for n in names}
        near = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
        super().__init__(kind, f"a known name ({hint})", name)


class DataError(HoldfastError, ValueError):
    """Images, labels or files that cannot be used."""


class CorruptFile(DataError):
    """A file that cannot be read.

    Parameters
    ----------
    path
        The file, or ``archive.zip!member``.
    offset
        Byte at which reading stopped making sense, or ``None`` when the reader does not tell.
    reason
        What was expected there and what was found.
    """

    def __init__(self, path: str | Path, offset: int | None, reason: str) -> None:
        self.path, self.offset = str(path), offset
        where = f" at byte {offset}" if offset is not None else ""
        super().__init__(f"{path}: cannot be read{where}: {reason}")


class RunError(HoldfastError):
    """A run folder that exists already, is missing, or was written by another schema."""


class MissingExtra(HoldfastError, ImportError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}; install it with: pip install 'holdfast[{extra}]'")


def told(error: BaseException) -> str:
    r"""Return the first line of another library's error, which may go on with hints that are not ours.

    Examples
    --------
    >>> told(ValueError("Input X contains NaN.\nConsider another estimator."))
    'Input X contains NaN.'
    """
    return (str(error).splitlines() or [type(error).__name__])[0]


class HoldfastWarning(UserWarning):
    """Something works but deserves the user's attention."""
