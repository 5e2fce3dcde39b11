"""Compare two runs on the same queries, attack by attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from .config import flatten
from .errors import CorruptFile, RunError, near_runs
from .evaluation import Comparison, compare, read_values
from .evaluation.stored import Chunk, State, StoredValues, stored_chunks, stored_name
from .files import read_json
from .notebooks import Cell, lines_html, table_html
from .results import record
from .results.record import Record
from .results.show import NAMES
from .runs import RunFolder

SAME = {
    "data": "data fingerprint",
    "suite": "suite",
    "threat": "threat",
    "search": "search",
    "seed": "seed",
    "queries": "sample of queries",
    "mixed": "having had a budget",
}
"""Settings without which the rows of two evaluations are no pairs."""
NOTED = ("distance", "precision", "version")
"""Settings that may differ, and are then named."""
STATES: tuple[State, ...] = ("clean", "attacked")
_SHARES = ("recall@", "precision@", "retain@", "map", "rank")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure of one attack in both runs.

    Attributes
    ----------
    attack, state, metric
        As in records; ``"clean"`` is the measure before the attack.
    higher_is_robust
        Whether a larger value is better for the defender.
    a, b
        The means.
    comparison
        B against A, query by query.
    """

    attack: str
    state: State
    metric: str
    higher_is_robust: bool
    a: float
    b: float
    comparison: Comparison

    @property
    def share(self) -> bool:
        """Whether the values are fractions, shown in percent; else plain numbers."""
        return self.metric.startswith(_SHARES)

    @property
    def verdict(self) -> str:
        """``"A better"``, ``"B better"`` or ``"within noise"``."""
        if not self.comparison.supported:
            return "within noise"
        return "B better" if (self.comparison.difference > 0) == self.higher_is_robust else "A better"

    def words(self, a: str = "A", b: str = "B") -> str:
        """Say it in a sentence."""
        return self.comparison.words(a, b, points=self.share)

    def figures(self) -> list[str]:
        """Return A, B, B - A, its interval and p as text; shares in percent."""
        c, scale, digits = self.comparison, *((100, 1) if self.share else (1, 3))

        def show(value: float, sign: str = "") -> str:
            return f"{round(scale * value, digits) + 0.0:{sign}.{digits}f}"

        p = "< 0.001" if c.p_value < 0.001 else f"{c.p_value:.2g}"
        return [show(self.a), show(self.b), show(c.difference, "+"), f"{show(c.low)} to {show(c.high)}", p]


class Change(NamedTuple):
    """A setting that is not the same in two runs; None where a run has no such setting.

    Attributes
    ----------
    path
        Names joined by dots, as for ``--set``.
    a, b
        The values.
    """

    path: str
    a: Any
    b: Any


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """What :func:`compare_runs` found.

    Attributes
    ----------
    a, b
        Names of the runs; their paths where the names are the same.
    settings
        Of both evaluations; see ``SAME``.
    differing
        Other settings that are not the same: the distance, the precision of the searches, the version.
    fingerprints
        Of the evaluations.
    rows
        One for each attack, state and measure.
    changes
        Settings of the trainings that are not the same, by path; empty where a folder holds none.
    """

    a: str
    b: str
    settings: Mapping[str, Any]
    differing: tuple[str, ...]
    fingerprints: tuple[str, str]
    rows: tuple[Row, ...]
    changes: tuple[Change, ...] = ()

    @property
    def shown(self) -> list[Row]:
        """The rows for people: the clean recall, then every measure under attack."""
        clean = [r for r in self.rows if (r.state, r.metric) == ("clean", "recall@1")][:1]
        return [*clean, *(r for r in self.rows if r.state == "attacked")]

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        rows = []
        for row in self.rows:
            flat = {k: v for k, v in asdict(row).items() if k != "comparison"} | asdict(row.comparison)
            rows.append({**flat, "verdict": row.verdict, "words": row.words(self.a, self.b)})
        changes = [change._asdict() for change in self.changes]
        return {**asdict(self), "rows": rows, "changes": changes}

    def _repr_html_(self) -> str:
        """Show the rows, and the settings that differ, in a notebook."""
        mark = {"A better": "worse", "B better": "better", "within noise": "quiet"}
        body: list[list[str | Cell]] = [
            [
                "clean" if row.state == "clean" else row.attack, NAMES.get(row.metric, row.metric),
                *row.figures(),
                Cell(row.verdict, mark[row.verdict]),
            ]
            for row in self.shown
        ]  # fmt: skip
        table = table_html(
            ("attack", "metric", "A", "B", "B - A", "95 % interval", "p", "in words"),
            body,
            text=(0, 1, 7),
            caption=f"A = {self.a}, B = {self.b}: {self.settings.get('suite', '')}",
            note="Shares in percent. Intervals and p are over queries, row by row, not over training seeds.",
        )
        return table + lines_html(diff_lines(self.changes), f"settings: - A = {self.a}, + B = {self.b}")


