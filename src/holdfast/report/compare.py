"""The runs side by side: a table to sort, differences query by query, and every measure."""

from __future__ import annotations

from collections.abc import Sequence

from ..comparison import Row, compare_runs
from ..errors import HoldfastError
from ..results import Record
from .believe import WORST, name_of, word_of
from .facts import (
    WHOLE,
    Headline,
    Strength,
    advice,
    benign,
    bounds,
    items,
    method,
    mixed_scores,
    scores,
    unlike,
)
from .load import RunFolder
from .load import number as finite
from .parts import Cell, missing, table
from .words import THIN, duration, esc, interval, metric_title, number, percent, quantity

Lines = Sequence[Headline]


def compare(lines: Lines, at: Strength | None, scored: Strength | None = None, chart: str = "") -> str:
    """Return "Compare.": a row for each run, the chart, paired differences, and all measures.

    Parameters
    ----------
    lines
        The runs with their headlines.
    at, scored
        Strength of the attacks and of the scores.
    chart
        Clean against attacked, drawn.
    """
    runs = [line.run for line in lines]
    every = _every(runs, at, scored)
    if not every:
        return missing("No run has records.")
    if len(runs) == 1:
        return (
            "<p>Only one run is in this report. With more run folders the same command compares them.</p>"
            f"<details><summary>Every measure of {esc(runs[0].label)}</summary>{every}</details>"
        )
    care = "".join(missing(f"Read with care: {why}.") for why in unlike(lines))
    care += missing(why) if (why := mixed_scores(runs, scored)) else ""
    return (
        f"{care}{_runs(lines, scored)}{chart}{_pairs(lines, at)}"
        f"<details><summary>Every measure of every run</summary>{every}</details>"
    )


def _runs(lines: Lines, scored: Strength | None) -> str:
    """Return a row for each run that can be sorted by any column."""
    suites = sorted({name for line in lines for name in scores(line.run, scored)})
    passed = any(_passes(line.run) is not None for line in lines)
    head = ["run", "right, no attack", "right, worst case"]
    head += [f"score ({suite})" for suite in suites]
    head += ["verdict", "training", "evaluation", *(["passes"] * passed)]
    rows = []
    for line in lines:
        run, found = line.run, scores(line.run, scored)
        word = word_of(line)
        row: list[object] = [run.label, _share(line.clean), _share(line.attacked)]
        for suite in suites:
            r = found.get(suite)
            span = interval(r["metric"], r["ci"]) if r else ""
            row.append(Cell(number(r["value"]), r["value"], span) if r else "–")
        row.append(Cell(name_of(word), float(WORST.index(word))))
        row += [_seconds(run.training_seconds), _seconds(run.evaluation_seconds)]
        if passed:
            count = _passes(run)
            row.append("–" if count is None else Cell(number(count), count))
        rows.append(row)
    text = table(head, rows, kind="runs", label="The runs; sort by any column")
    return (
        f'{text}<p class="note">Right: share of queries whose first result is of their class, with its '
        f"95{THIN}% interval. Worst case: the strongest attack that all runs faced.</p>"
    )


def _share(r: Record | None) -> object:
    return "–" if r is None else Cell(percent(r["value"]), r["value"], interval(r["metric"], r["ci"]))


def _seconds(seconds: float | None) -> object:
    return "–" if seconds is None else Cell(duration(seconds), seconds)


def _passes(run: RunFolder) -> float | None:
    """Return the forward and backward passes of training, where the log counts them."""
    shown = [finite(line, "passes") for line in (*run.steps[-1:], *run.epochs[-1:])]
    return max((n for n in shown if n is not None), default=None)


def _pairs(lines: Lines, at: Strength | None) -> str:
    """Return the differences of each run to one of them, query by query."""
    found = advice(lines)
    base = found.run if found is not None and found.run is not None else lines[0].run
    rows: dict[tuple[str, str, str], dict[str, Row]] = {}
    told, others = "", []
    for run in (line.run for line in lines if line.run is not base):
        try:
            pairs = _paired(base, run, at)
        except HoldfastError as error:
            why = str(error).partition(": ")[2] or str(error)
            told += missing(f"{run.label} and {base.label} cannot be compared query by query: {why}.")
            continue
        others.append(run.label)
        for row in pairs:
            if row.state == "clean" and row.metric != "recall@1":
                continue  # a part of a score's summand, and the same for all attacks
            attack = "" if row.state == "clean" else row.attack
            rows.setdefault((attack, row.metric, row.state), {}).setdefault(run.label, row)
    if not others:
        return f"<h3>Differences, query by query</h3>{told}"
    order = sorted(rows, key=lambda key: (key[2] != "clean", key[1] != "recall@1"))
    head = ["measure", base.label, *(f"{label} − {base.label}" for label in others)]
    body = []
    for key in order:
        attack, metric, state = key
        of = next(iter(rows[key].values()))
        where = "no attack" if state == "clean" else f"under {attack}"
        arrow = "↑" if of.higher_is_robust else "↓"
        first: list[object] = [Cell(metric_title(metric), None, f"{metric}, {where} {arrow}")]
        first.append(Cell(quantity(metric, of.a), of.a))
        body.append(first + [_difference(rows[key].get(label)) for label in others])
    text = table(head, body, kind="compare pairs", label="Paired differences")
    return (
        f"<h3>Differences, query by query</h3>"
        "<p>Both runs answered the same queries, so each difference is a mean over pairs, with its "
        f"95{THIN}% interval. What chance may explain is grey and says <em>within noise</em>.</p>"
        f'{told}{text}<p class="note">↑ higher is better, ↓ lower is better. Every row is tested by itself: '
        "of twenty without any difference, one is expected to stand out. Other trainings of the same recipe "
        "vary as well; that is not in the intervals.</p>"
    )


