"""Put chosen results of a query into a wanted relative order (FOA, and SPFOA, which keeps them on top)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import Randomness, choose, uniform
from ..types import RetrievalTask
from .keep import kept_on_top, near_rows
from .query import ChosenCandidates, QueryAttack


@dataclass(frozen=True, kw_only=True)
class OrderAttack:
    """Change the order in which ``m`` near candidates come back for a query (FOA, SPFOA).

    Attributes
    ----------
    m
        Candidates for each query, >= 2.
    top
        Share of the clean list that candidates are drawn from, in (0, 1]; at least ``m`` rows, the query
        itself left out by index.
    keep
        0, or the stiffness of a second term that keeps all candidates on top; see
        :class:`PreservingQueryAttack`.

    Notes
    -----
    For ``m = 2`` the wanted order is the reverse of the clean one, else a random order drawn for each query.
    With c(1), ..., c(m) in the wanted order the gain is ``-sum_{i<j} relu(d(z, c(i)) - d(z, c(j)))``, less
    ``xi * L`` where candidates are kept on top. A tie counts as the wanted order. The whole list is read, so
    no candidate can drop out of sight.

    References
    ----------
    Zhou et al., *Practical Relative Order Attack in Deep Ranking*, ICCV 2021.
    """

    m: int = 5
    top: float = 0.01
    keep: float = 0.0

    def __post_init__(self) -> None:
        if self.m < 2:
            raise InvalidArgument("m", "an integer >= 2", self.m)
        if not 0 < self.top <= 1:
            raise InvalidArgument("top", "a share in (0, 1]", self.top)
        if not (math.isfinite(self.keep) and self.keep >= 0):
            raise InvalidArgument("keep", "a finite number >= 0", self.keep)

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Tensor:
        """Return the candidates of every query in the wanted order, (n, m) gallery rows."""
        rows = choose(near_rows(task, self.top, self.m), generator, self.m, replacement=False)
        if self.m == 2:
            d = task.distance.matrix(task.z, task.gallery.z).gather(1, rows)
            return rows.gather(1, d.argsort(stable=True, dim=1, descending=True))
        return rows.gather(1, uniform(rows.double(), generator).argsort(1))

    def gain(self, z: Tensor, target: Tensor, task: RetrievalTask) -> Tensor:
        """Return minus how far all pairs are from the wanted order: (n,), at most 0."""
        d = task.distance.matrix(z, task.gallery.z)
        gain = -torch.relu(self._leads(d, target)).sum(1)
        return gain - kept_on_top(d, target, self.keep) if self.keep else gain

    def measure(self, z: Tensor, target: Tensor, task: RetrievalTask) -> dict[str, Tensor]:
        """Return how far the wanted order is reached; each (n,).

        ``kendall`` is Kendall's tau between the wanted order and the order after, in [-1, 1]. For ``m = 2``
        also ``accuracy``, 1 where the pair is reversed, else 0. Where candidates are kept on top also
        ``kept_rank``, their mean normalised rank in [0, 1].
        """
        wanted = (self._leads(task.distance.matrix(z, task.gallery.z), target) <= 0).to(z.dtype).mean(1)
        measures = {"kendall": 2 * wanted - 1}
        if self.m == 2:
            measures["accuracy"] = wanted
        if self.keep:
            places = QueryAttack(direction="up", m=self.m)
            measures["kept_rank"] = places.measure(z, ChosenCandidates(target), task)["rank"]
        return measures

    def _leads(self, d: Tensor, target: Tensor) -> Tensor:
        """Return ``d(first) - d(second)`` of all pairs in the wanted order: (n, m (m - 1) / 2)."""
        first, second = torch.triu_indices(self.m, self.m, 1, device=d.device)
        chosen = d.gather(1, target)
        return chosen[:, first] - chosen[:, second]
