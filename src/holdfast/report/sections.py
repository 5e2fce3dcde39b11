"""The sections with charts: the strips, what is lost, where it is weak, training, and how to repeat a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import plots
from .facts import Headline, Item, Strength, bounds, items
from .images import strips
from .load import RunFolder
from .load import number as field
from .words import (
    ATTACKS,
    attack_title,
    budget,
    duration,
    esc,
    interval,
    is_share,
    join,
    metric_title,
    number,
    percent,
    quantity,
)


def missing(words: str) -> str:
    """Return the one line that stands where data are missing."""
    return f'<p class="missing">{esc(words)}</p>'


def data_table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str = "Data") -> str:
    """Return a table behind a toggle; cells are HTML, headings are text. The first column names the row."""
    top = "".join(f'<th scope="col">{esc(h)}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{line[0]}</th>{"".join(f"<td>{cell}</td>" for cell in line[1:])}</tr>'
        for line in rows
    )
    return (
        f'<details><summary>{esc(name)}</summary><div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def figure(title: str, svg: str, caption: str, table: str) -> str:
    """Return a chart with its finding above, how to read it below, and its numbers behind a toggle."""
    return (
        f'<figure class="chart"><h3>{esc(title)}</h3><div class="scroll">{svg}</div>'
        f"<figcaption>{esc(caption)}</figcaption>{table}</figure>"
    )


def show(runs: Sequence[RunFolder]) -> str:
    """Return "Show me.": strips of stored examples for each run."""
    parts = [
        "<p>The change is drawn on grey: grey is no change, black and white are the largest change allowed. "
        "A green edge and ✓ mark a gallery image of the right class, a red edge and ✗ a wrong one; the number "
        "beneath is its distance. The examples were picked for what they show (worst, middle, held); "
        "they are not a fair sample.</p>"
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

    def bar(record: Any) -> plots.Bar:
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
    rows = [[esc(line.run.label), *_cells(line.clean), *_cells(line.attacked)] for line in lines]
    return figure(
        title,
        plots.paired_bars(groups, title, "recall"),
        "Each bar is the share of queries whose first result is right; the black line is the 95 % interval. "
        f"The longer the lower bar, the safer. Attacked with {budget(*at)}; other strengths were not measured.",
        data_table(
            ["run", "no attack", "95 % interval", "queries", "attacked", "95 % interval", "queries"], rows
        ),
    )


def _cells(record: Any) -> list[str]:
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
    found = [(run, item) for run in runs for item in items(run, at) if item.attacked]
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
            better = "higher" if keys[key][0][1].attacked["higher_is_robust"] else "lower"  # type: ignore[index]
            heading = f"{key[0]}: {metric_title(key[1])} ({better} is safer)"
            dots = []
            for run, item in keys[key]:
                clean = scale * item.clean["value"] if item.clean else None
                dots.append(plots.Dots(run.label, clean, scale * item.attacked["value"]))  # type: ignore[index]
                rows.append([esc(heading), esc(run.label), *_cells(item.clean), *_cells(item.attacked)])
            groups.append((heading, dots))
        run, worst = max(keys[order[0]], key=lambda pair: _loss(pair[1]))
        title = _finding(run, worst)
        parts.append(
            figure(
                title,
                plots.dot_plot(groups, f"value ({unit})", 100.0 if shares else None, title, f"dots-{name}"),
                "Open blue dot: before the attack. Full orange dot: after it. The longer the line, the more the "
                f"attack achieved. Sorted by the largest loss. Attacked with {budget(*at)}.",
                data_table(["quantity", "run", *_HEAD[:3], *_HEAD[3:]], rows),
            )
        )
    seen = {item.attack: None for _, item in found}
    told = "".join(
        f"<dt>{esc(attack_title(a))}</dt><dd>{esc(f'{a} {ATTACKS[a][1]}' if a in ATTACKS else 'Not described.')}</dd>"
        for a in seen
    )
    return "".join(parts) + f'<h3>What the attacks do</h3><dl class="attacks">{told}</dl>'


_HEAD = ("before", "95 % interval", "n", "after", "95 % interval", "n")


def _loss(item: Item) -> float:
    """Return how much an attack changed a quantity for the worse."""
    if item.attacked is None:
        return 0.0
    before = item.clean["value"] if item.clean else (1.0 if item.attacked["higher_is_robust"] else 0.0)
    return (before - item.attacked["value"]) * (1 if item.attacked["higher_is_robust"] else -1)


def _finding(run: RunFolder, item: Item) -> str:
    assert item.attacked is not None  # chosen among attacked items
    after = quantity(item.metric, item.attacked["value"])
    before = f"from {quantity(item.metric, item.clean['value'])} " if item.clean else ""
    what = (
        f"the share with the {metric_title(item.metric)}"
        if "recall" in item.metric
        else metric_title(item.metric)
    )
    return f"{item.attack} hurts {run.label} most: it takes {what} {before}to {after}"


def training(runs: Sequence[RunFolder]) -> str:
    """Return "What happened in training?": loss, hardness and recall@1 for each run."""
    parts = []
    for index, run in enumerate(runs):
        parts.append(f"<h3>{esc(run.label)}</h3>")
        loss, hardness, target = (_points(run.steps, key) for key in ("loss", "hardness", "target"))
        recall = [(step, 100 * value) for step, value in _points(run.epochs, "recall@1")]
        if not (loss or hardness or recall):
            parts.append(missing("No training log was stored with this run."))
            continue
        charts = []
        if loss:
            title = f"The loss went from {number(_mean(loss[:10]))} to {number(_mean(loss[-10:]))}"
            svg = plots.curve(loss, "loss", title, f"loss-{index}")
            charts.append(
                figure(title, svg, "Loss that training lowers, at each step; averaged when long.", "")
            )
        if hardness:
            start, end = number(_mean(hardness[:10])), number(_mean(hardness[-10:]))
            title = f"The attacked hardness went from {start} to {end}"
            svg = plots.curve(
                hardness, "hardness (distance)", title, f"hard-{index}", target=target, attacked=True
            )
            caption = "How much nearer the wrong image is than the right one in attacked triplets; above 0 is wrong."
            charts.append(figure(title, svg, caption + (" Dashed: the target." if target else ""), ""))
        if recall:
            best, last = max(v for _, v in recall), recall[-1][1]
            title = f"Recall@1 ended at {last:.1f} %" + (
                f"; its best was {best:.1f} %" if best > last else ""
            )
            svg = plots.curve(recall, "recall@1 (%)", title, f"fit-{index}", limits=(0, 102))
            charts.append(figure(title, svg, "Queries right without an attack, after each epoch.", ""))
        rows = [
            [
                str(line.get("epoch", "–")),
                *(_cell(line, key) for key in ("step", "loss", "recall@1", "seconds")),
            ]
            for line in run.epochs
        ]
        table = data_table(["epoch", "step", "loss", "recall@1", "seconds"], rows) if rows else ""
        parts.append(f'<div class="curves">{"".join(charts)}</div>{table}')
    return "".join(parts)


def _cell(line: Any, key: str) -> str:
    value = field(line, key)
    if value is None:
        return "–"
    return str(int(value)) if key == "step" else percent(value) if key == "recall@1" else number(value)


def _points(lines: Sequence[Any], key: str) -> list[tuple[float, float]]:
    pairs = [(field(line, "step"), field(line, key)) for line in lines]
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _mean(points: Sequence[tuple[float, float]]) -> float:
    return sum(value for _, value in points) / len(points)


def again(runs: Sequence[RunFolder]) -> str:
    """Return "How do I get this again?": command, settings, versions, data, machine and seconds."""
    parts = []
    for run in runs:
        parts.append(f"<h3>{esc(run.label)}</h3>")
        if not run.info:
            parts.append(missing("No run.json was stored with this run."))
            continue
        info = run.info
        command = info.get("command")
        parts.append(f"<pre>{esc(command)}</pre>" if command else missing("The command was not stored."))
        here, usual = _flat(info.get("run", {})), _flat(info.get("defaults") or {})
        changed = [key for key in here if usual and here[key] != usual.get(key)]
        rest = [key for key in here if key not in changed]
        if changed:
            rows = [[f"<b>{esc(k)}</b>", esc(here[k]), esc(usual.get(k, "–"))] for k in changed]
            table = data_table(
                ["setting", "this run", "default"], rows, f"Settings that differ ({len(rows)})"
            )
            parts.append(table.replace("<details>", "<details open>", 1))
        elif usual:
            parts.append("<p>Every setting has its default value.</p>")
        if rest:
            name = f"{'Settings at their default' if usual else 'All settings'} ({len(rest)})"
            parts.append(data_table(["setting", "value"], [[esc(k), esc(here[k])] for k in rest], name))
        facts = {
            "recipe": info.get("name"),
            "holdfast": info.get("version"),
            "data": info.get("data_fingerprint"),
        }
        facts |= _flat(info.get("machine", {}))
        facts |= {"training": duration(run.training_seconds), "evaluation": duration(run.evaluation_seconds)}
        pairs = "".join(
            f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in facts.items() if v not in (None, "")
        )
        parts.append(f'<dl class="facts">{pairs}</dl>')
    return "".join(parts)


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Return nested plain data as ``path -> text``; a ``type`` key names its own path."""
    if isinstance(value, dict):
        rows = {path or "run": str(value["type"])} if "type" in value else {}
        for key, inner in value.items():
            if key != "type":
                rows |= _flat(inner, f"{path}.{key}" if path else str(key))
        return rows
    if isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        return {k: t for i, v in enumerate(value) for k, t in _flat(v, f"{path}[{i}]").items()}
    if isinstance(value, list):
        return {path: f"({join([str(v) for v in value])})" if value else "()"}
    return {path: "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)}
