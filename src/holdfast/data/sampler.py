"""Which images meet in a batch: samplers that turn labels into batches of pairs.

All batches have one layout: rows ``2i`` (anchor) and ``2i + 1`` (partner) share a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import DataError, InvalidArgument


class Sampler(Protocol):
    """Plans one epoch from the labels alone."""

    def epoch(self, y: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Labels (n,) -> batches of rows, each (2b,) int64 on the CPU."""
        ...

    def batches_per_epoch(self, y: Tensor) -> int:
        """Return the exact number of batches that :meth:`epoch` gives, whatever the generator."""
        ...


@dataclass(frozen=True)
class PairSampler:
    """Every image once in an epoch as anchor, each with a random partner of its class (SPC-2).

    Parameters
    ----------
    batch_pairs
        Pairs in a batch, >= 2; a batch holds twice as many images.
    self_pairs
        Whether an image may be its own partner. The published code draws the partner from *all* images of
        the class (`True`), so about one pair in the class size is an image with itself.

    Notes
    -----
    Anchors are shuffled without regard to class, so a batch can hold several pairs of one class. The last
    batch may be smaller, but always holds two classes, so that a negative exists: a last batch of a single
    pair is merged into the one before, and a longer one that by chance holds a single class exchanges its
    last anchor with a random earlier anchor of another class. The number of batches therefore depends on the
    number of images alone.

    References
    ----------
    Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning",
    ICML 2020 (samples per class).

    Examples
    --------
    >>> y = torch.tensor([0, 0, 1, 1])
    >>> (batch,) = PairSampler(4).epoch(y)
    >>> sorted(batch.reshape(4, 2).tolist())  # (anchor, partner)
    [[0, 1], [1, 0], [2, 3], [3, 2]]
    """

    batch_pairs: int
    _: KW_ONLY
    self_pairs: bool = False

    def __post_init__(self) -> None:
        if self.batch_pairs < 2:
            raise InvalidArgument("batch_pairs", "an integer >= 2", self.batch_pairs)

    def epoch(self, y: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Plan one epoch; see the class.

        Raises
        ------
        DataError
            If there are fewer than two classes, or a class has one image and ``self_pairs`` is off.
        """
        groups = _group(y)
        lonely = (groups.counts == 1).nonzero()[:, 0]
        if len(lonely) and not self.self_pairs:
            raise DataError(
                f"class {int(groups.labels[lonely[0]])} has a single image, which has no partner "
                f"({len(lonely)} such classes): add images, leave the class out, or set self_pairs=True"
            )
        n = len(groups.inverse)
        anchor = torch.randperm(n, generator=generator)
        sizes = self._sizes(n)
        _mix_last(anchor, groups.inverse, sizes[-1], generator)
        counts, own = groups.counts[groups.inverse], groups.nth
        if self.self_pairs:
            drawn = _below(counts, generator)
        else:  # draw among the others: skip over oneself
            drawn = _below(counts - 1, generator)
            drawn += drawn >= own
        partner = groups.order[groups.starts[groups.inverse] + drawn]
        pairs = torch.stack([anchor, partner[anchor]], dim=1)  # (n, 2)
        return [part.reshape(-1) for part in torch.split(pairs, sizes)]

    def batches_per_epoch(self, y: Tensor) -> int:
        """Return the number of batches."""
        return len(self._sizes(len(y)))

    def _sizes(self, n: int) -> list[int]:
        full, rest = divmod(n, self.batch_pairs)
        sizes = [self.batch_pairs] * full + ([rest] if rest else [])
        if rest == 1 and full:
            sizes[-2:] = [self.batch_pairs + 1]
        return sizes


@dataclass(frozen=True)
class MPerClass:
    """Batches of ``classes`` different classes with ``m`` images each.

    Parameters
    ----------
    classes
        Classes in a batch, >= 2, drawn without replacement.
    m
        Images of each class, even and >= 2, so that the rows of one class form pairs.

    Notes
    -----
    Images of a class are drawn without replacement within a batch. A class with fewer than ``m`` images is
    drawn with replacement, yet an image is paired with itself only if it is alone in its class. An epoch has
    ``ceil(n / (classes * m))`` batches, each drawn afresh: an image may come twice in an epoch,
    or not at all.

    Examples
    --------
    >>> y = torch.tensor([0, 0, 1, 1, 2, 2])
    >>> batches = MPerClass(2, 2).epoch(y)
    >>> [len(batch) for batch in batches], [bool(y[b[0]] == y[b[1]] != y[b[2]]) for b in batches]
    ([4, 4], [True, True])
    """

    classes: int
    m: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InvalidArgument("classes", "an integer >= 2", self.classes)
        if self.m < 2 or self.m % 2:
            raise InvalidArgument("m", "an even integer >= 2", self.m)

    def epoch(self, y: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Plan one epoch; see the class.

        Raises
        ------
        DataError
            If the labels hold fewer classes than a batch needs.
        """
        groups = _group(y)
        if len(groups.labels) < self.classes:
            raise DataError(f"batches of {self.classes} classes need as many, got {len(groups.labels)}")
        batches = self.batches_per_epoch(y)
        keys = torch.rand(batches, len(groups.labels), generator=generator)
        chosen = keys.topk(self.classes, dim=1).indices.reshape(-1)  # (batches * classes,)
        counts = groups.counts[chosen]
        whole = _distinct(counts, self.m, generator)
        pairs = _distinct(counts.repeat_interleave(self.m // 2), 2, generator).reshape(-1, self.m)
        nth = torch.where(counts[:, None] >= self.m, whole, pairs.minimum(counts[:, None] - 1))
        rows = groups.order[groups.starts[chosen][:, None] + nth]
        return list(rows.reshape(batches, -1))

    def batches_per_epoch(self, y: Tensor) -> int:
        """Return the number of batches."""
        return -(-len(y) // (self.classes * self.m))


SAMPLERS: Mapping[str, type[PairSampler] | type[MPerClass]] = {"pairs": PairSampler, "m-per-class": MPerClass}
"""Samplers by name."""


class _Groups(NamedTuple):
    labels: Tensor  # (k,) ascending
    inverse: Tensor  # (n,) which label
    counts: Tensor  # (k,)
    order: Tensor  # (n,) rows grouped by class
    starts: Tensor  # (k,) where each class begins in order
    nth: Tensor  # (n,) which of its class a row is


def _group(y: Tensor) -> _Groups:
    if y.ndim != 1 or len(y) == 0:
        raise InvalidArgument("y", "labels of shape (n,), n >= 1", tuple(y.shape))
    labels, inverse, counts = torch.unique(y.cpu(), return_inverse=True, return_counts=True)
    if len(labels) < 2:
        raise DataError(f"batches need two classes to hold negatives; all labels are {int(labels[0])}")
    order = inverse.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    nth = torch.empty_like(order)
    nth[order] = torch.arange(len(order)) - starts.repeat_interleave(counts)
    return _Groups(labels, inverse, counts, order, starts, nth)


def _below(limit: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw integers uniform in [0, limit); a limit below 1 gives 0."""
    u = torch.rand(limit.shape, dtype=torch.float64, generator=generator)
    return (u * limit).long().minimum(limit - 1).clamp_(min=0)


def _distinct(counts: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """Draw ``k`` distinct integers in [0, count) for every row, in random order; (r,) -> (r, k).

    Rows with a count below ``k`` receive numbers that the caller has to discard or clamp.
    """
    drawn = counts.new_empty(len(counts), 0)
    for taken in range(k):
        new = _below(counts - taken, generator)
        for earlier in drawn.sort(dim=1).values.T:  # the new-th number that is still free
            new = new + (new >= earlier).long()
        drawn = torch.cat([drawn, new[:, None]], dim=1)
    return drawn


def _mix_last(anchor: Tensor, label: Tensor, size: int, generator: torch.Generator | None) -> None:
    """Make sure, in place, that the last ``size`` anchors hold two classes."""
    drawn = label[anchor]
    alien = (drawn[:-size] != drawn[-1]).nonzero()[:, 0]
    if bool((drawn[-size:] == drawn[-1]).all()) and len(alien):
        other = alien[_below(torch.tensor([len(alien)]), generator)[0]]
        anchor[[int(other), -1]] = anchor[[-1, int(other)]]
