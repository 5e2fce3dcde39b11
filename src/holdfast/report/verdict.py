"""The answer first: one sentence, three numbers, the run to prefer; and the runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import Record
from .evidence import worst_of
from .facts import (
    WHOLE,
    Headline,
    Strength,
    advice,
    benign,
    bounds,
    headlines,
    items,
    method,
    mixed_scores,
    scores,
    unlike,
)
from .load import RunFolder
from .parts import data_table, missing
from .words import (
    THIN,
    attack_title,
    budget,
    duration,
    esc,
    interval,
    join,
    metric_title,
    number,
    of_100,
    percent,
    quantity,
)

LIMITS = (
    "The measurement itself was not checked, and each figure under attack is what one attack found. Read "
    "these figures as upper bounds: a stronger attack may find more."
)
MEANING = {
    "TRUSTWORTHY": "The measurement was checked, and nothing speaks against it.",
    "UNDERPOWERED": "The figures may be right, but the evidence is thin: few queries, or many warnings.",
    "OVERESTIMATED": "A check failed that a sound measurement passes: the true figures are lower. Read these "
    "as upper bounds only.",
    "VACUOUS": "The embeddings have collapsed. What does not tell images apart cannot be fooled, so these "
    "figures say nothing about safety.",
    "INVALID": "The measurement is faulty: these figures mean nothing.",
}
WORST = ("INVALID", "VACUOUS", "OVERESTIMATED", "UNDERPOWERED", "UNCHECKED", "TRUSTWORTHY")


def safe(lines: Sequence[Headline], at: Strength | None, scored: Strength | None = None) -> str:
    """Return "Is my model safe?": one sentence, the limits of the measurement, three numbers, the advice."""
    attacked = [line for line in lines if line.attacked]
    if at is None or not attacked:
        text = missing("No run was attacked yet, so nothing can be said about its safety.")
    else:
        text = f'<p class="answer">{_sentence(attacked, at, named=len(lines) > 1)}</p>'
        rest = [line.run.label for line in lines if not line.attacked]
        if rest:
            text += missing(f"Not measured with this attack: {join(rest)}.")
        if several := worst_of(attacked):
            text += f'<p class="note">{esc(several)}</p>'
        lower = [
            f"{line.run.label} {percent(r['value'])} ({r['attack']}, {r['suite']})"
            for line in attacked
            if (r := line.lower)
        ]
        if lower:
            text += (
                f'<p class="note">Fewer are right under attacks that not all runs faced alike: '
                f"{esc(join(lower))}.</p>"
            )
    badge = judged(lines)
    runs = [line.run for line in lines]
    suites = sorted({name for run in runs for name in scores(run, scored)})
    cards = "".join(
        f'<article class="card"><h3>{esc(line.run.label)}</h3><dl>'
        f"{_three('right without an attack', line.clean)}{_three('right under attack', line.attacked)}"
        f"{_scored(line.run, scored, suites)}"
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
        chosen = missing(f"No run is recommended: {join(why)}.")
    if apart := mixed_scores(runs, scored):
        chosen = missing(apart) + chosen
    return f'{text}{badge}<div class="cards">{cards}</div>{chosen}'


def _scored(run: RunFolder, at: Strength | None, suites: Sequence[str]) -> str:
    """Return a run's robustness scores with the names of their suites."""
    if not suites:
        return ""
    found = scores(run, at)
    rows = [
        f"<div><dt>robustness score ({esc(suite)})</dt>"
        f"<dd>{number(r['value'])} <small>of 100</small> <small>{interval(r['metric'], r['ci'])}</small></dd>"
        "</div>"
        for suite, r in found.items()
    ]
    return "".join(rows) or "<div><dt>robustness score</dt><dd>– <small>not measured</small></dd></div>"


def _sentence(lines: Sequence[Headline], at: Strength, *, named: bool) -> str:
    """Return the answer in one sentence, and what happens without an attacker in another."""
    wrong, before = [], []
    for line in lines:
        assert line.attacked is not None  # the caller keeps only attacked runs
        low, high = bounds(line.attacked)
        span = f"{100 * (1 - high):.0f} to {100 * (1 - low):.0f}" if line.attacked["ci"] else "no interval"
        wrong.append((esc(line.run.label), of_100(1 - line.attacked["value"]), span))
        if line.clean:
            before.append(f"{of_100(1 - line.clean['value'])}" + (f" ({esc(line.run.label)})" * named))
    name, count, span = wrong[0]
    noun = f" of <b>{name}</b>" if named else ""
    interval_95 = "no interval" if span == "no interval" else f"95{THIN}% interval {span}"
    first = (
        f"With {esc(budget(*at[:2]))}, an attacker makes a wrong image come first for <b>{count} of 100</b> "
        f"queries{noun} <small>({interval_95})</small>"
    )
    others = [f"<b>{name}</b>: <b>{count}</b> <small>({span})</small>" for name, count, span in wrong[1:]]
    text = first + ("; of " + ", of ".join(others) if others else "") + "."
    return text + (
        f' <small class="plainly">Without an attack it is {join(before)} of 100.</small>' if before else ""
    )


