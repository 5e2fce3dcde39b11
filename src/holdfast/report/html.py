"""Write the report: the answer first, then the evidence, then how to get it again."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from .. import files
from .._version import __version__
from ..errors import RunError
from ..results import Record
from . import sections
from .facts import Headline, Strength, advice, benign, bounds, headlines, items, strength, unlike
from .load import RunFolder, load_runs
from .words import (
    attack_title,
    budget,
    duration,
    esc,
    interval,
    join,
    metric_title,
    of_100,
    percent,
    quantity,
)

LIMITS = (
    "The automatic check of the measurement itself is not part of this version, and robustness was measured "
    "with a single attack. The figures under attack are therefore upper bounds: a stronger attack may find more."
)


def write_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write one self-contained HTML file about one or more runs.

    Reads only the files of the run folders (``run.json``, ``log.jsonl``, ``records.jsonl``,
    ``exhibits/*.npz``), never models. The same folders give the same bytes. The page makes no request and
    holds no script; names and texts of the runs are escaped.

    Parameters
    ----------
    runs
        Run folders, in the order in which they shall appear.
    out
        The file to write; it appears at once. A folder gets a ``report.html``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RunError
        If a run folder is missing or empty, or was written by another schema.
    CorruptFile
        If a record or ``run.json`` cannot be read. Unreadable examples are named in the report instead.
    """
    out = Path(out)
    if out.is_dir():
        out = out / "report.html"
    folders = load_runs(runs)
    try:
        files.write_text(out, render(folders))
    except OSError as error:
        raise RunError(f"{out}: the report cannot be written: {error.strerror}") from error
    return out


def render(runs: Sequence[RunFolder]) -> str:
    """Return the report of loaded run folders as HTML."""
    at = strength(runs)
    lines = headlines(runs, at)
    parts = (
        ("safe", "Is my model safe?", safe(lines, at)),
        ("show", "Show me.", sections.show(runs)),
        ("pushed", "How far can it be pushed?", sections.pushed(lines, at)),
        ("weak", "Where is it weak?", sections.weak(runs, at)),
        ("training", "What happened in training?", sections.training(runs)),
        ("compare", "Compare.", compare(runs, at)),
        ("again", "How do I get this again?", sections.again(runs)),
    )
    template = resources.files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=esc("Holdfast report: " + join([run.label for run in runs])),
        runs=esc(join([run.label for run in runs])),
        nav="".join(f'<a href="#{key}">{esc(name)}</a>' for key, name, _ in parts),
        body="\n".join(
            f'<section id="{key}"><h2>{esc(name)}</h2>\n{html}\n</section>' for key, name, html in parts
        ),
        version=esc(__version__),
    )


def safe(lines: Sequence[Headline], at: Strength | None) -> str:
    """Return "Is my model safe?": one sentence, the limits of the measurement, three numbers, the advice."""
    attacked = [line for line in lines if line.attacked]
    if at is None or not attacked:
        text = sections.missing("No run was attacked yet, so nothing can be said about its safety.")
    else:
        text = f'<p class="answer">{_sentence(attacked, at)}</p>'
        rest = [line.run.label for line in lines if not line.attacked]
        if rest:
            text += sections.missing(f"Not measured with this attack: {join(rest)}.")
    badge = f'<p class="verdict"><b>Not checked</b> <span>{esc(LIMITS)}</span></p>'
    cards = "".join(
        f'<article class="card"><h3>{esc(line.run.label)}</h3><dl>'
        f"{_three('right without an attack', line.clean)}{_three('right under attack', line.attacked)}"
        f"<div><dt>training and evaluation</dt><dd>{_cost(line.run)}</dd></div></dl></article>"
        for line in lines
    )
    found = advice(lines)
    chosen = ""
    if found is not None:
        head = f"Recommended: {esc(found.run.label)}" if found.run else "No clear recommendation"
        link = "because " if found.run else ""
        chosen = f'<p class="advice"><b>{head}</b>{", " if found.run else ". "}{link}{esc(found.why)}</p>'
    elif len(lines) > 1:
        why = unlike(lines) or ["fewer than two runs have both numbers"]
        chosen = sections.missing(f"No run is recommended: {join(why)}.")
    return f'{text}{badge}<div class="cards">{cards}</div>{chosen}'


