"""Charts as static SVG that takes the page's colours, so that one drawing serves light, dark and paper.

Colours are written as place-holders and replaced by ``currentColor`` and the page's ``--c1`` ...; text stays
text. The same input gives the same bytes: ids are hashes and no time is written.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .words import plain, short

INK, GROUND = "#010203", "#030201"
CLEAN, ATTACKED = "#0072b2", "#d55e00"  # blue and vermillion of Okabe and Ito
ALARM, RIGHT = "#c62f1b", "#007f5c"
GREEN, PURPLE, ORANGE, SKY = (
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # the rest of theirs that show on white
COLOURS = {
    "ink": INK,
    "soft": INK,
    "ground": GROUND,
    "clean": CLEAN,
    "attacked": ATTACKED,
    "wrong": ALARM,
    "right": RIGHT,
    **{f"c{i}": c for i, c in enumerate((CLEAN, ATTACKED, GREEN, PURPLE, ORANGE, SKY, "#b8a800", INK))},
}
"""The words for colours of an interactive chart, as drawn here."""
_PAGE = {
    INK: "currentColor",
    GROUND: "var(--ground)",
    CLEAN: "var(--clean)",
    ATTACKED: "var(--attacked)",
    ALARM: "var(--wrong)",
    RIGHT: "var(--right)",
    **{c: f"var(--c{i}, {c})" for i, c in enumerate((GREEN, PURPLE, ORANGE, SKY, "#b8a800"), start=2)},
}
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "holdfast",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.linewidth": 0.7,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
_FONT = re.compile(r"font-family: [^;]*;? ?")
_SIZE = re.compile(r"([\d.]+)pt")
_DRAWN = re.compile("|".join(_PAGE))
_DIGITS = re.compile(r"(-?\d+\.\d\d)\d+")
_PLACES = ("d", "x", "y", "width", "height", "transform")
_NAMED = re.compile(r"#([\w.:+-]+)")


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw from matplotlib's defaults, whatever the user's settings are, and leave those untouched."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _svg(figure: Figure, label: str, prefix: str) -> str:
    """Return the figure as an ``<svg>`` for a page: no ids that clash, no style or link of its own."""
    out = io.BytesIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure)
    figure.savefig(out, format="svg", metadata=empty, facecolor="none", edgecolor="none")
    root = ET.fromstring(out.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rsplit("}")[-1] in ("metadata", "style"):
                parent.remove(child)
    for node in root.iter():
        node.tag = node.tag.rsplit("}")[-1]
        for key, value in list(node.attrib.items()):
            del node.attrib[key]
            if key == "id":
                value = f"{prefix}-{value}"
            value = value.replace("url(#", f"url(#{prefix}-")
            if key.endswith("}href"):
                key, value = "href", value.replace("#", f"#{prefix}-", 1)
            value = _DRAWN.sub(lambda found: _PAGE[found[0]], value)
            value = _FONT.sub("", value) if key == "style" else value  # the page's own
            value = _DIGITS.sub(r"\1", value) if key in _PLACES else value
            if not (key == "transform" and value.startswith("rotate(-0 ")):
                node.set(key, value)
    _slim(root)
    width = _SIZE.match(root.get("width", "1pt"))
    root.set("style", f"width:{float(width.group(1)) if width else 1:.0f}pt")
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", plain(label))
    return ET.tostring(root, encoding="unicode")


def _slim(root: ET.Element) -> None:
    """Take out what shows nothing: space between elements, ids that nothing names, styles said many times."""
    values = [value for node in root.iter() for value in node.attrib.values()]
    named = {name for value in values for name in _NAMED.findall(value)}
    for node in root.iter():
        if node.get("id") not in named:
            node.attrib.pop("id", None)
        if node.tag not in ("text", "tspan"):
            node.text = None
        node.tail = node.tail if node.tail and node.tail.strip() else None
        uses = [child for child in node if child.tag == "use"]
        styles = {child.get("style") for child in uses}
        if (
            node.tag == "g"
            and len(uses) > 1
            and len(uses) == len(node)
            and len(styles) == 1
            and styles != {None}
        ):
            node.set("style", str(styles.pop()))
            for child in uses:
                del child.attrib["style"]


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.set_axisbelow(True)
    return figure, axes


class Bar(NamedTuple):
    """A value with its interval; ``None`` where there is no measurement, ``n`` 0 where it is unknown."""

    value: float | None
    low: float = 0.0
    high: float = 0.0
    n: int = 0


def paired_bars(groups: Sequence[tuple[str, Bar, Bar]], label: str, prefix: str) -> str:
    """Draw for each run the clean and the attacked share as bars with intervals and their values."""
    with _drawing():
        figure, axes = _axes(6.6, 0.75 + 0.72 * len(groups))
        for row, (_, clean, attacked) in enumerate(groups):
            for bar, offset, colour, word in (
                (clean, -0.19, CLEAN, "no attack"),
                (attacked, 0.19, ATTACKED, "attacked"),
            ):
                y = row + offset
                if bar.value is None:
                    axes.text(1, y, f"{word}: not measured", va="center", fontsize=9)
                    continue
                axes.barh(y, 100 * bar.value, height=0.34, color=colour)
                line = axes.plot([100 * bar.low, 100 * bar.high], [y, y], color=INK, lw=1.3, marker="|")
                line[0].set_markersize(6)
                end = 100 * max(bar.high, bar.value) + 1.5
                axes.text(end, y, f"{100 * bar.value:.1f} % {word}", va="center", fontsize=9)
        axes.set_yticks(range(len(groups)), [short(name) for name, *_ in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 126)
        axes.set_xticks(range(0, 101, 20))
        axes.spines["bottom"].set_bounds(0, 100)
        axes.set_xlabel("queries whose first result is right (%)")
        axes.grid(axis="x", color=INK, alpha=0.15, lw=0.6)
        return _svg(figure, label, prefix)


class Dots(NamedTuple):
    """One row of a dot plot; the values are in the unit of the axis, ``says`` is what a pointer shows."""

    name: str
    clean: float | None
    attacked: float
    says: str = ""


def alone(groups: Sequence[tuple[str, Sequence[Dots]]]) -> bool:
    """Say whether all rows are of one name, one under each heading, so that names would say nothing."""
    return len({d.name for _, dots in groups for d in dots}) == 1 and all(
        len(dots) == 1 for _, dots in groups
    )


def dot_plot(
    groups: Sequence[tuple[str, Sequence[Dots]]],
    xlabel: str,
    limits: tuple[float, float] | None,
    label: str,
    prefix: str,
) -> str:
    """Draw rows under headings: an open dot before the attack, a full dot after it, a line between them.

    The axis reaches at least over ``limits``, or from 0 on, and over every value.
    """
    rows = sum(1 + len(dots) for _, dots in groups)
    with _drawing():
        figure, axes = _axes(6.6, 0.75 + 0.27 * rows)
        y, places, names = 0.0, [], []
        values = [v for _, dots in groups for d in dots for v in (d.attacked, d.clean) if v is not None]
        low, high = limits or (0.0, 1.1 * max(values, default=1.0) or 1.0)
        room = 0.02 * (high - low)  # so that a dot beyond the limits is not cut
        low = min([low, *(v - room for v in values if v < low)])
        high = max([high, *(v + room for v in values if v > high)])
        for heading, dots in groups:
            axes.text(low, y + 0.1, short(heading, 80), va="center", fontsize=9.5, fontweight="bold")
            for dot in dots:
                y += 1
                places.append(y)
                names.append("" if alone(groups) else short(dot.name))
                if dot.clean is not None:
                    axes.plot([dot.clean, dot.attacked], [y, y], color=INK, alpha=0.45, lw=1.6, zorder=2)
                    axes.plot(
                        dot.clean, y, "o", ms=7, mfc=GROUND, mec=CLEAN, mew=1.8, clip_on=False, zorder=3
                    )
                axes.plot(dot.attacked, y, "o", ms=7, color=ATTACKED, clip_on=False, zorder=4)
            y += 1.15
        axes.set_yticks(places, names)
        axes.set_ylim(y - 0.5, -0.6)
        axes.set_xlim(low, high)
        axes.tick_params(axis="y", length=0, pad=9)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x", color=INK, alpha=0.15, lw=0.6)
        return _svg(figure, label, prefix)


def spread(values: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Return places near some values that lie at least so far apart, in the same order; for labels.

    All lie between ``low`` and ``high`` as long as there is room.

    Examples
    --------
    >>> spread([10.0, 9.0, 50.0], 4.0, 0.0, 100.0)
    [11.5, 7.5, 50.0]
    """
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    groups: list[tuple[list[int], float]] = []  # members in order, middle
    for i in order:
        members, middle = [i], min(max(values[i], low), high)
        while groups:
            others, where = groups[-1]
            if middle - apart * (len(members) - 1) / 2 - where - apart * (len(others) - 1) / 2 >= apart:
                break
            groups.pop()
            total = len(others) + len(members)
            middle = (where * len(others) + middle * len(members)) / total
            members = [*others, *members]
            half = apart * (total - 1) / 2
            middle = max(min(middle, high - half), low + half)
        groups.append((members, middle))
    places = dict.fromkeys(order, 0.0)
    for members, middle in groups:
        for rank, i in enumerate(members):
            places[i] = middle + apart * (rank - (len(members) - 1) / 2)
    return [places[i] for i in range(len(values))]


