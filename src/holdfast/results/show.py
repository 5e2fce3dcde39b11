"""Records for people: what each measure is called, how its value is written, and tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, overload

from ..config import flatten
from ..notebooks import Cell, table_html
from .record import UNCHECKED, Record

NAMES = {
    "recall@1": "R@1", "recall@2": "R@2", "recall@4": "R@4", "recall@8": "R@8", "map": "mAP",
    "map@r": "MAP@R", "map@10": "mAP@10", "nmi": "NMI",
}  # fmt: skip
"""What tables call a metric, where that is not its own name."""


def measure_name(r: Record, radii: bool = False) -> str:
    """Return what a record measures: ``clean R@1``, ``ES R@1 (higher is robust)``.

    Parameters
    ----------
    r
        The record.
    radii
        Whether its radius is told too.
    """
    name = NAMES.get(r["metric"], r["metric"])
    if r["attack"] == "none":
        return f"clean {name}"
    better = "higher" if r["higher_is_robust"] else "lower"
    at = f" at {r['norm']} {r['eps']:.4g}" if radii else ""
    return f"{r['attack']} {name}{at} ({better} is robust)"


def value_text(r: Record) -> str:
    """Return a value and its interval: shares in percent, scores and distances as they are.

    Examples
    --------
    >>> from holdfast.results import make
    >>> value_text(make(run="plain", metric="recall@1", value=0.98, n=360, ci=[0.96, 0.99]))
    '98.0 % [96.0 %, 99.0 %]'
    """

    def show(v: float) -> str:
        if r["attack"] == "all":  # a score, or one of its items: in [0, 100] already
            return f"{v:.1f}"
        plain = r["metric"] in ("shift", "cosine", "kendall") or r["metric"].startswith("median")
        return f"{v:.3f}" if plain else f"{100 * v:.1f} %"

    interval = f" [{show(r['ci'][0])}, {show(r['ci'][1])}]" if r["ci"] else ""
    return show(r["value"]) + interval


def arranged(records: Sequence[Record]) -> tuple[list[str], dict[str, dict[str, Record]]]:
    """Return the names of the runs, and for each measure its record by run; of repeated ones the last."""
    runs = list(dict.fromkeys(r["run"] for r in records))
    radii = len({(r["norm"], r["eps"]) for r in records if r["attack"] != "none" and r["eps"] > 0}) > 1
    cells: dict[str, dict[str, Record]] = {}
    for r in records:
        if r["attack"] != "none" and r["state"] == "clean":
            continue  # stands beside the attacked value
        cells.setdefault(measure_name(r, radii), {})[r["run"]] = r
    return runs, cells


class Records(list[Record]):
    """A list of records that a notebook shows as a table: a row for each measure, a column for each run.

    Examples
    --------
    >>> from holdfast.results import make
    >>> found = Records([make(run="plain", metric="recall@1", value=0.98, n=360)])
    >>> found == list(found), "98.0 %" in found._repr_html_()
    (True, True)
    """

    @overload
    def __getitem__(self, place: SupportsIndex, /) -> Record: ...

    @overload
    def __getitem__(self, place: slice, /) -> Records: ...

    def __getitem__(self, place: SupportsIndex | slice, /) -> Record | Records:
        """Return a record, or of a slice records."""
        return Records(super().__getitem__(place)) if isinstance(place, slice) else super().__getitem__(place)

    def __add__(self, other: list[Record], /) -> Records:  # type: ignore[override]
        """Return the records of both."""
        return Records([*self, *other])

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        if not self:
            return table_html([""], [["no records"]])
        runs, cells = arranged(self)
        rows = [
            [label, *(value_text(row[run]) if run in row else "–" for run in runs)]
            for label, row in cells.items()
        ]
        first = next((r for r in self if r["attack"] != "none"), self[0])
        head = ["measure", *runs]
        caption = f"{first['dataset']}, suite {first['suite']}"
        if first["attack"] != "none":
            caption += (
                f", {first['norm']} eps {first['eps']:.4g}, {first['steps']} steps, {first['n']} queries"
            )
        return table_html(head, rows, caption=caption, note=" ".join(map(_verdict, _last(self).values())))


def _last(records: Iterable[Record]) -> dict[str, Record]:
    """Return the last record of each run: repairs come last, and what they say counts."""
    return {r["run"]: r for r in records}


def _verdict(r: Record) -> str:
    if r["verdict"] == UNCHECKED:
        return f"The evaluation of {r['run']} was not checked."
    failed = f", failed: {', '.join(r['failed'])}" if r["failed"] else ""
    after = " after repairs" if r["attack"] == "REPAIRED" else ""
    return f"Verdict on the evaluation of {r['run']}{after}: {r['verdict']}{failed}."


def card_html(records: Sequence[Record], notes: Sequence[str] = (), findings: Iterable[Any] = ()) -> str:
    """Return a score card for a notebook: the records, notes, and the checks that failed or warned.

    Parameters
    ----------
    records
        Of the card.
    notes
        Sentences that stand above.
    findings
        Of the verdict: values with ``id``, ``name``, ``status``, ``detail`` and ``remedy``.
    """
    looks = {"fail": "worse", "warn": "strong"}
    checks = [
        [f.id, f.name, Cell("failed" if f.status == "fail" else "warns", looks[f.status]), f.detail, f.remedy]
        for f in findings
        if f.status in looks
    ]
    parts = [table_html([""], [[note] for note in notes])] if notes else []
    parts.append(Records(records)._repr_html_())
    if checks:
        head = ["check", "", "", "what was seen", "what to do"]
        parts.append(table_html(head, checks, caption="Checks of this evaluation", text=range(5)))
    return "".join(parts)


def run_html(path: str | Path, meta: Mapping[str, Any], *, finished: bool) -> str:
    """Return a run folder for a notebook: what it is, and the settings that are not those of its recipe.

    Parameters
    ----------
    path
        The folder.
    meta
        The whole of its ``run.json``.
    finished
        Whether training is done.
    """
    run, usual = flatten(meta.get("run", {})), flatten(meta.get("defaults", {}))
    changed = {key: value for key, value in run.items() if usual.get(key, value) != value}
    state = Cell("trained", "better") if finished else Cell("not finished", "worse")
    rows: list[list[str | Cell]] = [["folder", str(path)], ["training", state]]
    for label, key in (
        ("recipe", "name"), ("data", "data"), ("encoder", "encoder"), ("defense", "defense"),
        ("adversary", "defense.adversary"), ("threat", "threat"), ("radius", "threat.eps"),
        ("epochs", "epochs"), ("seed", "seed"),
    ):  # fmt: skip
        if run.get(key) is not None:
            rows.append([label, _plain(run[key])])
    rows += [
        [f"changed: {key}", f"{_plain(value)} (was {_plain(usual.get(key))})"]
        for key, value in changed.items()
    ]
    rows += [[key, str(meta[key])] for key in ("created", "version", "command") if meta.get(key)]
    return table_html(["", ""], rows, caption=f"Run {Path(path).name}", text=(0, 1))


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
