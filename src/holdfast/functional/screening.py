"""The nearest rows by bfloat16 products with a proven error bound, then float32 distances of the survivors.

Processors with bfloat16 instructions multiply about 2.4 times as many of these numbers in a second.

Nearness is written as a product, ``s = a . b - (|b|^2 / 2 - c)``, larger is closer. With ``A``, ``B`` the
rounded embeddings and ``p`` what is computed,
``|s - p| <= |a - A| |B| + |a| |b - B| + gamma |A| |B| + (error of the last term) + 2^-8 |p|``:
Cauchy-Schwarz with the actual lengths of the rounding errors; gamma is that of the float32 sum; where the
last term is added, p may be rounded twice. A row whose upper bound lies below the lower bound of the k-th
best cannot be among the first k.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import PairwiseDistance
from .distance import Cosine, Euclidean, SquaredEuclidean, norms
from .tiles import BUDGET, Tiles, plan_tiles

GROUP = 64
"""Neighbouring gallery rows of which only the best is looked at first."""

MOST = 64
"""Largest k for which screening pays."""

ROUNDING = 2.0**-8
"""Unit roundoff of bfloat16."""

LEAST_ROWS = 4096
LEAST_WIDTH = 64
PAIRS = 2**14
"""Pairs whose float32 distance is computed at a time."""


@cache
def bfloat16_is_fast() -> bool:
    """Return whether this processor multiplies bfloat16 numbers in hardware."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask is not None and ask())


def pays(z: Tensor, gallery_z: Tensor, k: int, distance: PairwiseDistance) -> bool:
    """Return whether screening is exact and quicker: CPU, float32, one of three distances, small k."""
    return (
        type(distance) in (Euclidean, SquaredEuclidean, Cosine)
        and z.device.type == gallery_z.device.type == "cpu"
        and z.dtype == gallery_z.dtype == torch.float32
        and not (torch.is_grad_enabled() and (z.requires_grad or gallery_z.requires_grad))
        and len(gallery_z) >= LEAST_ROWS
        and z.shape[1] >= LEAST_WIDTH
        and len(z) >= GROUP
        and 1 <= k <= MOST
        and bfloat16_is_fast()
    )


class _Rounded(NamedTuple):
    """bfloat16 rows, the largest lengths of rows and of rounding errors, and the last term of s, if any."""

    z: Tensor
    length: Tensor
    error: Tensor
    shift: Tensor | None
    shift_error: float


def _rounded(b: Tensor, distance: PairwiseDistance, centre: float) -> _Rounded:
    b = F.normalize(b, dim=1) if isinstance(distance, Cosine) else b
    low = b.bfloat16()
    longest, error = norms(low.float()).max(), norms(b - low.float()).max()
    if isinstance(distance, Cosine):
        return _Rounded(low, longest, error, None, 0.0)
    half = centre - b.square().sum(1) / 2
    largest = float(half.abs().max())
    if largest <= 2.0**-14 * centre:  # embeddings of one length
        return _Rounded(low, longest, error, None, largest)
    shift = half.bfloat16()
    wrong = float((half - shift.float()).abs().max()) + ROUNDING * largest
    return _Rounded(low, longest, error, shift, wrong)


