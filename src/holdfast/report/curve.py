"""How far a model can be pushed: the share of right results as the allowed change grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation import SUITES
from ..results import Record
from . import interactive, plots
from .certificates import title as certificate_title
from .evidence import cells
from .evidence import pushed as paired
from .facts import Strength, benign, bounds, headlines
from .lines import Line, draw
from .load import RunFolder
from .parts import data_table, figure, missing
from .words import attack_title, join, percent

METRIC = "recall@1"
WORST = "worst case"
TOGETHER = ("WORST", "UNION", "MIN", "REPAIRED")
"""Labels of what is already a worst case over several attacks or over all radii."""
_UNITS: Mapping[str, str] = {
    "linf": "eps: largest change of a pixel (0 to 1)",
    "l2": "eps: l2 length of the change (pixels 0 to 1)",
}
_FINE = 61
"""Points of the certified area."""
_FEW = 12
"""Lines of fewer points have marks."""
_ROOM = 18.0
"""Percent of certified queries from which on a word fits into the area."""

Points = dict[float, Record]


@dataclass(frozen=True)
class Pushed:
    """Recall@1 of one run over the radius, of one norm: ``attacks`` and ``worst`` by radius.

    ``worst`` is, at each radius, the lowest record of any attack there.
    """

    run: RunFolder
    norm: str
    clean: Record | None
    attacks: Mapping[str, Points]
    worst: Points
    certified: tuple[str, NDArray[Any]] | None = None

    @property
    def curved(self) -> bool:
        """Whether two radii or more were measured."""
        return len(self.worst) > 1

    def line(self, points: Points) -> list[tuple[float, Record]]:
        """Return points in the order of their radius, from the clean value at 0 on."""
        start = [] if self.clean is None or 0.0 in points else [(0.0, self.clean)]
        return start + sorted(points.items())


def pushed(run: RunFolder, norm: str) -> Pushed:
    """Gather recall@1 under attack at every radius; of several searches of one attack the longest counts.

    Attacks that repeat published faults or that a suite shortens are left out.
    """
    attacks: dict[str, Points] = {}
    for r in run.records:
        if (r["state"], r["metric"], r["norm"]) != ("attacked", METRIC, norm) or r["eps"] <= 0 or _odd(r):
            continue
        points = attacks.setdefault(r["attack"], {})
        known = points.get(r["eps"])
        if known is None or _search(r) >= _search(known):
            points[r["eps"]] = r
    worst: Points = {}
    for label in sorted(attacks):
        for eps, r in attacks[label].items():
            if eps not in worst or r["value"] < worst[eps]["value"]:
                worst[eps] = r
    return Pushed(run, norm, benign(run).get(METRIC), attacks, worst, _certified(run, norm))


def _odd(r: Record) -> bool:
    suite = SUITES.get(r["suite"])
    if suite is None:
        return False
    short_of = any(e.label == r["attack"] and e.fewer_steps for e in suite.entries)
    return short_of or suite.batch_means is not None


def _search(r: Record) -> tuple[int, float, str]:
    return r["steps"], r["alpha"], r["time"]


def _certified(run: RunFolder, norm: str) -> tuple[str, NDArray[Any]] | None:
    """Return a way to certify in the same norm, the encoder's own first, and the radii it proves.

    A query without a proof, or a wrong one, has radius 0.
    """
    c = run.certified
    if c is None or not c.of_run or c.meta["run"].get("norm", "l2") != norm:
        return None
    rows = sorted(c.of("rows", 1), key=lambda row: row["method"] != "lipschitz")
    for row in rows:
        parts = [c.arrays[f] for f in row["files"] if f in c.arrays]
        if parts:
            radii = [np.where(a["correct"].astype(bool), a["radius"], 0.0) for a in parts]
            return row["method"], np.concatenate(radii)
    return None


def section(runs: Sequence[RunFolder], at: Strength | None) -> str:
    """Return "How far can it be pushed?": curves where several radii were measured, else paired bars."""
    if at is None:
        return missing("No run has a measured attack on recall@1.")
    found = [pushed(run, at.norm) for run in runs]
    curved = [p for p in found if p.curved]
    parts = []
    if len(curved) < len(found):
        parts.append(paired(headlines(runs, at), at))
        parts.append(_how(found, at))
    if len(curved) > 1:
        parts.insert(0, _together(curved, at))
    panels = "".join(_panel(p, at, f"curve-{i}", small=len(curved) > 1) for i, p in enumerate(curved))
    if len(curved) > 1:
        kind = "curves four" if len(curved) in (2, 4) else "curves"
        panels = f'<div class="{kind}">{panels}</div>'
    parts.insert(1 if len(curved) > 1 else 0, panels)
    return "".join(parts)


def _how(found: Sequence[Pushed], at: Strength) -> str:
    rest = [p.run.label for p in found if not p.curved]
    if any(not p.worst for p in found) and not any(p.worst for p in found):
        return ""
    more = ",".join(f"{v:.3g}" for v in (at.eps / 4, at.eps / 2, at.eps))
    of = f" of {join(rest)}" if len(rest) < len(found) else ""
    return missing(
        f"One strength{of} is too few for a curve. For the curve: holdfast evaluate RUN --eps {more}"
    )


def _eps(eps: float) -> str:
    return f"{eps:.3g}"


def _says(name: str, eps: float, r: Record) -> str:
    bar = plots.Bar(r["value"], *bounds(r), r["n"])
    label = name if r["attack"] in ("none", name) else f"{name}: {r['attack']}"
    return interactive.measured(label, bar, where=f" at eps {_eps(eps)}")


def _line(name: str, points: Sequence[tuple[float, Record]], colour: str, *, band: bool = False) -> Line:
    x, y = [eps for eps, _ in points], [100 * r["value"] for _, r in points]
    low = [100 * bounds(r)[0] for _, r in points] if band else []
    high = [100 * bounds(r)[1] for _, r in points] if band else []
    return Line(name, x, y, colour, low, high, [_says(name, eps, r) for eps, r in points])


def _lines(p: Pushed) -> list[Line]:
    """Return what a panel shows, from the back to the front."""
    drawn = _area(p)
    for label, points in sorted(p.attacks.items()):
        worst = all(p.worst[eps] is r for eps, r in points.items())
        if points != p.worst and not (worst and label in TOGETHER):  # else the thick line lies on it
            line = _line(label, p.line(points) if len(points) > 1 else sorted(points.items()), "ink")
            drawn.append(line._replace(width=1.2, faint=True, mark="circle" if len(line.x) < _FEW else ""))
    if p.clean is not None:
        drawn.append(_clean(p.clean, max(p.worst)))
    only = next((label for label, points in p.attacks.items() if points == p.worst), "")
    return [*drawn, _worst(p, WORST if len(p.attacks) > 1 or not only else only)]


def _area(p: Pushed) -> list[Line]:
    """Return the certified share, a shaded area."""
    if p.certified is None:
        return []
    _, radii = p.certified
    grid = np.linspace(0.0, max(p.worst), _FINE)
    share = 100 * (radii > grid[:, None]).mean(1)
    says = f"certified at eps %{{x:.3~g}}<br><b>%{{y:.1f}} %</b><br>{len(radii)} queries"
    line = Line("certified", grid.tolist(), share.tolist(), "right", says=says, filled=True, labelled=False)
    return [line._replace(width=1.5)]


def _inside(p: Pushed) -> list[tuple[str, float, float, str]]:
    """Return the word within the certified area, where there is room for it."""
    for line in _area(p):
        x = 0.02 * max(p.worst)
        if line.y[0] >= _ROOM:
            return [("certified", x, min(line.y[0], line.y[10]) / 2, "right")]
    return []


def _clean(r: Record, far: float) -> Line:
    low, high = bounds(r)
    says = [interactive.measured("no attack", plots.Bar(r["value"], low, high, r["n"]))] * 2
    ends = ([0.0, far], [100 * r["value"]] * 2)
    return Line("no attack", *ends, "clean", [100 * low] * 2, [100 * high] * 2, says)


def _worst(p: Pushed, name: str) -> Line:
    line = _line(name, p.line(p.worst), "attacked", band=True)
    return line._replace(width=4.0, mark="circle" if len(line.x) < _FEW else "")


def _panel(p: Pushed, at: Strength, prefix: str, *, small: bool) -> str:
    """Return the chart of one run."""
    title, unit = _finding(p), _UNITS.get(p.norm, f"eps ({p.norm})")
    mark = (at.eps, "eps of the score") if at.eps <= max(p.worst) else None
    drawn, inside, ylabel = _lines(p), _inside(p), "right image first (%)"
    size = (4.3, 3.1) if small else (7.4, 3.7)
    svg = draw(drawn, unit, ylabel, title, prefix, size=size, at=mark, inside=inside)
    spec = interactive.lines(
        drawn, unit, ylabel, height=320 if small else 380, limits=(0.0, 101.0), at=mark, inside=inside
    )
    rows: list[list[object]] = []
    if p.clean is not None:
        rows.append(["no attack", "0", *cells(p.clean)])
    for label, points in sorted(p.attacks.items()):
        rows += [[attack_title(label), _eps(eps), *cells(r)] for eps, r in sorted(points.items())]
    rows += [[f"{WORST} ({r['attack']})", _eps(eps), *cells(r)] for eps, r in sorted(p.worst.items())]
    if p.certified is not None:
        method, radii = p.certified
        name = f"certified, {certificate_title(method)}"
        rows += [
            [name, _eps(eps), percent(float((radii > eps).mean())), "–", len(radii)]
            for eps in sorted(p.worst)
        ]
    table = data_table(["line", "eps", "right image first", "95 % interval", "queries"], rows)
    return figure(title, svg, _caption(p), table, spec)


def _finding(p: Pushed) -> str:
    """Say between which radii half of what was right without an attack is lost."""
    points = p.line(p.worst)
    label, (eps, end) = p.run.label, points[-1]
    if p.clean is None or p.clean["value"] == 0:
        return f"{label}: {percent(end['value'])} are still right at eps {_eps(eps)}"
    half = p.clean["value"] / 2
    below = next((i for i, (_, r) in enumerate(points) if r["value"] < half), None)
    if below is None:
        return f"{label} keeps {percent(end['value'])} right at eps {_eps(eps)}, the largest measured"
    before, after = points[below - 1][0], points[below][0]
    if before == 0:
        return f"{label} has lost half of its right results at eps {_eps(after)}, the smallest measured"
    return f"{label} loses half of its right results between eps {_eps(before)} and {_eps(after)}"


def _caption(p: Pushed) -> str:
    """Say how to read a panel, and what its worst case is made of."""
    found = sorted({r["attack"] for r in p.worst.values()})
    if len(p.attacks) == 1:
        text = "Thick, with the 95 % band: the only attack that was measured at these strengths"
        if found[0] in TOGETHER:
            text = f"Thick, with the 95 % band: {attack_title(found[0])}, a worst case over many searches"
    else:
        text = (
            f"Thick, with the 95 % band: the worst case, at each eps the lowest of {join(sorted(p.attacks))}"
        )
        text += f"; it is always {found[0]}" if len(found) == 1 else ""
        text += ". Thin: each attack"
    text = f"Share of queries whose first result is right, over how much an attacker may change. {text}. "
    text += "Blue: without an attack. "
    if p.certified is not None:
        method = certificate_title(p.certified[0])
        text += f"Green area: proven to stay right whatever the attack ({method}); the truth lies between. "
    elif p.run.certified is not None and p.run.certified.of_run:
        norm = p.run.certified.meta["run"].get("norm", "l2")
        text += f"Certificates of this run are about another measure of change ({norm}) and stand below. "
    values = [r["value"] for _, r in p.line(p.worst)]
    if any(b > a + 1e-9 for a, b in pairwise(values)):
        text += "Where the thick line rises, the search was too weak: more room can only help an attacker. "
    sizes = {r["n"] for r in p.worst.values()}
    if len(sizes) > 1:
        text += f"Between {min(sizes)} and {max(sizes)} queries; figures of few are less sure. "
    return text + "An attack that finds nothing proves nothing: the thick line is an upper bound."


def _together(found: Sequence[Pushed], at: Strength) -> str:
    """Return the worst cases of several runs in one chart."""
    shared = set.intersection(*(set(p.worst) for p in found))
    eps = at.eps if at.eps in shared else max(shared, default=0.0)
    if shared:
        order = sorted(found, key=lambda p: -p.worst[eps]["value"])
        kept = join([f"{p.run.label} keeps {percent(p.worst[eps]['value'])}" for p in (order[0], order[-1])])
        title = f"At eps {_eps(eps)} {kept} of queries right"
    else:
        title = "Worst cases of the runs; no radius was measured for all"
    drawn = []
    for i, p in enumerate(found):
        line = _line(p.run.label, p.line(p.worst), f"c{(1, 0, 2, 3, 4, 5, 7)[i % 7]}", band=True)
        dash = ("solid", "dash", "dashdot", "dot")[i % 4]
        drawn.append(line._replace(width=2.8, dash=dash, mark="circle" if len(line.x) < _FEW else ""))
    unit, ylabel = _UNITS.get(at.norm, f"eps ({at.norm})"), "right image first, worst case (%)"
    mark = (at.eps, "eps of the score") if at.eps <= max(max(p.worst) for p in found) else None
    svg = draw(drawn, unit, ylabel, title, "curves", size=(7.4, 3.7), at=mark)
    spec = interactive.lines(drawn, unit, ylabel, height=380, limits=(0.0, 101.0), at=mark)
    caption = (
        "Each line is the worst case of one run, from the value without an attack at 0 on; the band is the "
        "95 % interval. At each eps it is the lowest figure of any attack that was measured there."
    )
    faced = {p.run.label: sorted(p.attacks) for p in found}
    if len({tuple(labels) for labels in faced.values()}) > 1:
        told = "; ".join(f"{label}: {join(labels)}" for label, labels in faced.items())
        caption += f" The runs did not face the same attacks ({told}), so compare with care."
    rows = [
        [p.run.label, _eps(eps), r["attack"] if eps else "no attack", *cells(r)]
        for p in found
        for eps, r in p.line(p.worst)
    ]
    head = ["run", "eps", "attack", "right image first", "95 % interval", "queries"]
    return figure(title, svg, caption, data_table(head, rows), spec)
