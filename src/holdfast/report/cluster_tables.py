"""Tables and charts of what attacks do to clusters, for one run and for several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..results import Record
from . import interactive, plots
from .cluster_facts import ANEW, COLUMNS, FLIP, NO_ATTACK, WORST, Measured, headline
from .cluster_files import Clustering
from .facts import Strength, bounds, unlike
from .parts import data_table, figure, missing
from .words import THIN, attack_title, budget, esc, interval, join, percent, quantity

FROM = "flip from "
"""Metrics of attacks by transfer, followed by the name of the encoder that they were made on."""


def comparison(found: Sequence[Measured]) -> str:
    """Return the runs side by side: each run's worst case, then values without an attack."""
    care = "".join(missing(f"Read with care: {why}.") for why in unlike([headline(m) for m in found]))
    note = (
        f"↑ higher is better, ↓ lower is better; beneath each value its 95{THIN}% interval, for clusters "
        "formed anew the spread over five seeds. Bold: the best. Grey with ≈: the interval overlaps with "
        "that of the best. – not measured."
    )
    anew = _beside(found, ANEW)
    folded = f"<details><summary>The same if the pictures are clustered anew</summary>{anew}</details>"
    return (
        f"<h3>The runs side by side</h3>{care}{_beside(found, COLUMNS)}"
        f'<p class="note">{esc(note)}</p>{folded if anew else ""}'
    )


def _beside(found: Sequence[Measured], names: Mapping[str, str]) -> str:
    """Return a table of measures x runs; empty where no run has any."""
    head = "".join(f'<th scope="col">{esc(m.run.label)}</th>' for m in found)
    body = []
    for attacked, where in ((True, "under the worst attack"), (False, NO_ATTACK)):
        for metric, name in names.items():
            if metric == FLIP and not attacked:
                continue
            cells = [m.cell(m.worst if attacked else NO_ATTACK, metric) for m in found]
            first = next((r for r in cells if r), None)
            if first is not None:
                title = f"{esc(name)} <small>{where} {'↑' if first['higher_is_robust'] else '↓'}</small>"
                body.append(f'<tr><th scope="row">{title}</th>{"".join(_compared(cells))}</tr>')
    if not body:
        return ""
    return (
        f'<div class="scroll"><table class="compare"><thead><tr><th scope="col">measure</th>{head}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _compared(found: Sequence[Record | None]) -> list[str]:
    """Return the cells of one measure: the best in bold, what chance may explain in grey."""
    there = [r for r in found if r]
    up = there[0]["higher_is_robust"]
    best = (max if up else min)(there, key=lambda r: r["value"])
    low, high = bounds(best)
    cells = []
    for r in found:
        if r is None:
            cells.append("<td>–</td>")
            continue
        value = quantity(r["metric"], r["value"])
        span = f"<small>{interval(r['metric'], r['ci'])}</small>"
        kind = ""
        if len(there) > 1 and r is best:
            value = f"<b>{value}</b>"
        elif len(there) > 1 and r["ci"] and best["ci"] and bounds(r)[1] >= low and bounds(r)[0] <= high:
            value, kind = f"≈ {value}", ' class="noise"'
        cells.append(f"<td{kind}>{value}{span}</td>")
    return cells


def attacks(m: Measured, index: int, *, opened: bool) -> str:
    """Return the chart of all attacks, the table of all measures, and that of clusters formed anew."""
    flips = [(a, each[FLIP]) for a, each in m.attacked.items() if FLIP in each]
    if not flips:
        return missing("No attack measured how many pictures leave their cluster.")
    (first, flip), *others = flips
    hardest = max(others, key=lambda pair: pair[1]["value"], default=None)
    title = f"{percent(flip['value'])} of pictures leave their cluster in the worst case"
    if first not in WORST:
        title = f"{first} makes {percent(flip['value'])} of pictures leave their cluster"
    elif hardest is not None:
        title += f", {percent(hardest[1]['value'])} by {hardest[0]} alone"
    dots = [
        plots.Dots(
            attack_title(a), 100.0, 100 * (1 - r["value"]),
            f"<b>{percent(1 - r['value'])}</b> ({_kept(r)})<br>n = {r['n']}",
        )
        for a, r in flips
    ]  # fmt: skip
    drawn = ([("Under each attack", dots)], "pictures still in their cluster (%)", (0.0, 100.0))
    svg = plots.dot_plot(*drawn, title, f"flips-{index}")
    caption = (
        "Share of pictures that are still in the cluster where they were without an attack (100 %, open blue "
        "dot); the worst case counts a picture as lost if any one attack moves it. "
        f"{_method(m)}"
    )
    rows = [[a, percent(1 - r["value"]), _kept(r), r["n"]] for a, r in flips]
    table = data_table(["attack", "stay", "95 % interval", "queries"], rows)
    chart = figure(title, svg, caption, table, interactive.dots(*drawn))
    return chart + _table(m, opened=opened) + _anew(m, opened=opened)


def _kept(r: Record) -> str:
    return interval(FLIP, [1 - r["ci"][1], 1 - r["ci"][0]]) if r["ci"] else "–"


def _method(m: Measured) -> str:
    records = [r for each in m.attacked.values() for r in each.values()]
    steps, suites = sorted({r["steps"] for r in records}), sorted({r["suite"] for r in records})
    return (
        f"Attacked by the suite{'s' * (len(suites) > 1)} {join(suites)} with "
        f"{budget(records[0]['norm'], records[0]['eps'])}, in {join([str(s) for s in steps])} steps."
    )


def _table(m: Measured, *, opened: bool) -> str:
    """Return every attack x every measure, worst cases first, with intervals."""
    attacks = [NO_ATTACK, *m.attacked]
    there = [metric for metric in COLUMNS if any(m.cell(a, metric) for a in attacks)]
    first = {metric: next(r for a in attacks if (r := m.cell(a, metric))) for metric in there}
    arrows = {metric: "↑" if r["higher_is_robust"] else "↓" for metric, r in first.items()}
    head = [f"{COLUMNS[metric]}\u00a0{arrows[metric]}" for metric in there]
    rows = [
        (a, [_cell(m.cell(a, metric), metric) if a != NO_ATTACK or metric != FLIP else "<td>–</td>"
             for metric in there])
        for a in _worst_first(m)
    ]  # fmt: skip
    note = (
        f"Every attack and every measure; beneath each value its 95{THIN}% interval. ↑ higher is better, ↓ "
        "lower is better. – not measured."
    )
    if len(there) > 1:
        note += (
            " Right cluster: the cluster stands for the picture's class, clusters and classes paired "
            "one-to-one or each cluster called by its commonest class. Purity, NMI, AMI and ARI compare "
            "clusters and classes as a whole; recall@1 and MAP@R search among pictures."
        )
    return _grid(f"All measures of {m.run.label}", head, rows, note, opened=opened)


def _anew(m: Measured, *, opened: bool) -> str:
    """Return what comes out if the queries are clustered again, with the frozen values beside."""
    attacks = [NO_ATTACK, *m.attacked]
    there = [metric for metric in ANEW if any(m.cell(a, metric) for a in attacks)]
    if not there:
        return ""
    rows = []
    for a in _worst_first(m):
        cells = []
        for metric in there:
            anew, frozen = m.cell(a, metric), m.cell(a, metric.removesuffix("-t"))
            if anew is None:
                cells.append("<td>–</td>")
                continue
            half = f" ±{THIN}{50 * (anew['ci'][1] - anew['ci'][0]):.1f}" if anew["ci"] else ""
            beside = f"<small>frozen {quantity(FLIP, frozen['value'])}</small>" if frozen else ""
            cells.append(f"<td>{quantity(FLIP, anew['value'])}<small>{half}</small>{beside}</td>")
        if any(m.cell(a, metric) for metric in there):
            rows.append((a, cells))
    note = (
        "Here the attacked pictures themselves are clustered again, as if no centres had been kept. Beneath: "
        "±, half the spread over five random starts, and the value with the frozen centres."
    )
    return _grid(
        f"All measures of {m.run.label} if the pictures are clustered anew",
        [ANEW[x] for x in there],
        rows,
        note,
        opened=opened,
    )


def _worst_first(m: Measured) -> list[str]:
    """Return the rows of a table: worst cases, then no attack, then the single attacks."""
    worst = [a for a in m.attacked if a in WORST]
    return [*worst, NO_ATTACK, *(a for a in m.attacked if a not in WORST)]


def _cell(record: Record | None, metric: str) -> str:
    if record is None:
        return "<td>–</td>"
    return f"<td>{quantity(metric, record['value'])}<small>{interval(metric, record['ci'])}</small></td>"


def _grid(
    name: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], note: str, *, opened: bool
) -> str:
    """Return a table of many columns that scrolls under its first one; cells are HTML already."""
    stay = 'style="position:sticky;left:0;background:var(--ground);min-width:6.5rem;'
    stay += 'border-bottom:0;box-shadow:inset 0 -1px var(--line)"'  # borders do not stick
    top = "".join(f'<th scope="col">{esc(h)}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row" {stay}>{f"<b>{esc(a)}</b>" if a in WORST else esc(a)}</th>{"".join(cells)}</tr>'
        for a, cells in rows
    )
    return (
        f'<details{" open" if opened else ""}><summary>{esc(name)}</summary><div class="scroll">'
        f'<table class="compare"><thead><tr><th scope="col" {stay}>attack</th>{top}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="note">{esc(note)}</p></details>'
    )


