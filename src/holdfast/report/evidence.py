"""The evidence: what an attack takes away, and where the model is weak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..evaluation import SUITES
from ..results import Record
from . import interactive, plots
from .facts import (
    Headline,
    Item,
    ScoreItem,
    Strength,
    bounds,
    items,
    method,
    mixed_scores,
    score_items,
    scores,
)
from .load import RunFolder
from .parts import data_table, figure, missing
from .words import (
    attack_says,
    attack_title,
    esc,
    interval,
    is_share,
    item_title,
    join,
    metric_title,
    number,
    percent,
    quantity,
)


def pushed(lines: Sequence[Headline], at: Strength | None) -> str:
    """Return "How far can it be pushed?": clean and attacked recall@1 side by side."""
    if at is None or not any(line.attacked for line in lines):
        return missing("No run has a measured attack on recall@1.")

    def bar(record: Record | None) -> plots.Bar:
        return plots.Bar(None) if record is None else plots.Bar(record["value"], *bounds(record), record["n"])

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
    told = f"{worst_of(lines)}{method([line.run for line in lines], at)}"
    rows = [[line.run.label, *cells(line.clean), *cells(line.attacked)] for line in lines]
    xlabel = "queries whose first result is right (%)"
    return figure(
        title,
        plots.paired_bars(groups, title, "recall"),
        "Each bar is the share of queries whose first result is right; the thin line is the 95 % "
        f"interval. The longer the lower bar, the safer. {told} Only this strength is shown.",
        data_table(
            ["run", "no attack", "95 % interval", "queries", "attacked", "95 % interval", "queries"], rows
        ),
        interactive.bars(groups, xlabel),
    )


def worst_of(lines: Sequence[Headline]) -> str:
    """Say that the figure under attack is the worst of several attacks, if it is."""
    faced = sorted({attack for line in lines for attack, _ in line.faced})
    if len(faced) < 2:
        return ""
    found = join([f"{line.attacked['attack']} for {line.run.label}" for line in lines if line.attacked])
    return f"Attacked is the worst of {join(faced)}: {found}. "


def cells(record: Record | None) -> list[str]:
    """Return value, interval and number of queries of a record for a table."""
    if record is None:
        return ["–", "–", "–"]
    metric = record["metric"]
    span = interval(metric, record["ci"]) or "–"
    return [
        quantity(metric, record["value"]),
        span,
        number(record["n"]) if record["n"] > 999 else str(record["n"]),
    ]


def weak(runs: Sequence[RunFolder], at: Strength | None, scored: Strength | None) -> str:
    """Return "Where is it weak?": what each attack takes away, sorted by loss.

    Where suites scored the runs, the summands of the score, one chart for each suite; for runs without a
    score all attacked quantities.
    """
    parts, told = [], dict[str, None]()
    for suite in sorted({name for run in runs for name in scores(run, scored)}):
        chart, names = _summands(runs, scored, suite)
        parts.append(chart)
        told |= dict.fromkeys(name.partition(":")[0] for name in names)
    if parts and (why := mixed_scores(runs, scored)):
        parts.insert(0, missing(why))
    if any(items(run, at) and not scores(run, scored) for run in runs):
        parts += _quantities(runs, at)
        told |= dict.fromkeys(item.attack.partition(":")[0] for run in runs for item in items(run, at))
    if not parts:
        return missing("No run has records of an attack.")
    says = "".join(f"<dt>{esc(attack_title(a))}</dt><dd>{esc(attack_says(a))}</dd>" for a in told)
    folded = f'<details><summary>What each attack does</summary><dl class="attacks">{says}</dl></details>'
    return "".join(parts) + folded


def _summands(runs: Sequence[RunFolder], at: Strength | None, suite: str) -> tuple[str, list[str]]:
    """Return the chart of one suite's score and the names of its summands, sorted by the largest loss."""
    found: dict[str, list[tuple[RunFolder, ScoreItem]]] = {}
    for run in runs:
        for item in score_items(run, at, suite):
            found.setdefault(item.name, []).append((run, item))
    order = sorted(found, key=lambda name: (-max(_lost(item) for _, item in found[name]), name))
    groups, rows = [], []
    for name in order:
        heading = item_title(name)
        groups.append((heading, [_scored_dot(r, i) for r, i in found[name]]))
        for run, item in found[name]:
            before = "–" if item.before is None else number(item.before)
            span = interval(item.after["metric"], item.after["ci"]) or "–"
            measured = item.measured
            raw = cells(measured.clean)[:1] + cells(measured.attacked)[:1] if measured else ["–", "–"]
            what = metric_title(measured.metric) if measured else "–"
            rows.append([heading, run.label, before, number(item.after["value"]), span, what, *raw])
    totals = [(run, scores(run, at)[suite]) for run in runs if suite in scores(run, at)]
    overall = [f"{run.label} {number(r['value'])} ({interval(r['metric'], r['ci'])})" for run, r in totals]
    if not order:
        return missing(f"The summands of the score of {suite} were not recorded."), []
    worst, item = max(found[order[0]], key=lambda pair: _lost(pair[1]))
    before = f"from {number(item.before)} " if item.before is not None else ""
    title = f"{item.name} costs {worst.label} most: {before}to {number(item.after['value'])} of 100 points"
    axis = f"points ({suite})"
    svg = plots.dot_plot(groups, axis, (0.0, 100.0), title, f"items-{_plain_id(suite)}")
    batches = SUITES[suite].batch_means if suite in SUITES else None
    batched = (
        f" As published, values under attack are means over batches of {batches} queries, then over batches; "
        "those without attack are plain means."
        if batches
        else ""
    )
    caption = (
        f"The robustness score of {suite} is the mean of these {len(order)}: {join(overall)}. Each is mapped "
        "so that 100 is what the defender wants; nothing is clipped, so that a value without attack may lie "
        "beyond 100. Open blue dot: without attack. Full orange dot: under attack. Sorted by the largest "
        "loss. "
        f"{method([run for run, _ in totals], at)}{batched}"
    )
    head = ["item", "run", "points before", "points after", "95 % interval", "measured", "before", "after"]
    spec = interactive.dots(groups, axis, (0.0, 100.0))
    return figure(title, svg, caption, data_table(head, rows), spec) + _worst_three(order, found), order


