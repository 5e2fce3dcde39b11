"""The answer first: one sentence, the verdict on the measurement, three numbers, the run to prefer."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import Record
from .believe import judged
from .evidence import worst_of
from .facts import (
    Headline,
    Strength,
    advice,
    bounds,
    mixed_scores,
    recalls,
    scores,
    unlike,
)
from .load import RunFolder
from .parts import Cell, missing, table
from .words import (
    THIN,
    attack_title,
    budget,
    duration,
    esc,
    interval,
    join,
    number,
    of_100,
    percent,
)


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
    runs = [line.run for line in lines]
    suites = sorted({name for run in runs for name in scores(run, scored)})
    cards = "".join(_card(line, scored, suites) for line in lines)
    apart = missing(why) if (why := mixed_scores(runs, scored)) else ""
    one = " one" * (len(lines) == 1)
    return (
        f"{text}{judged(lines)}{apart}{_advice(lines)}"
        f'<div class="cards{one}">{cards}</div>{_notes(attacked, bool(suites))}{_ranked(lines, at)}'
    )


def _advice(lines: Sequence[Headline]) -> str:
    """Return which run to prefer and why, where there are several."""
    found = advice(lines)
    if found is not None:
        head = f"Recommended: {esc(found.run.label)}" if found.run else "No clear recommendation"
        link = "because " if found.run else ""
        return f'<p class="advice"><b>{head}</b>{", " if found.run else ". "}{link}{esc(found.why)}</p>'
    if len(lines) < 2:
        return ""
    why = unlike(lines) or ["fewer than two runs have both numbers"]
    return missing(f"No run is recommended: {join(why)}.")


def _notes(attacked: Sequence[Headline], scored: bool) -> str:
    """Return what the figures under attack are made of."""
    told = worst_of(attacked)
    if scored:
        told += (
            "The robustness score is 0 where every attack gets all it wants, 100 where none gets anything."
        )
    text = f'<p class="note">{esc(told)}</p>' if told else ""
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
    return text


def _card(line: Headline, scored: Strength | None, suites: Sequence[str]) -> str:
    """Return the numbers of one run and what they say in words."""
    return (
        f'<article class="card"><h3>{esc(line.run.label)}</h3><dl>'
        f"{_number('right without an attack', line.clean)}{_number('right in the worst case', line.attacked)}"
        f"<div><dt>training and evaluation</dt><dd>{_cost(line.run)}</dd></div>"
        f"{_scored(line.run, scored, suites)}</dl>{_words(line)}</article>"
    )


def _words(line: Headline) -> str:
    """Return in a sentence what the numbers of a run mean."""
    said = ""
    if line.clean and line.attacked:
        clean, after = line.clean["value"], line.attacked["value"]
        lost = of_100((clean - after) / clean) if clean > 0 and after < clean else "none"
        said = f"Of 100 queries that are right without an attack, the strongest attack takes away {lost}."
    return f"<p>{esc(said)}</p>" if said else ""


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


def _number(name: str, record: Record | None) -> str:
    if record is None:
        return f"<div><dt>{name}</dt><dd>– <small>not measured</small></dd></div>"
    attacked = record["state"] == "attacked"
    how = f' title="{esc(attack_title(record["attack"]))}"' if attacked else ""
    name = f"{esc(name)} ({esc(record['attack'])})" if attacked else esc(name)
    span = f"<small>{interval(record['metric'], record['ci'])}</small>" if record["ci"] else ""
    kind = "attacked" if attacked else "clean"
    bar = f'<span class="bar {kind}" style="--v:{100 * min(max(record["value"], 0.0), 1.0):.1f}%"></span>'
    return f"<div{how}><dt>{name}</dt><dd>{percent(record['value'])} {span}{bar}</dd></div>"


def _cost(run: RunFolder) -> str:
    train, evaluate = run.training_seconds, run.evaluation_seconds
    if train is None and evaluate is None:
        return "– <small>not recorded</small>"
    both = duration((train or 0.0) + (evaluate or 0.0))
    return f"{both} <small>{duration(train)} + {duration(evaluate)}</small>"


def _ranked(lines: Sequence[Headline], at: Strength | None) -> str:
    """Return the share of queries with a right image among the first k, without and under attack."""
    found = {line.run.label: recalls(line, at) for line in lines}
    if not any(len(ranked) > 1 for ranked in found.values()):
        return ""
    ks = sorted({r.k for ranked in found.values() for r in ranked})
    several = len(lines) > 1
    robust = any(r.attacked for ranked in found.values() for r in ranked if r.k > 1 or not several)
    head = ["right image"]
    for line in lines:
        of = f"{line.run.label}, " if several else ""
        head += [f"{of}no attack", *([f"{of}worst case"] if robust else [])]
    rows = []
    for k in ks:
        row: list[object] = [Cell("first" if k == 1 else f"among the first {k}", float(k))]
        for ranked in found.values():
            one = next((r for r in ranked if r.k == k), None)
            row.append(_cell(one.clean if one else None))
            if robust:
                row.append(_cell(one.attacked if one else None))
        rows.append(row)
    more = "Under attack only the first place was measured; see above."
    if robust:
        more = "Worst case: the lowest over the attacks that measured it; – not measured."
    return (
        f"<h3>How often a right image comes back</h3>{table(head, rows, kind='compare', label='Recall at k')}"
        '<p class="note">Recall@k: share of queries with an image of their own class among the first k, '
        f"with its 95{THIN}% interval. {esc(more)}</p>"
    )


def _cell(r: Record | None) -> object:
    return "–" if r is None else Cell(percent(r["value"]), r["value"], interval(r["metric"], r["ci"]))
