"""Lines over a common axis as a static drawing, called by their names at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .plots import COLOURS, INK, _axes, _drawing, _svg, spread
from .words import short


class Line(NamedTuple):
    """One line: values over x, with a band of intervals where ``low`` and ``high`` are given.

    ``colour`` is a word (:data:`~holdfast.report.plots.COLOURS`), ``says`` is what a pointer shows at each
    point, or a template of Plotly's for all in which nothing comes from a run, ``dash`` and ``mark`` are
    Plotly's words; ``filled`` shades what lies beneath, ``faint`` puts the line back, and ``labelled`` ones
    are called by their name at their end.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "clean"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    says: Sequence[str] | str = ()
    dash: str = "solid"
    width: float = 2.0
    mark: str = ""
    filled: bool = False
    faint: bool = False
    labelled: bool = True


_DASHES = {"solid": "-", "dash": "--", "dashdot": "-.", "dot": ":"}
LABEL = 18
"""Most letters of a label at the end of a line, so that a telephone has room for the line."""


def last(values: Sequence[float]) -> float:
    """Return the last finite value, 0 where there is none."""
    return next((float(v) for v in reversed(values) if np.isfinite(v)), 0.0)


def draw(
    drawn: Sequence[Line],
    xlabel: str,
    ylabel: str,
    label: str,
    prefix: str,
    *,
    size: tuple[float, float] = (6.6, 3.4),
    limits: tuple[float, float] = (0.0, 101.0),
    at: tuple[float, str] | None = None,
    inside: Sequence[tuple[str, float, float, str]] = (),
) -> str:
    """Draw lines, those on top last; the words are as in :func:`~holdfast.report.interactive.lines`."""
    low, high = limits
    with _drawing():
        figure, axes = _axes(*size)
        if at is not None:
            axes.axvline(at[0], color=INK, lw=0.9, ls=":", zorder=1)
            axes.annotate(
                at[1], (at[0], 1), xycoords=("data", "axes fraction"), xytext=(0, 3), fontsize=8.5,
                textcoords="offset points", ha="center", va="bottom", alpha=0.75, annotation_clip=False,
            )  # fmt: skip
        for line in drawn:
            colour = COLOURS[line.colour]
            if len(line.low):
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, lw=0)
            if line.filled:
                axes.fill_between(line.x, line.y, color=colour, alpha=0.2, lw=0)
            axes.plot(
                line.x, line.y, color=colour, lw=0.75 * line.width, ls=_DASHES[line.dash],
                marker="o" if line.mark else None, ms=2.5 + 0.75 * line.width, clip_on=False,
                alpha=0.55 if line.faint else 1.0, zorder=3 if line.faint else 4, solid_joinstyle="round",
            )  # fmt: skip
        axes.set_ylim(*limits)
        far = max((float(x) for line in drawn for x in line.x), default=1.0)
        axes.set_xlim(0, far or 1.0)
        named = [line for line in drawn if line.labelled and len(line.x)]
        if len(drawn) > 1:
            apart = 11.5 / (72 * size[1] - 62) * (high - low)
            ends = spread([last(line.y) for line in named], apart, low, high)
            for line, y in zip(named, ends, strict=True):
                axes.annotate(
                    short(line.name, LABEL), (1, y), xycoords=("axes fraction", "data"), xytext=(8, 0),
                    textcoords="offset points", va="center", fontsize=9, annotation_clip=False,
                    color=COLOURS[line.colour], fontweight="bold" if line.width > 3 else "normal",
                )  # fmt: skip
        for text, x, y, colour in inside:
            axes.text(x, y, text, color=COLOURS[colour], fontsize=9, va="center")
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(color=INK, alpha=0.15, lw=0.6)
        return _svg(figure, label, prefix)
