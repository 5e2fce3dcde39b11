"""The published bound of k-NN certificates from triplets of points, screened so that few are ever formed.

For a point z, a reference i of its class ("positive") and a reference j of another class ("negative") the
shortest perturbation after which j is no farther than i crosses the bisector of the two, a hyperplane, since
the quadratic terms of the two squared distances cancel::

    eps(z; i, j) = [d(z, j) - d(z, i)]_+ / (2 |M (x_i - x_j)|_q)          1/p + 1/q = 1

with d squared distances under M and p the norm of the perturbation. A strict majority of K neighbours is
lost only if ``s`` negatives stand among the K nearest, each nearer than all positives but ``K - s`` of them
(:func:`~holdfast.certify.references.majority`). So the smallest perturbation is no shorter than::

    the s-th smallest over j of  v_j,      v_j = the a-th largest over i of eps(z; i, j),  a = K - s + 1

Wang et al., *Provably Robust Metric Learning*, NeurIPS 2020, for odd K; here for every K.

Notes
-----
*Screening.* With ``g(x) = |M (x - z)|_q`` the triangle inequality gives ``|M (x_i - x_j)|_q <= g_i + g_j``.
Each of the a positives nearest to z has ``d(z, i) <= d_a``, the a-th smallest distance, so that::

    v_j >= (d(z, j) - d_a) / (2 (g_j + max g_i))

which needs no pair at all. It is at least ``(sqrt d_j - sqrt d_a) / (2 steepness)`` for p = 2, for
``g <= steepness * sqrt d``. The a-th largest over a part of the positives is the next lower bound. A positive
with ``d(z, i) >= d(z, j)`` adds a 0 and is left out. What a lower bound discards is at least the result, so
screening changes no value.

*Rounding* is that of :mod:`~holdfast.certify.bisectors`: radii are rounded down, 0 / 0 is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument
from .bisectors import Bisectors
from .references import References, majority
from .territory import Territory

TABLE = 20_000_000
"""A class that forms at most so many pairs with the others may keep their lengths in a table."""
PAIRS = 10_000
"""Pairs that one point forms, about: a table has to be used often enough to pay."""
FEW = 32
"""Positives of the second lower bound."""
BLOCK = 4_000_000
"""Numbers that one block of pairs, or of gathered references, may hold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rivalry:
    """The references of one class ("positives") against all others ("negatives"), for many points.

    Attributes
    ----------
    land
        The class.
    table
        (Q, P) all lengths, or None where pairs are computed when they are asked for.
    """

    land: Territory
    table: Tensor | None = None

    @classmethod
    def of(cls, land: Territory, points: int = 1) -> Rivalry:
        """Prepare a class for about so many ``points``."""
        pairs = len(land.own) * len(land.others)
        small = pairs <= min(TABLE, points * PAIRS)
        return cls(land=land, table=land.bisectors.between(land.others, land.own) if small else None)

    def lengths(self, negatives: Tensor, positives: Tensor) -> Tensor:
        """Return lengths for numbers of negatives (b,) and of positives (a,) within their lists: (b, a)."""
        if self.table is None:
            return self.land.bisectors.between(self.land.others[negatives], self.land.own[positives])
        return self.table[negatives][:, positives]

    def screen(self, t: Tensor, k: int) -> Screen:
        """Compute what needs no pairs, for points t (n, r); there must be enough positives and a negative."""
        stay = majority(k)[1]
        land = self.land
        d = land.references.distances(t)
        around, slack = land.bisectors.around(t, d), land.bisectors.slack(t)
        near, order = d[:, land.own].sort(1)
        widest = around.gather(1, land.own[order[:, : stay + 1]]).amax(1)
        far = d[:, land.others] - slack[:, None]
        lower = (far - near[:, stay, None]).clamp_min_(0) / (2 * (around[:, land.others] + widest[:, None]))
        return Screen(rivalry=self, rank=stay + 1, near=near, order=order, far=far, lower=lower)


