"""Gain of one long step against that of eight short ones: most points lie below the diagonal.

Hardness gained on random triplets of digits, by one step of 1.25 eps from a random start (fast training)
and by eight steps. The one step finds less; where it finds much less than a watching search does,
training has overfitted to its own step.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from holdfast.functional.hardness import hardness
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import Roles

from . import common

SIZE = (4.6, 3.2)


def draw(figure: Figure) -> None:
    """Draw the comparison."""
    task, generator = common.task("plain"), torch.Generator().manual_seed(0)
    rows = []
    for anchor in range(0, len(task), 2):
        own = torch.nonzero(task.y == task.y[anchor]).flatten()
        own = own[own != anchor]
        others = torch.nonzero(task.y != task.y[anchor]).flatten()
        if len(own):
            pick = [int(torch.randint(len(part), (), generator=generator)) for part in (own, others)]
            rows.append((anchor, int(own[pick[0]]), int(others[pick[1]])))
    chosen = torch.tensor(rows).T
    x0 = torch.cat([task.x[role] for role in chosen])
    threat = LinfThreat(eps=common.EPS)

    def climbed(z: torch.Tensor) -> torch.Tensor:
        return hardness(Roles(*z.chunk(3)), task.distance)

    searches = (
        PGD(steps=1, alpha=1.25 * common.EPS, random_start=True),
        PGD(steps=8, alpha=common.EPS / 4, random_start=True),
    )
    with torch.no_grad():
        before = climbed(task.encoder(x0))
    gains = []
    for search in searches:
        x = search(task.encoder, x0, climbed, threat, torch.Generator().manual_seed(1))
        with torch.no_grad():
            gains.append((climbed(task.encoder(x)) - before).numpy())
    axes = figure.subplots()
    top = float(max(g.max() for g in gains)) * 1.05
    axes.plot([0, top], [0, top], color=common.SOFT, linewidth=1, linestyle="--")
    axes.plot(gains[1], gains[0], "o", color=common.ATTACKED, markersize=4, alpha=0.8)
    axes.set(xlabel="gain of eight steps", ylabel="gain of one long step", xlim=(0, top), ylim=(0, top))
