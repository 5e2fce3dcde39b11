"""The section on ensembles: whether attacks on one member fool the others, and how often members disagree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import interactive, plots
from .cluster_files import Members
from .load import RunFolder
from .load import number as field
from .matrix import heat_map
from .parts import data_table, figure, missing
from .plots import ATTACKED, CLEAN
from .words import esc, number, of_100, percent

_TRANSFER = re.compile(r"transfer\.(\d{1,2})\.(\d{1,2})")
_MEMBER = re.compile(r"gradient\.(\d{1,2})")
_FEW = 3
"""With fewer epochs than this, single steps are shown."""


class Shot(NamedTuple):
    """The transfer matrix (M, M) at one time, as shares, NaN where not logged; rows: attacked member."""

    when: str
    matrix: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """The mean off the diagonal: how often an attack on one member fools another."""
        off = self.matrix[~np.eye(len(self.matrix), dtype=bool)]
        off = off[np.isfinite(off)]
        return float(off.mean()) if len(off) else float("nan")


def concerned(run: RunFolder) -> bool:
    """Return whether a run folder holds anything about members of an ensemble."""
    if run.clustering is not None and run.clustering.members:
        return True
    return any(_size(line) > 1 for line in run.steps)


def section(runs: Sequence[RunFolder]) -> str:
    """Return "How different are the members?" for each run that has members."""
    parts = [
        "<p>An ensemble helps against attacks as far as its members fail in different ways: an attack made "
        "on one member should not fool the others, and members should rarely be wrong together.</p>"
    ]
    for index, run in enumerate(run for run in runs if concerned(run)):
        parts.append(f"<h3>{esc(run.label)}</h3>")
        parts += [missing(note) for note in run.clustering.notes] if run.clustering else []
        parts.append(_training(run, f"members-{index}"))
        members = run.clustering.members if run.clustering else {}
        several = len(members) > 1
        for place, (name, found) in enumerate(sorted(members.items())):
            parts.append(_evaluated(found, f"members-{index}-{place}", name if several else ""))
    return "".join(parts)


def shots(run: RunFolder) -> list[Shot]:
    """Return the transfer matrix at the end of the first, the middle and the last epoch.

    Of fewer than three epochs: at the first, the middle and the last step that logged it.
    """
    lines = [line for line in run.steps if _size(line) > 1]
    last = {int(e): line for line in lines if (e := field(line, "epoch")) is not None}
    if len(last) >= _FEW:
        total = max(last) + 1
        times = [(f"epoch {e + 1} of {total}", last[e]) for e in sorted(last)]
    else:
        times = [(f"step {field(line, 'step') or 0:.0f}", line) for line in lines]
    chosen = sorted({0, len(times) // 2, len(times) - 1}) if times else []
    size = max((_size(line) for line in lines), default=0)
    return [Shot(times[i][0], _matrix(times[i][1], size)) for i in chosen]


def _size(line: Mapping[str, Any]) -> int:
    found = [max(int(a) for a in m.groups()) + 1 for key in line if (m := _TRANSFER.fullmatch(str(key)))]
    return max(found, default=0)


def _matrix(line: Mapping[str, Any], size: int) -> NDArray[np.float64]:
    matrix = np.full((size, size), np.nan)
    for key in line:
        m, value = _TRANSFER.fullmatch(str(key)), field(line, key)
        if m and value is not None:
            matrix[int(m[1]), int(m[2])] = value
    return matrix


def _training(run: RunFolder, prefix: str) -> str:
    taken = shots(run)
    if not taken:
        return missing("No transfer between members was logged in the training of this run.")
    first, last = taken[0], taken[-1]
    text = (
        f"<p>At the end of training an attack made on one member fooled another in <b>{of_100(last.mean)} of "
        f"100</b> cases; after {esc(first.when)} in {of_100(first.mean)} (training images, running mean).</p>"
    )
    maps = "".join(_transfer(shot, f"{prefix}-shot-{i}") for i, shot in enumerate(taken))
    charts = [chart for chart in (_shares(run, prefix), _diversity(run, prefix), _gradients(run, prefix),
                                  _apart(run, prefix)) if chart]  # fmt: skip
    kind = "curves four" if len(charts) == 4 else "curves"
    return f'{text}<div class="curves">{maps}</div><div class="{kind}">{"".join(charts)}</div>'


def _transfer(shot: Shot, prefix: str) -> str:
    title = f"After {shot.when}: {percent(shot.mean)} carry over"
    names = [str(i + 1) for i in range(len(shot.matrix))]
    svg = heat_map(
        shot.matrix,
        names,
        names,
        lambda r, c: f"{100 * shot.matrix[r, c]:.0f}" if np.isfinite(shot.matrix[r, c]) else "–",
        ("attack made on member", "member that is fooled"),
        title,
        prefix,
        framed=[(i, i) for i in range(len(names))],
        width=3.3,
    )
    caption = "Share of attacked images that fool a member (%). Framed: the member that was attacked itself."
    rows = [[f"made on {names[i]}", *(_share(v) for v in line)] for i, line in enumerate(shot.matrix)]
    spec = interactive.matrix(
        shot.matrix, names, names, ("attack made on member", "member that is fooled"), "attacked"
    )
    return figure(title, svg, caption, data_table(["attack", *(f"fools {n}" for n in names)], rows), spec)


def _share(value: float) -> str:
    return percent(value) if np.isfinite(value) else "–"


Line = tuple[str, list[tuple[float, float]]]


def _over_epochs(run: RunFolder, keys: Mapping[str, str]) -> tuple[list[Line], str]:
    """Return the mean of each epoch of each quantity that was logged, and what the axis is."""
    epochs = {int(e) for line in run.steps if (e := field(line, "epoch")) is not None}
    lines: list[Line] = []
    for key, name in keys.items():
        at: dict[float, list[float]] = {}
        for line in run.steps:
            when = field(line, "epoch" if len(epochs) >= _FEW else "step")
            value = field(line, key)
            if when is not None and value is not None:
                at.setdefault(when + (len(epochs) >= _FEW), []).append(value)
        if at:
            lines.append((name, [(when, sum(v) / len(v)) for when, v in sorted(at.items())]))
    return lines, "epochs" if len(epochs) >= _FEW else "optimiser steps"


def _chart(
    found: tuple[list[Line], str],
    ylabel: str,
    title: str,
    caption: str,
    prefix: str,
    *,
    shares: bool = False,
) -> str:
    lines, axis = found
    scale = 100.0 if shares else 1.0
    drawn = [(name, [(x, scale * y) for x, y in points]) for name, points in lines]
    limits = (0.0, 102.0) if shares else None
    svg = plots.several(drawn, axis, ylabel, title, prefix, limits=limits)
    told = percent if shares else number
    rows = [[name, *(told(points[i][1]) for i in (0, len(points) // 2, -1))] for name, points in lines]
    table = data_table(["quantity", "first", "middle", "last"], rows)
    return figure(title, svg, caption, table, interactive.several(drawn, axis, ylabel, limits))


def _shares(run: RunFolder, prefix: str) -> str | None:
    keys = {"transfer": "from member to member", "ensemble_error": "whole ensemble fooled"}
    found = _over_epochs(run, keys)
    if not found[0]:
        return None
    name, points = found[0][0]
    title = f"Fooled, {name}: {percent(points[0][1])} at first, {percent(points[-1][1])} at the end"
    if name == keys["ensemble_error"]:
        title = f"The whole ensemble was fooled by {percent(points[-1][1])} of attacks at the end"
    caption = (
        "From member to member: share of the examples made on one member that fool another. Whole ensemble: "
        "share of the examples made on all members at once that fool their joint answer. Training images; "
        "attacks often begin weak and grow, so the lines may rise at first. Running means, taken over each "
        "epoch where there are enough."
    )
    return _chart(found, "attacks that fool (%)", title, caption, f"{prefix}-shares", shares=True)


def _diversity(run: RunFolder, prefix: str) -> str | None:
    found = _over_epochs(run, {"diversity": "diversity term"})
    if not found[0]:
        return None
    points = found[0][0][1]
    title = f"The diversity term went from {number(points[0][1])} to {number(points[-1][1])}"
    caption = "What training lowers so that members fail in different ways: the lower, the more diverse."
    return _chart(found, "diversity term", title, caption, f"{prefix}-diversity")


def _gradients(run: RunFolder, prefix: str) -> str | None:
    numbers = {int(m[1]) for line in run.steps for key in line if (m := _MEMBER.fullmatch(str(key)))}
    found = _over_epochs(run, {f"gradient.{i}": f"member {i + 1}" for i in sorted(numbers)})
    if not found[0]:
        return None
    first, last = (sum(points[i][1] for _, points in found[0]) / len(found[0]) for i in (0, -1))
    title = f"Input gradients went from {number(first)} to {number(last)}, mean of the members"
    caption = (
        "Mean length of the gradient of each member's loss with respect to the image. Read it with the "
        "transfer: smoother members are harder to attack and often easier to attack together."
    )
    return _chart(found, "gradient norm", title, caption, f"{prefix}-gradients")


def _apart(run: RunFolder, prefix: str) -> str | None:
    """Return how often members disagreed in training."""
    found = _over_epochs(run, {"disagreement": "disagreement"})
    if not found[0]:
        return None
    points = found[0][0][1]
    title = f"Members disagreed on {percent(points[-1][1])} of training images at the end"
    caption = "Share of training images that not all members put into the same class."
    return _chart(found, "disagreement (%)", title, caption, f"{prefix}-apart", shares=True)


def disagreement(assigned: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """Return the share of pictures on which not all members agree, and that of each pair, (M, M)."""
    pairs = np.zeros((len(assigned), len(assigned)))
    for i, j in combinations(range(len(assigned)), 2):
        pairs[i, j] = pairs[j, i] = (assigned[i] != assigned[j]).mean()
    return float((assigned != assigned[0]).any(0).mean()), pairs


def _evaluated(found: Members, prefix: str, name: str) -> str:
    """Return how often members disagree without and under attack, and how many are moved at once."""
    count, n = found.assigned.shape
    of = f" (evaluation {name})" if name else ""
    if count < 2:
        return missing(f"There is one member only, so there is nothing to disagree about{of}.")
    (clean, before), (attacked, after) = disagreement(found.assigned), disagreement(found.attacked)
    moved = (found.assigned != found.attacked).sum(0)
    counts = np.bincount(moved, minlength=count + 1)
    text = (
        f"<p>On test pictures{esc(of)} the members disagree in <b>{of_100(attacked)} of 100</b> cases under "
        f"the worst attack, without one in {of_100(clean)}. The attack on the whole moves every "
        f"member at once for {of_100(counts[-1] / n)} of 100 pictures, and none for "
        f"{of_100(counts[0] / n)}.</p>"
    )
    rows = [[i, int(c), percent(c / n)] for i, c in enumerate(counts)]
    table = data_table(
        ["members that leave their cluster", "pictures", "share"], rows, "How many members move"
    )
    charts = [
        _pairs(before, clean, "without an attack", f"{prefix}-clean", attacked=False),
        _pairs(after, attacked, "under attack", f"{prefix}-attacked", attacked=True),
    ]
    return f'{text}<div class="curves">{"".join(charts)}</div>{table}'


def _pairs(pairs: NDArray[np.float64], share: float, when: str, prefix: str, *, attacked: bool) -> str:
    title = f"Members disagree {when}: {percent(share)} of pictures"
    names = [str(i + 1) for i in range(len(pairs))]
    shown = np.where(np.eye(len(pairs), dtype=bool), np.nan, pairs)
    svg = heat_map(
        shown,
        names,
        names,
        lambda r, c: f"{100 * pairs[r, c]:.0f}" if r != c else "",
        ("member", "member"),
        title,
        prefix,
        colour=ATTACKED if attacked else CLEAN,
        width=3.3,
    )
    caption = "Share of pictures that two members put into different clusters (%)."
    rows = [[names[i], *(_share(v) for v in line)] for i, line in enumerate(shown)]
    spec = interactive.matrix(shown, names, names, ("member", "member"), "attacked" if attacked else "clean")
    return figure(title, svg, caption, data_table(["member", *names], rows), spec)