@dataclass(frozen=True, kw_only=True, eq=False)
class Screen:
    """Points of one class with their lower bounds, before any pair is formed.

    Attributes
    ----------
    rivalry
        The class.
    rank
        Which of the largest triplet bounds over the positives counts: a.
    near, order
        (n, P) squared distances to the positives, ascending, and their numbers.
    far
        (n, Q) squared distances to the negatives, rounded down.
    lower
        (n, Q) lower bounds of ``v_j``.
    """

    rivalry: Rivalry
    rank: int
    near: Tensor
    order: Tensor
    far: Tensor
    lower: Tensor

    def width(self, row: int, negatives: Tensor) -> int:
        """Return how many positives are nearer than the farthest of some negatives, at least ``rank``."""
        return max(int(torch.searchsorted(self.near[row], self.far[row, negatives].max())), self.rank)

    def values(self, row: int, negatives: Tensor, width: int) -> Tensor:
        """Return ``v_j`` of negatives (b,) over the ``width`` nearest positives: (b,).

        A lower bound; the value itself where all other positives are no nearer than the negative.
        """
        lengths = self.rivalry.lengths(negatives, self.order[row, :width])
        eps = (self.far[row, negatives][:, None] - self.near[row, :width]).clamp_min_(0).div_(lengths)
        return eps.amax(1) * 0.5 if self.rank == 1 else eps.topk(self.rank, dim=1).values[:, -1] * 0.5

    def in_blocks(self, row: int, negatives: Tensor, width: int) -> Tensor:
        """Return :meth:`values` of many negatives without much memory."""
        step = max(BLOCK // max(width, self.rivalry.land.bisectors.images.shape[1]), 1)
        return torch.cat([self.values(row, part, width) for part in torch.split(negatives, step)])

    def below(self, row: int, cutoff: float) -> tuple[Tensor, Tensor]:
        """Return numbers and ``v_j`` of all negatives with ``v_j < cutoff``, ascending."""
        found = torch.nonzero(self.lower[row] < cutoff).squeeze(1)
        few = max(FEW, self.rank)
        if len(found) and self.width(row, found) > 2 * few:
            found = found[self.in_blocks(row, found, few) < cutoff]
        if not len(found):
            return found, self.far.new_zeros(0)
        values, order = self.in_blocks(row, found, self.width(row, found)).sort(stable=True)
        under = int((values < cutoff).sum())
        return found[order[:under]], values[:under]

    def smallest(self, row: int, count: int) -> float:
        """Return the ``count``-th smallest ``v_j``; there must be so many negatives."""
        lower = self.lower[row]
        least, nearest = lower.topk(min(max(2 * count, 16), len(lower)), largest=False)
        if float(least[count - 1]) <= 0:  # so many negatives are nearer than the a-th positive
            return 0.0
        cutoff = float(self.values(row, nearest, self.width(row, nearest)).kthvalue(count).values)
        values = self.below(row, cutoff)[1]
        return float(values[count - 1]) if len(values) >= count else cutoff


def triplet_bounds(
    references: References, t: Tensor, rows_i: Tensor, rows_j: Tensor, norm: float = 2.0
) -> Tensor:
    """Return ``eps(z; i, j)``, the distance to where reference j gets as near as reference i.

    Parameters
    ----------
    references
        The references, N rows.
    t
        (n, r) points, in the coordinates of ``references.inside``.
    rows_i, rows_j
        (a,) and (b,) rows of the references.
    norm
        Norm of the perturbation: 1, 2 or infinity.

    Returns
    -------
    Tensor
        (n, a, b) lengths >= 0 in input units, rounded down; 0 where j is not farther than i, and where x_i
        and x_j are the same point.

    References
    ----------
    Wang et al., *Provably Robust Metric Learning*, NeurIPS 2020.

    Examples
    --------
    >>> r = References.prepare(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    >>> t = r.inside(torch.tensor([[0.25, 7.0]]))
    >>> round(float(triplet_bounds(r, t, torch.tensor([0]), torch.tensor([1]))), 9)
    0.25
    """
    bisectors = Bisectors(references=references, norm=norm)
    gain = references.distances(t, rows_j)[:, None, :] - references.distances(t, rows_i)[:, :, None]
    gain -= bisectors.slack(t)[:, None, None]
    return gain.clamp_min_(0) / (2 * bisectors.between(rows_i, rows_j))


def _settle(references: References, k: int) -> None:
    if not 1 <= k <= len(references):
        raise InvalidArgument("k", f"between 1 and the {len(references)} references", k)


def neighbour_bound(
    references: References, t: Tensor, y: Tensor, k: int, norm: float = 2.0, *, chunk: int = 64
) -> Tensor:
    """Return the published lower bound of the perturbation that takes its strict majority from class y.

    Parameters
    ----------
    references
        The references, N rows. A box is not used, so the bound also holds inside it.
    t
        (n, r) points, in the coordinates of ``references.inside``.
    y
        (n,) class codes; a code without references gets 0.
    k
        Number of neighbours, odd or even, 1 to N. A tie of votes counts as lost.
    norm
        Norm of the perturbation: 1, 2 or infinity.
    chunk
        Points that are screened at once; results do not depend on it.

    Returns
    -------
    Tensor
        (n,) float64 radii, rounded down; 0 where fewer than a strict majority of the k nearest are of class
        y, thus wherever the answer is not y; infinite where the other classes together have too few
        references ever to break a majority.

    Raises
    ------
    InvalidArgument
        If there are fewer than k references, or the norm is another one.

    References
    ----------
    Wang et al., *Provably Robust Metric Learning*, NeurIPS 2020.
    """
    _settle(references, k)
    if y.shape != (len(t),):
        raise InvalidArgument("y", f"a label for each of the {len(t)} points", tuple(y.shape))
    wrong, stay = majority(k)
    bisectors = Bisectors(references=references, norm=norm)
    out = torch.zeros(len(t), dtype=torch.float64, device=t.device)
    for label in torch.unique(y).tolist():
        rows = torch.nonzero(y == label).squeeze(1)
        land = Territory.of(bisectors, label)
        if len(land.own) <= stay:
            continue
        if len(land.others) < wrong:
            out[rows] = torch.inf
            continue
        rivalry = Rivalry.of(land, points=len(rows))
        for part in torch.split(rows, chunk):
            screen = rivalry.screen(t[part], k)
            radii = [screen.smallest(row, wrong) for row in range(len(part))]
            out[part] = torch.tensor(radii, dtype=out.dtype, device=out.device)
    return out
