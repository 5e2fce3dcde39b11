"""Rows of a leaderboard: means over seeds, what is better than noise, and what nothing else beats."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..evaluation.paired import compare_seeds
from ..results import Record
from .entries import Entry


class Terms(NamedTuple):
    """What rows must share to stand in one table."""

    track: str
    kind: str
    dataset: str
    protocol: str
    encoder: str
    norm: str
    eps: float

    def radius(self) -> str:
        """Return the radius in words, in grey levels where it is a whole number of them."""
        levels = f"{255 * self.eps:.0f}/255" if abs(255 * self.eps - round(255 * self.eps)) < 1e-6 else ""
        return f"eps {levels or f'{self.eps:.4g}'}" if self.eps else "certified"

    def words(self) -> str:
        """Return the terms in words."""
        track = f"{self.track}: " * bool(self.track)
        title = f" ({KINDS[self.kind].title})" * bool(KINDS[self.kind].title)
        about = ", ".join(word for word in (self.dataset, self.protocol, self.encoder) if word)
        return f"{track}{about}, {self.norm} {self.radius()}{title}"


class Measure(NamedTuple):
    """A column: its heading, the factor that brings it to what is shown, and whether less is better."""

    title: str
    scale: float = 100.0
    lower: bool = False


class Kind(NamedTuple):
    """What a table is about.

    Attributes
    ----------
    title
        Words for headings, if any.
    suites
        Suites whose records make rows.
    measures
        Columns; those of certified shares come on top, as radii differ.
    ranking
        Measures to rank by, best first.
    front
        What is traded: a clean and a robust measure.
    legend
        How figures are to be read.
    """

    title: str
    suites: tuple[str, ...]
    measures: Mapping[str, Measure]
    ranking: tuple[str, ...]
    front: tuple[str, str]
    legend: str


_CLEAN = Measure("clean R@1")
KINDS: Mapping[str, Kind] = {
    "ranking": Kind(
        "",
        ("ers", "worst-case", "core"),
        {
            "clean": _CLEAN,
            "worst": Measure("worst-case R@1"),
            "ers": Measure("ERS", 1.0),
            "resistance": Measure("resistance", 1.0),
        },
        ("ers", "worst", "clean"),
        ("clean", "worst"),
        "R@1 in percent, ERS and resistance from 0 to 100. * no other row has both a higher clean and a "
        "higher worst-case R@1. Worst case is the lowest R@1 under any attack that was run: an upper bound.",
    ),
    "published": Kind(
        "faults of the published code included",
        ("ers-robrank",),
        {"clean": _CLEAN, "published": Measure("ERS, published faults", 1.0)},
        ("published", "clean"),
        ("clean", "published"),
        "R@1 in percent, ERS from 0 to 100. * no other row is higher in both.",
    ),
    "clusters": Kind(
        "clusters",
        ("clustering-worst", "clustering"),
        {
            "clean": Measure("clean accuracy"),
            "worst": Measure("worst-case accuracy"),
            "flip": Measure("flips", lower=True),
            "nmi": Measure("NMI under attack"),
        },
        ("worst", "clean"),
        ("clean", "worst"),
        "In percent; accuracy names clusters one to one, flips are queries that left their cluster. * no "
        "other row is higher in both accuracies. Worst case over attacks, query by query: an upper bound.",
    ),
    "certified": Kind(
        "certificates",
        ("certified",),
        {"clean": _CLEAN, "median": Measure("median radius", 1.0)},
        ("median", "clean"),
        ("clean", "median"),
        "Shares of queries that are right and certified beyond a radius, in percent: lower bounds. * no "
        "other row has both a higher clean R@1 and a larger median radius.",
    ),
    "neighbours": Kind(
        "certificates of nearest neighbours",
        ("knn-1",),
        {"clean": Measure("clean error", lower=True), "median": Measure("median radius", 1.0)},
        ("median", "clean"),
        ("clean", "median"),
        "Errors in percent, certified at the radius: upper bounds, less is better. * no other row has both a "
        "lower clean error and a larger median radius.",
    ),
}
"""Tables by what they are about; suites with faults never stand in one table with mended ones."""
_OF_SUITE = {suite: kind for kind, found in KINDS.items() for suite in found.suites}
_CERTIFIED = ("certified", "neighbours")
_AT = "certified@"


NOTHING = {"VACUOUS", "INVALID"}
"""Verdicts under which a row is neither ranked nor on the front."""


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
        Whether no other row is better in both measures that the table trades.
    against
        In words how the ranking measure stands to the first row: ``"first"``, ``"within noise"``,
        ``"behind"``, ``"too few seeds"``, or ``"not counted"`` by its verdict.
    """

    recipe: str
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    verdicts: Mapping[str, int]
    seconds: float
    front: bool = False
    against: str = ""

    @property
    def counts(self) -> bool:
        """Whether no verdict says that the figures mean nothing; if one does, the row stands last."""
        return not NOTHING & set(self.verdicts)

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
    """All rows under the same terms, best first by ``ranked_by``."""

    terms: Terms
    ranked_by: str
    rows: tuple[Row, ...]

    @property
    def measures(self) -> dict[str, Measure]:
        """The columns that any row has."""
        found = dict(KINDS[self.terms.kind].measures)
        radii = {name for row in self.rows for name in row.values if name.startswith(_AT)}
        lower = self.terms.kind == "neighbours"
        for name in sorted(radii, key=lambda name: float(name.removeprefix(_AT))):
            radius = f"{float(name.removeprefix(_AT)):.4g}"
            title = f"error at {radius}" if lower else f"certified at {radius}"
            found[name] = Measure(title, lower=lower)
        return {name: m for name, m in found.items() if any(row.values.get(name) for row in self.rows)}


