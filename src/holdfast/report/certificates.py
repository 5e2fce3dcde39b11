"""What is certified: curves, tables and gaps of a folder of certificates, and what a certificate means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..errors import CorruptFile
from ..evaluation import Comparison
from ..files import read_arrays, replacing
from . import interactive
from .certify_file import LARGEST, read_certify
from .lines import Line
from .parts import data_table, figure, missing
from .plots import ATTACKED, CLEAN, COLOURS, INK, _axes, _drawing, _svg
from .words import THIN, duration, esc, join, number, percent, short

RUN_KIND = "encoder"
"""The ``kind`` of ``certify.json`` in the folder of a trained run."""
TITLES: Mapping[str, str] = {
    "euclidean": "Euclidean", "nca": "NCA", "lmnn": "LMNN", "itml": "ITML", "lfda": "LFDA",
    "arml": "ARML (published)", "arml-fast": "ARML (fast)", "holdfast": "Holdfast (nearest prototype)",
    "lipschitz": "Lipschitz constant",
}  # fmt: skip
LENGTHS: Mapping[str, str] = {
    "l2": "Euclidean length (l2)",
    "linf": "largest change of any one feature (l-infinity)",
    "l1": "sum of the changes of all features (l1)",
}
_LINES: Mapping[str, tuple[str, str]] = {
    "holdfast": (ATTACKED, "-"),
    "arml": (CLEAN, "-"),
    "arml-fast": (CLEAN, ":"),
    "euclidean": (INK, "--"),
    "nca": ("#009e73", "-."),
    "lmnn": ("#cc79a7", "-"),
    "itml": ("#e69f00", "--"),
    "lfda": ("#56b4e9", "-."),
}
_SPARE = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
_WORDS: Mapping[str, tuple[str, str]] = {
    "holdfast": ("attacked", "solid"),
    "arml": ("clean", "solid"),
    "arml-fast": ("clean", "dot"),
    "euclidean": ("ink", "dash"),
    "nca": ("c2", "dashdot"),
    "lmnn": ("c3", "solid"),
    "itml": ("c4", "dash"),
    "lfda": ("c5", "dashdot"),
}
_SPARE_WORDS = ("c2", "c3", "c4", "c5", "ink")
_DRAWN = 200
"""Most dots in a chart of gaps."""


@dataclass(frozen=True, eq=False)
class Certified:
    """A folder of certificates: the whole of ``certify.json``, and the arrays of each file of radii."""

    meta: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, NDArray[Any]]]
    notes: tuple[str, ...] = ()

    @property
    def of_run(self) -> bool:
        """Whether it is about the encoder of a trained run, and not about learned metrics."""
        return self.meta.get("kind") == RUN_KIND

    @property
    def training_seconds(self) -> float:
        """Seconds of learning all metrics, each counted once."""
        each = {r["method"]: float(r["train_seconds"]) * len(r["seeds"]) for r in self.meta["rows"]}
        return sum(each.values())

    def ks(self) -> list[int]:
        """Return the numbers of neighbours, as measured."""
        return list(dict.fromkeys(row["k"] for row in self.meta["rows"]))

    def of(self, part: str, k: int) -> list[Mapping[str, Any]]:
        """Return the entries of a list of ``certify.json`` that belong to one K."""
        return [row for row in self.meta[part] if row["k"] == k]


def read_certified(folder: Path) -> Certified | None:
    """Read a folder of certificates, or return None where there is none.

    Raises
    ------
    RunError
        If it was written by another schema.
    CorruptFile
        If ``certify.json`` cannot be read, or a field of it was changed into something else. Files of radii
        that cannot be read are named in the notes.
    """
    path = folder / "certify.json"
    if not path.is_file():
        return None
    meta = read_certify(path)
    arrays: dict[str, Mapping[str, NDArray[Any]]] = {}
    notes: list[str] = []
    for file in [file for row in meta["rows"] for file in row["files"]]:
        try:
            arrays[file] = _radii(folder / "certificates" / Path(file).name)
        except (CorruptFile, OSError) as error:
            notes.append(f"Radii left out: {error}")
    return Certified(meta, arrays, tuple(notes))


def _radii(path: Path) -> Mapping[str, NDArray[Any]]:
    """Read radii and what belongs to them; whoever draws them need not look at shapes and kinds again."""
    found = read_arrays(path)
    size = found["radius"].shape if "radius" in found else (0,)
    for name, kinds in (("radius", "f"), ("exact", "b"), ("correct", "b"), ("upper", "f")):
        if name == "upper" and name not in found:
            continue
        if name not in found or len(size) != 1 or size == (0,) or found[name].shape != size:
            raise CorruptFile(path.name, None, f"need {name} of every point")
        if found[name].dtype.kind not in kinds:
            raise CorruptFile(path.name, None, f"unexpected kind of {name}")
    lengths = [found[name] for name in ("radius", "upper") if name in found]
    if any(bool((~((a >= 0) & ((a <= LARGEST) | np.isinf(a)))).any()) for a in lengths):
        raise CorruptFile(path.name, None, f"need radii from 0 to {LARGEST:g}, or infinite")
    return found


def title(method: str) -> str:
    """Return the name of a method for people; long names of one's own are cut."""
    return TITLES.get(method) or short(method)


