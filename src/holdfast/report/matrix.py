"""Matrices as heat maps with their numbers written in, for charts that one reads cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from .plots import ATTACKED, INK, _drawing, _svg

_DEEPEST = 0.6
"""Opacity of the value 1, so that the number on it stays legible on light and dark ground."""


def heat_map(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    text: Callable[[int, int], str],
    axes_words: tuple[str, str],
    label: str,
    prefix: str,
    *,
    colour: str = ATTACKED,
    framed: Sequence[tuple[int, int]] = (),
    framed_colour: str = "",
    width: float = 3.9,
) -> str:
    """Draw a matrix (r, c), r and c >= 1, of shares in [0, 1]; a missing value has no colour.

    Parameters
    ----------
    values
        What the depth of the colour says.
    rows, columns
        Names, from the top and from the left.
    text
        From row and column to what is written in the cell.
    axes_words
        Words for the rows and for the columns.
    label, prefix
        Text for those who do not see the chart; start of its ids.
    colour
        Of the cells.
    framed, framed_colour
        Cells with a frame, such as those on the diagonal, and their colour where it is another.
    width
        Inches; the height follows.
    """
    r, c = values.shape
    edge = min(max(0.5, 1.7 / r), (width - 1.1) / c)
    size = max(5.5, min(9.0, 26 * edge))
    turned = max((len(name) for name in columns), default=0) > 3
    with _drawing():
        figure = Figure(figsize=(width, 0.75 + 0.5 * turned + edge * r), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes: Any = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        for i in range(r):
            for j in range(c):
                value = float(values[i, j])
                depth = _DEEPEST * min(max(value, 0.0), 1.0) if np.isfinite(value) else 0.0
                fill = framed_colour if framed_colour and (i, j) in framed else colour
                if depth > 0:
                    cell = Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=fill, alpha=depth, lw=0)
                    axes.add_patch(cell).set_in_layout(False)
                if written := text(i, j):
                    drawn = axes.text(j, i, written, ha="center", va="center", fontsize=size)
                    drawn.set_in_layout(False)
        for i, j in framed:
            box = Rectangle((j - 0.44, i - 0.44), 0.88, 0.88, facecolor="none", edgecolor=INK, lw=0.9)
            axes.add_patch(box)
        axes.set_xlim(-0.5, c - 0.5)
        axes.set_ylim(r - 0.5, -0.5)
        axes.set_aspect("equal")
        names = max(size, 7.5)
        if turned:
            axes.set_xticks(
                range(c), columns, fontsize=names, rotation=45, ha="right", rotation_mode="anchor"
            )
        else:
            axes.set_xticks(range(c), columns, fontsize=names)
        axes.set_yticks(range(r), rows, fontsize=names)
        axes.tick_params(length=0)
        axes.set_ylabel(axes_words[0], fontsize=9)
        axes.set_xlabel(axes_words[1], fontsize=9)
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_alpha(0.3)
        return _svg(figure, label, prefix)
