"""Clean against worst case: which runs no other run beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..results import Record
from . import interactive
from .evidence import cells
from .facts import Headline, bounds
from .lines import LABEL
from .parts import data_table, figure
from .plots import ATTACKED, CLEAN, GROUND, INK, _axes, _drawing, _svg
from .words import interval, join, percent, short

_WIDE, _HIGH = 6.6, 4.2
_LETTER, _TALL, _GAP = 6.4, 15.0, 9.0
"""Pixels that a letter of a label takes, the height of a label, and its distance from its point."""
_NARROW, _PIXELS = 250.0, 300.0
"""Width and height of the drawn field on a telephone: labels that are apart there are apart everywhere."""
_METRIC = "recall@1"


class Point(NamedTuple):
    """One run in percent: ``x`` without an attack, ``y`` in the worst case, each value, low and high."""

    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def front(points: Sequence[Point]) -> list[int]:
    """Return which points no other beats: none is at least as good in both and better in one; by ``x``."""
    return sorted(
        (
            i
            for i, p in enumerate(points)
            if not any(
                q.x[0] >= p.x[0] and q.y[0] >= p.y[0] and (q.x[0] > p.x[0] or q.y[0] > p.y[0]) for q in points
            )
        ),
        key=lambda i: (points[i].x[0], -points[i].y[0], i),
    )


def chart(lines: Sequence[Headline]) -> str:
    """Return the chart of the runs that have both numbers; nothing where fewer than two have.

    Parameters
    ----------
    lines
        As of :func:`~holdfast.report.facts.headlines`.
    """
    both = [(line.run.label, line.clean, line.attacked) for line in lines if line.clean and line.attacked]
    if len(both) < 2:
        return ""
    points = [Point(name, _percent(clean), _percent(attacked)) for name, clean, attacked in both]
    best = front(points)
    title = _finding(points, best)
    limits = _limits(points)
    head = ["run", "no attack", "95 % interval", "queries", "worst case", "95 % interval", "queries", "front"]
    rows = [
        [name, *cells(clean), *cells(attacked), "yes" if i in best else "no"]
        for i, (name, clean, attacked) in enumerate(both)
    ]
    caption = (
        "Each dot is a run: to the right, more queries are right without an attack; up, more are right in "
        "the worst case, the lowest figure of the attacks that all attacked runs faced. The arms of its "
        "cross are the 95 % intervals. The line is the front: a run on it is beaten by no other in both. "
        "Runs whose arms overlap may differ by chance only. The axes do not begin at 0."
    )
    svg = _drawn(points, best, limits, title)
    return figure(title, svg, caption, data_table(head, rows), _spec(points, best, limits))


def _percent(r: Record) -> tuple[float, float, float]:
    low, high = bounds(r)
    return 100 * r["value"], 100 * low, 100 * high


def _finding(points: Sequence[Point], best: Sequence[int]) -> str:
    if len(best) == 1:
        return f"{points[best[0]].name} is best both without an attack and in the worst case"
    if len(best) > 3:
        return f"{len(best)} of {len(points)} runs are on the front: more of the one costs some of the other"
    names = join([points[i].name for i in best])
    return f"{names} are on the front: more of the one costs some of the other"


def _limits(points: Sequence[Point]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return what the axes reach over: all arms, and room for labels."""
    found = []
    for side in (0, 1):
        low = min((p.x, p.y)[side][1] for p in points)
        high = max((p.x, p.y)[side][2] for p in points)
        room = max(0.06 * (high - low), 1.0)
        found.append((max(low - room, -2.0), min(high + room, 102.0)))
    return found[0], found[1]


