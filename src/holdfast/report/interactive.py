"""Charts as Plotly figures: plain dicts that a page's script draws in place of the static drawing.

A spec is ``{"data": [...], "layout": {...}}`` of finite numbers, ``None`` and text. Colours are words, for
which the page puts its own, in light and in dark: ``ink``, ``ground``, ``soft``, ``clean``, ``attacked``,
``right``, ``wrong``, and ``c0`` ... ``c7`` of Okabe and Ito, each with an opacity after a stroke where it is
not full (``clean/0.15``). What a pointer shows is made here, as text:
nothing of a run is ever part of a template or mark-up of Plotly's.
"""

from __future__ import annotations

import html
import importlib.util
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import MissingExtra
from .lines import LABEL, Line, last
from .plots import Bar, Dots, Panel, alone, binned, spread
from .words import interval, number, percent, plain, short

Spec = dict[str, Any]

CONFIG: Mapping[str, Any] = {
    "displaylogo": False,
    "responsive": True,
    "scrollZoom": False,
    "doubleClick": "reset",
    "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
    "toImageButtonOptions": {"format": "svg"},
}
"""How every chart is drawn: no mark of Plotly's and no button that leads out of the page.

Pictures are saved as SVG, because others are painted by way of an image that the page's policy forbids.
"""

SHARE = "recall@1"
"""A metric whose values read as percent; for intervals in what a pointer shows."""
NAMED = "%{fullData.name}"
"""What stands for the name of a line in a template; names themselves never stand in one."""
_ENDS = re.compile(r"<(?=/script|!--)", re.IGNORECASE)
_LETTER = 6.6
"""Pixels that a letter of such a label takes, about."""


def available() -> bool:
    """Say whether Plotly is installed."""
    return importlib.util.find_spec("plotly") is not None