def took(seconds: float) -> str:
    """Return seconds as a person says them; those too short to matter without digits."""
    return f"<{THIN}0.01{THIN}s" if seconds < 0.01 else duration(seconds)


def section(folders: Sequence[tuple[str, Certified]], *, named: bool = True) -> str:
    """Return "What is certified?": what it means, and for each K curves, table, comparisons and gaps.

    ``named`` heads each folder with its name.
    """
    parts = [_meaning(folders[0][1])]
    for index, (label, certified) in enumerate(folders):
        if named:
            parts.append(f"<h3>{esc(label)}</h3>")
        parts.append(_about(certified))
        parts += [missing(note) for note in certified.notes]
        for name, reason in certified.meta["failed"].items():
            kept = any(row["method"] == name for row in certified.meta["recorded"])
            more = " Figures recorded elsewhere stand in its place." if kept else ""
            parts.append(missing(f"{title(name)} was not measured: {reason}.{more}"))
        for k in certified.ks():
            parts.append(_votes(certified, k, f"certified-{index}-{k}"))
    return "".join(parts)


def _meaning(certified: Certified) -> str:
    norm = certified.meta["run"].get("norm", "l2")
    return (
        "<p>A certificate is a proof about one test point: no change that is shorter than its radius makes "
        "the answer of the classifier wrong, whatever the attack, known or not. Changes are measured by "
        f"their {esc(LENGTHS.get(norm, norm))}, in units of the features. A point whose answer is wrong "
        "without any change has radius 0.</p>"
        "<p>The certified error at a radius is the share of test points that are wrong or have no proof at "
        "that radius. Where a radius is exact, a change of that length does succeed; elsewhere it is a lower "
        "bound, and the true one may be larger. A certificate says nothing about larger changes, nor about "
        "points that were not measured.</p>"
    )


def _about(certified: Certified) -> str:
    run = certified.meta["run"]
    words = (
        f"{run.get('data')}: {run.get('train points')} training and {run.get('test points')} test points, "
        f"{run.get('features')} features, {run.get('classes')} classes. {run.get('provenance')}."
    )
    return f'<p class="note">{esc(words)}</p>'


def _votes(certified: Certified, k: int, prefix: str) -> str:
    rows = certified.of("rows", k)
    ordered = sorted(rows, key=lambda row: -(row["median"]["value"] or 0.0))
    medians = [f"{title(row['method'])} {median_of(row['median'])}" for row in ordered]
    name = "the nearest neighbour decides" if k == 1 else f"the {k} nearest neighbours vote"
    head = f"K = {k}, {name}. Median certified radius: {join(medians)}"
    caption = (
        "Share of test points that are right and proven to stay right, for every radius. At radius 0 it is "
        "the accuracy without any change. Higher is better."
    )
    if any(len(row["seeds"]) > 1 for row in rows):
        caption += " Bands reach over the random seeds of training."
    if certified.of("recorded", k):
        caption += " Crosses: recorded elsewhere, not measured here."
    svg = drawn_curves(certified, k, head, prefix)
    table = _table(certified, k) + _intervals(certified, k)
    text = figure(head, svg, caption, table, curves_spec(certified, k))
    text += _compared(certified, k)
    gaps = list(_gaps(certified, k, prefix))
    grid = "curves four" if len(gaps) == 4 else "curves"
    return text + (f'<div class="{grid}">{"".join(gaps)}</div>' if gaps else "")


