"""Rows of a leaderboard: means over seeds, what is better than noise, and what nothing else beats."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..evaluation.paired import compare_seeds
from ..results import Record
from .entries import Entry


class Track(NamedTuple):
    """What rows must share to stand in one table."""

    dataset: str
    protocol: str
    encoder: str
    norm: str
    eps: float

    def words(self) -> str:
        """Return the track in words."""
        levels = f"{255 * self.eps:.0f}/255" if abs(255 * self.eps - round(255 * self.eps)) < 1e-6 else ""
        radius = levels or f"{self.eps:.4g}"
        return f"{self.dataset}, {self.protocol}, {self.encoder}, {self.norm} eps {radius}"


class Measure(NamedTuple):
    """A column: its heading, and the factor that brings it to points of 100."""

    title: str
    scale: float


MEASURES: Mapping[str, Measure] = {
    "clean": Measure("clean R@1", 100.0),
    "worst": Measure("worst-case R@1", 100.0),
    "ers": Measure("ERS", 1.0),
    "published": Measure("ERS, published faults", 1.0),
}
"""Columns, all higher is better: R@1 without attack, the lowest under any attack that measures it (by query
where the worst-case suite was run), and the score of ``ers`` or of ``ers-robrank``."""


@dataclass(frozen=True)
class Row:
    """One recipe on one track.

    Attributes
    ----------
    recipe
        With the settings that were changed.
    seeds
        Of its runs.
    values
        For each measure one value for each seed that has it, in points of 100.
    verdicts
        How often each verdict was given, one for each seed and suite.
    seconds
        Mean seconds of training; machines may differ.
    front
        Whether no other row has both a higher clean and a higher worst-case mean.
    against
        In words how the ranking measure stands to the first row: ``"first"``, ``"within noise"``,
        ``"lower"`` or ``"too few seeds"``.
    """

    recipe: str
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    verdicts: Mapping[str, int]
    seconds: float
    front: bool = False
    against: str = ""

    def mean(self, measure: str) -> float | None:
        """Return the mean over seeds, or None where it was not measured."""
        found = self.values.get(measure, ())
        return statistics.fmean(found) if found else None

    def spread(self, measure: str) -> float | None:
        """Return the standard deviation over seeds, or None with fewer than two."""
        found = self.values.get(measure, ())
        return statistics.stdev(found) if len(found) > 1 else None


@dataclass(frozen=True)
class Board:
    """All rows of one track, best first by ``ranked_by``."""

    track: Track
    ranked_by: str
    rows: tuple[Row, ...]

    @property
    def measures(self) -> list[str]:
        """The columns that any row has."""
        return [name for name in MEASURES if any(row.values.get(name) for row in self.rows)]


RANKING = ("ers", "worst", "published", "clean")


def boards(entries: Iterable[Entry]) -> list[Board]:
    """Return one board for each track, ordered by track.

    Rows are ranked by the robustness score, or by the first of :data:`RANKING` that most rows have. What lies
    below the first row by less than the noise of training says so: Welch's test over seeds, as in
    :func:`~holdfast.evaluation.paired.compare_seeds`.
    """
    found: dict[Track, dict[str, list[tuple[Entry, list[Record]]]]] = {}
    for entry in entries:
        tracks: dict[Track, list[Record]] = {}
        for r in entry.records:
            if r["state"] == "attacked" and r["suite"] in SUITES:
                at = Track(r["dataset"], r["protocol"], r["encoder"], r["norm"], r["eps"])
                tracks.setdefault(at, []).append(r)
        for at, records in tracks.items():
            clean = [r for r in entry.records if r["attack"] == "none"]
            found.setdefault(at, {}).setdefault(entry.recipe, []).append((entry, [*clean, *records]))
    return [_board(track, rows) for track, rows in sorted(found.items())]


SUITES = ("ers", "ers-robrank", "worst-case", "core")
"""Suites whose numbers make a row."""


def _board(track: Track, found: Mapping[str, Sequence[tuple[Entry, list[Record]]]]) -> Board:
    rows = [_row(recipe, runs) for recipe, runs in found.items()]
    ranked = max(RANKING, key=lambda m: (sum(bool(r.values.get(m)) for r in rows), -RANKING.index(m)))
    rows.sort(key=lambda row: (-(row.mean(ranked) or 0.0), row.recipe))
    return Board(track, ranked, tuple(_placed(row, rows, ranked) for row in rows))


def _row(recipe: str, runs: Sequence[tuple[Entry, list[Record]]]) -> Row:
    runs = sorted(runs, key=lambda run: run[0].seed)
    values: dict[str, tuple[float, ...]] = {}
    for name, measure in MEASURES.items():
        each = [_value(name, records) for _, records in runs]
        values[name] = tuple(measure.scale * v for v in each if v is not None)
    verdicts = Counter[str]()
    for _, records in runs:
        verdicts.update({r["suite"]: r["verdict"] for r in records if r["state"] == "attacked"}.values())
    return Row(
        recipe=recipe,
        seeds=tuple(entry.seed for entry, _ in runs),
        values=values,
        verdicts=dict(verdicts),
        seconds=statistics.fmean(entry.seconds for entry, _ in runs),
    )


def _value(measure: str, records: Sequence[Record]) -> float | None:
    """Return one measure of one run, as recorded; the worst case is the lowest Recall@1 under attack."""
    suites = {"ers": "ers", "published": "ers-robrank"}
    if measure in suites:
        chosen = [
            r for r in records if (r["suite"], r["attack"], r["metric"]) == (suites[measure], "all", "ers")
        ]
        return chosen[-1]["value"] if chosen else None
    state = "clean" if measure == "clean" else "attacked"
    recall = [
        r for r in records
        if r["metric"] == "recall@1" and r["state"] == state and (r["attack"] == "none") == (state == "clean")
    ]  # fmt: skip
    if measure == "clean":
        return max(recall, key=lambda r: r["n"])["value"] if recall else None
    return min((r["value"] for r in recall), default=None)


def _placed(row: Row, rows: Sequence[Row], ranked: str) -> Row:
    clean, worst = row.mean("clean"), row.mean("worst")

    def beaten(other: Row) -> bool:
        a, b = other.mean("clean"), other.mean("worst")
        if None in (a, b, clean, worst):
            return False
        return bool(a >= clean and b >= worst and (a > clean or b > worst))  # type: ignore[operator]

    first = rows[0]
    if row is first:
        against = "first"
    elif not row.values.get(ranked) or not first.values.get(ranked):
        against = "not measured"
    else:
        found = compare_seeds(row.values[ranked], first.values[ranked])
        against = "lower" if found.supported else "within noise" if found.enough else "too few seeds"
    known = clean is not None and worst is not None
    return Row(
        **{name: getattr(row, name) for name in ("recipe", "seeds", "values", "verdicts", "seconds")},
        front=known and not any(beaten(other) for other in rows if other is not row),
        against=against,
    )
