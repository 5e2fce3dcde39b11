"""Which triplets a linear metric is trained on: nearest candidates of every anchor, and rules that choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..types import Triplets
from .objectives import FLOOR, through_matrix

BLOCK = 2**25
"""Most entries of a block of distances (128 MiB in float32)."""
CACHED = 2**18
"""The same on a CPU, where blocks that stay in its cache are faster; but at least 256 rows."""
CROWD = 8
"""A row with more than this times the wanted number below its old threshold is searched anew."""


@dataclass(frozen=True, eq=False)
class ClassBlocks:
    """Training rows in the order of their classes, so that a class is a slice.

    Attributes
    ----------
    x
        (n, D) rows, class after class.
    order
        (n,) int64 number of each row in the data as given.
    starts
        (k + 1,) where each class begins; the last entry is n.
    """

    x: Tensor
    order: Tensor
    starts: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> ClassBlocks:
        """Sort rows (n, D) by their class codes (n,)."""
        order = torch.argsort(y, stable=True)
        ends = torch.bincount(y).cumsum(0).tolist()
        return cls(x[order], order, (0, *ends))

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def sizes(self) -> Tensor:
        """(n,) int64 size of each row's own class."""
        starts = torch.tensor(self.starts, device=self.x.device)
        return starts.diff().repeat_interleave(starts.diff())

    @cached_property
    def codes(self) -> Tensor:
        """(n,) int64 class codes."""
        starts = torch.tensor(self.starts, device=self.x.device)
        return torch.arange(len(starts) - 1, device=self.x.device).repeat_interleave(starts.diff())

    def anchors(self) -> Tensor:
        """Return the rows that have a positive: members of a class of two or more."""
        return torch.nonzero(self.sizes > 1).squeeze(1)

    def segments(self, rows: Tensor) -> list[tuple[int, int, int, int]]:
        """Cut ascending rows by class: (first, last + 1) among ``rows`` and (start, end) of the class."""
        cuts = torch.searchsorted(rows, torch.tensor(self.starts, device=rows.device)).tolist()
        classes = zip(cuts[:-1], cuts[1:], self.starts[:-1], self.starts[1:], strict=True)
        return [part for part in classes if part[0] < part[1]]


class Candidates(NamedTuple):
    """The nearest rows of every anchor, nearest first; all numbers are rows of a :class:`ClassBlocks`.

    ``anchor`` (a,), ``positive`` and ``negative`` (a, c) of which the first ``positives`` and ``negatives``
    (a,) columns are meant: a class of s rows has at most s - 1 positives.
    """

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    positives: Tensor
    negatives: Tensor

    def rows(self, which: Tensor | slice) -> Candidates:
        """Return the candidates of some anchors, given by their place."""
        return Candidates(*(part[which] for part in self))


