"""Miners of the package pytorch-metric-learning (extra ``pml``), called as ours are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rng
from ..errors import DataError, InvalidArgument
from ..pml import Options, check_options, named
from ..types import PairwiseDistance, Triplets


@dataclass(frozen=True, kw_only=True)
class PMLMiner:
    """A miner of pytorch-metric-learning, by name.

    Attributes
    ----------
    miner
        Name of a class in ``pytorch_metric_learning.miners`` that chooses triplets or pairs.
    options
        Its constructor's arguments as (name, value) pairs; values are numbers, text, booleans or ``None``, so
        that settings stay plain data. For options that are objects (distances) use :class:`FromPMLMiner`.
    each
        At most so many triplets for each anchor, drawn at random; ``None`` keeps all. A search moves three
        images for each triplet, so all triplets of a batch are rarely affordable.

    Notes
    -----
    See :class:`FromPMLMiner`. Name and options are checked when the miner is first called.

    Examples
    --------
    >>> PMLMiner(miner="TripletMarginMiner", options=(("margin", 0.2),)).each
    1
    """

    miner: str = "TripletMarginMiner"
    options: Options = ()
    each: int | None = 1

    def __post_init__(self) -> None:
        _check_each(self.each)
        if not isinstance(self.miner, str):
            raise InvalidArgument("miner", "the name of a class; for an object use FromPMLMiner", self.miner)
        check_options(self.options)

    def __call__(
        self, z: Tensor, y: Tensor, distance: PairwiseDistance, generator: torch.Generator | None = None
    ) -> Triplets:
        """Mine triplets; see :meth:`FromPMLMiner.__call__`.

        Raises
        ------
        MissingExtra, UnknownName, InvalidArgument
            If the package is not installed, has no such miner, or the miner does not accept the options.
        """
        cls = named("miner", self.miner)
        try:
            built = cls(**dict(self.options))
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            raise InvalidArgument("options", f"what {self.miner} accepts ({error})", self.options) from error
        return FromPMLMiner(built, each=self.each)(z, y, distance, generator)


@dataclass(frozen=True, eq=False)
class FromPMLMiner:
    """A miner object of pytorch-metric-learning in hand, whatever it is made of.

    Parameters
    ----------
    miner
        Called with ``(z, y)``; returns (anchor, positive, negative) or (anchor, positive, anchor, negative).
    each
        See :class:`PMLMiner`.

    Notes
    -----
    Ours: pairs become triplets by joining each anchor's positive pairs with its negative pairs. An anchor
    without a triplet is left out; where no anchor has one, each that has a partner and a stranger in the
    batch gets ``each`` random ones (one, for ``None``), so that a loss always has something to read. The
    miner uses its own distance, most often the cosine, not that of the run, and needs no pair layout. What
    it draws at random comes from the generator. An object cannot be written as settings.

    Examples
    --------
    >>> from holdfast.functional.distance import Euclidean
    >>> def first_two(z, y):
    ...     return torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2])
    >>> z, y = torch.zeros(3, 2), torch.tensor([0, 0, 1])
    >>> [role.tolist() for role in FromPMLMiner(first_two)(z, y, Euclidean())]
    [[0], [1], [2]]
    """

    miner: Callable[[Tensor, Tensor], Sequence[Tensor]]
    each: int | None = 1

    def __post_init__(self) -> None:
        _check_each(self.each)
        if not callable(self.miner):
            raise InvalidArgument("miner", "a miner object; for a name use PMLMiner", self.miner)

    @torch.no_grad()
    def __call__(
        self, z: Tensor, y: Tensor, distance: PairwiseDistance, generator: torch.Generator | None = None
    ) -> Triplets:
        """Mine triplets.

        Parameters
        ----------
        z, y
            (n, e) embeddings and (n,) labels, in any order.
        distance
            Not used; see the notes of the class.
        generator
            Source of the draws, the miner's own included; torch's global one if ``None``.

        Returns
        -------
        Triplets
            Rows of the batch, each (t,), ordered by anchor; t >= 1.

        Raises
        ------
        InvalidArgument
            If the shapes do not fit, or the miner returns neither three nor four tensors.
        DataError
            If no row has both a partner of its class and a row of another class.
        """
        if z.ndim != 2 or y.shape != z.shape[:1]:
            raise InvalidArgument("z, y", "shapes (n, e) and (n,)", (tuple(z.shape), tuple(y.shape)))
        found = _mined(self.miner, z.detach(), y, generator)
        if len(found) == 3:
            rows = _some(Triplets(*found), len(y), self.each, generator)
        elif len(found) == 4:
            rows = self._joined(
                _mask(found[0], found[1], len(y)), _mask(found[2], found[3], len(y)), generator
            )
        else:
            raise InvalidArgument("miner", "a miner of triplets or pairs: 3 or 4 tensors", len(found))
        return rows if len(rows.anchor) else _random(y, self.each or 1, generator)

    def _joined(self, positive: Tensor, negative: Tensor, generator: torch.Generator | None) -> Triplets:
        """Return triplets of each anchor's positives and negatives; two (n, n) bool."""
        if self.each is None:
            return Triplets(*torch.where(positive[:, :, None] & negative[:, None, :]))
        anchor = (positive.any(1) & negative.any(1)).nonzero().squeeze(1)
        return _drawn(anchor, positive, negative, self.each, generator)