def _sentence(lines: Sequence[Headline], at: Strength) -> str:
    """Return the answer in one sentence, and what happens without an attacker in another."""
    wrong, before = [], []
    for line in lines:
        assert line.attacked is not None  # the caller keeps only attacked runs
        low, high = bounds(line.attacked)
        span = f"{100 * (1 - high):.0f} to {100 * (1 - low):.0f}" if line.attacked["ci"] else "no interval"
        wrong.append((esc(line.run.label), of_100(1 - line.attacked["value"]), span))
        if line.clean:
            before.append(
                f"{of_100(1 - line.clean['value'])}" + (f" ({esc(line.run.label)})" * (len(lines) > 1))
            )
    name, count, span = wrong[0]
    noun = f" of <b>{name}</b>" if len(wrong) > 1 else ""
    interval_95 = "no interval" if span == "no interval" else f"95{chr(0x202F)}% interval {span}"
    first = (
        f"With {esc(budget(*at))}, an attacker makes a wrong image come first for <b>{count} of 100</b> "
        f"queries{noun} <small>({interval_95})</small>"
    )
    others = [f"<b>{name}</b>: <b>{count}</b> <small>({span})</small>" for name, count, span in wrong[1:]]
    text = first + ("; of " + ", of ".join(others) if others else "") + "."
    return text + (f" <small>Without an attack it is {join(before)} of 100.</small>" if before else "")


def _three(name: str, record: Record | None) -> str:
    if record is None:
        return f"<div><dt>{name}</dt><dd>– <small>not measured</small></dd></div>"
    how = (
        ""
        if record["attack"] == "none" or record["state"] == "clean"
        else f' title="{esc(attack_title(record["attack"]))}"'
    )
    span = f"<small>{interval(record['metric'], record['ci'])}</small>" if record["ci"] else ""
    return f"<div{how}><dt>{name}</dt><dd>{percent(record['value'])} {span}</dd></div>"


def _cost(run: RunFolder) -> str:
    train, evaluate = run.training_seconds, run.evaluation_seconds
    if train is None and evaluate is None:
        return "– <small>not recorded</small>"
    both = duration((train or 0.0) + (evaluate or 0.0))
    return f"{both} <small>{duration(train)} + {duration(evaluate)}</small>"


def compare(runs: Sequence[RunFolder], at: Strength | None) -> str:
    """Return "Compare.": every metric of every run; the best in bold, what chance may explain in grey."""
    columns: list[dict[tuple[str, str], Record]] = []
    for run in runs:
        column = {("none", metric): record for metric, record in benign(run).items()}
        column |= {(i.attack, i.metric): i.attacked for i in items(run, at) if i.attacked}
        columns.append(column)
    keys = list(dict.fromkeys(key for column in columns for key in column))
    if not keys:
        return sections.missing("No run has records.")
    head = "".join(f'<th scope="col">{esc(run.label)}</th>' for run in runs)
    body = []
    for attack, metric in keys:
        found = [column.get((attack, metric)) for column in columns]
        record = next(r for r in found if r)
        arrow = "↑" if record["higher_is_robust"] else "↓"
        where = "no attack" if attack == "none" else f"under {attack}"
        name = f"{esc(metric_title(metric))} <small>{esc(metric)}, {esc(where)} {arrow}</small>"
        body.append(f'<tr><th scope="row">{name}</th>{"".join(_compared(found))}</tr>')
    under = f" Attacked with {budget(*at)}." if at else ""
    more = "".join(sections.missing(f"Read with care: {why}.") for why in unlike(headlines(runs, at)))
    note = (
        f"↑ higher is better, ↓ lower is better; beneath each value its 95{chr(0x202F)}% interval. "
        + (
            "Bold: the best. Grey with ≈: the interval overlaps with that of the best. "
            if len(runs) > 1
            else ""
        )
        + "– not measured."
        + under
    )
    return (
        f'{more}<div class="scroll"><table class="compare"><thead><tr><th scope="col">metric</th>{head}</tr></thead>'
        f'<tbody>{"".join(body)}</tbody></table></div><p class="note">{esc(note)}</p>'
    )


def _compared(found: Sequence[Record | None]) -> list[str]:
    """Return the cells of one metric."""
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
