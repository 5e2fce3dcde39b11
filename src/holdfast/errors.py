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

A message names the argument, says what was required, and what came. An error may carry a hint: what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SHOWN = 12
"""Names that a hint shows, at most."""
LONGEST = 300
"""Characters of a value that a message shows, at most."""


class HoldfastError(Exception):
    """Root of all errors raised on purpose; the command line prints its line and its hint, and exits with 2.

    Parameters
    ----------
    hint
        What to do about it. A traceback shows it below the message.

    Examples
    --------
    >>> HoldfastError("runs/hm: no run folder", hint="did you mean runs/hm-ics?").hint
    'did you mean runs/hm-ics?'
    """

    def __init__(self, *args: Any, hint: str | None = None) -> None:
        super().__init__(*args)
        self.hint = hint
        if hint is not None:
            self.add_note(f"hint: {hint}")

    @property
    def brief(self) -> str:
        """The message without what the hint says."""
        return str(self)


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
    hint
        What to do about it.

    Examples
    --------
    >>> raise InvalidArgument("eps", "a number >= 0", -1)
    Traceback (most recent call last):
    ...
    holdfast.errors.InvalidArgument: eps: need a number >= 0, got -1
    """

    def __init__(self, argument: str, required: str, got: Any, *, hint: str | None = None) -> None:
        self.argument = argument
        came = repr(got)
        came = came if len(came) <= LONGEST else f"{came[:LONGEST]}... ({len(came)} characters)"
        super().__init__(f"{argument}: need {required}, got {came}", hint=hint)


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
        close = near(name, names)
        advice = _or(close) if close else f"known: {', '.join(names) or 'none'}"
        super().__init__(kind, f"a known name ({advice})", name)
        self.name = name
        # The message holds it already, so it is no note.
        self.hint = advice if close or len(names) <= SHOWN else f"known: {_few(names)}"

    @property
    def brief(self) -> str:
        """The message without the near names."""
        return f"{self.argument}: there is no {self.name!r}"


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
        self._brief = f"{purpose} needs {package}, which is not installed"
        install = f"pip install 'holdfast[{extra}]'"
        super().__init__(f"{purpose} needs {package}; install it with: {install}")
        self.hint = install  # the message holds it already

    @property
    def brief(self) -> str:
        """The message without how to install."""
        return self._brief


def near(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names that are written nearly like a name, the nearest first.

    Examples
    --------
    >>> near("HM-isc", ["plain", "hm-ics", "act"])
    ['hm-ics']
    """
    lowered = {n.lower(): n for n in known}
    return [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, n=most, cutoff=0.5)]


def near_runs(path: str | Path) -> str:
    """Return a hint about the run folders in, beside or below where one was looked for."""
    path = Path(path)
    inside = _runs(path)
    if inside:
        return f"there are runs in it: {_few(inside)}"
    found = list(dict.fromkeys([*_runs(path.parent), *_runs(Path("runs"))]))
    ends = {Path(run).name: run for run in reversed(found)}
    close = [ends[name] for name in near(path.name, ends)]
    if close:
        return _or(close)
    return f"runs here: {_few(found)}" if found else "holdfast train RECIPE makes a run folder"


def _runs(folder: Path) -> list[str]:
    """Return the run folders below a folder, down to the second level."""
    files = ("*/run.json", "*/records.jsonl", "*/*/run.json", "*/*/records.jsonl")
    try:
        return sorted({str(found.parent) for pattern in files for found in folder.glob(pattern)})
    except OSError:
        return []


def _or(names: list[str]) -> str:
    return f"did you mean {' or '.join(names)}?"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


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
