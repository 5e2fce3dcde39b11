"""A patch: inside a rectangle an adversary may do anything, outside nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .errors import InvalidArgument
from .rng import Randomness, RowStreams, uniform


@dataclass(frozen=True, kw_only=True)
class PatchThreat:
    """Inside a rectangle every value may change freely in the box; outside nothing changes.

    With one place for all images it is a threat itself. With random places it is a recipe: :meth:`for_rows`
    draws the place of every image from the image's own number, whatever batch it comes in.

    Attributes
    ----------
    height, width
        Of the rectangle, in pixels, >= 1.
    place
        Row and column of the upper left corner, from 0, or ``"random"``.
    bounds
        Box of valid inputs.

    Examples
    --------
    >>> import torch
    >>> patch = PatchThreat(height=1, width=2, place=(0, 1))
    >>> patch.project(torch.full((1, 1, 2, 3), 7.0), torch.zeros(1, 1, 2, 3))
    tensor([[[[0., 1., 1.],
              [0., 0., 0.]]]])

    References
    ----------
    Brown et al., *Adversarial Patch*, 2017.
    """

    height: int
    width: int
    place: Literal["random"] | tuple[int, int] = "random"
    bounds: tuple[float, float] = (0.0, 1.0)
    norm: ClassVar[str] = "patch"

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if not (isinstance(value, int) and value >= 1):
                raise InvalidArgument(name, "a whole number of pixels >= 1", value)
        if self.place != "random" and not (
            isinstance(self.place, tuple)
            and len(self.place) == 2
            and all(isinstance(v, int) and v >= 0 for v in self.place)
        ):
            raise InvalidArgument("place", "'random' or (row, column), whole numbers >= 0", self.place)
        _check(self.bounds)

    @property
    def eps(self) -> float:
        """Width of the box: the most that one value can change."""
        return self.bounds[1] - self.bounds[0]

    def for_rows(self, index: Tensor | Sequence[int], seed: int, shape: Sequence[int]) -> PlacedPatch:
        """Fix one place for every row.

        Parameters
        ----------
        index
            (n,) the images' own numbers, which name the random streams.
        seed
            Of the places.
        shape
            (..., h, w) of the images, in pixels.

        Returns
        -------
        PlacedPatch
            With n masks. Random places are uniform over all those inside the image.

        Raises
        ------
        InvalidArgument
            If the rectangle does not fit into the image.
        """
        if len(shape) < 2:
            raise InvalidArgument("shape", "(..., h, w)", tuple(shape))
        h, w = shape[-2:]
        if self.place == "random":
            low, free = (0, 0), (h - self.height, w - self.width)
        else:
            low, free = self.place, (h - self.height - self.place[0], w - self.width - self.place[1])
        if min(free) < 0:
            raise InvalidArgument("shape", f"images that hold {self}", (h, w))
        corner = torch.tensor(low).repeat(len(index), 1)  # (n, 2)
        if self.place == "random":
            u = uniform(corner.double(), RowStreams(seed, "patch", index=index))
            corner = (u * (torch.tensor(free) + 1)).long()
        top, left = corner[:, 0, None], corner[:, 1, None]
        down, right = torch.arange(h), torch.arange(w)
        inside = (down >= top) & (down < top + self.height), (right >= left) & (right < left + self.width)
        return PlacedPatch(mask=(inside[0][:, :, None] & inside[1][:, None, :])[:, None], bounds=self.bounds)

    def rows(self, which: Tensor) -> PatchThreat:
        """Return itself: without :meth:`for_rows`, all images have one place."""
        return self

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the nearest allowed point."""
        return self._placed(x0).project(x, x0)

    def direction(self, grad: Tensor) -> Tensor:
        """Return the sign of the gradient; what lies outside the rectangle is projected away."""
        return grad.sign()

    def noise(self, x0: Tensor, generator: Randomness = None) -> Tensor:
        """Return images whose rectangle is filled with uniform noise."""
        return self._placed(x0).noise(x0, generator)

    def size(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the largest change inside the rectangle, infinity where anything else changed: (n,)."""
        return self._placed(x0).size(x, x0)

    def _placed(self, x0: Tensor) -> PlacedPatch:
        if self.place == "random":
            raise InvalidArgument("threat", "a place for every image: call for_rows first", self)
        return self.for_rows([0], 0, x0.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedPatch:
    """Rectangles at fixed places, one for every row; made by :meth:`PatchThreat.for_rows`.

    Attributes
    ----------
    mask
        (n, 1, h, w) bool, true inside. Inputs may have r*n rows: row i has mask ``i mod n``, as with groups
        and streams.
    bounds
        Box of valid inputs.
    """

    mask: Tensor
    bounds: tuple[float, float] = (0.0, 1.0)
    norm: ClassVar[str] = "patch"

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.ndim != 4 or self.mask.shape[1] != 1:
            raise InvalidArgument("mask", "bool (n, 1, h, w)", f"{self.mask.dtype} {tuple(self.mask.shape)}")
        _check(self.bounds)

    @property
    def eps(self) -> float:
        """Width of the box: the most that one value can change."""
        return self.bounds[1] - self.bounds[0]

    def rows(self, which: Tensor) -> PlacedPatch:
        """Return the patches of some rows, given as (k,) numbers or a mask; row i has place ``i mod n``."""
        numbers = torch.nonzero(which).squeeze(1) if which.dtype == torch.bool else which
        return replace(self, mask=self.mask[numbers.to(self.mask.device) % len(self.mask)])

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the nearest allowed point."""
        return torch.where(self._inside(x0), x.clamp(*self.bounds), x0)

    def direction(self, grad: Tensor) -> Tensor:
        """Return the sign of the gradient; what lies outside the rectangle is projected away."""
        return grad.sign()

    def noise(self, x0: Tensor, generator: Randomness = None) -> Tensor:
        """Return images whose rectangle is filled with uniform noise."""
        return torch.where(self._inside(x0), self.bounds[0] + uniform(x0, generator) * self.eps, x0)

    def size(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the largest change inside the rectangle, infinity where anything else changed: (n,)."""
        change = (x - x0).abs()
        change = torch.where(self._inside(x0) | (change == 0), change, torch.inf)
        return change.reshape(len(x), -1).amax(1)

    def _inside(self, x0: Tensor) -> Tensor:
        """Return the masks of all rows, (r*n, 1, h, w)."""
        n, _, h, w = self.mask.shape
        if x0.ndim != 4 or x0.shape[-2:] != (h, w) or (len(x0) % n if n else len(x0)):
            raise InvalidArgument("mask", f"places for inputs {tuple(x0.shape)}", (n, 1, h, w))
        return self.mask.to(x0.device).repeat(len(x0) // max(n, 1), 1, 1, 1)


def _check(bounds: tuple[float, float]) -> None:
    if bounds is None or not bounds[0] < bounds[1]:
        raise InvalidArgument("bounds", "(low, high) with low < high", bounds)
