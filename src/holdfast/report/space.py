"""What the space looks like: embeddings on a plane, and arrows to where attacks moved the queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from . import interactive
from .facts import Strength
from .load import EmbeddingMap, Moved, RunFolder
from .parts import data_table, figure, missing
from .plots import ALARM, COLOURS, GROUND, INK, _axes, _drawing, _svg
from .words import attack_title, esc, percent, plain, short

ARROWS, DOTS, ATTACKS = 200, 400, 3
"""Most arrows, most gallery images, and most attacks on the interactive map."""
CLASSES = 10
"""Most classes that have a colour and a shape of their own."""
TSNE_POINTS = 600
"""Most points, clean and attacked, of a t-SNE view; a gallery that is larger has none."""
_TSNE_QUERIES, _TSNE_RUNS = 100, 2
_WIDE, _HIGH = 7.4, 5.4
_LOOKS = (
    ("c0", "o", "circle"), ("c4", "s", "square"), ("c2", "^", "triangle-up"), ("c3", "D", "diamond"),
    ("c5", "v", "triangle-down"), ("c1", "P", "cross"), ("c7", "X", "x"), ("c0", "<", "triangle-left"),
    ("c4", "p", "pentagon"), ("c2", "*", "star"),
)  # fmt: skip
_SPHERE = ("Euclidean", "SquaredEuclidean", "Cosine")
"""Distances whose nearest neighbour is told by the embeddings alone."""


class View(NamedTuple):
    """Places on a plane: gallery (m, 2), queries (q, 2), attacked queries (q, 2) for each attack.

    ``gallery`` and ``queries`` are the rows of the map that the places belong to.
    """

    name: str
    gallery_at: NDArray[np.float64]
    queries_at: NDArray[np.float64]
    moved_at: dict[str, NDArray[np.float64]]
    gallery: NDArray[np.int64]
    queries: NDArray[np.int64]
    kept: float | None = None


def section(runs: Sequence[RunFolder], at: Strength | None) -> str:
    """Return "What does the space look like?": for each run a map with arrows, and a second view."""
    parts = [
        "<p>Each point is an image, at the place that the model gives it. Images of one class should lie "
        "together, and an attack succeeds where it carries a query over to another class. "
        "<b>Distances on such a map are not distances in the space</b>: it shows two dimensions of many, so "
        "points that look close may be far apart, and the other way round. Only the figures of the other "
        "sections are measured in the whole space.</p>"
    ]
    for index, run in enumerate(runs):
        if len(runs) > 1:
            parts.append(f"<h3>{esc(run.label)}</h3>")
        parts.append(_run(run, at, f"space-{index}", twice=len(runs) <= _TSNE_RUNS))
    if not any(run.maps is not None and len(run.maps.query_z) for run in runs):
        return missing(
            "No embeddings were stored. They are by holdfast evaluate RUN, from version 0.1.0 of Holdfast on."
        )
    return "".join(parts)


def _run(run: RunFolder, at: Strength | None, prefix: str, *, twice: bool) -> str:
    """Return the map of one run, and by t-SNE a second where it is small and wanted."""
    m = run.maps
    if m is None or not len(m.query_z) or not len(m.gallery_z):
        return missing("No embeddings were stored with this run.")
    m, attacks = covered(m, chosen(m, at))
    if not attacks:
        return missing("Where attacked queries went was not stored, so there are no arrows.") + _chart(
            run, m, principal(m, []), [], f"{prefix}-pca"
        )
    charts = [_chart(run, m, principal(m, attacks), attacks, f"{prefix}-pca")]
    second = neighbours(m, attacks[0]) if twice else None
    if second is not None:
        inner = _chart(run, m, second, attacks[:1], f"{prefix}-tsne")
        name = "The same by t-SNE, which keeps neighbours together and no distances"
        charts.append(f"<details><summary>{esc(name)}</summary>{inner}</details>")
    return "".join(charts)


def chosen(m: EmbeddingMap, at: Strength | None) -> list[Moved]:
    """Return the strongest attacks on queries at one strength, or at the largest stored, in order.

    The strongest carries most queries from a neighbour of their own class to one of another.
    """
    moved = [a for a in m.moved if not a.attack.startswith("CA")]  # these move gallery images
    here = [a for a in moved if at is not None and a.norm == at.norm and abs(a.eps - at.eps) < 1e-6]
    if not here and moved:
        largest = max(a.eps for a in moved)
        here = [a for a in moved if a.eps == largest]
    here = [a for a in here if _seen(a).any()]
    left = {a.attack: float(lost(m, a.z)[_seen(a)].mean()) for a in here}
    return sorted(here, key=lambda a: (-left[a.attack], a.attack))[:ATTACKS]


def _seen(attack: Moved) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(attack.z).all(1))


def covered(m: EmbeddingMap, attacks: Sequence[Moved]) -> tuple[EmbeddingMap, list[Moved]]:
    """Return the map of the queries that the first attack saw, and the attacks that saw all of these."""
    if not attacks:
        return m, []
    rows = np.flatnonzero(_seen(attacks[0]))
    part = replace(m, query_z=m.query_z[rows], query_y=m.query_y[rows], ids=m.ids[rows])
    return part, [replace(a, z=a.z[rows]) for a in attacks if _seen(a)[rows].all()]


def lost(m: EmbeddingMap, z: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Say for each query at ``z`` (q, e) whether the nearest stored gallery image is of another class.

    Rows of ``z`` that are NaN say nothing.
    """
    return np.asarray(m.gallery_y[_nearest(m, z)] != m.query_y)