def diff_lines(changes: tuple[Change, ...]) -> list[tuple[str, str]]:
    """Return ``("-" or "+", "path = value")`` lines: what A has and B has not, then what B has instead.

    Examples
    --------
    >>> diff_lines((Change("epochs", 8, 16), Change("defense.extra", None, "Consistency")))
    [('-', 'epochs = 8'), ('+', 'epochs = 16'), ('+', 'defense.extra = Consistency')]
    """
    return [
        (sign, f"{path} = {value}")
        for path, a, b in changes
        for sign, value in (("-", a), ("+", b))
        if value is not None
    ]


class _Evaluation(NamedTuple):
    folder: Path
    settings: Mapping[str, Any]
    chunks: Mapping[str, tuple[Chunk, ...]]
    records: list[Record]


def compare_runs(
    a: str | Path | RunFolder,
    b: str | Path | RunFolder,
    *,
    suite: str | None = None,
    eps: float | None = None,
    seed: int = 0,
    on_step: Callable[[str, int, int], None] | None = None,
) -> RunComparison:
    """Compare two evaluated runs on the same queries.

    Parameters
    ----------
    a, b
        Run folders, or folders of :func:`holdfast.evaluate`.
    suite, eps
        Which evaluations; by default any. Of several that both runs have, the one that B recorded last.
    seed
        Of bootstrap and sign flips.
    on_step
        Called with the measure that was compared last, measures done and measures in all.

    Returns
    -------
    RunComparison
        Attacks in the order of the suite. Rows are tested one by one: of twenty rows without any difference,
        one is expected to have p < 0.05. Intervals are over queries; how much training seeds matter is told
        by :func:`~holdfast.evaluation.compare_seeds` alone.

    Raises
    ------
    RunError
        If a run has no such evaluation, or none of the same data, suite, threat, search and seed as one of
        the other run: it says which of these differ.
    """
    folders = [run.path if isinstance(run, RunFolder) else Path(run) for run in (a, b)]
    first, second = _pair(*(_evaluations(folder, suite, eps) for folder in folders))
    names = [folder.name for folder in folders]
    if names[0] == names[1]:
        names = [str(folder) for folder in folders]
    return RunComparison(
        a=names[0],
        b=names[1],
        settings={key: first.settings[key] for key in SAME if key in first.settings},
        differing=tuple(k for k in NOTED if first.settings.get(k) != second.settings.get(k)),
        fingerprints=(first.folder.name, second.folder.name),
        rows=tuple(_rows(first, second, seed, on_step or (lambda *_: None))),
        changes=_changes(*folders),
    )


def _changes(a: Path, b: Path) -> tuple[Change, ...]:
    """Return the settings of the trainings that differ; folders of own encoders hold none."""
    if not all((folder / "run.json").is_file() for folder in (a, b)):
        return ()
    old, new = (_training(folder / "run.json") for folder in (a, b))
    return tuple(
        Change(path, old.get(path), new.get(path))
        for path in sorted({**old, **new})
        if old.get(path) != new.get(path)
    )


def _training(path: Path) -> dict[str, Any]:
    meta = read_json(path)
    run = meta.get("run") if isinstance(meta, dict) else None
    if not isinstance(run, dict):
        raise CorruptFile(path, None, "need a JSON object with the settings of a run")
    return flatten(run)


