"""The clusters on a plane: clean queries, cluster centres, and arrows to where attacks moved some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.patches import FancyArrowPatch
from numpy.typing import NDArray

from .cluster_files import Moved, StoredClusters
from .confusion import flows, most_confused
from .plots import ALARM, CLEAN, GROUND, INK, _axes, _drawing, _svg

COLOURED = 24
"""Most clusters that are all drawn; of more, those of the commonest moves are."""
SHOWN_OF_MANY = 10
DOTS, ARROWS = 900, 60
WIDE, HIGH = 7.4, 5.8
_COLOURS = (CLEAN, "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c6bb1", "#a6761d")
_MARKS = ("o", "s", "^", "D", "v")  # as many as have no factor in common with the colours
_FIT_ON = 4000


class Plane(NamedTuple):
    """An orthonormal projection (e, 2) about a middle (e,): no distance in it is longer than it truly is."""

    middle: NDArray[np.float64]
    axes: NDArray[np.float64]
    name: str
    kept: float

    def __call__(self, z: NDArray[Any]) -> NDArray[np.float64]:
        """Project (n, e) to (n, 2)."""
        found: NDArray[np.float64] = (z.astype(np.float64) - self.middle) @ self.axes
        return found


def plane(stored: StoredClusters, shown: Sequence[int]) -> Plane:
    """Fit the projection on the clean embeddings and centroids of the shown clusters, in ascending order.

    Of principal components and linear discriminants of the clusters it is the one in which more clean queries
    lie nearest to their own centroid; ``kept`` is that share. The same arrays give the same plane.
    """
    rows = _of(stored, shown, _FIT_ON)
    own = np.searchsorted(shown, stored.cluster_of[rows])
    z, centres = stored.z[rows].astype(np.float64), stored.centroids[list(shown)]
    e = z.shape[1]
    middle = np.concatenate([z, centres]).mean(0)
    spread, within = np.concatenate([z, centres]) - middle, z - centres[own]
    total, inner = spread.T @ spread / len(spread), within.T @ within / max(len(z), 1)
    ridge = 1e-3 * np.trace(total) / e + 1e-12
    candidates = [("principal components", total, np.eye(e))]
    if len(centres) > 2 and e > 2:
        between = centres - centres.mean(0)
        outer = between.T @ between / len(between)
        candidates.append(("linear discriminants", outer, inner + ridge * np.eye(e)))
    best: Plane | None = None
    for name, up, down in candidates:
        axes = _leading(up, down)
        d = np.square(((z - middle) @ axes)[:, None] - (centres - middle) @ axes).sum(2)
        kept = float((d.argmin(1) == own).mean()) if len(z) else 1.0
        if best is None or kept > best.kept:
            best = Plane(middle, axes, name, kept)
    assert best is not None
    return best


def _leading(up: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return two orthonormal directions (e, 2) of the largest ratio of two quadratic forms, signs fixed."""
    from scipy.linalg import eigh  # slow to import

    e = len(up)
    _, vectors = eigh(up, down, subset_by_index=[max(0, e - 2), e - 1])
    axes, _ = np.linalg.qr(vectors[:, ::-1])
    if axes.shape[1] < 2:
        axes = np.concatenate([axes, np.zeros((len(axes), 1))], 1)
    largest = axes[np.abs(axes).argmax(0), [0, 1]]
    return np.asarray(axes * np.where(largest < 0, -1.0, 1.0))


def shown_clusters(stored: StoredClusters, moved: Moved | None) -> list[int]:
    """Return the clusters to draw: all, or of many those of the commonest moves, else the largest."""
    k = len(stored.centroids)
    if k <= COLOURED:
        return list(range(k))
    if moved is not None:
        return most_confused(flows(stored, moved), SHOWN_OF_MANY + 1)
    size = np.bincount(stored.cluster_of, minlength=k)
    return sorted(np.lexsort((np.arange(k), -size))[:SHOWN_OF_MANY].tolist())


def with_arrow(stored: StoredClusters, shown: Sequence[int]) -> NDArray[np.int64]:
    """Return the rows of the queries that get an arrow: evenly spaced among those of the shown clusters."""
    return _of(stored, shown, ARROWS)


def _of(stored: StoredClusters, shown: Sequence[int], most: int) -> NDArray[np.int64]:
    """Return at most so many rows of some clusters, evenly spaced: a sample that no outcome has chosen."""
    rows = np.flatnonzero(np.isin(stored.cluster_of, list(shown)))
    if len(rows) <= most:
        return rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, most).round().astype(np.int64))]


