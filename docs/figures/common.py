"""What figures share: colours, a plane that embeds itself, and small trained encoders."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from holdfast.data import Digits, PairSampler
from holdfast.encoders import SmallCNN
from holdfast.evaluation import retrieval_task
from holdfast.functional.distance import Euclidean
from holdfast.recipes import recipe
from holdfast.search import PGD
from holdfast.threat import L2Threat, LinfThreat
from holdfast.training import train
from holdfast.types import Context, RetrievalTask, Roles, TripletView

INK, GROUND, SOFT, GRID = "#101011", "#fdfcfa", "#8a8b8c", "#dadbdc"
CLEAN, ATTACKED, HELD, OTHER, WARM = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
"""Stand-ins that the build replaces by the colours of light and of dark pages; write no others."""
STYLE: dict[str, Any] = {
    "figure.facecolor": GROUND, "axes.facecolor": GROUND, "savefig.facecolor": GROUND,
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.edgecolor": SOFT,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "grid.color": GRID, "axes.grid": False, "axes.spines.top": False, "axes.spines.right": False,
    "font.size": 10.5, "axes.titlesize": 10.5, "axes.labelsize": 10.5, "legend.fontsize": 9.5,
    "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "legend.frameon": False, "lines.linewidth": 2.0,
    "svg.hashsalt": "holdfast", "svg.fonttype": "path",
}  # fmt: skip
EPS, EPOCHS, QUERIES = 0.1, 6, 100
"""Radius, training and size of the examples on digits; tests lower the last two."""

torch.set_num_threads(1)


def plane(x: Tensor) -> Tensor:
    """Embed points of the plane as themselves, so that what moves can be drawn."""
    return x


def context(signal: dict[str, float] | None = None) -> Context:
    """Return a context for adversaries that are looked at on their own."""
    nothing = torch.nn.Identity()
    empty = torch.zeros(1, dtype=torch.int64)
    return Context(
        encoder=nothing, bare=nothing, x=torch.zeros(1, 2), y=empty, index=empty, distance=Euclidean(),
        signal=signal or {}, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def triplets() -> Roles:
    """Return three triplets of the plane."""
    anchor = torch.tensor([[0.30, 0.62], [0.72, 0.30], [0.30, 0.22]])
    positive = torch.tensor([[0.44, 0.78], [0.84, 0.50], [0.46, 0.18]])
    negative = torch.tensor([[0.56, 0.60], [0.60, 0.46], [0.24, 0.40]])
    return Roles(anchor, positive, negative)


def moved(adversary: Any, eps: float = 0.09, steps: int = 60, target: Tensor | None = None) -> Roles:
    """Return where an adversary takes the triplets of the plane, in an l2 ball of radius ``eps``."""
    clean, ctx = triplets(), context()
    places = ["apn".index(role) for role in adversary.moves]
    x0 = torch.cat([clean[place] for place in places])

    def objective(z: Tensor) -> Tensor:
        roles = list(clean)
        for place, part in zip(places, z.chunk(len(places)), strict=True):
            roles[place] = part
        return adversary.gain(TripletView(Roles(*roles), clean, target), ctx)

    threat = L2Threat(eps=eps, bounds=None)
    generator = torch.Generator().manual_seed(1)
    x = PGD(steps=steps, alpha=eps / 10)(plane, x0, objective, threat, generator)
    roles = list(clean)
    for place, part in zip(places, x.chunk(len(places)), strict=True):
        roles[place] = part
    return Roles(*roles)


def draw_triplets(
    axes: Axes, now: Roles, title: str = "", eps: float = 0.09, shown: slice = slice(None)
) -> None:
    """Draw the triplets, their budgets and where they went."""
    from matplotlib.patches import Circle

    clean = triplets()
    colours, letters = (CLEAN, HELD, ATTACKED), "apn"
    for before, after, colour, letter in zip(clean, now, colours, letters, strict=True):
        for a, b in zip(before[shown], after[shown], strict=True):
            x, y = a.tolist()
            axes.add_patch(Circle((x, y), eps, fill=False, color=GRID, linewidth=1))
            axes.plot(x, y, "o", color=colour, markersize=6, zorder=3)
            step = (b - a) / (b - a).norm().clamp_min(1e-9)
            far = float((b - a).norm()) > 1e-3
            off = (-10 * step).tolist() if far else (-9.0, 3.0)
            axes.annotate(
                letter, (x, y), textcoords="offset points", xytext=off, color=colour, ha="center", va="center"
            )
            if far:
                axes.annotate(
                    "", b.tolist(), (x, y), zorder=4,
                    arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 2, "shrinkB": 0},
                )  # fmt: skip
    axes.set(xlim=(0.1, 1.0), ylim=(0.05, 0.92), aspect="equal", xticks=[], yticks=[], title=title)
    for side in axes.spines.values():
        side.set_visible(False)


@cache
def encoder(name: str) -> Any:
    """Return a small encoder trained on digits for a few seconds with a recipe."""
    data = Digits()
    run = replace(
        recipe(name), data=data, epochs=EPOCHS, encoder=SmallCNN(width=4, embedding_dim=32), device="cpu",
        sampler=PairSampler(batch_pairs=50), guard=None,
    )  # fmt: skip
    defense: Any = run.defense
    if getattr(defense, "search", None) is not None:
        run = replace(
            run, defense=replace(defense, search=PGD(steps=4, alpha=0.4 * EPS), threat=LinfThreat(eps=EPS))
        )
    return train(run, data.load()).encoder


@cache
def task(name: str, queries: int | None = None) -> RetrievalTask:
    """Return the first test digits as queries against each other."""
    test = Digits().load().test
    count = queries or QUERIES
    return retrieval_task(encoder(name), test.x[:count], test.y[:count])


def search(steps: int = 8, eps: float = EPS, **more: Any) -> PGD:
    """Return the search of the examples."""
    return PGD(steps=steps, alpha=2.5 * eps / steps, **more)


NAMES = {"plain": "undefended", "hm-ics": "HM&ICS"}
"""The two encoders of most figures, and what figures call them."""