def _evaluations(path: Path, suite: str | None, eps: float | None) -> list[_Evaluation]:
    """Return the finished evaluations of a run whose per-query values are there, the latest first."""
    if not path.is_dir():
        raise RunError(f"{path}: no such run folder", hint=near_runs(path))
    records = record.read(path / "records.jsonl")
    found = []
    for fingerprint in dict.fromkeys(r["fingerprint"] for r in reversed(records)):
        folder = path / "evaluations" / fingerprint
        if not fingerprint or not (folder / "settings.json").is_file():
            continue
        settings = _settings(folder / "settings.json")
        radius = settings["threat"].get("eps") if isinstance(settings["threat"], dict) else None
        if suite not in (None, settings["suite"]) or eps not in (None, radius):
            continue
        chunks = stored_chunks(folder)
        if chunks:
            settings["mixed"] = any(part.rows is None for parts in chunks.values() for part in parts)
            mine = record.latest(r for r in records if r["fingerprint"] == fingerprint)
            found.append(_Evaluation(folder, settings, chunks, mine))
    if not found:
        asked = [f"suite {suite}"] * (suite is not None) + [f"eps {eps}"] * (eps is not None)
        kind = f" of {', '.join(asked)}" if asked else ""
        raise RunError(
            f"{path}: no finished evaluation{kind} with per-query values of attacks",
            hint=f"holdfast evaluate {path}",
        )
    return found


def _settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise CorruptFile(path, None, f"need a JSON object, got {type(settings).__name__}")
    lacking = [key for key in ("data", "suite", "threat", "search", "seed") if key not in settings]
    if lacking:
        raise CorruptFile(path, None, f"lacks {', '.join(lacking)}")
    return settings


def _pair(a: list[_Evaluation], b: list[_Evaluation]) -> tuple[_Evaluation, _Evaluation]:
    """Return the latest two of the same settings."""
    nearest: list[str] = []
    for second, first in product(b, a):
        old, new = first.settings, second.settings
        unlike = [key for key in SAME if old.get(key) != new.get(key)]
        if not unlike:
            return first, second
        told = [f"{SAME[key]} ({_differences(old.get(key), new.get(key))})" for key in unlike]
        nearest = told if not nearest or len(told) < len(nearest) else nearest
    raise RunError(
        f"{a[0].folder.parents[1]} and {b[0].folder.parents[1]}: their evaluations cannot be compared query "
        f"by query, they differ in {'; '.join(nearest)}"
    )


def _differences(a: Any, b: Any) -> str:
    """Say what differs, of two nested values only the parts."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        return ", ".join(f"{key} {a.get(key)!r} and {b.get(key)!r}" for key in keys)
    return f"{a!r} and {b!r}"


def _rows(
    first: _Evaluation, second: _Evaluation, seed: int, tell: Callable[[str, int, int], None]
) -> Iterator[Row]:
    a, b = _same_queries(first, second)
    told = {(r["attack"], r["metric"]): r for r in first.records if r["attack"] != "none"}
    attacks = dict.fromkeys(attack for attack, _ in told)
    total = sum(len(a.get(stored_name(attack), {}).get(state, {})) for attack in attacks for state in STATES)
    done = 0
    for attack, state in product(attacks, STATES):
        label = stored_name(attack)
        theirs = b.get(label, {}).get(state, {})
        for metric, values in a.get(label, {}).get(state, {}).items():
            if metric in theirs and (attack, metric) in told:
                tell(f"{attack} {metric}", done, total)
                yield Row(
                    attack=attack,
                    state=state,
                    metric=metric,
                    higher_is_robust=told[attack, metric]["higher_is_robust"],
                    a=float(values.mean(dtype="float64")),
                    b=float(theirs[metric].mean(dtype="float64")),
                    comparison=compare(values, theirs[metric], seed=seed),
                )
            done += 1
    tell("done", total, total)


def _same_queries(first: _Evaluation, second: _Evaluation) -> tuple[StoredValues, StoredValues]:
    """Read both; of evaluations with a budget only the random chunks that both reached."""
    if not first.settings["mixed"]:
        a, b = read_values(first.folder), read_values(second.folder)
        for one, values in ((first, a), (second, b)):
            _whole(one, values)
        return a, b
    common = set[str]()
    for label in first.chunks.keys() & second.chunks.keys():
        common |= {p.name for p in first.chunks[label]} & {p.name for p in second.chunks[label]}
    if not common:
        raise RunError(
            f"{first.folder} and {second.folder}: both had a budget, and reached no query in common"
        )
    return read_values(first.folder, common), read_values(second.folder, common)


def _whole(one: _Evaluation, values: StoredValues) -> None:
    """Refuse an evaluation of which chunks at the end are gone."""
    n = {stored_name(r["attack"]): r["n"] for r in one.records}
    for label, states in values.items():
        lengths = {len(v) for metrics in states.values() for v in metrics.values()}
        if label in n and lengths != {n[label]}:
            raise RunError(
                f"{one.folder}: {label} holds {max(lengths)} of {n[label]} queries; chunks are missing"
            )