def draw(
    stored: StoredClusters,
    moved: Moved | None,
    shown: Sequence[int],
    flat: Plane,
    label: str,
    prefix: str,
) -> str:
    """Draw the plane: dots, borders, centres, arrows and names of the shown clusters."""
    centres, points = flat(stored.centroids), flat(stored.z)
    dots = _of(stored, shown, DOTS)
    looks = [(_MARKS[i % len(_MARKS)], _COLOURS[i % len(_COLOURS)]) for i in range(len(shown))]
    with _drawing():
        figure, axes = _axes(WIDE, HIGH)
        ends = [points[dots], centres[list(shown)]]
        for k, (mark, colour) in zip(shown, looks, strict=True):
            some = points[dots[stored.cluster_of[dots] == k]]
            axes.plot(*some.T, mark, color=colour, ms=3.6, mew=0, alpha=0.6, zorder=3)
        if moved is not None:
            arrows = with_arrow(stored, shown)
            ends.append(flat(moved.z[arrows]))
            _arrows(axes, points[arrows], ends[-1], moved.cluster[arrows] != stored.cluster_of[arrows])
        if len(shown) == len(centres):  # else the borders would be those of other cells
            _borders(axes, centres)
        for k, (mark, colour) in zip(shown, looks, strict=True):
            axes.plot(*centres[k], mark, ms=10, mfc=colour, mec=INK, mew=1.5, zorder=6)
        low, high = np.concatenate(ends).min(0), np.concatenate(ends).max(0)
        room = 0.05 * np.maximum(high - low, 1e-9).max()
        _limits(axes, low - room, high + room)
        names = [stored.cluster_name(k) for k in shown]
        _names(axes, centres[list(shown)], names, float((high - low + 2 * room).max()))
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_alpha(0.3)
        return _svg(figure, label, prefix)


def _limits(axes: Any, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    """Set limits that hold the box and give both directions one scale."""
    middle, half = (low + high) / 2, (high - low) / 2
    half = np.maximum(half, half[::-1] * np.array([WIDE / HIGH, HIGH / WIDE]))
    axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
    axes.set_ylim(middle[1] - half[1], middle[1] + half[1])
    axes.set_aspect("equal")


def _arrows(axes: Any, start: NDArray[Any], end: NDArray[Any], broken: NDArray[np.bool_]) -> None:
    """Draw arrows: red, thick and with a full head where the query left its cluster."""
    for a, b, out in zip(start, end, broken, strict=True):
        arrow = FancyArrowPatch(
            tuple(a), tuple(b), arrowstyle="-|>" if out else "->", mutation_scale=9 if out else 7,
            color=ALARM if out else INK, lw=1.3 if out else 0.8, alpha=0.8 if out else 0.55,
            shrinkA=0, shrinkB=0, zorder=5 if out else 4,
        )  # fmt: skip
        axes.add_patch(arrow).set_in_layout(False)


def _borders(axes: Any, centres: NDArray[np.float64]) -> None:
    """Draw the lines half-way between neighbouring centres."""
    from scipy.spatial import QhullError, Voronoi  # slow to import

    if len(centres) < 2:
        return
    middle, reach = centres.mean(0), 50 * (np.ptp(centres, axis=0).max() or 1.0)
    far = middle + reach * np.array([[1.0, 0.3], [-0.3, 1.0], [-1.0, -0.3], [0.3, -1.0]])
    try:
        cells = Voronoi(np.concatenate([centres, far]))
    except QhullError:
        return
    lines = [
        cells.vertices[ends]
        for pair, ends in zip(cells.ridge_points, cells.ridge_vertices, strict=True)
        if max(pair) < len(centres) and -1 not in ends
    ]
    axes.add_collection(
        LineCollection(lines, colors=INK, linewidths=0.7, linestyles="--", alpha=0.35, zorder=2)
    )


def _names(axes: Any, at: NDArray[np.float64], names: Sequence[str], span: float) -> None:
    """Write names beside their centres, each at the first of eight places where it covers no other."""
    high = 0.026 * span
    taken: list[tuple[float, float, float, float]] = [(x - high / 2, y - high / 2, high, high) for x, y in at]
    for (x, y), name in zip(at, names, strict=True):
        wide = 0.0115 * span * max(len(name), 1)
        gap = 0.016 * span
        options = [
            (x + gap, y - high / 2), (x - gap - wide, y - high / 2), (x - wide / 2, y + gap),
            (x - wide / 2, y - gap - high), (x + gap, y + gap), (x - gap - wide, y + gap),
            (x + gap, y - gap - high), (x - gap - wide, y - gap - high),
        ]  # fmt: skip
        free = [sum(_overlap((left, low, wide, high), other) for other in taken) for left, low in options]
        left, low = options[int(np.argmin(free))]
        taken.append((left, low, wide, high))
        axes.text(
            left + wide / 2, low + high / 2, name, ha="center", va="center", fontsize=9, zorder=7,
            bbox={"facecolor": GROUND, "alpha": 0.75, "pad": 0.8, "lw": 0},
        )  # fmt: skip


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the area that two boxes (left, low, width, height) share."""
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(high, 0.0)