def boards(entries: Iterable[Entry]) -> list[Board]:
    """Return a board for every set of terms, ordered by them.

    Rows are ranked by the first measure of the kind that most rows have. What lies behind the first row by
    less than the noise of training says so: Welch's test over seeds, as in
    :func:`~holdfast.evaluation.paired.compare_seeds`.
    """
    found: dict[Terms, dict[str, list[tuple[Entry, list[Record]]]]] = {}
    for entry in entries:
        clean = [
            r for r in entry.records if r["attack"] == "none" and r["suite"] not in KINDS["neighbours"].suites
        ]
        parts: dict[Terms, list[Record]] = {}
        for r in entry.records:
            kind = _OF_SUITE.get(r["suite"])
            if kind is not None and (r["state"] == "attacked" or kind == "neighbours"):
                eps = 0.0 if kind in _CERTIFIED else r["eps"]
                encoder = "" if entry.track else r["encoder"]  # a track may compare encoders
                at = Terms(entry.track, kind, r["dataset"], r["protocol"], encoder, r["norm"], eps)
                parts.setdefault(at, []).append(r)
        for at, records in parts.items():
            found.setdefault(at, {}).setdefault(entry.recipe, []).append((entry, [*clean, *records]))
    return [_board(terms, rows) for terms, rows in sorted(found.items())]


def _board(terms: Terms, found: Mapping[str, Sequence[tuple[Entry, list[Record]]]]) -> Board:
    kind = KINDS[terms.kind]
    rows = [_row(recipe, runs, terms.kind) for recipe, runs in found.items()]
    has = {m: sum(bool(r.values.get(m)) for r in rows) for m in kind.ranking}
    ranked = max(kind.ranking, key=lambda m: (has[m], -kind.ranking.index(m)))
    sign = -1.0 if kind.measures[ranked].lower else 1.0
    rows.sort(key=lambda row: (not row.counts, -sign * (row.mean(ranked) or 0.0), row.recipe))
    return Board(terms, ranked, tuple(_placed(row, rows, ranked, kind) for row in rows))


def _row(recipe: str, runs: Sequence[tuple[Entry, list[Record]]], kind: str) -> Row:
    runs = sorted(runs, key=lambda run: run[0].seed)
    values: dict[str, tuple[float, ...]] = {}
    for _, records in runs:
        for name, value in _values(records, kind).items():
            values[name] = (*values.get(name, ()), value)
    verdicts = Counter[str]()
    for _, records in runs:
        verdicts.update({r["suite"]: r["verdict"] for r in records if r["state"] == "attacked"}.values())
    return Row(
        recipe=recipe,
        seeds=tuple(entry.seed for entry, _ in runs),
        values=values,
        verdicts=dict(verdicts) if kind not in _CERTIFIED else {},
        seconds=statistics.fmean(entry.seconds for entry, _ in runs),
    )


def _values(records: Sequence[Record], kind: str) -> dict[str, float]:
    """Return the measures of one run as they are shown; the worst case is the lowest under attack."""
    clean = [r for r in records if r["state"] == "clean"]
    tables = kind == "neighbours"  # their records have no state
    attacked = [r for r in records if tables or r["state"] == "attacked"]

    def lowest(metric: str) -> float | None:
        return min((r["value"] for r in attacked if r["metric"] == metric), default=None)

    def last(metric: str, among: Sequence[Record]) -> float | None:
        found = [r for r in among if r["metric"] == metric]
        return max(found, key=lambda r: r["n"])["value"] if found else None

    def score(metric: str) -> float | None:
        return next(
            (r["value"] for r in reversed(attacked) if r["metric"] == metric and r["attack"] == "all"), None
        )

    found: dict[str, float | None] = {"clean": last("recall@1", [r for r in clean if r["attack"] == "none"])}
    if kind == "ranking":
        found |= {"worst": lowest("recall@1"), "ers": score("ers"), "resistance": score("resistance")}
    elif kind == "published":
        found["published"] = score("ers")
    elif kind == "clusters":
        found |= {"clean": last("accuracy", clean), "worst": lowest("accuracy"), "nmi": lowest("nmi")}
        found["flip"] = max((r["value"] for r in attacked if r["metric"] == "flip"), default=None)
    else:
        found["median"] = last("certified-median", attacked)
        shares = {r["metric"]: r["value"] for r in records if r["metric"].startswith(_AT)}
        if tables:
            found["clean"] = last("clean-error", records)
            shares = {name: 1.0 - value for name, value in shares.items()}
        found |= shares
    scales = KINDS[kind].measures
    return {
        name: (scales[name].scale if name in scales else 100.0) * value
        for name, value in found.items()
        if value is not None
    }


def _placed(row: Row, rows: Sequence[Row], ranked: str, kind: Kind) -> Row:
    signs = [-1.0 if kind.measures[name].lower else 1.0 for name in kind.front]

    def figures(r: Row) -> list[float] | None:
        means = [r.mean(name) for name in kind.front]
        return None if None in means else [s * m for s, m in zip(signs, means, strict=True) if m is not None]

    mine = figures(row)

    def beaten(other: Row) -> bool:
        theirs = figures(other)
        if theirs is None or mine is None:
            return False
        return theirs != mine and all(a >= b for a, b in zip(theirs, mine, strict=True))

    first = rows[0]
    if row is first:
        against = "first"
    elif not row.counts:
        against = "not counted"
    elif not row.values.get(ranked) or not first.values.get(ranked):
        against = "not measured"
    else:
        found = compare_seeds(row.values[ranked], first.values[ranked])
        against = "behind" if found.supported else "within noise" if found.enough else "too few seeds"
    return replace(
        row,
        front=row.counts
        and mine is not None
        and not any(beaten(other) for other in rows if other is not row and other.counts),
        against=against,
    )