Attacked = Sequence[tuple[float, float, float, float, int]]
"""What attacks of the same norm left right: radius, value, low, high as shares, number of queries."""


def drawn_curves(certified: Certified, k: int, head: str, prefix: str, attacked: Attacked = ()) -> str:
    """Return the certified accuracy over the radius as SVG; ``attacked`` as in :func:`curves_spec`."""
    with _drawing():
        return _svg(_curves(certified, k, attacked), head, prefix)


def curves_spec(certified: Certified, k: int, attacked: Attacked = ()) -> interactive.Spec:
    """Return the same curves for Plotly, with what attacks left and the value without any change."""
    grid, shares = _shares(certified, k)
    sizes = {row["method"]: row["n"] for row in certified.of("rows", k)}
    drawn, spare = [], 0
    for method, each in shares.items():
        if method in _WORDS:
            colour, dash = _WORDS[method]
        else:
            colour, dash = _SPARE_WORDS[spare % len(_SPARE_WORDS)], "solid"
            spare += 1
        y = np.mean(each, 0)
        low, high = np.min(each, 0), np.max(each, 0)
        size = sizes.get(method)
        what = "queries" if certified.of_run else "test points"
        of = f"<br>{int(size)} {what}" if size else ""
        says = f"{interactive.NAMED} at radius %{{x:.3~g}}<br><b>%{{y:.1f}} %</b>{of}"
        width = 3.4 if method == "holdfast" else 2.0
        line = Line(title(method), grid.tolist(), y.tolist(), colour, says=says, dash=dash, width=width)
        drawn.append(line._replace(low=low.tolist(), high=high.tolist()) if len(each) > 1 else line)
    drawn += _recorded_lines(certified, k) + _around(certified, k, attacked, float(grid[-1]))
    return interactive.lines(drawn, *_axes_words(certified, k), height=380, limits=(0.0, 101.0), legend=True)


def _recorded_lines(certified: Certified, k: int) -> list[Line]:
    """Return the figures that were recorded elsewhere, as marks."""
    found = []
    for row in certified.of("recorded", k):
        points = [(0.0, row["clean_error"]), *((e["radius"], e["value"]) for e in row["certified_error"])]
        x, y = [r for r, _ in points], [100 * (1 - e) for _, e in points]
        colour = _WORDS.get(row["method"], ("ink", ""))[0]
        name = f"{title(row['method'])} (recorded)"
        says = f"{interactive.NAMED} at radius %{{x:.3~g}}<br><b>%{{y:.1f}} %</b>"
        found.append(Line(name, x, y, colour, says=says, dash="dot", width=1.2, mark="x"))
    return found


def _around(certified: Certified, k: int, attacked: Attacked, far: float) -> list[Line]:
    """Return what brackets the certificates of a run: no change above, what attacks left between."""
    if not certified.of_run:
        return []
    lines = []
    rows = [row for row in certified.of("rows", k) if row["clean_error"]]
    if rows:
        most = max(rows, key=lambda row: row["n"])
        clean = 100 * (1 - most["clean_error"]["value"])
        says = [f"no attack<br><b>{percent(clean / 100)}</b><br>{most['n']} queries"] * 2
        lines.append(Line("no attack", [0.0, far], [clean] * 2, "clean", says=says, dash="dot", width=1.5))
    inside = sorted(point for point in attacked if point[0] <= far)
    if inside:
        x, y, low, high = _columns(inside)
        says = [
            f"under attack at radius {number(r)}<br><b>{percent(v)}</b> ({100 * a:.1f} to {percent(b)})"
            f"<br>{n} queries"
            for r, v, a, b, n in inside
        ]
        lines.append(Line("under attack", x, y, "attacked", low, high, says, width=2.4, mark="circle"))
    return lines