WEAKEST = 3


def _scored_dot(run: RunFolder, item: ScoreItem) -> plots.Dots:
    before = "" if item.before is None else f"before {number(item.before)}, "
    after = item.after
    span = interval(after["metric"], after["ci"])
    says = f"{before}after <b>{number(after['value'])}</b>{f' ({span})' if span else ''}, n = {after['n']}"
    return plots.Dots(run.label, item.before, after["value"], says)


def _worst_three(order: Sequence[str], found: Mapping[str, Sequence[tuple[RunFolder, ScoreItem]]]) -> str:
    """Say in plain words what the attacks behind the worst items do, and what that cost whom."""
    said = []
    for name in order[:WEAKEST]:
        run, item = max(found[name], key=lambda pair: _lost(pair[1]))
        lost = _lost(item)
        if lost <= 0:
            continue
        of = f" of {run.label}" if len(found[name]) > 1 else ""
        cost = f"It takes {number(lost)} of 100 points{of}."
        said.append(f"<li><b>{esc(item_title(name))}.</b> {esc(attack_says(name))} {esc(cost)}</li>")
    return f'<p class="note">Where it loses most:</p><ol class="worst">{"".join(said)}</ol>' if said else ""


def _lost(item: ScoreItem) -> float:
    """Return the points that an attack takes; where the clean value is unknown, what is missing to 100."""
    return (100.0 if item.before is None else item.before) - item.after["value"]


def _plain_id(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)


def _kind(metric: str) -> str:
    return "shares" if is_share(metric) else "cosines" if metric == "cosine" else "distances"


_AXES: Mapping[str, tuple[str, float, tuple[float, float] | None]] = {
    "shares": ("value (%)", 100.0, (0.0, 100.0)),
    "cosines": ("cosine", 1.0, (0.0, 1.0)),
    "distances": ("value (distance units)", 1.0, None),
}


def _quantities(runs: Sequence[RunFolder], at: Strength | None) -> list[str]:
    """Return every attacked quantity before and after, one chart for each unit, sorted by what is lost."""
    found = [(run, item) for run in runs for item in items(run, at)]
    parts = []
    for name, (axis, scale, limits) in _AXES.items():
        keys: dict[tuple[str, str, str], list[tuple[RunFolder, Item]]] = {}
        for run, item in found:
            if _kind(item.metric) == name:
                keys.setdefault((item.attack, item.metric, item.suite), []).append((run, item))
        if not keys:
            continue
        order = sorted(keys, key=lambda key: (-max(_loss(item) for _, item in keys[key]), key))
        groups, rows = [], []
        for key in order:
            better = "higher" if keys[key][0][1].attacked["higher_is_robust"] else "lower"
            suite = f", {key[2]}" if key[2] else ""
            heading = f"{key[0]}: {metric_title(key[1])} ({better} is safer{suite})"
            dots = []
            for run, item in keys[key]:
                clean = scale * item.clean["value"] if item.clean else None
                dots.append(plots.Dots(run.label, clean, scale * item.attacked["value"], _says(item)))
                rows.append([heading, run.label, *cells(item.clean), *cells(item.attacked)])
            groups.append((heading, dots))
        run, worst = max(keys[order[0]], key=lambda pair: _loss(pair[1]))
        title = _finding(run, worst)
        parts.append(
            figure(
                title,
                plots.dot_plot(groups, axis, limits, title, f"dots-{name}"),
                "Open blue dot: before the attack. Full orange dot: after it. The longer the line, the more "
                f"the attack achieved. Sorted by the largest loss. {method(runs, at)}",
                data_table(["quantity", "run", *_HEAD], rows),
                interactive.dots(groups, axis, limits),
            )
        )
    return parts


_HEAD = ("before", "95 % interval", "n", "after", "95 % interval", "n")


def _says(item: Item) -> str:
    """Return what a pointer shows of one row: before and after with interval and number."""
    (value, span, n), before = cells(item.attacked), cells(item.clean)
    start = "" if item.clean is None else f"before {before[0]} ({before[1]})<br>"
    return f"{start}after <b>{value}</b> ({span})<br>n = {n}"


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