def _nearest(m: EmbeddingMap, z: NDArray[np.float32]) -> NDArray[np.int64]:
    a, b = z.astype(np.float64), m.gallery_z.astype(np.float64)
    if m.distance == "Cosine":
        a, b = _unit(a), _unit(b)
    d = np.square(a).sum(1)[:, None] - 2 * a @ b.T + np.square(b).sum(1)
    d[m.ids[:, None] == m.gallery_ids] = np.inf  # an image is not its own neighbour
    return np.asarray(d.argmin(1), dtype=np.int64)


def _unit(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12))


def _some(n: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of n rows, evenly spaced: a sample that no outcome has chosen."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, most)).round().astype(np.int64))


def principal(m: EmbeddingMap, attacks: Sequence[Moved]) -> View:
    """Project on the two principal components of the clean gallery; ``kept`` is their share of its variance.

    Signs are fixed: the largest coefficient of each is positive.
    """
    gallery = m.gallery_z.astype(np.float64)
    middle = gallery.mean(0)
    spread = gallery - middle
    values, vectors = np.linalg.eigh(spread.T @ spread)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), range(axes.shape[1])] < 0, -1.0, 1.0)
    if axes.shape[1] < 2:  # an embedding of one number
        axes = np.concatenate([axes, np.zeros((len(axes), 1))], 1)
    total = float(values.sum())
    kept = float(values[::-1][:2].sum()) / total if total > 0 else 1.0
    rows, queries = _some(len(gallery), DOTS), _some(len(m.query_z), ARROWS)

    def place(z: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray((z.astype(np.float64) - middle) @ axes)

    moved = {a.attack: place(a.z[queries]) for a in attacks}
    return View("PCA", place(gallery[rows]), place(m.query_z[queries]), moved, rows, queries, kept)


def neighbours(m: EmbeddingMap, attack: Moved) -> View | None:
    """Lay clean and attacked points out together by t-SNE, or return None where there are too many or few.

    About one second for 600 points on one core; single-threaded, so that the same files give the same map.
    """
    if not 30 <= len(m.gallery_z) <= TSNE_POINTS:
        return None
    from sklearn.manifold import TSNE  # slow to import
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    queries = _some(len(m.query_z), _TSNE_QUERIES)
    rows = _some(len(m.gallery_z), TSNE_POINTS - 2 * len(queries))
    z = np.concatenate([m.gallery_z[rows], m.query_z[queries], attack.z[queries]]).astype(np.float64)
    z = _unit(z) if m.distance == "Cosine" else z
    perplexity = min(30.0, (len(z) - 1) / 4)
    with threadpool_limits(limits=1):
        flat = TSNE(2, perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(z)
    flat = np.asarray(flat, dtype=np.float64)
    g, q = len(rows), len(queries)
    return View("t-SNE", flat[:g], flat[g : g + q], {attack.attack: flat[g + q :]}, rows, queries)


def _chart(run: RunFolder, m: EmbeddingMap, view: View, attacks: Sequence[Moved], prefix: str) -> str:
    q, g = len(view.queries), len(view.gallery)
    first = attacks[0] if attacks else None
    lines = [["gallery images drawn", g, ""], ["queries with an arrow", q if first else 0, ""]]
    before = lost(m, m.query_z)[view.queries]
    told = m.distance in _SPHERE
    if first is None:
        title = f"{len(np.unique(m.gallery_y))} classes of {run.label} on a plane"
    elif told:
        gone = lost(m, first.z)[view.queries]
        title = (
            f"{first.attack} carries {int((gone & ~before).sum())} of {q} drawn queries of {run.label} to an "
            "image of another class"
        )
        lines += [
            ["nearest stored image of another class, no attack", int(before.sum()), percent(before.mean())]
        ]
        for a in attacks:
            wrong = lost(m, a.z)[view.queries]
            lines.append([f"the same, {attack_title(a.attack)}", int(wrong.sum()), percent(wrong.mean())])
    else:
        title = f"Where {first.attack} moves {q} queries of {run.label}"
    svg = _drawn(m, view, first, title, prefix)
    spec = spec_of(run.label, m, view, attacks)
    if view.kept is not None:
        lines.append(["variance of the gallery on this plane", "", percent(view.kept)])
    table = data_table(["what", "number", "share"], lines)
    return figure(title, svg, _caption(m, view, attacks), table, spec)


def _caption(m: EmbeddingMap, view: View, attacks: Sequence[Moved]) -> str:
    """Say how to read a map, and what it does not show."""
    classes = len(np.unique(m.gallery_y))
    text = "Points: gallery images without an attack"
    text += ", in the colour and shape of their class. " if classes <= CLASSES else ", in grey. "
    if attacks:
        a = attacks[0]
        text += (
            f"Arrows: where {attack_title(a.attack)}, at eps {a.eps:.3g}, moved {len(view.queries)} queries"
        )
        if m.distance in _SPHERE:
            text += (
                "; red, the nearest of the stored images is then of another class, grey, it is still of "
                "their own"
            )
        text += ". "
        text += "Where charts are interactive, a click on an arrow shows its query"
        text += " and the legend switches on other attacks. " if len(attacks) > 1 else ". "
    if view.kept is not None:
        text += (
            f"The two principal components of the gallery; they hold {percent(view.kept)} of its variance, "
            f"so {percent(1 - view.kept)} is not seen. "
        )
    else:
        text += (
            f"t-SNE of {len(view.gallery)} gallery images and {len(view.queries)} queries, clean and "
            "attacked laid out together: who is near whom is kept, sizes and gaps of groups mean nothing. "
        )
    return text + "Distances here are not distances in the space."


def _class(m: EmbeddingMap, y: int) -> str:
    return m.class_names[y] if 0 <= y < len(m.class_names) else str(y)


def _says_class(m: EmbeddingMap, y: int) -> str:
    return f"class {interactive.said(_class(m, y), 40)}"


def _classes(m: EmbeddingMap) -> list[tuple[int, str, str, str]]:
    """Return (label, colour, matplotlib's mark, Plotly's mark) of each class; empty where there are many."""
    labels = np.unique(m.gallery_y).tolist()
    if len(labels) > CLASSES:
        return []
    return [(int(y), *_LOOKS[i]) for i, y in enumerate(labels)]


def spec_of(label: str, m: EmbeddingMap, view: View, attacks: Sequence[Moved]) -> dict[str, Any]:
    """Return the map for Plotly; arrows carry run, attack and query, the first attack is switched on."""
    data: list[dict[str, Any]] = []
    base = {"type": "scatter", "mode": "markers", "hoverinfo": "text"}
    view = _rounded(view)
    y, looks = m.gallery_y[view.gallery], _classes(m)
    if not looks:
        x, v = view.gallery_at.T
        mark = {"color": "soft", "size": 4, "opacity": 0.5}
        says = [_says_class(m, int(c)) for c in y]
        data.append({**base, "x": x, "y": v, "marker": mark, "hovertext": says, "showlegend": False})
    for c, colour, _, symbol in looks:
        some = np.flatnonzero(y == c)
        x, v = view.gallery_at[some].T
        mark = {"color": colour, "symbol": symbol, "size": 6, "opacity": 0.65}
        text = _says_class(m, c)
        data.append({**base, "x": x, "y": v, "marker": mark, "hovertext": text, "showlegend": False})
    for place, a in enumerate(attacks):
        if a.attack in view.moved_at:
            data += _arrow_traces(label, m, view, a, shown=place == 0)
    bare = {"showgrid": False, "showticklabels": False, "ticks": "", "constrain": "domain"}
    names = (
        ("principal component 1", "principal component 2")
        if view.kept is not None
        else ("t-SNE 1", "t-SNE 2")
    )
    several = len(attacks) > 1
    whole = interactive.layout(
        *names, 520, annotations=_labels(m, view), dragmode="pan", showlegend=several,
        xaxis=bare, yaxis={**bare, "scaleanchor": "x"},
        margin={"l": 24, "t": 40 if several else 16},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "title": {"text": "attack: "}},
    )  # fmt: skip
    if attacks:
        whole["meta"] = {"run": plain(label), "attack": plain(attacks[0].attack)}
    return interactive.spec_of(data, whole)


def _rounded(view: View) -> View:
    """Return a view with places to a two-thousandth of its width: a page holds many of them."""
    digits = 4 - int(np.ceil(np.log10(max(float(np.ptp(view.gallery_at, axis=0).max()), 1e-9))))
    moved = {name: at.round(digits) for name, at in view.moved_at.items()}
    return view._replace(
        gallery_at=view.gallery_at.round(digits), queries_at=view.queries_at.round(digits), moved_at=moved
    )


def _arrow_traces(label: str, m: EmbeddingMap, view: View, a: Moved, *, shown: bool) -> list[dict[str, Any]]:
    """Return the arrows of one attack as two traces, what held and what was carried away."""
    ends = view.moved_at[a.attack]
    told = m.distance in _SPHERE
    wrong = lost(m, a.z)[view.queries] if told else np.zeros(len(view.queries), dtype=bool)
    near = m.gallery_y[_nearest(m, a.z)][view.queries]
    traces: list[dict[str, Any]] = []
    name = interactive.said(a.attack)
    for kind, rows in (("held", np.flatnonzero(~wrong)), ("lost", np.flatnonzero(wrong))):
        if not len(rows):
            continue
        x: list[float | None] = []
        y: list[float | None] = []
        text: list[str] = []
        points: list[int | None] = []
        for i in rows:
            row = int(view.queries[i])
            words = f"query {int(m.ids[row])}<br>{_says_class(m, int(m.query_y[row]))}"
            now = f"<br>now near {_says_class(m, int(near[i]))}" if told else ""
            x += [view.queries_at[i, 0], ends[i, 0], None]
            y += [view.queries_at[i, 1], ends[i, 1], None]
            text += ["", words + now, ""]
            points += [int(m.ids[row]), int(m.ids[row]), None]
        colour = "wrong" if kind == "lost" else "ink"
        traces.append({
            "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "hovertext": text, "name": name,
            "hoverinfo": "text", "customdata": points,
            "meta": {"run": plain(label), "attack": plain(a.attack)},
            "legendgroup": f"by {name}", "visible": True if shown else "legendonly",
            "showlegend": not traces, "opacity": 0.7 if kind == "lost" else 0.45,
            "line": {"color": colour, "width": 1.4 if kind == "lost" else 1.0},
            "marker": {
                "color": colour, "symbol": "arrow", "angleref": "previous", "size": [0, 9, 0] * len(rows),
                "line": {"width": 0}, "opacity": 1,
            },
        })  # fmt: skip
    return traces


def _labels(m: EmbeddingMap, view: View) -> list[dict[str, Any]]:
    """Return the names of the classes at their middles, for few classes."""
    return [
        interactive.note(
            f"<b>{interactive.said(name, 16)}</b>",
            x,
            y,
            xanchor="center",
            bgcolor="ground/0.75",
            borderpad=1,
        )
        for name, x, y in _middles(m, view)
    ]


def _middles(m: EmbeddingMap, view: View) -> list[tuple[str, float, float]]:
    y = m.gallery_y[view.gallery]
    found = []
    for c, *_ in _classes(m):
        x, v = np.median(view.gallery_at[y == c], axis=0) if (y == c).any() else (np.nan, np.nan)
        if np.isfinite(x):
            found.append((_class(m, c), float(x), float(v)))
    return found


def _arrow_path(start: NDArray[Any], end: NDArray[Any], point: float) -> Path:
    """Return all arrows as one shape, which takes a fraction of the bytes; ``point`` is one in their unit."""
    step = end - start
    long = np.linalg.norm(step, axis=1, keepdims=True)
    along = step / np.maximum(long, 1e-12)
    across = along[:, ::-1] * np.array([-1.0, 1.0])
    head = np.minimum(6.0 * point, long)
    back = end - head * along
    corners = [start, back, back + 0.4 * head * across, end, back - 0.4 * head * across, back]
    codes = [Path.MOVETO, *[Path.LINETO] * (len(corners) - 1)]
    return Path(np.stack(corners, 1).reshape(-1, 2), codes * len(start))


def _drawn(m: EmbeddingMap, view: View, attack: Moved | None, title: str, prefix: str) -> str:
    """Draw the map with the arrows of one attack."""
    y = m.gallery_y[view.gallery]
    both = [view.gallery_at, view.queries_at, *view.moved_at.values()][: 3 if attack else 2]
    ends_of = np.concatenate(both)
    low, high = ends_of.min(0), ends_of.max(0)
    middle, half = (low + high) / 2, 0.52 * np.maximum(high - low, 1e-9)
    half = np.maximum(half, half[::-1] * np.array([_WIDE / _HIGH, _HIGH / _WIDE]))
    with _drawing():
        figure_, axes = _axes(_WIDE, _HIGH)
        looks = _classes(m)
        if not looks:
            axes.plot(*view.gallery_at.T, "o", color=INK, alpha=0.22, ms=2.6, mew=0, zorder=2)
        for c, colour, mark, _ in looks:
            some = view.gallery_at[y == c]
            axes.plot(*some.T, mark, color=COLOURS[colour], alpha=0.6, ms=3.6, mew=0, zorder=2)
        if attack is not None:
            ends = view.moved_at[attack.attack]
            told = m.distance in _SPHERE
            wrong = lost(m, attack.z)[view.queries] if told else np.zeros(len(ends), dtype=bool)
            for out in (False, True):
                rows = wrong == out
                shape = _arrow_path(view.queries_at[rows], ends[rows], 2 * half[1] / (72 * _HIGH))
                colour = ALARM if out else INK
                axes.add_patch(PathPatch(
                    shape, facecolor=colour, edgecolor=colour, lw=0.8, alpha=0.65 if out else 0.4,
                    zorder=4 if out else 3, joinstyle="miter",
                )).set_in_layout(False)  # fmt: skip
        for name, x, v in _middles(m, view):
            box = {"facecolor": GROUND, "alpha": 0.75, "pad": 0.8, "lw": 0}
            axes.text(x, v, short(name, 16), ha="center", va="center", fontsize=9, bbox=box, zorder=6,
                      fontweight="bold")  # fmt: skip
        axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
        axes.set_ylim(middle[1] - half[1], middle[1] + half[1])
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        first, second = ("principal component 1", "2") if view.kept is not None else ("t-SNE 1", "2")
        axes.set_xlabel(first)
        axes.set_ylabel(first[:-1] + second)
        return _svg(figure_, title, prefix)
