"""What happened in training, and how to get a run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import loads
from . import interactive, plots
from .load import RunFolder
from .load import number as field
from .parts import data_table, figure, missing
from .words import THIN, duration, esc, join, number, percent


def training(runs: Sequence[RunFolder]) -> str:
    """Return "What happened in training?": loss, hardness, recall@1 and collapse measures for each run."""
    parts = []
    for index, run in enumerate(runs):
        charts = [
            chart
            for chart in (
                _loss(run, index),
                _hardness(run, index),
                _recall(run, index),
                _collapse(run, index),
            )
            if chart is not None
        ]
        kind = "curves four" if len(charts) == 4 else "curves"
        body = f'<div class="{kind}">{"".join(charts)}</div>'
        none = missing("No training log was stored with this run.")
        parts.append(f"<h3>{esc(run.label)}</h3>{body if charts else none}")
    return "".join(parts)


def _loss(run: RunFolder, index: int) -> str | None:
    points = _points(run.steps, "loss")
    if not points:
        return None
    title = f"The loss went from {number(_mean(points[:10]))} to {number(_mean(points[-10:]))}"
    bands = _bands(run)
    svg = plots.curve(points, "loss", title, f"loss-{index}", bands=bands)
    caption = "What training lowers, at each step (means of stretches when long)." + _RED * bool(bands)
    spec = interactive.over_steps(points, "loss", bands=bands)
    return figure(title, svg, caption, _summary("loss", points), spec)


def _hardness(run: RunFolder, index: int) -> str | None:
    points, target = _points(run.steps, "hardness"), _points(run.steps, "target")
    if not points:
        return None
    title = f"Hardness went from {number(_mean(points[:10]))} to {number(_mean(points[-10:]))}"
    label = "hardness (distance)"
    bands = _bands(run)
    svg = plots.curve(points, label, title, f"hard-{index}", target=target, attacked=True, bands=bands)
    caption = (
        "Distance to the right image less distance to the wrong one, mean over the triplets of a step, "
        "as training saw them (attacked, if it attacks)."
    )
    caption += " Dashed: what the attack aimed at." * bool(target) + _RED * bool(bands)
    spec = interactive.over_steps(points, label, target=target, attacked=True, bands=bands)
    return figure(title, svg, caption, _summary("hardness", points), spec)


def _recall(run: RunFolder, index: int) -> str | None:
    points = [(step, 100 * value) for step, value in _points(run.epochs, "recall@1")]
    if not points:
        return None
    best, last = max(v for _, v in points), points[-1][1]
    fell = f"; its best was {percent(best / 100)}" if best > last else ""
    title = f"Recall@1 of training images ended at {percent(last / 100)}{fell}"
    label, bands, limits = "recall@1, training (%)", _bands(run), (0.0, 102.0)
    svg = plots.curve(points, label, title, f"fit-{index}", limits=limits, bands=bands)
    keys = ("step", "loss", "recall@1", "seconds")
    rows = [[line.get("epoch", "–"), *(_cell(line, key) for key in keys)] for line in run.epochs]
    table = data_table(["epoch", *keys], rows)
    caption = (
        "Share of the first (at most 500) training images whose nearest other one is right, after each "
        "epoch; no attack. The model has seen these images: this says nothing about new ones."
    )
    caption += _RED * bool(bands)
    spec = interactive.over_steps(points, label, limits=limits, bands=bands)
    return figure(title, svg, caption, table, spec)


MEASURES = ("mean_cosine", "effective_rank", "uniformity", "alignment", "intra_inter", "collapseness")
LISTED = 100
_RED = " Red: the collapse guard acted."


def _collapse(run: RunFolder, index: int) -> str | None:
    """Return how the embeddings used their space, with marks where a collapse guard acted."""
    lines = run.guards if len(run.guards) >= len(run.epochs) else run.epochs
    cosine, rank = _points(lines, "mean_cosine"), _points(lines, "effective_rank")
    if not cosine or not rank:
        return None
    acted = [line for line in run.guards if line.get("acted") is True and field(line, "step") is not None]
    times = f"{len(acted)} time{'s' * (len(acted) != 1)}"
    if acted:
        title = f"The collapse guard acted {times}; effective rank ended at {number(rank[-1][1])}"
    else:
        title = (
            f"Effective rank went from {number(rank[0][1])} to {number(rank[-1][1])}, "
            f"mean cosine from {number(cosine[0][1])} to {number(cosine[-1][1])}"
        )
    settings = run.info.get("run")
    guard = settings.get("guard") if isinstance(settings, dict) else None
    limits: Mapping[str, Any] = guard if isinstance(guard, dict) and run.guards else {}
    panels = (
        plots.Panel("mean cosine", cosine, (0.0, 1.0), field(limits, "max_cosine")),
        plots.Panel("effective rank", rank, (0.0, 1.05 * max(v for _, v in rank)), field(limits, "min_rank")),
    )
    marks = {step for line in acted if (step := field(line, "step")) is not None}
    words = f"× red: guard acted, {times}" if acted else ""
    svg = plots.stacked(panels, _bands(run), marks, words, title, f"collapse-{index}")
    rows = [[*_row(line, "epoch ended"), "–"] for line in run.epochs]
    rows += [[*_row(line, "guard acted"), _cell(line, "ease")] for line in acted[:LISTED]]
    rows.sort(key=lambda row: int(row[0]) if row[0].isdigit() else -1)
    head = ["step", "when", *(name.replace("_", " ") for name in MEASURES), "ease after it"]
    spec = interactive.panels(panels, _bands(run), marks, words)
    return figure(title, svg, _about_collapse(run, acted, bool(limits)), data_table(head, rows), spec)


def _about_collapse(run: RunFolder, acted: Sequence[Mapping[str, Any]], limited: bool) -> str:
    """Return how to read the chart, and what the guard did."""
    text = (
        "Collapsed: all images get nearly the same embedding, mean cosine near 1 and effective rank near 1. "
        "Measured on the first (at most 500) training images, no attack."
    )
    if not run.guards:
        return text
    text += " Dotted: the guard's limits." * limited
    if not acted:
        return f"{text} The guard looked {len(run.guards)} times and never acted."
    eases = [ease for line in run.guards if (ease := field(line, "ease")) is not None]
    if eases:
        text += (
            " Red and ×: it acted, going back to the last healthy weights if there were any and weakening "
            f"the attack. The ease factor of the attack's radius (1 is full strength) fell to "
            f"{number(min(eases))}, ended at {number(eases[-1])} and was {number(sum(eases) / len(eases))} "
            "on average."
        )
    more = len(acted) - LISTED
    return text + (f" The table leaves out the last {more} acts." if more > 0 else "")


def _bands(run: RunFolder) -> list[tuple[float, float]]:
    """Return the stretches of steps at whose ends the guard acted; those that touch are one."""
    bands: list[tuple[float, float]] = []
    last: float | None = None
    for line in run.guards:
        step = field(line, "step")
        if step is None:
            continue
        start = -1.0 if last is None else last
        if line.get("acted") is True:
            if bands and bands[-1][1] == start:
                start = bands.pop()[0]
            bands.append((start, step))
        last = step
    return bands


def _row(line: Mapping[str, Any], when: str) -> list[str]:
    return [_cell(line, "step"), when, *(_cell(line, name) for name in MEASURES)]


def _summary(name: str, points: Sequence[tuple[float, float]], most: int = 12) -> str:
    """Return the numbers behind a long curve: means of at most ``most`` stretches."""
    size = -(-len(points) // most)
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    steps = [f"{s[0][0]:.0f}" if len(s) == 1 else f"{s[0][0]:.0f} to {s[-1][0]:.0f}" for s in stretches]
    rows = [[step, number(_mean(s))] for step, s in zip(steps, stretches, strict=True)]
    return data_table(["steps", f"mean {name}" if size > 1 else name], rows)


def _cell(line: Mapping[str, Any], key: str) -> str:
    value = field(line, key)
    if value is None:
        return "–"
    return str(int(value)) if key == "step" else percent(value) if key == "recall@1" else number(value)


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = [(field(line, "step"), field(line, key)) for line in lines]
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _mean(points: Sequence[tuple[float, float]]) -> float:
    return sum(value for _, value in points) / len(points)


def cost(runs: Sequence[RunFolder]) -> str:
    """Return what each run took: seconds of training and evaluation, passes, size of the model, machine."""
    facts = [_spent(run) for run in runs]
    keys = [key for key in _SPENT if any(key in found for found in facts)]
    if not keys:
        return missing("No seconds were recorded.")
    rows = [
        [run.label, *(found.get(key, "–") for key in keys)] for run, found in zip(runs, facts, strict=True)
    ]
    machines = {found["machine"] for found in facts if "machine" in found}
    note = "Training: what the clock of the log showed last, looks at training images not included. "
    note += "Evaluation: every attack counted once. "
    if len(machines) > 1:
        note += "The machines differ, so seconds of one run do not compare with those of another."
    return f'{data_table(["run", *keys], rows, "What it cost", opened=True)}<p class="note">{esc(note)}</p>'


_SPENT = (
    "training", "steps", "one step", "forward and backward passes", "evaluation", "evaluation a query",
    "parameters", "machine",
)  # fmt: skip


def _spent(run: RunFolder) -> dict[str, str]:
    """Return what is known of the cost of a run, in words, by the names of ``_SPENT``."""
    found: dict[str, str] = {}
    train, spent = run.training_seconds, run.evaluation_seconds
    steps = (
        max((int(step) for line in run.steps if (step := field(line, "step")) is not None), default=-1) + 1
    )
    if train is not None:
        found["training"] = duration(train)
    if steps:
        found["steps"] = number(steps) if steps > 999 else str(steps)
        if train is not None:
            found["one step"] = f"{number(1000 * train / steps)}{THIN}ms"
    passes = [n for line in (*run.steps[-1:], *run.epochs[-1:]) if (n := field(line, "passes")) is not None]
    if passes:
        found["forward and backward passes"] = number(max(passes))
    if spent is not None:
        found["evaluation"] = duration(spent)
        queries = max((r["n"] for r in run.records), default=0)
        if queries and spent:
            found["evaluation a query"] = f"{number(1000 * spent / queries)}{THIN}ms"
    if run.path is not None and (size := parameters(run.path / "encoder.safetensors")):
        found["parameters"] = number(size) if size > 999 else str(size)
    machine = run.info.get("machine")
    if isinstance(machine, dict):
        found["machine"] = _machine(machine)
    return {key: value for key, value in found.items() if value}


def _machine(machine: Mapping[str, Any]) -> str:
    cuda = machine.get("cuda")
    size = f"{machine.get('cores', '?')} cores, {machine.get('threads', '?')} threads"
    where = f"{machine.get('processor', '')} {size}"
    return f"{cuda}; {where}" if cuda and cuda != "none" else where.strip()


_HEADER = 8_000_000
"""Most bytes of a header that is read."""


def parameters(path: Path) -> int | None:
    """Count the numbers of a ``.safetensors`` file by its header; ``None`` where there is none to read."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = loads(file.read(length)) if 0 < length <= _HEADER else {}
        size = path.stat().st_size
        stored = [entry for name, entry in header.items() if name != "__metadata__"]
        counts = [_count(e["shape"], size) for e in stored if e["dtype"].startswith(("F", "BF"))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    found = sum(count for count in counts if count is not None)
    return found if None not in counts and 0 < found <= size else None


def _count(shape: list[int], most: int) -> int | None:
    """Return how many numbers a tensor has; ``None`` for more than a file of ``most`` bytes can hold."""
    count = 1
    for side in shape:
        if type(side) is not int or side < 0:
            return None
        count *= side
        if count > most:
            return None
    return count


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
            rows = [[key, here[key], usual.get(key, "–")] for key in changed]
            name = f"Settings that differ from the recipe ({len(rows)})"
            parts.append(data_table(["setting", "this run", "recipe"], rows, name, opened=True))
        elif usual:
            parts.append("<p>Every setting is the recipe's own.</p>")
        if rest:
            name = f"{'Settings as in the recipe' if usual else 'All settings'} ({len(rest)})"
            parts.append(data_table(["setting", "value"], [[key, here[key]] for key in rest], name))
        facts = {
            "recipe": info.get("name"),
            "holdfast": info.get("version"),
        }
        facts |= _flat({"data": info.get("data_fingerprint") or ""}) | _flat(info.get("machine", {}))
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
