"""The training log: JSON lines, written in small groups, cut back on resume."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..files import append_lines, read_lines, replacing

FLUSH_SECONDS = 2.0


class RunLog:
    """Collects lines and appends them to a file every two seconds.

    Parameters
    ----------
    path
        ``log.jsonl`` of a run folder, or ``None`` to keep nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._pending: list[dict[str, Any]] = []
        self._last = time.monotonic()

    def write(self, line: dict[str, Any]) -> None:
        """Add a line; it reaches the disk within two seconds or with the next checkpoint."""
        self._pending.append(line)
        if time.monotonic() - self._last > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Append what has been collected."""
        if self.path is not None and self._pending:
            append_lines(self.path, self._pending)
        self._pending = []
        self._last = time.monotonic()

    def cut(self, step: int) -> list[dict[str, Any]]:
        """Drop lines of batches from ``step`` on, which a resumed run will write again; return the others."""
        if self.path is None or not self.path.exists():
            return []
        kept = [line for line in read_lines(self.path) if int(line.get("step", -1)) < step]
        with replacing(self.path) as temporary:
            temporary.touch()
            append_lines(temporary, kept)
        return kept