class Screen:
    """A gallery in bfloat16 tiles, kept from one block of queries to the next where the budget allows.

    Parameters
    ----------
    gallery_z
        (m, e) float32.
    distance
        One that :func:`pays` accepts.
    tiles
        Queries and gallery rows at a time; columns are a multiple of :data:`GROUP`.
    keep
        Whether to keep the tiles, ``2 * m * e`` bytes.
    """

    def __init__(self, gallery_z: Tensor, distance: PairwiseDistance, tiles: Tiles, keep: bool) -> None:
        self.gallery_z, self.distance, self.tiles, self.keep = gallery_z, distance, tiles, keep
        self.starts = range(0, len(gallery_z), tiles.columns)
        self.centre = float(gallery_z[: tiles.columns].square().sum(1).mean() / 2)
        self._kept: dict[int, _Rounded] = {}

    def _tile(self, start: int) -> _Rounded:
        found = self._kept.get(start)
        if found is None:
            b = self.gallery_z[start : start + self.tiles.columns]
            found = _rounded(b, self.distance, self.centre)
            if self.keep:
                self._kept[start] = found
        return found

    def nearest(self, z: Tensor, k: int, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (r, k) distances and rows, in order, and (r,) whether these are proven to be the nearest."""
        a = F.normalize(z, dim=1) if isinstance(self.distance, Cosine) else z
        low = a.bfloat16()
        length, error = norms(a), norms(a - low.float())
        best = torch.full((len(z), k), -torch.inf)
        sound = torch.ones(len(z), dtype=torch.bool)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        worst, rounding = torch.zeros(len(z)), 0.0
        limit = 16 * k + 64  # groups or rows that a query may keep
        for start in self.starts:
            b = self._tile(start)
            gamma = (z.shape[1] + 2) * 2.0**-23
            slack = error * b.length + (length + error) * (b.error + gamma * b.length) + b.shift_error
            slack += 2.0**-22 * (length + b.length) ** 2  # of float32 distances
            worst = torch.maximum(worst, slack)
            p = low @ b.z.T if b.shift is None else torch.addmm(b.shift, low, b.z.T)  # (r, c)
            rounding = max(rounding, ROUNDING * (1 + ROUNDING) * (1 if b.shift is None else 2))
            here = torch.nonzero((own >= start) & (own < start + p.shape[1])).squeeze(1)
            p[here, own[here] - start] = -1.0
            if p.shape[1] % GROUP:
                p = F.pad(p, (0, GROUP - p.shape[1] % GROUP), value=-1.0)
            # positive bfloat16 numbers have the order of their bits; negative ones never reach the cut
            top = p.view(torch.int16).view(len(p), -1, GROUP).amax(2).view(torch.bfloat16).float()
            best = torch.cat([best, top], 1).topk(k, dim=1).values
            cut = _cut(best[:, -1], worst, rounding)
            group = top >= cut[:, None]
            sound &= group.sum(1) <= limit
            row, place = torch.nonzero(group & sound[:, None]).unbind(1)
            value = p.view(len(p), -1, GROUP)[row, place].float()  # (h, GROUP)
            which, inside = torch.nonzero(value >= cut[row, None]).unbind(1)
            parts.append((row[which], start + place[which] * GROUP + inside, value[which, inside]))
        cut = _cut(best[:, -1], worst, rounding)
        sound &= cut > 0
        row, column, value = (torch.cat(part) for part in zip(*parts, strict=True))
        kept = (value >= cut[row]) & sound[row]
        row, column = row[kept], column[kept]
        row, turn = row.sort(stable=True)
        column = column[turn]
        count = torch.bincount(row, minlength=len(z))
        sound &= (count >= k) & (count <= limit)
        kept = sound[row]
        row, column, count = row[kept], column[kept], count * sound
        d = torch.full((len(z), max(int(count.max()), k)), torch.inf)
        columns = torch.zeros(d.shape, dtype=torch.int64)
        place = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        d[row, place] = self._distances(z, row, column)
        columns[row, place] = column
        d, turn = d.sort(dim=1, stable=True)
        return d[:, :k], columns.gather(1, turn[:, :k]), sound

    def _distances(self, z: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Float32 distances of pairs; equal rows of the gallery have equal distances."""
        found = []
        for start in range(0, len(row), PAIRS):
            pairs = slice(start, start + PAIRS)
            a, b = z[row[pairs]], self.gallery_z[column[pairs]]
            if isinstance(self.distance, Cosine):
                found.append(1 - (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1))
            else:
                found.append(a.sub_(b).square_().sum(1))
        d = torch.cat(found) if found else torch.zeros(0)
        return d.sqrt_() if isinstance(self.distance, Euclidean) else d


def _cut(kth: Tensor, slack: Tensor, rounding: float) -> Tensor:
    """Return the computed value below which no row can be among the first, -1 where it would be negative."""
    low = (kth - rounding * kth.abs() - 2 * slack) / (1 + rounding)
    return torch.where(low > 0, low, torch.full_like(low, -1.0))


def plan_screen(n: int, m: int, width: int, k: int, memory: int | None) -> tuple[Tiles, bool] | None:
    """Return tiles, and whether the gallery's bfloat16 rows may be kept; ``None`` if too little fits."""
    budget = BUDGET if memory is None else memory
    pairs = 3 * PAIRS * width * 4.0
    kept = 2.0 * m * width
    keep = kept <= budget / 2
    room = int(budget - pairs - (kept if keep else 0))
    # a query keeps up to 16 k + 64 groups of 64 bfloat16 numbers, several times over while they are filtered
    per_row = (16 * k + 64) * 600.0
    if room < 2**25:
        return None
    tiles = plan_tiles(
        n, m, 2 * width, room, itemsize=2, copies=2.5, per_row=per_row, most=Tiles(1024, 16384)
    )
    if tiles.rows < min(n, 128) or tiles.columns < min(m, 4096):
        return None
    return Tiles(tiles.rows, -(-tiles.columns // GROUP) * GROUP), keep
