"""What a case measures: one piece of work, its bare limit, and who else does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Size = Literal["tiny", "quick", "full"]
"""``tiny`` runs once in tests, ``quick`` in minutes on 2 cores, ``full`` has the published sizes."""
OURS, LIMIT = "holdfast", "bare limit"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work and its variants, all on the same data.

    Attributes
    ----------
    name
        What is done, with the sizes.
    ours
        Our code.
    limit
        The least that any code has to do; ``limit_is`` says what.
    peers
        Other libraries by name; a text in place of a function says why one is not there.
    units, unit
        How much work a call does: ``512`` "images".
    memory
        Whether peak memory is measured, in a process for each variant.
    references
        Names of recorded figures (:mod:`holdfast.bench.recorded`) for the same work.
    note
        What a reader has to know.
    """

    name: str
    ours: Callable[[], Any]
    limit: Callable[[], Any] | None = None
    limit_is: str = ""
    peers: Mapping[str, Callable[[], Any] | str] = field(default_factory=dict)
    units: float = 1.0
    unit: str = "calls"
    memory: bool = False
    references: tuple[str, ...] = ()
    note: str = ""

    def variants(self) -> dict[str, Callable[[], Any]]:
        """Return what can be run: ours, then the limit, then the peers that are there."""
        limit = {} if self.limit is None else {LIMIT: self.limit}
        there = {name: work for name, work in self.peers.items() if not isinstance(work, str)}
        return {OURS: self.ours, **limit, **there}

    def absent(self) -> dict[str, str]:
        """Return the peers that are not there, and why."""
        return {name: why for name, why in self.peers.items() if isinstance(why, str)}
