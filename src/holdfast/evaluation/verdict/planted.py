"""Does the attack find adversarial points that are known to exist? R34."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...rng import Randomness, normal
from ...search.rules import unit_length
from ...types import RetrievalTask
from ..embed import embed
from .compare import share
from .examination import BATCH, Examination
from .finding import Finding
from .material import Unavailable
from .texts import at_least, found, percent

INNER = 48
INNER_RADIUS = 0.5
RIDGE = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """A two-class linear readout of its own for every query.

    Attributes
    ----------
    weight, offset
        (N, e) and (N,), in the order of ``index``; a gain >= 0 is the class of the planted point.
    index
        (N,) sample numbers, ascending.
    """

    weight: Tensor
    offset: Tensor
    index: Tensor

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Tensor:
        """Return which readout belongs to every query, (n,)."""
        return torch.searchsorted(self.index, task.index).to(task.z.device)

    def gain(self, z: Tensor, target: Tensor, task: RetrievalTask) -> Tensor:
        """Return the signed score, (n,)."""
        return (z * self.weight[target]).sum(1) - self.offset[target]

    def measure(self, z: Tensor, target: Tensor, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``found`` (n,), 0 or 1."""
        return {"found": (self.gain(z, target, task) >= 0).to(z.dtype)}


def binarisation(e: Examination) -> Finding:
    """R34: plant a point on the surface of each ball, separate it from the inner ball, and attack.

    The readout is a ridge regression on the embeddings of 48 points within half the radius and of the planted
    one. Its threshold lies half-way between the planted point and the highest inner one. Queries whose two
    sides it cannot separate are left out.

    References
    ----------
    Zimmermann, Brendel, Tramer and Carlini, *Increasing Confidence in Adversarial Robustness Evaluations*,
    NeurIPS 2022.
    """
    part, streams = e.few, e.streams("planted", e.few)
    n = len(part)
    near = e.near(part)
    edge = near.project(part.x + unit_length(near) * near.direction(normal(part.x, streams)), part.x)
    inner = [part.x]
    for _ in range(INNER - 1):
        inner.append(part.x + INNER_RADIUS * (near.noise(part.x, streams) - part.x))
    z = torch.stack([embed(e.decides, x, BATCH) for x in (*inner, edge)], 1).double()  # (n, 49, e)
    centre = z[:, :-1].mean(1, keepdim=True)
    a = z - centre
    labels = torch.full((n, INNER + 1, 1), -1.0 / INNER, dtype=torch.float64, device=z.device)
    labels[:, -1] = 1.0
    kernel = a @ a.transpose(1, 2)
    scale = kernel.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)[:, None, None]
    ridge = RIDGE * scale * torch.eye(INNER + 1, dtype=torch.float64, device=z.device)
    weight = (a.transpose(1, 2) @ torch.linalg.solve(kernel + ridge, labels))[:, :, 0]  # (n, e)
    scores = torch.einsum("npe,ne->np", z, weight)
    top, planted = scores[:, :-1].amax(1), scores[:, -1]
    able = torch.nonzero(planted - top > 1e-9 * scores.abs().amax(1)).squeeze(1)
    if not len(able):
        raise Unavailable("no planted point can be told from the inner ball by a linear readout")
    size = (planted - top)[able, None]
    kept = part.rows(able)
    readout = Readout(
        weight=(weight[able] / size).to(part.z.dtype),
        offset=((planted + top)[able] / (2 * size[:, 0])).to(part.z.dtype),
        index=kept.index.cpu(),
    )
    hit = e.strike(kept, "planted search", attack=readout)
    value = share(hit.gain >= 0)
    detail = (
        f"{percent(value)} of {len(able)} planted points were found ({n - len(able)} could not be planted)"
    )
    return found("R34", at_least(value, 0.95, 0.8), value, detail)
