"""Learning a few references per class, and the metric, so that certified radii are large."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor

from ..rng import stream
from .adam import Adam
from .objectives import triplet_margins

Array = NDArray[np.float64]
SOFTNESS = 0.3
"""Width of the bend of the loss at its target, in units of the typical radius."""
FLOOR, FLOOR_SOFTNESS, FLOOR_WEIGHT = 0.15, 0.05, 4.0
"""A second, steeper bend near 0, which keeps points right: where, how wide, and its weight."""
PACE = 0.02
"""Rate of the prototypes, as a share of the typical radius."""
MANY = 1500
"""Rows of a class from which k-means works on small batches."""


class Design(NamedTuple):
    """What is trained.

    Attributes
    ----------
    prototypes
        For each class, at most half of its rows; None: every row is one.
    target
        Radius that the loss asks for, in units of the typical radius.
    noise
        Gaussian noise on the anchors, in the same units.
    """

    prototypes: int | None
    target: float
    noise: float


def centres(
    x: Array, codes: NDArray[np.int64], count: int | None, seed: int
) -> tuple[Array, NDArray[np.int64]]:
    """Return k-means centres of each class, ``min(count, half of its rows)`` of them, and their codes.

    Without a count, the rows themselves.
    """
    if count is None:
        return x.copy(), codes
    found, labels = [], []
    for code in np.unique(codes):
        rows = x[codes == code]
        k = max(1, min(count, len(rows) // 2))
        means = (MiniBatchKMeans if len(rows) > MANY else KMeans)(k, n_init=1, max_iter=30, random_state=seed)
        found.append(means.fit(rows).cluster_centers_)
        labels.append(np.full(k, code))
    return np.concatenate(found).astype(np.float64), np.concatenate(labels)


def learn_prototypes(
    x: Tensor,
    y: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    components: Tensor,
    design: Design,
    *,
    scale: float,
    steps: int,
    lr: float,
    batch: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    r"""Move prototypes, and the factor G of the metric, up the certified margin of the rows.

    The margin m of an anchor, its nearest prototype of the same class and its nearest prototype of another is
    the triplet bound of :func:`~holdfast.linear.objectives.triplet_margins`. The loss is a sum of two bends

    .. math:: b(m) = w\,\tau s\,\log(1 + e^{(t s - m) / (\tau s)}),

    each of slope w below its target ``t s`` and flat beyond it: one at the target asked for, and a steep one
    near 0 that keeps points right, so that none is given up for those that are safe. Anchors carry Gaussian
    noise.

    Parameters
    ----------
    x, y
        (n, D) rows and (n,) class codes.
    prototypes, labels
        (R, D) where they begin, and (R,) their class codes. Where the design makes every row one, they are
        the rows in order, and no row is its own neighbour.
    components
        (r, D) where G begins.
    design
        Target t and noise.
    scale
        Typical radius s > 0, in input units.
    steps, lr, batch
        Steps of Adam, rate of G (falling as a cosine), anchors of a step.
    seed
        Names the draws.

    Returns
    -------
    tuple
        G and the prototypes.

    References
    ----------
    The model is that of generalised matrix learning vector quantisation (Schneider, Biehl and Hammer, Neural
    Computation 2009); the objective is a certificate (Wang et al., NeurIPS 2020, for fixed references).
    """
    g, r = components.clone().requires_grad_(), prototypes.clone().requires_grad_()
    draws, adam = stream(seed, "prototypes"), Adam([g, r])
    length = math.sqrt(len(g))
    bends = ((design.target, SOFTNESS, 1.0), (FLOOR, FLOOR_SOFTNESS, FLOOR_WEIGHT))
    for step in range(steps):
        rows = torch.randperm(len(x), generator=draws)[:batch].to(x.device)
        noise = torch.randn(len(rows), x.shape[1], generator=draws).to(x)
        anchors = x[rows] + design.noise * scale * noise
        with torch.no_grad():
            d = torch.cdist(anchors @ g.T, r @ g.T)
            same = y[rows, None] == labels[None]
            other = d.masked_fill(same, torch.inf).argmin(1)
            if design.prototypes is None:
                same[torch.arange(len(rows), device=x.device), rows] = False
            own = d.masked_fill(~same, torch.inf).argmin(1)
        margins = triplet_margins(anchors, r[own], r[other], g)
        m = margins / scale
        loss = scale * sum(
            (w * soft * F.softplus((t - m) / soft).mean() for t, soft, w in bends), m.new_zeros(())
        )
        pace = (1 + math.cos(math.pi * step / steps)) / 2
        adam.step(torch.autograd.grad(loss, [g, r]), [lr * pace, PACE * scale * pace])
        with torch.no_grad():  # margins do not see the scale of G, Adam's steps do
            g.mul_(length / torch.linalg.norm(g).clamp_min(1e-30))
    return g.detach(), r.detach()