def _check_each(each: int | None) -> None:
    if each is not None and (type(each) is not int or each < 1):
        raise InvalidArgument("each", "an integer >= 1, or None", each)


def _mined(
    miner: Callable[[Tensor, Tensor], Sequence[Tensor]],
    z: Tensor,
    y: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, ...]:
    """Call the miner; what it takes from torch's global generator follows ours, and leaves no trace."""
    if generator is None:
        return tuple(miner(z, y))
    seed = int(torch.randint(2**31, (), generator=generator))
    with rng.seeded(seed, "miner"):
        return tuple(miner(z, y))


def _mask(rows: Tensor, columns: Tensor, n: int) -> Tensor:
    mask = torch.zeros(n, n, dtype=torch.bool, device=rows.device)
    mask[rows.long(), columns.long()] = True
    return mask


def _some(found: Triplets, n: int, each: int | None, generator: torch.Generator | None) -> Triplets:
    """Return at most ``each`` of the triplets of every anchor, drawn without replacement."""
    found = Triplets(*(role.long() for role in found))
    keys = rng.uniform(found.anchor.double(), generator)
    order = keys.argsort()
    order = order[found.anchor[order].argsort(stable=True)]  # by anchor, at random within
    if each is not None:
        counts = torch.bincount(found.anchor, minlength=n)
        start = (counts.cumsum(0) - counts)[found.anchor[order]]
        order = order[torch.arange(len(order), device=order.device) - start < each]
    return Triplets(*(role[order] for role in found))


def _drawn(
    anchor: Tensor, positive: Tensor, negative: Tensor, each: int, generator: torch.Generator | None
) -> Triplets:
    """Draw ``each`` triplets for every anchor (k,), with replacement, from two (n, n) bool."""
    if not len(anchor):
        return Triplets(anchor, anchor, anchor)
    p, n = (rng.choose(mask[anchor], generator, k=each).flatten() for mask in (positive, negative))
    return Triplets(anchor.repeat_interleave(each), p, n)


def _random(y: Tensor, each: int, generator: torch.Generator | None) -> Triplets:
    same = y[:, None] == y
    partner = same & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    anchor = (partner.any(1) & ~same.all(1)).nonzero().squeeze(1)
    if not len(anchor):
        raise DataError("a batch without triplets: need a class with two rows, and a row of another class")
    return _drawn(anchor, partner, ~same, each, generator)
