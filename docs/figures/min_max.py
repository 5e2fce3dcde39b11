"""A triplet moved by min-max, and the spread of embeddings in training, which falls to 0.

Left: all three images of a triplet move. Right: mean distance between embeddings of two clouds of points
over the steps of training, with the same small network and budget. Min-max gives up and maps everything
to one point; Hardness Manipulation, which asks for no more than the last loss allows, does not.
"""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from holdfast.adversaries import HardnessManipulation, MinMax
from holdfast.defenses import AdversarialTraining
from holdfast.functional.distance import Euclidean
from holdfast.losses import Triplet
from holdfast.miners import Random
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import Context, Progress

from . import common

SIZE = (6.4, 3.1)
STEPS = 60


class Net(torch.nn.Module):
    """A small network from the plane to the unit sphere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 2) -> (n, 8)."""
        return torch.nn.functional.normalize(self.body(x), dim=1)


def spread(adversary: Any) -> list[float]:
    """Return the mean distance between clean embeddings after every step."""
    with torch.random.fork_rng():
        net = Net()
    adam, generator = torch.optim.Adam(net.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    defense = AdversarialTraining(
        loss=Triplet(margin=0.2), miner=Random(), adversary=adversary, search=PGD(steps=4, alpha=0.1),
        threat=LinfThreat(eps=0.25, bounds=None),
    )  # fmt: skip
    y = (torch.arange(32) // 2) % 4
    centres = torch.tensor([[0.2, 0.2], [0.8, 0.2], [0.2, 0.8], [0.8, 0.8]])
    signal: dict[str, float] = {}
    found = []
    for step in range(STEPS):
        x = centres[y] + 0.05 * torch.randn(32, 2, generator=generator)
        ctx = Context(
            encoder=net, bare=net, x=x, y=y, index=torch.arange(32), distance=Euclidean(), signal=signal,
            progress=Progress(step, STEPS), generator=generator,
        )  # fmt: skip
        for part in defense.losses(ctx):
            adam.zero_grad()
            part.loss.backward()
            adam.step()
        with torch.no_grad():
            found.append(float(torch.pdist(net(x)).mean()))
    return found


def draw(figure: Figure) -> None:
    """Draw the moves and the collapse."""
    left, right = figure.subplots(1, 2)
    common.draw_triplets(left, common.moved(MinMax()), "min-max: as hard as the budget allows")
    right.plot(spread(MinMax()), color=common.ATTACKED, label="min-max")
    right.plot(spread(HardnessManipulation()), color=common.HELD, label="HM, gLGA")
    right.set(xlabel="step of training", ylabel="mean distance", ylim=(0, None))
    right.legend()