def transfers(m: Measured) -> str:
    """Return how many pictures attacks made on other encoders move, folded; nothing where not measured."""
    found = [
        (a, r) for a, each in m.attacked.items() for metric, r in each.items() if metric.startswith(FROM)
    ]
    rows = [[r["metric"].removeprefix(FROM), a, percent(r["value"]), interval(FLIP, r["ci"]) or "–"]
            for a, r in sorted(found, key=lambda f: -f[1]["value"])]  # fmt: skip
    head = ["made on", "attack", "leave their cluster", "95 % interval"]
    return data_table(head, rows, f"Attacks made on other encoders ({len(rows)})") if rows else ""


def elsewhere(c: Clustering, at: Strength | None) -> str:
    """Return the worst cases at other strengths, folded."""
    rows = []
    for r in c.records:
        told = r["state"] == "attacked" and r["attack"] in WORST and r["metric"] in (FLIP, "accuracy")
        if told and at is not None and (r["norm"], r["eps"]) != at[:2]:
            name = COLUMNS[r["metric"]]
            rows.append([budget(r["norm"], r["eps"]), r["attack"], name, percent(r["value"]),
                         interval(r["metric"], r["ci"]) or "–", r["steps"]])  # fmt: skip
    head = ["strength", "attack", "measure", "value", "95 % interval", "steps"]
    return data_table(head, rows, f"Worst cases at other strengths ({len(rows)})") if rows else ""