def _columns(points: Attacked) -> tuple[list[float], list[float], list[float], list[float]]:
    return (
        [p[0] for p in points], [100 * p[1] for p in points], [100 * p[2] for p in points],
        [100 * p[3] for p in points],
    )  # fmt: skip


def median_of(cell: Mapping[str, Any]) -> str:
    """Return a median radius for people."""
    return "unbounded" if cell["value"] is None else number(cell["value"])


def _spread(cell: Mapping[str, Any], *, share: bool) -> str:
    """Return half the range over seeds, if there are several."""
    if not cell.get("spread") or None in cell["spread"]:
        return ""
    half = (cell["spread"][1] - cell["spread"][0]) / 2
    return f" ±{THIN}{100 * half:.1f}" if share else f" ±{THIN}{number(half, 2)}"


def _table(certified: Certified, k: int) -> str:
    radii = certified.meta["radii"]
    head = ["method", "clean error", "median radius", "exact", *(f"error at {r:g}" for r in radii)]
    head += ["learning", "certifying"]
    rows = []
    for row in certified.of("rows", k):
        cells = [percent(row["clean_error"]["value"]) + _spread(row["clean_error"], share=True)]
        cells.append(median_of(row["median"]) + _spread(row["median"], share=False))
        cells.append("–" if row["exact"] is None else f"{100 * row['exact']:.0f}{THIN}%")
        cells += [f"{100 * e['value']:.1f}" for e in row["certified_error"]]
        cells += [took(row["train_seconds"]), took(row["seconds"])]
        rows.append([title(row["method"]), *cells])
    for row in certified.of("recorded", k):
        errors = {e["radius"]: f"{100 * e['value']:.1f}" for e in row["certified_error"]}
        exact = f"100{THIN}%" if row["certificate"] == "exact" else "–"
        cells = [percent(row["clean_error"]), number(row["median"]), exact]
        cells += [errors.get(r, "–") for r in radii]
        rows.append([f"{title(row['method'])} (recorded)", *cells, "–", "–"])
    notes = "Errors are certified errors in percent, the lower the better; exact: share of the right points."
    kept = {row["provenance"] for row in certified.of("recorded", k)}
    if any(len(row["seeds"]) > 1 for row in certified.of("rows", k)):
        notes += " ±: half the range over the random seeds of training."
    notes += "".join(f" Recorded: {text}." for text in sorted(kept))
    return data_table(head, rows, f"Figures, K = {k}", opened=True) + f'<p class="note">{esc(notes)}</p>'


def _intervals(certified: Certified, k: int) -> str:
    radii = certified.meta["radii"]
    rows = []
    for row in certified.of("rows", k):
        cells = [_range(row["clean_error"])]
        m = row["median"]
        cells.append(
            "–" if m["low"] is None or m["high"] is None else f"{number(m['low'])} to {number(m['high'])}"
        )
        rows.append([title(row["method"]), *cells, *(_range(e) for e in row["certified_error"])])
    head = ["method", "clean error", "median radius", *(f"error at {r:g}" for r in radii)]
    name = "95 % intervals over test points (errors in percent, Wilson; median by the bootstrap)"
    return data_table(head, rows, name)


def _range(cell: Mapping[str, Any]) -> str:
    return f"{100 * cell['low']:.1f} to {100 * cell['high']:.1f}"


def _compared(certified: Certified, k: int) -> str:
    found = certified.of("comparisons", k)
    if not found:
        return ""
    base, radius = found[0]["baseline"], found[0]["radius"]
    lines = "".join(f"<li>{esc(compared(c))}</li>" for c in found)
    return (
        f"<p>Certified error at radius {number(radius)}, the median of {esc(title(base))}, compared on the "
        f"same test points (McNemar's exact test, one test for each line):</p><ul>{lines}</ul>"
    )


