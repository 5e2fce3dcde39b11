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


def _points(board: Board) -> list[tuple[str, bool, list[float], list[float]]]:
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
    for recipe, front, (x, y), (dx, dy) in _points(board):
        colour = FRONT if front else OTHER
        axes.errorbar(x, y, xerr=dx, yerr=dy, fmt="o", color=colour, ms=6, lw=1.2, capsize=2, zorder=3)
        axes.annotate(
            recipe, (x + (-dx if turned else dx), y), xytext=(5, 3), textcoords="offset points", fontsize=8.5,
            color=colour, fontweight="bold" if front else "normal", zorder=4, parse_math=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )  # fmt: skip
    for axis, name in zip((axes.xaxis, axes.yaxis), names, strict=True):
        lower = ", less is better" if measures[name].lower else ""
        axis.set_label_text(f"{measures[name].title}{lower}")
    if turned:
        axes.invert_xaxis()
    axes.margins(x=0.3, y=0.1)
    axes.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    terms = board.terms
    axes.set_title(
        f"{terms.dataset}, {terms.norm} {terms.radius()}", fontsize=9.5, loc="left", parse_math=False
    )
