"""Recall@1 against eps, honest and with a hidden gradient: PGD is fooled, transfer is not.

The same undefended weights twice: as they are, and behind a step that rounds pixels and has no gradient.
PGD says that the second is robust; examples made on the first break it just the same. A curve that does
not fall is a fault of the attack.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from holdfast.attacks import ATTACKS, hits, run
from holdfast.evaluation import retrieval_task
from holdfast.search import PGD
from holdfast.threat import LinfThreat

from . import common

RADII = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)


def draw(figure: Figure) -> None:
    """Draw three curves."""
    encoder, honest = common.encoder("plain"), common.task("plain")

    def masked(x: Tensor) -> Tensor:
        return encoder(torch.round(x * 16) / 16 + 0 * x)

    hidden = retrieval_task(masked, honest.x, honest.y)
    curves: dict[str, list[float]] = {"honest": [], "masked, PGD": [], "masked, transfer": []}
    for eps in RADII:
        search = PGD(steps=8, alpha=eps / 3)
        how = {"search": search, "threat": LinfThreat(eps=eps), "label": "RANK"}
        open_way = run(honest, ATTACKS["RANK"], **how)
        blind = run(hidden, ATTACKS["RANK"], **how)
        with torch.no_grad():
            transferred = masked(open_way.x)
        places = (hits(open_way.z, honest), hits(blind.z, hidden), hits(transferred, hidden))
        for line, right in zip(curves.values(), places, strict=True):
            line.append(100 * float(right.mean()))
    axes = figure.subplots()
    styles = ((common.CLEAN, "o-"), (common.WARM, "s-"), (common.ATTACKED, "^--"))
    for (shown, line), (colour, style) in zip(curves.items(), styles, strict=True):
        axes.plot(RADII, line, style, color=colour, label=shown, markersize=5)
    axes.set(xlabel="eps (l-inf)", ylabel="Recall@1, %", ylim=(-2, 103))
    axes.legend()
