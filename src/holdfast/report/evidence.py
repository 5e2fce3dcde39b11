"""The evidence: examples, what an attack takes away, and where the model is weak."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import Record
from . import plots
from .facts import Headline, Item, Strength, bounds, items, method
from .images import strips
from .load import RunFolder
from .parts import data_table, figure, missing
from .words import (
    ATTACKS,
    attack_title,
    esc,
    interval,
    is_share,
    metric_title,
    number,
    percent,
    quantity,
)


def show(runs: Sequence[RunFolder]) -> str:
    """Return "Show me.": strips of stored examples for each run."""
    parts = [
        "<p>The change is drawn on grey: grey is no change, black and white are the largest change allowed. "
        "A green edge and ✓ mark a gallery image of the right class, a red dashed edge and ✗ a wrong one; "
        "the number beneath is its distance. The examples were picked for what they show (worst, middle, "
        "held), as far as possible from queries that were right before; they are not a fair sample.</p>"
    ]
    for run in runs:
        parts.append(f"<h3>{esc(run.label)}</h3>")
        parts += [missing(note) for note in run.notes]
        if not run.exhibits:
            parts.append(missing("No examples were stored with this run."))
        for attack in sorted(run.exhibits, key=lambda a: (a != "ES", a)):
            exhibit = run.exhibits[attack]
            about = ATTACKS.get(attack, ("", ""))[1]
            if attack == "ES":
                parts.append(f"<p>ES {esc(about)}</p>{strips(exhibit)}")
            else:
                parts.append(
                    f"<details><summary>{esc(attack_title(attack))}</summary>"
                    f"<p>{esc(f'{attack} {about}' if about else attack)}</p>{strips(exhibit, 3)}</details>"
                )
    return "".join(parts)


def pushed(lines: Sequence[Headline], at: Strength | None) -> str:
    """Return "How far can it be pushed?": clean and attacked recall@1 side by side."""
    if at is None or not any(line.attacked for line in lines):
        return missing("No run has a measured attack on recall@1.")

    def bar(record: Record | None) -> plots.Bar:
        return plots.Bar(None) if record is None else plots.Bar(record["value"], *bounds(record))

    attacked = [(line.attacked["value"], line) for line in lines if line.attacked]
    high, low = max(attacked, key=lambda a: a[0]), min(attacked, key=lambda a: a[0])
    if len(attacked) == 1:
        clean = high[1].clean
        fall = f"from {percent(clean['value'])} to " if clean else "to "
        title = f"The attack takes {high[1].run.label} {fall}{percent(high[0])} of queries right"
    else:
        title = (
            f"Under attack {high[1].run.label} keeps {percent(high[0])} of queries right, "
            f"{low[1].run.label} {percent(low[0])}"
        )
    groups = [(line.run.label, bar(line.clean), bar(line.attacked)) for line in lines]
    rows = [[line.run.label, *_cells(line.clean), *_cells(line.attacked)] for line in lines]
    return figure(
        title,
        plots.paired_bars(groups, title, "recall"),
        "Each bar is the share of queries whose first result is right; the thin line is the 95 % interval. "
        f"The longer the lower bar, the safer. {method([line.run for line in lines], at)} Only this strength "
        "is shown.",
        data_table(
            ["run", "no attack", "95 % interval", "queries", "attacked", "95 % interval", "queries"], rows
        ),
    )


def _cells(record: Record | None) -> list[str]:
    if record is None:
        return ["–", "–", "–"]
    metric = record["metric"]
    span = interval(metric, record["ci"]) or "–"
    return [
        quantity(metric, record["value"]),
        span,
        number(record["n"]) if record["n"] > 999 else str(record["n"]),
    ]


def weak(runs: Sequence[RunFolder], at: Strength | None) -> str:
    """Return "Where is it weak?": every attacked quantity before and after, sorted by what is lost."""
    found = [(run, item) for run in runs for item in items(run, at)]
    if not found or at is None:
        return missing("No run has records of an attack.")
    parts = []
    for shares, unit, name in ((True, "%", "shares"), (False, "distance units", "distances")):
        keys: dict[tuple[str, str], list[tuple[RunFolder, Item]]] = {}
        for run, item in found:
            if is_share(item.metric) == shares:
                keys.setdefault((item.attack, item.metric), []).append((run, item))
        if not keys:
            continue
        order = sorted(keys, key=lambda key: (-max(_loss(item) for _, item in keys[key]), key))
        scale = 100.0 if shares else 1.0
        groups, rows = [], []
        for key in order:
            better = "higher" if keys[key][0][1].attacked["higher_is_robust"] else "lower"
            heading = f"{key[0]}: {metric_title(key[1])} ({better} is safer)"
            dots = []
            for run, item in keys[key]:
                clean = scale * item.clean["value"] if item.clean else None
                dots.append(plots.Dots(run.label, clean, scale * item.attacked["value"]))
                rows.append([heading, run.label, *_cells(item.clean), *_cells(item.attacked)])
            groups.append((heading, dots))
        run, worst = max(keys[order[0]], key=lambda pair: _loss(pair[1]))
        title = _finding(run, worst)
        parts.append(
            figure(
                title,
                plots.dot_plot(groups, f"value ({unit})", 100.0 if shares else None, title, f"dots-{name}"),
                "Open blue dot: before the attack. Full orange dot: after it. The longer the line, the more "
                f"the attack achieved. Sorted by the largest loss. {method(runs, at)}",
                data_table(["quantity", "run", *_HEAD], rows),
            )
        )
    seen = {item.attack: None for _, item in found}
    told = "".join(f"<dt>{esc(attack_title(a))}</dt><dd>{esc(_says(a))}</dd>" for a in seen)
    return "".join(parts) + f'<h3>What the attacks do</h3><dl class="attacks">{told}</dl>'


_HEAD = ("before", "95 % interval", "n", "after", "95 % interval", "n")


def _says(attack: str) -> str:
    words = ATTACKS[attack][1] if attack in ATTACKS else "not described."
    return words[0].upper() + words[1:]


def _loss(item: Item) -> float:
    """Return how much an attack changed a quantity for the worse."""
    before = item.clean["value"] if item.clean else (1.0 if item.attacked["higher_is_robust"] else 0.0)
    return (before - item.attacked["value"]) * (1 if item.attacked["higher_is_robust"] else -1)


def _finding(run: RunFolder, item: Item) -> str:
    """Return in one line what hurt most among the quantities of a chart."""
    after = quantity(item.metric, item.attacked["value"])
    if item.metric == "shift":
        return f"{item.attack} moves the embeddings of {run.label} by {after} on average"
    what = metric_title(item.metric)
    if item.metric.startswith("recall@"):
        what = f"the share of queries with the {what}"
    before = f"goes from {quantity(item.metric, item.clean['value'])} to" if item.clean else "is then"
    return f"{item.attack} hurts {run.label} most: {what} {before} {after}"