def _paired(base: RunFolder, run: RunFolder, at: Strength | None) -> list[Row]:
    """Compare two runs at one radius by every suite that both were attacked by; the last error is raised."""
    if base.path is None or run.path is None:
        raise HoldfastError("run: no folder to read the values of single queries from")
    eps = at.eps if at else None
    suites = [r["suite"] for r in base.records if r["state"] == "attacked" and eps in (None, r["eps"])]
    rows: list[Row] = []
    failed: HoldfastError | None = None
    for suite in dict.fromkeys(suites) or [None]:
        try:
            rows += compare_runs(base.path, run.path, suite=suite, eps=eps).rows
        except HoldfastError as error:
            failed = error
    if failed is not None and not rows:
        raise failed
    return rows


def _difference(row: Row | None) -> object:
    if row is None:
        return "–"
    c = row.comparison

    def shown(value: float) -> str:
        scaled = f"{100 * value:+.1f}" if row.share else f"{value:+.3f}"
        return scaled.replace("-", "−")

    unit = f"{THIN}points" if row.share else ""
    span = f"{shown(c.low)} to {shown(c.high)}"
    if not c.supported:
        return Cell(f"≈ {shown(c.difference)}{unit}", c.difference, f"within noise, {span}", "noise")
    better = "better" if row.verdict == "B better" else "worse"
    mark = "✓" if better == "better" else "✗"
    return Cell(f"{shown(c.difference)}{unit}", c.difference, f"{mark} {better}, {span}", better)


def _every(runs: Sequence[RunFolder], at: Strength | None, scored: Strength | None) -> str:
    """Return every metric of every run; the best in bold, what chance may explain in grey."""
    columns: list[dict[tuple[str, str, str], Record]] = []
    for run in runs:
        column = {(r["attack"], r["metric"], suite): r for suite, r in scores(run, scored).items()}
        column |= {("none", metric, ""): record for metric, record in benign(run).items()}
        column |= {(i.attack, i.metric, i.suite): i.attacked for i in items(run, at)}
        columns.append(column)
    keys = list(dict.fromkeys(key for column in columns for key in column))
    keys.sort(key=lambda key: (key[0] != WHOLE, key[0] != "none"))
    if not keys:
        return ""
    rows: list[list[object]] = []
    for key in keys:
        attack, metric, suite = key
        found = [column.get(key) for column in columns]
        record = next(r for r in found if r)
        arrow = "↑" if record["higher_is_robust"] else "↓"
        where = {"none": "no attack", WHOLE: "all attacks"}.get(attack, f"under {attack}")
        parts = [f"suite {suite}", where] if attack == WHOLE else [metric, where, *([suite] if suite else [])]
        name = Cell(metric_title(metric), None, f"{', '.join(parts)} {arrow}")
        rows.append([name, *_measured(found)])
    best = (
        "Bold: the best. Grey with ≈: the interval overlaps with that of the best. " if len(runs) > 1 else ""
    )
    note = (
        f"↑ higher is better, ↓ lower is better; beneath each value its 95{THIN}% interval. "
        f"{best}– not measured. {method(runs, at)}"
        f"{f' The score: {method(runs, scored)}' if scored and scored != at else ''}"
    )
    text = table(["metric", *(run.label for run in runs)], rows, kind="compare", label="Every measure")
    return f'{text}<p class="note">{esc(note)}</p>'


def _measured(found: Sequence[Record | None]) -> list[object]:
    """Return the cells of one metric."""
    there = [r for r in found if r]
    up = there[0]["higher_is_robust"]
    best = (max if up else min)(there, key=lambda r: r["value"])
    low, high = bounds(best)
    cells: list[object] = []
    for r in found:
        if r is None:
            cells.append("–")
            continue
        value, span, kind = quantity(r["metric"], r["value"]), interval(r["metric"], r["ci"]), ""
        if len(there) > 1 and r is best:
            kind = "best"
        elif len(there) > 1 and r["ci"] and best["ci"] and bounds(r)[1] >= low and bounds(r)[0] <= high:
            value, kind = f"≈ {value}", "noise"
        cells.append(Cell(value, r["value"], span, kind))
    return cells