def library() -> str:
    """Return Plotly's script, ready to stand between ``<script>`` tags.

    Raises
    ------
    MissingExtra
        If Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # optional and large
    except ImportError as error:
        raise MissingExtra("plotly", "report", "an interactive report") from error
    return inlined(str(get_plotlyjs()))


def inlined(script: str) -> str:
    r"""Return a script in which nothing ends its element or begins a comment of HTML.

    Examples
    --------
    >>> inlined("s = '</script>'")
    "s = '\\x3c/script>'"
    """
    return _ENDS.sub(r"\\x3c", script)


def said(text: object, most: int = 80) -> str:
    """Return text that Plotly shows as it is: neither mark-up nor invisible."""
    return html.escape(short(text, most), quote=False)


def tidy(value: Any) -> Any:
    """Return plain data for JSON: numbers of five digits, ``None`` where there is none."""
    if isinstance(value, Mapping):
        return {str(key): tidy(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return tidy(value.tolist())
    if isinstance(value, list | tuple):
        return [tidy(inner) for inner in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.5g}") if math.isfinite(value) else None
    return value


def spec_of(data: Sequence[Mapping[str, Any]], drawn: Mapping[str, Any]) -> Spec:
    """Return traces and a layout as plain data."""
    return {"data": tidy(data), "layout": tidy(drawn)}


def layout(xlabel: str, ylabel: str, height: int, **more: Any) -> dict[str, Any]:
    """Return a layout with named axes; what is given under ``xaxis`` and ``yaxis`` is added to these."""
    x = {"title": {"text": said(xlabel, 120), "standoff": 8}, "zeroline": False, "automargin": True}
    y = {"title": {"text": said(ylabel, 120), "standoff": 6}, "zeroline": False, "automargin": True}
    base: dict[str, Any] = {
        "height": height,
        "autosize": True,
        "margin": {"l": 48, "r": 16, "t": 16, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "dragmode": False,
        "xaxis": x | more.pop("xaxis", {}),
        "yaxis": y | more.pop("yaxis", {}),
    }
    base["margin"] |= more.pop("margin", {})
    return base | more


def note(text: str, x: float, y: float, colour: str = "ink", **more: Any) -> dict[str, Any]:
    """Return words at a place; text is escaped already where it comes from outside."""
    base = {
        "text": text, "x": x, "y": y, "showarrow": False, "font": {"color": colour, "size": 12},
        "xanchor": "left", "align": "left",
    }  # fmt: skip
    return base | more


def _line(line: Line) -> list[dict[str, Any]]:
    """Return the traces of one line: its band, then itself."""
    traces: list[dict[str, Any]] = []
    silent = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False}
    silent["line"] = {"width": 0}
    if len(line.low):
        x, y = [*line.x, *reversed(line.x)], [*line.high, *reversed(line.low)]
        traces.append({**silent, "x": x, "y": y, "fill": "toself", "fillcolor": f"{line.colour}/0.15"})
    if line.filled:
        shade = f"{line.colour}/0.2"
        traces.append({**silent, "x": line.x, "y": line.y, "fill": "tozeroy", "fillcolor": shade})
    marked = bool(line.mark)
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "lines+markers" if marked else "lines", "x": line.x, "y": line.y,
        "name": said(line.name), "opacity": 0.55 if line.faint else 1.0,
        "line": {"color": line.colour, "width": line.width, "dash": line.dash},
    }  # fmt: skip
    if isinstance(line.says, str):
        trace["hovertemplate"] = f"{line.says}<extra></extra>"
    else:
        trace |= {"hoverinfo": "text", "hovertext": list(line.says)}
    if marked:
        trace["marker"] = {"color": line.colour, "size": 5 + line.width, "symbol": line.mark}
    return [*traces, trace]


def lines(
    drawn: Sequence[Line],
    xlabel: str,
    ylabel: str,
    *,
    height: int = 320,
    limits: tuple[float, float] | None = None,
    at: tuple[float, str] | None = None,
    inside: Sequence[tuple[str, float, float, str]] = (),
    legend: bool = False,
) -> Spec:
    """Return lines over a common axis, each called by its name at its end, or in a legend.

    Parameters
    ----------
    drawn
        The lines, those on top last.
    xlabel, ylabel
        With units.
    height
        Pixels.
    limits
        Reach of the vertical axis.
    at
        A place on the horizontal axis to mark, and its words.
    inside
        Words within the chart: text, x, y, colour.
    legend
        Names in a legend, for lines whose ends are not apart.
    """
    named = [line for line in drawn if line.labelled and len(line.x)]
    values = [float(v) for line in drawn for v in (*line.y, *line.low, *line.high) if np.isfinite(v)]
    low, high = limits or (min(values, default=0.0), max(values, default=1.0))
    places = [float(x) for line in drawn for x in line.x]
    near, far = min([0.0, *places]), max(places, default=1.0)
    notes: list[dict[str, Any]] = []
    wide = 16.0
    if not legend and len(drawn) > 1 and named:
        ends = [last(line.y) for line in named]
        apart = 15 / max(height - 76, 1) * (high - low or 1.0)
        for line, y in zip(named, spread(ends, apart, low, high), strict=True):
            text = said(line.name, LABEL)
            wide = max(wide, 14 + _LETTER * min(len(plain(line.name)), LABEL))
            notes.append(note(text, 1, y, line.colour, xref="paper", xshift=6, yanchor="middle"))
    if at is not None:
        end = "right" if at[0] > 0.8 * far else "left" if at[0] < 0.2 * far else "center"
        notes.append(note(said(at[1]), at[0], 1.0, "soft", yref="paper", xanchor=end, yanchor="bottom"))
    notes += [note(said(text), x, y, colour) for text, x, y, colour in inside]
    shapes = [] if at is None else [
        {"type": "line", "x0": at[0], "x1": at[0], "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
         "line": {"color": "ink", "width": 1, "dash": "dot"}}
    ]  # fmt: skip
    room = 0.012 * (far - near or 1.0)
    more: dict[str, Any] = {"annotations": notes, "shapes": shapes}
    more |= {
        "margin": {"r": wide, "t": 16 if at is None else 26},
        "xaxis": {"range": [near - room, far + room]},
    }
    if limits is not None:
        more["yaxis"] = {"range": list(limits)}
    if legend:
        more |= {"showlegend": True, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}
        more["margin"] = {"t": 16 + 20 * -(-len(named) // 3)}
    data = [trace for line in drawn for trace in _line(line)]
    return spec_of(data, layout(xlabel, ylabel, height, **more))


def measured(name: str, bar: Bar, *, where: str = "") -> str:
    """Return what a pointer shows of a share: value, interval and number of queries."""
    if bar.value is None:
        return f"{said(name)}: not measured"
    ci = interval(SHARE, (bar.low, bar.high))
    text = f"{said(name)}{where}<br><b>{percent(bar.value)}</b> ({ci})"
    return text + (f"<br>{number(bar.n) if bar.n > 999 else bar.n} queries" if bar.n else "")


def bars(groups: Sequence[tuple[str, Bar, Bar]], xlabel: str) -> Spec:
    """Return for each run the clean and the attacked share as bars with intervals."""
    data = []
    notes = []
    for place, (word, colour, offset) in enumerate(
        (("no attack", "clean", -0.2), ("attacked", "attacked", 0.2))
    ):
        rows = [(i + offset, name, pair[place]) for i, (name, *pair) in enumerate(groups)]
        known = [(y, name, bar) for y, name, bar in rows if bar.value is not None]
        value = [100 * (bar.value or 0.0) for *_, bar in known]
        data.append({
            "type": "bar", "orientation": "h", "x": value, "y": [y for y, *_ in known], "width": 0.36,
            "marker": {"color": colour}, "hoverinfo": "text",
            "hovertext": [measured(f"{name}, {word}", bar) for _, name, bar in known],
            "error_x": {
                "type": "data", "symmetric": False, "color": "ink", "thickness": 1.3, "width": 4,
                "array": [100 * bar.high - v for v, (*_, bar) in zip(value, known, strict=True)],
                "arrayminus": [v - 100 * bar.low for v, (*_, bar) in zip(value, known, strict=True)],
            },
        })  # fmt: skip
        for y, _, bar in rows:
            end = 0.0 if bar.value is None else 100 * max(bar.high, bar.value)
            text = f"{word}: not measured" if bar.value is None else f"{percent(bar.value)} {word}"
            notes.append(note(text, end, y, xshift=6, yanchor="middle"))
    ticks = {"tickvals": list(range(len(groups))), "ticktext": [said(short(g[0], 20)) for g in groups]}
    drawn = layout(
        xlabel, "", 76 + 62 * len(groups), annotations=notes, bargap=0.1,
        xaxis={"range": [0, 100]}, margin={"r": 120},
        yaxis={**ticks, "range": [len(groups) - 0.45, -0.55], "showgrid": False, "showline": False,
               "ticks": ""},
    )  # fmt: skip
    return spec_of(data, drawn)


def dots(
    groups: Sequence[tuple[str, Sequence[Dots]]], xlabel: str, limits: tuple[float, float] | None
) -> Spec:
    """Return rows under headings: an open dot before the attack, a full dot after it, a line between them."""
    values = [v for _, rows in groups for d in rows for v in (d.attacked, d.clean) if v is not None]
    low, high = limits or (0.0, 1.1 * max(values, default=1.0) or 1.0)
    low, high = min([low, *values]), max([high, *values])
    room = 0.03 * (high - low)
    y, notes = 0.0, []
    names = [] if alone(groups) else [d.name for _, rows in groups for d in rows]
    left = -12 - _LETTER * max((min(len(name), LABEL) for name in names), default=0)
    ticks: list[tuple[float, str]] = []
    link: dict[str, list[float | None]] = {"x": [], "y": []}
    before: list[tuple[float, float, str]] = []
    after: list[tuple[float, float, str]] = []
    for heading, rows in groups:
        words = f"<b>{said(heading, 64)}</b>"
        notes.append(note(words, 0, y, xref="paper", xshift=left, yanchor="middle"))
        for dot in rows:
            y += 1
            ticks.append((y, said(short(dot.name, LABEL)) if names else ""))
            text = f"<b>{said(dot.name)}</b><br>{said(heading)}<br>{dot.says}" if dot.says else said(dot.name)
            after.append((dot.attacked, y, text))
            if dot.clean is not None:
                before.append((dot.clean, y, text))
                link["x"] += [dot.clean, dot.attacked, None]
                link["y"] += [y, y, None]
        y += 1.25
    kinds = (
        (before, "before the attack", {"color": "clean", "symbol": "circle-open", "line": {"width": 2.5}}),
        (after, "after the attack", {"color": "attacked", "symbol": "circle"}),
    )
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            **link,
            "line": {"color": "soft", "width": 2},
            "hoverinfo": "skip",
        }
    ]
    for points, name, mark in kinds:
        data.append({
            "type": "scatter", "mode": "markers", "x": [p[0] for p in points],
            "y": [p[1] for p in points], "hovertext": [p[2] for p in points], "name": name,
            "hoverinfo": "text", "marker": {"size": 11, **mark}, "cliponaxis": False,
        })  # fmt: skip
    drawn = layout(
        xlabel, "", int(70 + 23 * y), annotations=notes,
        xaxis={"range": [low - room, high + room]},
        yaxis={"range": [y - 0.5, -0.7], "showgrid": False, "showline": False, "ticks": "",
               "tickvals": [t[0] for t in ticks], "ticktext": [t[1] for t in ticks]},
    )  # fmt: skip
    return spec_of(data, drawn)


def over_steps(
    points: Sequence[tuple[float, float]],
    ylabel: str,
    *,
    target: Sequence[tuple[float, float]] = (),
    limits: tuple[float, float] | None = None,
    attacked: bool = False,
    bands: Sequence[tuple[float, float]] = (),
) -> Spec:
    """Return one quantity over the steps of training, with a dashed target, and bands where a guard acted."""
    drawn = [_trained("", points, "attacked" if attacked else "clean", ylabel)]
    if target:
        drawn.append(_trained("target", target, "ink", "target")._replace(dash="dash", width=1.5))
    spec = lines(drawn, "optimiser steps", ylabel, height=260, limits=limits)
    spec["layout"]["shapes"] = [*_bands(bands), *spec["layout"].get("shapes", [])]
    return spec


def _trained(name: str, points: Sequence[tuple[float, float]], colour: str, what: str) -> Line:
    x, y = binned(*np.asarray(points, dtype=float).reshape(-1, 2).T)
    says = f"step %{{x:.0f}}<br>{what} <b>%{{y:.3g}}</b>"
    mark = "circle" if len(x) <= 40 else ""
    return Line(name, x.tolist(), y.tolist(), colour, says=says, mark=mark, labelled=bool(name))


def _bands(bands: Iterable[tuple[float, float]], **more: Any) -> list[dict[str, Any]]:
    return [
        tidy({"type": "rect", "x0": a, "x1": b, "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
              "fillcolor": "wrong", "opacity": 0.2, "line": {"width": 0}, **more})
        for a, b in bands
    ]  # fmt: skip


def several(
    named: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    xlabel: str,
    ylabel: str,
    limits: tuple[float, float] | None = None,
) -> Spec:
    """Return some quantities of one unit in one chart, told apart by colour and dashes."""
    dashes = ("solid", "dash", "dashdot", "dot")
    drawn = []
    for i, (name, points) in enumerate(named):
        x, y = binned(*np.asarray(points, dtype=float).reshape(-1, 2).T)
        says = f"{NAMED}<br>%{{x:.6~g}}: <b>%{{y:.3~g}}</b>"
        mark = "circle" if len(x) <= 12 else ""
        colour = f"c{i % 8}"
        drawn.append(Line(name, x.tolist(), y.tolist(), colour, says=says, dash=dashes[i % 4], mark=mark))
    return lines(drawn, xlabel, ylabel, height=280, limits=limits, legend=len(drawn) > 1)


def panels(
    drawn: Sequence[Panel], bands: Sequence[tuple[float, float]], marks: Iterable[float], words: str
) -> Spec:
    """Return small panels over the same steps, with bands, and crosses at marked steps."""
    count, gap = len(drawn), 0.14
    high = (1.0 - gap * (count - 1)) / count
    marked = set(marks)
    data: list[dict[str, Any]] = []
    notes, shapes, axes = [], _bands(bands), {}
    for i, panel in enumerate(drawn):
        top = 1.0 - i * (high + gap)
        own = "" if i == 0 else str(i + 1)
        for trace in _line(_trained(panel.name, panel.points, "clean", panel.name)):
            data.append({**trace, "yaxis": f"y{own}"})
        crossed = [point for point in panel.points if point[0] in marked]
        if crossed:
            x, y = zip(*crossed, strict=True)
            data.append({
                "type": "scatter", "mode": "markers", "x": x, "y": y, "yaxis": f"y{own}", "hoverinfo": "text",
                "hovertext": [f"step {a:.0f}: the guard acted<br>{said(panel.name)} <b>{number(b)}</b>"
                              for a, b in crossed],
                "marker": {"symbol": "x-thin", "size": 8, "color": "wrong",
                           "line": {"color": "wrong", "width": 2}},
            })  # fmt: skip
        if panel.limit is not None:
            shapes.append({
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": f"y{own}", "y0": panel.limit,
                "y1": panel.limit, "line": {"color": "ink", "width": 1, "dash": "dot"},
            })  # fmt: skip
        values = [v for _, v in panel.points]
        low, most = min([panel.limits[0], *values]), max([panel.limits[1], *values])
        axes[f"yaxis{own}"] = {
            "domain": [max(top - high, 0.0), top], "range": [low, most + 0.04 * (most - low)], "nticks": 4,
            "zeroline": False, "automargin": True,
        }  # fmt: skip
        notes.append(note(said(panel.name), 0, top, xref="paper", yref="paper", yanchor="bottom", yshift=3))
    if words:
        notes.append(
            note(said(words), 1, 1, "wrong", xref="paper", yref="paper", yanchor="bottom", yshift=3,
                 xanchor="right")
        )  # fmt: skip
    last = "y" if count == 1 else f"y{count}"
    whole = layout(
        "optimiser steps", "", 60 + 120 * count, annotations=notes, shapes=shapes, margin={"t": 26},
        xaxis={"anchor": last},
    )  # fmt: skip
    return spec_of(data, whole | axes)


def matrix(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], words: tuple[str, str], colour: str
) -> Spec:
    """Return a matrix of shares in [0, 1] as cells, deeper for more; a missing value has no cell."""
    r, c = values.shape
    cells = [(i, j, float(values[i, j])) for i in range(r) for j in range(c) if np.isfinite(values[i, j])]
    shapes = [
        {"type": "rect", "x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5, "layer": "below",
         "fillcolor": colour, "opacity": 0.6 * min(max(v, 0.0), 1.0), "line": {"width": 0}}
        for i, j, v in cells if v > 0
    ]  # fmt: skip
    text = [f"{100 * v:.0f}" for *_, v in cells]
    hover = [
        f"{said(words[0])}: {said(rows[i])}<br>{said(words[1])}: {said(columns[j])}<br><b>{percent(v)}</b>"
        for i, j, v in cells
    ]
    data = {
        "type": "scatter", "mode": "text", "x": [j for _, j, _ in cells], "y": [i for i, *_ in cells],
        "text": text, "hovertext": hover, "hoverinfo": "text", "textfont": {"color": "ink", "size": 11},
    }  # fmt: skip
    still = {"showgrid": False, "ticks": "", "fixedrange": True}
    whole = layout(
        words[1], words[0], 140 + 34 * r, shapes=shapes,
        xaxis={**still, "range": [-0.5, c - 0.5], "tickvals": list(range(c)),
               "ticktext": [said(short(name, 14)) for name in columns]},
        yaxis={**still, "range": [r - 0.5, -0.5], "tickvals": list(range(r)),
               "ticktext": [said(short(name, 14)) for name in rows]},
    )  # fmt: skip
    return spec_of([data], whole)
