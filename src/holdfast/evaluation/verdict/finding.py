"""What one check found, and the word that all findings together deserve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ...errors import DataError, InvalidArgument

Status = Literal["pass", "warn", "fail", "skipped"]
Word = Literal["INVALID", "VACUOUS", "OVERESTIMATED", "UNDERPOWERED", "TRUSTWORTHY"]
WORDS: tuple[Word, ...] = get_args(Word)
"""The verdicts, the worst first."""

MAX_WARNINGS = 2
"""More warnings than these, with no failure, are no longer trustworthy."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes
    ----------
    id, name
        ``"R4"`` and what it is called.
    status
        ``"skipped"`` where the check needs something that was not handed in, belongs to another level, or did
        not fit into the time.
    value
        The number that was judged, finite, or ``None``.
    threshold
        What was required, with the unit.
    detail
        What was seen, in a sentence.
    remedy
        What to do about it.
    group
        The verdict that a failure leads to.
    owed
        Skipped for lack of time alone, so that the verdict misses it: counts as a warning.
    seconds
        Time spent. What several checks share is counted where it was first needed.
    """

    id: str
    name: str
    status: Status
    value: float | None = None
    threshold: str = ""
    detail: str = ""
    remedy: str = ""
    group: Word = "OVERESTIMATED"
    owed: bool = False
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise InvalidArgument("status", f"one of {', '.join(get_args(Status))}", self.status)
        if self.group not in WORDS or self.group == "TRUSTWORTHY":
            raise InvalidArgument("group", f"one of {', '.join(WORDS[:-1])}", self.group)
        if self.value is not None and not math.isfinite(self.value):
            raise InvalidArgument("value", "a finite number, or None", self.value)
        if self.owed and self.status != "skipped":
            raise InvalidArgument("owed", "False for a check that ran", self.status)


def judge(findings: Sequence[Finding]) -> Word:
    """Return the verdict: the worst group among the failures.

    Without a failure, more than two warnings give UNDERPOWERED: no single check refutes the number, but so
    many near misses are too weak a ground to trust it. A check that did not fit into the time is a warning.
    No check passed or warned at all: UNDERPOWERED too.
    """
    failed = {finding.group for finding in findings if finding.status == "fail"}
    for word in WORDS:
        if word in failed:
            return word
    weak = sum(finding.status == "warn" or finding.owed for finding in findings)
    ran = any(finding.status in ("pass", "warn") for finding in findings)
    return "TRUSTWORTHY" if ran and weak <= MAX_WARNINGS else "UNDERPOWERED"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on a score, with its grounds.

    Attributes
    ----------
    word
        INVALID: the number means nothing. VACUOUS: the encoder is collapsed, and what does not tell images
        apart cannot be fooled. OVERESTIMATED: an upper bound, as the attack is too weak. UNDERPOWERED: too
        few queries or seeds, or too many warnings. TRUSTWORTHY: no failure and at most two warnings.
    findings
        One for each check.
    seconds
        Time spent.

    Examples
    --------
    >>> Verdict.of([Finding(id="R4", name="gradient exists", status="fail", remedy="use Square")]).fixes
    {'R4': 'use Square'}
    """

    word: Word
    findings: tuple[Finding, ...]
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.word not in WORDS:
            raise InvalidArgument("word", f"one of {', '.join(WORDS)}", self.word)
        names = [finding.id for finding in self.findings]
        if len(set(names)) != len(names):
            raise InvalidArgument("findings", "one for each check", names)

    @classmethod
    def of(cls, findings: Sequence[Finding], seconds: float = 0.0) -> Verdict:
        """Judge findings."""
        return cls(word=judge(findings), findings=tuple(findings), seconds=seconds)

    def __getitem__(self, name: str) -> Finding:
        """Return the finding of a check by its id."""
        for finding in self.findings:
            if finding.id == name:
                return finding
        raise KeyError(name)

    def _with(self, status: Status) -> tuple[str, ...]:
        return tuple(finding.id for finding in self.findings if finding.status == status)

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the checks that failed."""
        return self._with("fail")

    @property
    def warned(self) -> tuple[str, ...]:
        """Ids of the checks that warn."""
        return self._with("warn")

    @property
    def fixes(self) -> dict[str, str]:
        """What to do about each failure."""
        return {finding.id: finding.remedy for finding in self.findings if finding.status == "fail"}

    def to_plain(self) -> dict[str, Any]:
        """Return JSON-ready data; ``verdict``, ``failed`` and ``fixes`` are what every score carries."""
        return {
            "verdict": self.word,
            "failed": list(self.failed),
            "fixes": self.fixes,
            "seconds": self.seconds,
            "findings": [
                {field.name: getattr(finding, field.name) for field in fields(Finding)}
                for finding in self.findings
            ],
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Verdict:
        """Rebuild a verdict from :meth:`to_plain`'s data.

        Raises
        ------
        DataError
            If parts are missing, unknown or of another kind.
        """
        try:
            findings = tuple(Finding(**finding) for finding in data["findings"])
            return cls(word=data["verdict"], findings=findings, seconds=float(data["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"verdict: cannot be read: {error}") from error