def nearest_candidates(
    blocks: ClassBlocks, z: Tensor, rows: Tensor, count: int, previous: Candidates | None = None
) -> Candidates:
    """Find the ``count`` nearest rows of the own class and of all others; exact, in blocks of memory.

    Parameters
    ----------
    blocks
        The training rows.
    z
        (n, r) the same rows embedded by the current metric, ``x G^T``; squared distances rank.
    rows
        (a,) ascending rows that are anchors; an anchor is never its own positive.
    count
        Candidates of each kind; fewer where a class has fewer.
    previous
        Candidates of the same anchors under an earlier metric. They change nothing but the time: the
        farthest of them bounds the distance of the new ones, so few entries are left to be ranked.
    """
    squares = z.square().sum(1)
    width = min(count, len(z) - 1)
    positive, negative = (rows.new_zeros((len(rows), width)) for _ in range(2))
    cpu = z.device.type == "cpu"
    step = max(256, (CACHED if cpu else BLOCK) // len(z))
    buffer = z.new_empty((min(step, len(rows)), len(z)))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        chunk = rows[part]
        d = buffer[: len(chunk)]
        torch.addmm(squares[None, :], z[chunk], z.T, alpha=-2.0, out=d)  # but for the anchor's own square
        d[torch.arange(len(chunk), device=z.device), chunk] = torch.inf
        old = previous.rows(part) if previous is not None and cpu else None
        found = None if old is None else _below(d, blocks, old, width)
        positive[part], negative[part] = _ranked(d, blocks, chunk, width) if found is None else found
    sizes = blocks.sizes[rows]
    return Candidates(
        rows, positive, negative, (sizes - 1).clamp_max(width), (len(z) - sizes).clamp_max(width)
    )


def _ranked(d: Tensor, blocks: ClassBlocks, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the columns of the smallest entries of each row in its own class and outside; spoils ``d``."""
    positive = rows.new_zeros((len(rows), width))
    for low, high, start, end in blocks.segments(rows):
        own = d[low:high, start:end]
        few = min(width, end - start)
        positive[low:high, :few] = own.topk(few, largest=False).indices + start
        own.fill_(torch.inf)
    return positive, d.topk(width, largest=False).indices


def _below(d: Tensor, blocks: ClassBlocks, old: Candidates, width: int) -> tuple[Tensor, Tensor] | None:
    """Do as :func:`_ranked` among entries no larger than the old candidates', or return None if too many."""
    near = d <= d.gather(1, old.negative).amax(1, keepdim=True)
    limit = d.gather(1, old.positive).amax(1, keepdim=True)
    for low, high, start, end in blocks.segments(old.anchor):
        torch.le(d[low:high, start:end], limit[low:high], out=near[low:high, start:end])
    row, column = np.divmod(np.flatnonzero(near.numpy()), d.shape[1])
    code = blocks.codes.numpy()
    own = code[column] == code[old.anchor.numpy()][row]
    sides = []
    for side in (own, ~own):
        left = np.bincount(row[side], minlength=len(d))
        most = max(width, int(left.max()))
        if most > CROWD * width:
            return None
        columns = np.zeros((len(d), most), dtype=np.int64)
        columns[np.arange(most) < left[:, None]] = column[side]  # rows come in order, so this packs them
        packed = torch.from_numpy(columns)
        values = d.gather(1, packed)
        values[torch.arange(most) >= torch.from_numpy(left)[:, None]] = torch.inf
        sides.append(packed.gather(1, values.topk(width, largest=False).indices))
    return sides[0], sides[1]


Rule = Callable[[Candidates, Tensor, Tensor, torch.Generator], Triplets]
"""(candidates, rows (n, D), G (r, D), stream) -> one triplet for each anchor, as rows."""


def sampled(near: Candidates, x: Tensor, components: Tensor, generator: torch.Generator) -> Triplets:
    """Draw a positive and, independently, a negative uniformly from the candidates (the published rule)."""
    u = torch.rand((2, len(x)), generator=generator, dtype=torch.float64).to(x.device)[:, near.anchor]
    rank = (u * torch.stack([near.positives, near.negatives])).long()
    positive, negative = (c.gather(1, r[:, None]).squeeze(1) for c, r in zip(near[1:3], rank, strict=True))
    return Triplets(near.anchor, positive, negative)


def nearest(near: Candidates, x: Tensor, components: Tensor, generator: torch.Generator) -> Triplets:
    """Take the nearest positive and the nearest negative; nothing is random."""
    return Triplets(near.anchor, near.positive[:, 0], near.negative[:, 0])


def binding(near: Candidates, x: Tensor, components: Tensor, generator: torch.Generator) -> Triplets:
    """Take the triplet that attains the certified radius among the candidates: min over c of max over a."""
    with torch.no_grad():
        image = through_matrix(x, components)
        triplets = [_binding(part, x, image) for part in _parts(near, x.shape[1])]
    return Triplets(near.anchor, *(torch.cat(side) for side in zip(*triplets, strict=True)))


def _parts(near: Candidates, width: int) -> list[Candidates]:
    step = max(1, BLOCK // (near.positive.shape[1] * max(width, near.negative.shape[1])))
    return [Candidates(*(side[i : i + step] for side in near)) for i in range(0, len(near.anchor), step)]


def _binding(near: Candidates, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    z = x[near.anchor][:, None]
    a, c = (-2.0 * (z * image[side]).sum(2) + (x[side] * image[side]).sum(2) for side in near[1:3])
    lengths = torch.cdist(image[near.positive], image[near.negative]).clamp_min(FLOOR**0.5)
    margins = (c[:, None, :] - a[:, :, None]) / (2 * lengths)  # (n, positives, negatives)
    column = torch.arange(margins.shape[1], device=x.device)
    margins.masked_fill_((column >= near.positives[:, None])[:, :, None], -torch.inf)
    best, which = margins.max(1)
    best = best.masked_fill(column >= near.negatives[:, None], torch.inf)
    j = best.argmin(1, keepdim=True)
    return near.positive.gather(1, which.gather(1, j)).squeeze(1), near.negative.gather(1, j).squeeze(1)


RULES: Mapping[str, Rule] = {"sampled": sampled, "nearest": nearest, "binding": binding}
"""How triplets are chosen among the candidates, by name."""