def binned(x: np.ndarray, y: np.ndarray, most: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Return means over equal stretches, so that a long training does not make a large file."""
    if len(x) <= most:
        return x, y
    starts = np.arange(0, len(x), -(-len(x) // most))
    counts = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def curve(
    points: Sequence[tuple[float, float]],
    ylabel: str,
    label: str,
    prefix: str,
    *,
    target: Sequence[tuple[float, float]] = (),
    limits: tuple[float, float] | None = None,
    attacked: bool = False,
    bands: Sequence[tuple[float, float]] = (),
) -> str:
    """Draw one quantity over the steps of training, with a dashed target, and red bands if any."""
    with _drawing():
        figure, axes = _axes(3.9, 2.5)
        for start, end in bands:
            axes.axvspan(start, end, color=ALARM, alpha=0.2, lw=0, zorder=0)
        x, y = binned(*np.asarray(points, dtype=float).reshape(-1, 2).T)
        few = len(x) <= 40
        axes.plot(x, y, color=ATTACKED if attacked else CLEAN, lw=1.6, marker="o" if few else None, ms=3.5)
        if target:
            tx, ty = binned(*np.asarray(target, dtype=float).reshape(-1, 2).T)
            axes.plot(tx, ty, color=INK, lw=1.2, ls="--")
            axes.annotate(
                "target", (tx[-1], ty[-1]), xytext=(0, 5), textcoords="offset points", ha="right", fontsize=9
            )
        if limits is not None:
            axes.set_ylim(*limits)
        axes.margins(x=0.03)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.locator_params(axis="y", nbins=5)
        axes.set_xlabel("optimiser steps")
        axes.set_ylabel(ylabel)
        axes.grid(color=INK, alpha=0.15, lw=0.6)
        return _svg(figure, label, prefix)


def several(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    xlabel: str,
    ylabel: str,
    label: str,
    prefix: str,
    *,
    limits: tuple[float, float] | None = None,
) -> str:
    """Draw some quantities of one unit in one chart, told apart by colour and dashes."""
    colours = (CLEAN, ATTACKED, "#009e73", "#cc79a7", INK, "#8c6bb1", "#56b4e9", "#a6761d")
    with _drawing():
        figure, axes = _axes(3.9, 2.5 + 0.18 * (-(-len(lines) // 3) if len(lines) > 1 else 0))
        for i, (name, points) in enumerate(lines):
            x, y = binned(*np.asarray(points, dtype=float).reshape(-1, 2).T)
            style = ("-", "--", "-.", ":")[i % 4]
            mark = "o" if len(x) <= 12 else None
            colour = colours[i % len(colours)]
            axes.plot(x, y, color=colour, ls=style, lw=1.6, marker=mark, ms=3.5, label=short(name))
        if limits is not None:
            axes.set_ylim(*limits)
        axes.margins(x=0.03)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.locator_params(axis="y", nbins=5)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(color=INK, alpha=0.15, lw=0.6)
        if len(lines) > 1:
            figure.legend(
                loc="outside upper left", ncols=min(3, len(lines)), frameon=False, fontsize=8,
                labelcolor=INK, handlelength=1.8, columnspacing=1.2,
            )  # fmt: skip
        return _svg(figure, label, prefix)


def robustness(
    lines: Sequence[tuple[str, Sequence[tuple[float, Bar]]]], xlabel: str, label: str, prefix: str
) -> str:
    """Draw the share of queries that hold over the radius, a line with its band for each run."""
    with _drawing():
        figure, axes = _axes(6.2, 3.2)
        styles = ("-", "--", "-.", ":")
        colours = (ATTACKED, CLEAN, INK)
        for i, (name, points) in enumerate(lines):
            x = [eps for eps, _ in points]
            y = [np.nan if bar.value is None else 100 * bar.value for _, bar in points]
            low = [100 * bar.low for _, bar in points]
            high = [100 * bar.high for _, bar in points]
            colour, style = colours[i % len(colours)], styles[i % len(styles)]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            axes.plot(x, y, color=colour, ls=style, lw=1.8, marker="o", ms=3.5, label=name)
        axes.set_ylim(0, 100)
        axes.set_xlim(left=0)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("right, %")
        axes.grid(color=INK, alpha=0.15, lw=0.6)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        return _svg(figure, label, prefix)


class Panel(NamedTuple):
    """One quantity of :func:`stacked`: points, the range that the axis shall reach over, a limit to mark."""

    name: str
    points: Sequence[tuple[float, float]]
    limits: tuple[float, float]
    limit: float | None = None


def stacked(
    panels: Sequence[Panel],
    bands: Sequence[tuple[float, float]],
    marks: Collection[float],
    words: str,
    label: str,
    prefix: str,
) -> str:
    """Draw small panels over the same steps, with red bands, crosses at marked steps, and words for them."""
    with _drawing():
        figure = Figure(figsize=(3.9, 0.55 + 1.05 * len(panels)), layout="constrained")
        figure.patch.set_alpha(0.0)
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            axes.patch.set_alpha(0.0)
            axes.set_axisbelow(True)
            x, y = binned(*np.asarray(panel.points, dtype=float).reshape(-1, 2).T)
            for start, end in bands:
                axes.axvspan(start, end, color=ALARM, alpha=0.2, lw=0, zorder=0)
            axes.plot(x, y, color=CLEAN, lw=1.6, marker="o" if len(x) <= 40 else None, ms=3.5)
            crossed = [point for point in panel.points if point[0] in marks]
            if crossed:
                axes.plot(*zip(*crossed, strict=True), "x", color=ALARM, ms=6, mew=1.6, zorder=4)
            if panel.limit is not None:
                axes.axhline(panel.limit, color=INK, lw=0.9, ls=":")
            low, high = panel.limits
            reach = 0.06 * (max(high, y.max()) - min(low, y.min()) or 1.0)
            axes.set_ylim(min(low, y.min() - reach), max(high, y.max() + reach))
            axes.margins(x=0.03)
            axes.locator_params(axis="y", nbins=4)
            axes.set_title(panel.name, fontsize=9.5, loc="left", pad=4)
            axes.grid(color=INK, alpha=0.15, lw=0.6)
        if words:
            rows[0].set_title(words, fontsize=9, loc="right", pad=4, color=ALARM)
        rows[-1].set_xlim(left=min(0.0, rows[-1].get_xlim()[0]))
        rows[-1].locator_params(axis="x", nbins=5, integer=True)
        rows[-1].set_xlabel("optimiser steps")
        return _svg(figure, label, prefix)
