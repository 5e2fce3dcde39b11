"""The ratios of one result as a picture: a mark with its spread for each row, on a log axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..errors import DataError
from ..files import replacing

COLOURS = {"limit": "#0072b2", "peer": "#d55e00", "recorded": "#707070"}
MARKS = {"limit": "o", "peer": "s", "recorded": "D"}
WORDS = {"limit": "bare limit", "peer": "other libraries", "recorded": "recorded figures, scaled"}
TICKS = (0.0001, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def plot(result: Mapping[str, Any], path: str | Path) -> list[Path]:
    """Draw the ratios of a result.

    Parameters
    ----------
    result
        What :func:`~holdfast.bench.bench` returned.
    path
        The picture without its ending.

    Returns
    -------
    list of Path
        The PNG and the SVG, each written as a whole or not at all.

    Raises
    ------
    DataError
        If no row has a ratio.
    """
    rows = [row for row in result["rows"] if row.get("ratio")]
    if not rows:
        raise DataError("bench: no row has a ratio to draw")
    works = list(dict.fromkeys((row["case"], row["work"]) for row in rows))
    figure = Figure(figsize=(8.6, 1.3 + 0.30 * len(works) + 0.22 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    y, places, names, ends = 0.0, [], [], []
    for case, work in works:
        axes.text(
            0.0, y, f"{case} · {work}", transform=axes.get_yaxis_transform(), va="center", fontsize=8.5,
            fontweight="bold", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}, zorder=5,
        )  # fmt: skip
        for row in (r for r in rows if (r["case"], r["work"]) == (case, work)):
            y += 0.8
            ratio, kind = row["ratio"], row["kind"]
            axes.plot([ratio["low"], ratio["high"]], [y, y], color=COLOURS[kind], lw=1.6, zorder=3)
            axes.plot(ratio["median"], y, MARKS[kind], color=COLOURS[kind], ms=5.5, zorder=4)
            axes.annotate(
                in_short(ratio["median"]), (ratio["high"], y), xytext=(5, 0), textcoords="offset points",
                va="center", fontsize=8, zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
            places.append(y)
            names.append(row["against"])
            ends += [ratio["low"], ratio["high"]]
        y += 1.05
    low, high = min(0.5, min(ends)) / 1.25, max(2.0, max(ends)) * 1.7
    axes.set_xlim(low, high)
    axes.set_ylim(y - 0.4, -0.7)
    axes.axvline(1.0, color="black", lw=1.0, zorder=2)
    axes.xaxis.set_major_locator(FixedLocator([t for t in TICKS if low <= t <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_yticks(places, names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("time of the other / time of Holdfast: right of 1 Holdfast is faster")
    for kind in (k for k in WORDS if any(row["kind"] == k for row in rows)):
        axes.plot([], [], MARKS[kind], color=COLOURS[kind], label=WORDS[kind])
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    machine = result["machine"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    words = f"{result['date'][:10]}, {threads}, {machine['model'] or machine['processor']}"
    figure.text(0.995, 0.995, words, ha="right", va="top", fontsize=7.5, color="#555555")
    return [_written(figure, Path(f"{path}{ending}")) for ending in (".png", ".svg")]


def in_short(ratio: float) -> str:
    """Return a ratio with at least two figures that mean something.

    Examples
    --------
    >>> in_short(0.956), in_short(0.00123), in_short(41.27)
    ('0.96', '0.0012', '41')
    """
    return f"{ratio:.2f}" if 0.1 <= ratio < 10 else f"{ratio:.2g}" if ratio < 0.1 else f"{ratio:.0f}"


def _written(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        figure.savefig(part, dpi=150, format=path.suffix[1:])
    return path