def _steps(points: Sequence[Point], best: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the front as steps: from one run on it down to the height of the next, then to the right."""
    x: list[float] = []
    y: list[float] = []
    for i in best:
        if x:
            x.append(x[-1])
            y.append(points[i].y[0])
        x.append(points[i].x[0])
        y.append(points[i].y[0])
    return x, y


def placed(
    points: Sequence[Point],
    limits: tuple[tuple[float, float], tuple[float, float]],
    size: tuple[float, float],
) -> list[tuple[float, float]]:
    """Return for each point the shift in pixels (right, up) of the middle of its label.

    Of twelve places around the point it takes the first that covers fewest labels, points and borders.
    """
    (x0, x1), (y0, y1) = limits
    spots = [(size[0] * (p.x[0] - x0) / (x1 - x0), size[1] * (p.y[0] - y0) / (y1 - y0)) for p in points]
    taken = [(x - 6, y - 6, 12.0, 12.0) for x, y in spots]
    shifts = []
    for (x, y), p in zip(spots, points, strict=True):
        wide = _LETTER * min(len(p.name), LABEL) + 4
        options = []
        for far in (1.0, 2.6):
            up, side = _GAP * far + _TALL / 2, _GAP + wide / 2
            options += [(side, up), (-side, up), (side, -up), (-side, -up), (0.0, up + 4), (0.0, -up - 4)]
        costs = []
        for right, above in options:
            box = (x + right - wide / 2, y + above - _TALL / 2, wide, _TALL)
            out = max(-box[0], 0.0) + max(box[0] + wide - size[0], 0.0)
            out += max(-box[1], 0.0) + max(box[1] + _TALL - size[1], 0.0)
            costs.append(sum(_shared(box, other) for other in taken) + 20 * out)
        right, above = options[min(range(len(options)), key=lambda i: (round(costs[i], 3), i))]
        taken.append((x + right - wide / 2, y + above - _TALL / 2, wide, _TALL))
        shifts.append((right, above))
    return shifts


def _shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(high, 0.0)


_AXES = ("right without an attack (%)", "right in the worst case (%)")


def _drawn(points: Sequence[Point], best: Sequence[int], limits: Any, title: str) -> str:
    with _drawing():
        figure_, axes = _axes(_WIDE, _HIGH)
        axes.plot(*_steps(points, best), color=CLEAN, lw=1.4, zorder=2)
        for i, p in enumerate(points):
            colour = ATTACKED if i in best else INK
            axes.plot(p.x[1:], [p.y[0]] * 2, color=colour, lw=1.1, alpha=0.7, zorder=3)
            axes.plot([p.x[0]] * 2, p.y[1:], color=colour, lw=1.1, alpha=0.7, zorder=3)
            axes.plot(p.x[0], p.y[0], "o", color=colour, ms=7, alpha=1.0 if i in best else 0.7, zorder=4)
        axes.set_xlim(*limits[0])
        axes.set_ylim(*limits[1])
        field = (72 * _WIDE - 55, 72 * _HIGH - 50)
        for i, (p, (right, up)) in enumerate(zip(points, placed(points, limits, field), strict=True)):
            axes.annotate(
                short(p.name, LABEL), (p.x[0], p.y[0]), xytext=(right, up), textcoords="offset points",
                ha="center", va="center", fontsize=9.5, fontweight="bold" if i in best else "normal",
                bbox={"facecolor": GROUND, "alpha": 0.7, "pad": 0.6, "lw": 0}, zorder=5,
            )  # fmt: skip
        axes.set_xlabel(_AXES[0])
        axes.set_ylabel(_AXES[1])
        axes.grid(color=INK, alpha=0.15, lw=0.6)
        return _svg(figure_, title, "pareto")


def _spec(points: Sequence[Point], best: Sequence[int], limits: Any) -> dict[str, Any]:
    x, y = _steps(points, best)
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip",
         "line": {"color": "clean", "width": 1.5}}
    ]  # fmt: skip
    notes = []
    for i, (p, (right, up)) in enumerate(
        zip(points, placed(points, limits, (_NARROW, _PIXELS)), strict=True)
    ):
        colour, name = "attacked" if i in best else "ink", interactive.said(p.name)
        says = [
            f"{word} <b>{percent(v / 100)}</b> ({interval(_METRIC, (low / 100, high / 100))})"
            for word, (v, low, high) in (("no attack", p.x), ("worst case", p.y))
        ]
        arms = {
            key: {
                "type": "data", "symmetric": False, "array": [high - v], "arrayminus": [v - low],
                "color": colour, "thickness": 1.3, "width": 0,
            }
            for key, (v, low, high) in (("error_x", p.x), ("error_y", p.y))
        }  # fmt: skip
        data.append({
            "type": "scatter", "mode": "markers", "x": [p.x[0]], "y": [p.y[0]], "name": name, **arms,
            "hoverinfo": "text", "hovertext": ["<br>".join([f"<b>{name}</b>", *says])],
            "marker": {"color": colour, "size": 11}, "opacity": 1.0 if i in best else 0.7,
        })  # fmt: skip
        text = interactive.said(short(p.name, LABEL))
        notes.append(
            interactive.note(
                f"<b>{text}</b>" if i in best else text, p.x[0], p.y[0], xanchor="center", yanchor="middle",
                bgcolor="ground/0.7", xshift=right, yshift=up,
            )
        )  # fmt: skip
    whole = interactive.layout(
        *_AXES, 380, annotations=notes, xaxis={"range": list(limits[0])}, yaxis={"range": list(limits[1])}
    )
    return interactive.spec_of(data, whole)
