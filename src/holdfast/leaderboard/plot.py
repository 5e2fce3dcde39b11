"""Boards as a picture: what each recipe trades, with the spread of its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import DataError
from ..files import replacing
from .board import KINDS, Board

FRONT, OTHER = "#0072b2", "#8a8a8a"
ACROSS = 3
"""Panels in a row, at most."""


def plot(found: Sequence[Board], path: str | Path) -> Path:
    """Draw one panel for each board: the clean measure against the robust one, the front in blue.

    Parameters
    ----------
    found
        Boards; those without two rows that have both measures are left out.
    path
        A file that ends in ``.png`` or ``.svg``; written as a whole or not at all.

    Raises
    ------
    DataError
        If no board has two rows to compare.
    """
    boards = [board for board in found if len(_points(board)) > 1]
    if not boards:
        raise DataError("leaderboard: no board has two rows with both measures to draw")
    across = min(len(boards), ACROSS)
    down = -(-len(boards) // across)
    figure = Figure(figsize=(5.6 * across, 4.2 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    for i, axes in enumerate(panels):
        _panel(boards[i], axes) if i < len(boards) else axes.remove()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        figure.savefig(part, dpi=150, format=path.suffix[1:], facecolor="white")
    return path


Point = tuple[str, bool, list[float], list[float]]
"""Recipe, whether on the front, means, spreads."""
NEAR, LINE = 0.28, 0.042
"""Names closer than so much of the width, and lower by less than a line, would cover each other."""


def _points(board: Board) -> list[Point]:
    x, y = KINDS[board.terms.kind].front
    found = []
    for row in board.rows:
        means = [row.mean(name) for name in (x, y)]
        if None not in means:
            spreads = [row.spread(name) or 0.0 for name in (x, y)]
            found.append((row.recipe, row.front, [m for m in means if m is not None], spreads))
    return found


def _panel(board: Board, axes: Axes) -> None:
    measures = board.measures
    names = KINDS[board.terms.kind].front
    turned = measures[names[0]].lower
    points = _points(board)
    best = max(point[2][0] for point in points)
    aside = [] if turned else [p for p in points if p[2][0] < best / 2]
    points = [p for p in points if p not in aside]
    for _, front, (x, y), (dx, dy) in points:
        colour = FRONT if front else OTHER
        axes.errorbar(x, y, xerr=dx, yerr=dy, fmt="o", color=colour, ms=6, lw=1.2, capsize=2, zorder=3)
    axes.margins(x=0.3, y=0.1)
    _labels(points, axes, -1.0 if turned else 1.0)
    if aside:
        words = ", ".join(f"{p[0]} ({p[2][0]:.0f}, {p[2][1]:.0f})" for p in aside)
        axes.text(0.02, 0.02, f"left out: {words}", transform=axes.transAxes, fontsize=8, parse_math=False)
    for axis, name in zip((axes.xaxis, axes.yaxis), names, strict=True):
        lower = ", less is better" if measures[name].lower else ""
        axis.set_label_text(f"{measures[name].title}{lower}")
    if turned:
        axes.invert_xaxis()
    axes.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    terms = board.terms
    axes.set_title(
        f"{terms.dataset}, {terms.norm} {terms.radius()}", fontsize=9.5, loc="left", parse_math=False
    )


def _labels(points: Sequence[Point], axes: Axes, sign: float) -> None:
    """Write names right of their bars, the lower of two that are close moved down."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    placed: list[tuple[float, float]] = []
    for recipe, front, (x, y), (dx, _) in sorted(points, key=lambda p: -p[2][1]):
        at, height = (x + sign * dx - left) / (right - left), (y - low) / (high - low)
        while any(abs(a - at) < NEAR and abs(h - height) < LINE for a, h in placed):
            height -= 0.25 * LINE
        placed.append((at, height))
        axes.annotate(
            recipe, (x + sign * dx, low + height * (high - low)), xytext=(5, 3), textcoords="offset points",
            fontsize=8.5, color=FRONT if front else OTHER, fontweight="bold" if front else "normal", zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}, parse_math=False,
        )  # fmt: skip