def compared(c: Mapping[str, Any]) -> str:
    """Say a comparison of ``certify.json`` in a sentence."""
    found = Comparison(
        difference=c["difference"], low=c["low"], high=c["high"], p_value=c["p_value"], n=c["n"],
        discordant=(c["discordant"][0], c["discordant"][1]),
    )  # fmt: skip
    return found.words(title(c["baseline"]), title(c["method"]))


def _gaps(certified: Certified, k: int, prefix: str) -> Iterator[str]:
    """Yield a chart for each method of which changes that succeed are known as well."""
    for place, row in enumerate(certified.of("rows", k)):
        a = certified.arrays.get(row["files"][0])
        if a is None or "upper" not in a:
            continue
        right = a["correct"].astype(bool)
        lower, exact = a["radius"][right], a["exact"][right].astype(bool)
        upper = np.where(exact, lower, a["upper"][right])
        known = np.isfinite(upper) & np.isfinite(lower) & (lower > 0)
        if not known.any() or exact.all():
            continue
        ratio = float(np.median(upper[known] / lower[known]))
        head = (
            f"{title(row['method'])}, K = {k}: exact for {percent(float(exact.mean()))} of the right points"
        )
        with _drawing():
            svg = _svg(_bounds(lower, upper, exact), head, f"{prefix}-gap-{place}")
        caption = (
            "Right test points, sorted by their certified radius. Blue line: proven. Orange dots: the "
            "shortest change known to succeed. The truth lies between; the median ratio is "
            f"{number(ratio)}."
        )
        rows = [["exact", int(exact.sum())], ["bounded from both sides", int((known & ~exact).sum())]]
        rows.append(["no change known", int((~known).sum())])
        yield figure(
            head, svg, caption, data_table(["points", "number"], rows), _gap_spec(lower, upper, exact)
        )


