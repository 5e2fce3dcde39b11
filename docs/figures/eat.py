"""Shares of examples made on one member that fool another, and what each learns from whom.

Three linear members, each trained on two of three folds of the digits. Left: how often an example made
on one member (row) fools another (column). Right: the weights that the self-transferring term derives
from it: a member learns most from who fools it most.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from holdfast.data import Digits
from holdfast.defenses.ensemble.statistics import TransferStatistics, split_weights
from holdfast.functional.distance import Cosine
from holdfast.losses import ProxyAnchor
from holdfast.search import PGD
from holdfast.threat import LinfThreat

from . import common

SIZE = (6.0, 3.0)
STEPS = 40


def draw(figure: Figure) -> None:
    """Draw both matrices."""
    data = Digits().load()
    x, y = data.train.x[:600], data.train.y[:600]
    weights = split_weights(y, 3, "fold", 0.0, torch.Generator().manual_seed(0))
    members, proxies = [], []
    for m in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(m)
            body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8 * 2**m))
            own = ProxyAnchor(alpha=8.0).setup(8 * 2**m, 10)
        adam = torch.optim.Adam([*body.parameters(), *own.parameters()], lr=2e-2)
        for _ in range(STEPS):
            adam.zero_grad()
            z = torch.nn.functional.normalize(body(x), dim=1)
            own(z, y, Cosine(), weights[m]).mean().backward()
            adam.step()
        members.append(lambda x, body=body: torch.nn.functional.normalize(body(x), dim=1))
        proxies.append(own)
    statistics, test, labels = TransferStatistics(weights), data.test.x[:200], data.test.y[:200]
    wrong = {}
    for n in range(3):

        def gain(z: torch.Tensor, n: int = n) -> torch.Tensor:
            return proxies[n](z, labels, Cosine()).mean()[None]

        moved = PGD(steps=5, alpha=0.04)(members[n], test, gain, LinfThreat(eps=0.12))
        for m in range(3):
            with torch.no_grad():
                wrong[n, m] = proxies[m].logits(members[m](moved)).argmax(1) != labels
    statistics.see(wrong, None, momentum=0.0)
    panels = (
        ("fooled (row by column)", statistics.transfer),
        ("learns from (row from column)", statistics.mixture(0.1)),
    )
    for axes, (title, matrix) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.set(title=title, xticks=range(3), yticks=range(3))
        for i in range(3):
            for j in range(3):
                value = float(matrix[i, j])
                axes.add_patch(_square(i, j, value))
                axes.annotate(f"{100 * value:.0f} %", (j, i), ha="center", va="center")
        axes.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5), aspect="equal")
        axes.set_xticklabels([f"member {m + 1}" for m in range(3)])
        axes.set_yticklabels([f"{m + 1}" for m in range(3)])


def _square(i: int, j: int, value: float):
    from matplotlib.patches import Rectangle

    return Rectangle((j - 0.5, i - 0.5), 1, 1, color=common.CLEAN, alpha=0.05 + 0.6 * value, linewidth=0)
