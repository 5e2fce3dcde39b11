"""Break retrieval when only the ranked list comes back: a gain without distances and without gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import Randomness
from ..types import RetrievalTask
from .places import hits, other_rows, own_rows


@dataclass(frozen=True, kw_only=True)
class ListMismatch:
    """Sink the own class in the list of the first ``k`` results, reading that list alone (LIST).

    The attacker sees which gallery images come back and in which order, knows their classes, and sees no
    distance.

    Attributes
    ----------
    k
        Length of the list, >= 1; at most that of the gallery. The query itself is left out, by index.

    Notes
    -----
    Place i of the list weighs ``w_i = k + 1 - i``. S is the weight of all places held by own-class rows, and
    T in [0, 1] how much of the clean list is left: the sum of ``w_i w_j`` over images that moved from place j
    to place i, divided by its value for the clean list. The score ``1 - (S + T / 2) / (sum_i w_i + 1 / 2)``
    puts S before T, as S is an integer. The gain is the score where the first result is of another class, and
    the score minus 1 elsewhere.

    The gain is piecewise constant and cut off from the graph, so a search by gradient refuses it: use one
    that asks for values alone.
    """

    k: int = 10
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InvalidArgument("k", "an integer >= 1", self.k)

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Tensor:
        """Return the clean list of every query: (n, k) gallery rows, -1 behind its end."""
        return self._list(task.z, task)[0]

    def gain(self, z: Tensor, target: Tensor, task: RetrievalTask) -> Tensor:
        """Return the gain of the list: (n,) in [-1, 1], >= 0 exactly where ``recall@1`` is 0; detached."""
        rows, own = self._list(z, task)
        place = torch.arange(rows.shape[1], 0, -1, dtype=torch.float64, device=z.device)  # w
        same = (rows[:, :, None] == target[:, None, :]) & (rows >= 0)[:, :, None]  # (n, k now, k clean)
        left = torch.einsum("nij,i,j->n", same.double(), place, place)
        whole = ((target >= 0) * place.square()).sum(1).clamp_min(1)
        worth = (own * place).sum(1) + left / whole / 2  # S + T / 2
        gain = 1 - worth / (float(place.sum()) + 0.5) - own[:, 0].double()
        return gain.to(z.dtype) + 0 * z.detach().sum(1)  # NaN in an embedding stays visible

    def measure(self, z: Tensor, target: Tensor, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``recall@1`` (n,), 0 or 1."""
        return {"recall@1": hits(z, task)}

    def _list(self, z: Tensor, task: RetrievalTask) -> tuple[Tensor, Tensor]:
        """Return the first ``k`` rows, -1 behind the end, and which are of the own class: both (n, k).

        At equal distance rows of other classes come first: ties count against the defense.
        """
        d = task.distance.matrix(z.detach(), task.gallery.z)
        k = min(self.k, d.shape[1])
        sides = [
            d.masked_fill(~rows(task), torch.inf).topk(k, largest=False) for rows in (other_rows, own_rows)
        ]
        near = torch.cat([side.values for side in sides], 1)  # (n, 2k)
        order = near.argsort(stable=True, dim=1)[:, :k]
        there = near.gather(1, order) != torch.inf
        rows = torch.cat([side.indices for side in sides], 1).gather(1, order).where(there, -1)
        return rows, (order >= k) & there