def _gap_spec(lower: NDArray[Any], upper: NDArray[Any], exact: NDArray[Any]) -> interactive.Spec:
    """Return the gaps for Plotly."""
    order = np.argsort(lower, kind="stable")
    x = 100 * (np.arange(len(order)) + 0.5) / len(order)
    thin = np.unique(np.linspace(0, len(order) - 1, min(len(order), 2 * _DRAWN)).round().astype(int))
    open_ = np.flatnonzero(~exact[order] & np.isfinite(upper[order]))
    open_ = open_[:: -(-len(open_) // _DRAWN) or 1]
    proven, known = lower[order], upper[order]
    says = "proven <b>%{y:.3g}</b>"
    line = Line("proven", x[thin].tolist(), proven[thin].tolist(), "clean", says=says, width=2.4)
    spec = interactive.lines([line], "right test points (%)", "length of the change", height=280)
    spec["data"].append(interactive.tidy({
        "type": "scatter", "mode": "markers", "x": x[open_], "y": known[open_], "hoverinfo": "text",
        "marker": {"color": "attacked", "size": 5},
        "hovertext": [f"proven {number(float(a))}, a change of <b>{number(float(b))}</b> succeeds"
                      for a, b in zip(proven[open_], known[open_], strict=True)],
    }))  # fmt: skip
    spec["layout"]["yaxis"]["rangemode"] = "tozero"
    return spec


def _bounds(lower: NDArray[Any], upper: NDArray[Any], exact: NDArray[Any]) -> Figure:
    drawn, axes = _axes(3.9, 2.6)
    order = np.argsort(lower, kind="stable")
    x = 100 * (np.arange(len(order)) + 0.5) / len(order)
    open_ = np.flatnonzero(~exact[order] & np.isfinite(upper[order]))
    open_ = open_[:: -(-len(open_) // _DRAWN) or 1]
    gap = np.full(len(open_), np.nan)
    bars = np.stack([lower[order][open_], upper[order][open_], gap], 1)
    axes.plot(np.repeat(x[open_], 3), bars.ravel(), color=INK, alpha=0.2, lw=0.8)
    axes.plot(x[open_], upper[order][open_], "o", color=ATTACKED, ms=2.4)
    axes.plot(x, lower[order], color=CLEAN, lw=1.8)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("right test points (%)")
    axes.set_ylabel("length of the change")
    axes.grid(color=INK, alpha=0.15, lw=0.6)
    return drawn


def _shares(certified: Certified, k: int) -> tuple[NDArray[Any], dict[str, list[NDArray[Any]]]]:
    """Return radii, and for each method the percent that is certified there, an array for each seed."""
    rows = certified.of("rows", k)
    arrays = {row["method"]: [certified.arrays[f] for f in row["files"] if f in certified.arrays]
              for row in rows}  # fmt: skip
    finite = [a["radius"][np.isfinite(a["radius"])] for found in arrays.values() for a in found]
    far = max([float(np.quantile(r, 0.995)) for r in finite if len(r)], default=0.0) or 1.0
    grid = np.linspace(0.0, 1.03 * far, 241)
    shares = {
        method: [100 * (a["correct"].astype(bool) & (a["radius"] > grid[:, None])).mean(1) for a in found]
        for method, found in arrays.items()
        if found
    }
    return grid, shares


def _axes_words(certified: Certified, k: int) -> tuple[str, str]:
    unit = ", pixels from 0 to 1" if certified.of_run else ""
    radius = f"radius ({certified.meta['run'].get('norm', 'l2')}{unit})"
    return radius, f"certified recall@{k} (%)" if certified.of_run else "certified right (%)"


def _curves(certified: Certified, k: int, attacked: Attacked = ()) -> Figure:
    """Draw the certified accuracy over the radius, a line for each method."""
    drawn, axes = _axes(7.4, 3.7)
    rows, kept = certified.of("rows", k), certified.of("recorded", k)
    grid, found = _shares(certified, k)
    spare = 0
    for method in dict.fromkeys([*(row["method"] for row in rows), *(row["method"] for row in kept)]):
        if method in _LINES:
            colour, style = _LINES[method]
        else:
            colour, style = _SPARE[spare % len(_SPARE)], "-"
            spare += 1
        if shares := found.get(method):
            wide, above = (3.4, 1.9) if method == "holdfast" else (1.4, 2.0)  # two lines that agree both show
            axes.plot(
                grid, np.mean(shares, 0), color=colour, ls=style, lw=wide, zorder=above, label=title(method)
            )
            if len(shares) > 1:
                axes.fill_between(grid, np.min(shares, 0), np.max(shares, 0), color=colour, alpha=0.2, lw=0)
        for row in kept:
            if row["method"] == method:
                points = [(e["radius"], 100 * (1 - e["value"])) for e in row["certified_error"]]
                points = [(0.0, 100 * (1 - row["clean_error"])), *points]
                axes.plot(
                    *zip(*points, strict=True), "x:", color=colour, lw=1, ms=5,
                    label=f"{title(method)} (recorded)",
                )  # fmt: skip
    for line in _around(certified, k, attacked, float(grid[-1])):
        colour = COLOURS[line.colour]
        mark = "o" if line.mark else None
        axes.plot(
            line.x, line.y, color=colour, ls=":" if line.dash == "dot" else "-", lw=0.75 * line.width,
            marker=mark, ms=3.5, zorder=3, label=line.name,
        )  # fmt: skip
        if len(line.low):
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, lw=0)
    axes.set_ylim(0, 101)
    axes.set_xlim(0, grid[-1])
    xlabel, ylabel = _axes_words(certified, k)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color=INK, alpha=0.15, lw=0.6)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper right")
    return drawn


def write_curves(certified: Certified, folder: Path) -> list[Path]:
    """Write the curves of each K as ``curves-kK.png`` and return the files."""
    paths = []
    for k in certified.ks():
        path = folder / f"curves-k{k}.png"
        with _drawing(), replacing(path) as temporary:
            drawn = _curves(certified, k)
            FigureCanvasAgg(drawn)
            drawn.savefig(temporary, format="png", dpi=150, facecolor="white")
        paths.append(path)
    return paths