def judged(lines: Sequence[Headline]) -> str:
    """Return the verdict on each run's measurement, and what the checks found, folded."""
    words = {line.run.label: _word(line) for line in lines}
    several = len(set(words.values())) > 1
    text = ""
    for word in sorted(set(words.values()), key=WORST.index):
        of = join([label for label, w in words.items() if w == word])
        said = f"{of}: " if several else ""
        name = "Not checked" if word == "UNCHECKED" else word.capitalize()
        kind = " bad" if WORST.index(word) < WORST.index("UNDERPOWERED") else ""
        meaning = esc(said + MEANING.get(word, LIMITS))
        text += f'<p class="verdict{kind}"><b>{esc(name)}</b> <span>{meaning}</span></p>'
    return text + "".join(_checks(line, named=len(lines) > 1) for line in lines)


def _word(line: Headline) -> str:
    """Return the verdict of the headline under attack, or of the worst of the run."""
    if line.attacked is not None:
        return _known(line.attacked["verdict"])
    words = [_known(r["verdict"]) for r in line.run.records if r["state"] == "attacked"]
    return min(words, key=WORST.index, default="UNCHECKED")


def _known(word: str) -> str:
    return word if word in WORST else "UNCHECKED"


SYMBOLS = {"pass": "✓ passed", "warn": "! warning", "fail": "✗ failed", "skipped": "– not run"}


def _checks(line: Headline, named: bool) -> str:
    """Return the table of what the checks of one run found, folded; nothing where it was not checked."""
    if line.attacked is None:
        return ""
    mended = "/REPAIRED" if line.attacked["attack"] == "REPAIRED" else ""
    found = line.run.verdicts.get(line.attacked["fingerprint"] + mended)
    if found is None:
        return ""
    order = {"fail": 0, "warn": 1, "pass": 2, "skipped": 3}
    rows = sorted(found["findings"], key=lambda f: order.get(f["status"], 4))
    count = {status: sum(f["status"] == status for f in rows) for status in SYMBOLS}
    head = f"{line.run.label}: " if named else ""
    head += f"{count['pass']} checks passed, {count['warn']} warned, {count['fail']} failed, "
    head += f"{count['skipped']} could not be run"
    if found["applied"]:
        done = "; ".join(f"{name}: {what}" for name, what in found["applied"].items())
        head += f" (after repairs, {done})"
    body = []
    for f in rows:
        to_do = f["remedy"] if f["status"] in ("fail", "warn") else ""
        body.append([f"{f['id']} {f['name']}", SYMBOLS.get(f["status"], f["status"]), f["detail"], to_do])
    return data_table(["check", "result", "what was seen", "what to do"], body, name=head)


def _three(name: str, record: Record | None) -> str:
    if record is None:
        return f"<div><dt>{name}</dt><dd>– <small>not measured</small></dd></div>"
    attacked = record["state"] == "attacked"
    how = f' title="{esc(attack_title(record["attack"]))}"' if attacked else ""
    name = f"{esc(name)} ({esc(record['attack'])})" if attacked else esc(name)
    span = f"<small>{interval(record['metric'], record['ci'])}</small>" if record["ci"] else ""
    return f"<div{how}><dt>{name}</dt><dd>{percent(record['value'])} {span}</dd></div>"


def _cost(run: RunFolder) -> str:
    train, evaluate = run.training_seconds, run.evaluation_seconds
    if train is None and evaluate is None:
        return "– <small>not recorded</small>"
    both = duration((train or 0.0) + (evaluate or 0.0))
    return f"{both} <small>{duration(train)} + {duration(evaluate)}</small>"


def compare(runs: Sequence[RunFolder], at: Strength | None, scored: Strength | None = None) -> str:
    """Return "Compare.": every metric of every run; the best in bold, what chance may explain in grey."""
    columns: list[dict[tuple[str, str, str], Record]] = []
    for run in runs:
        column = {(r["attack"], r["metric"], suite): r for suite, r in scores(run, scored).items()}
        column |= {("none", metric, ""): record for metric, record in benign(run).items()}
        column |= {(i.attack, i.metric, i.suite): i.attacked for i in items(run, at)}
        columns.append(column)
    keys = list(dict.fromkeys(key for column in columns for key in column))
    keys.sort(key=lambda key: (key[0] != WHOLE, key[0] != "none"))
    if not keys:
        return missing("No run has records.")
    head = "".join(f'<th scope="col">{esc(run.label)}</th>' for run in runs)
    body = []
    for key in keys:
        attack, metric, suite = key
        found = [column.get(key) for column in columns]
        record = next(r for r in found if r)
        arrow = "↑" if record["higher_is_robust"] else "↓"
        where = {"none": "no attack", WHOLE: "all attacks"}.get(attack, f"under {attack}")
        parts = [f"suite {suite}", where] if attack == WHOLE else [metric, where, *([suite] if suite else [])]
        told = ", ".join(parts)
        name = f"{esc(metric_title(metric))} <small>{esc(told)} {arrow}</small>"
        body.append(f'<tr><th scope="row">{name}</th>{"".join(_compared(found))}</tr>')
    more = "".join(missing(f"Read with care: {why}.") for why in unlike(headlines(runs, at)))
    more += missing(why) if (why := mixed_scores(runs, scored)) else ""
    best = (
        "Bold: the best. Grey with ≈: the interval overlaps with that of the best. " if len(runs) > 1 else ""
    )
    note = (
        f"↑ higher is better, ↓ lower is better; beneath each value its 95{THIN}% interval. "
        f"{best}– not measured. {method(runs, at)}"
        f"{f' The score: {method(runs, scored)}' if scored and scored != at else ''}"
    )
    return (
        f'{more}<div class="scroll"><table class="compare"><thead><tr><th scope="col">metric</th>{head}</tr>'
        f'</thead><tbody>{"".join(body)}</tbody></table></div><p class="note">{esc(note)}</p>'
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
