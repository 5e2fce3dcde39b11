"""Labelled images and how they are split: the values that every data set is turned into."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import DataError, InvalidArgument
from .lazy import LazyImages

Protocols = Literal["closed", "zero-shot"]
"""``closed``: train and test share classes. ``zero-shot``: no class stands on both sides."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images, checked once so that nothing behind has to check again.

    Parameters
    ----------
    x
        (n, c, h, w) float32, pixels in [0, 1]; or files that are decoded when they are indexed.
    y
        (n,) int64 labels. They need not be consecutive.
    name
        What messages and records call this set.
    class_names
        Name of label ``i`` at position ``i``; empty when there are none.
    min_classes
        Fewest classes that are accepted. Metric learning needs two; set 1 for a hand-picked subset.

    Raises
    ------
    DataError
        For a wrong shape or dtype, unequal lengths, no images, a value that is not finite (names the first
        such row) or not in [0, 1] (tells the range found), too few classes, or a label without a name.

    Examples
    --------
    >>> ImageSet(torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]), "toy")
    ImageSet('toy': 4 images of 1x8x8, 2 classes)
    """

    x: Tensor | LazyImages
    y: Tensor
    name: str
    class_names: tuple[str, ...] = ()
    min_classes: int = 2

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if x.ndim != 4:
            raise self._error(f"images need 4 dimensions (n, c, h, w), got shape {tuple(x.shape)}")
        if y.ndim != 1 or len(x) != len(y):
            raise self._error(f"need one label for each of the {len(x)} images, got shape {tuple(y.shape)}")
        if 0 in x.shape:
            raise self._error(f"need at least one image with at least one pixel, got shape {tuple(x.shape)}")
        if x.dtype != torch.float32:
            hint = "; divide integer pixels by 255" if not x.dtype.is_floating_point else ""
            raise self._error(f"pixels need dtype torch.float32, got {x.dtype}{hint}")
        if y.dtype != torch.int64:
            raise self._error(f"labels need dtype torch.int64, got {y.dtype}")
        self._check_values()
        if self.n_classes < self.min_classes:
            raise self._error(
                f"need at least {self.min_classes} classes, got {self.n_classes}: {list(self.classes)}"
            )
        if self.class_names and not 0 <= self.classes[0] <= self.classes[-1] < len(self.class_names):
            bad = self.classes[0] if self.classes[0] < 0 else self.classes[-1]
            raise self._error(f"label {bad} has no name: {len(self.class_names)} class names are given")

    def _check_values(self) -> None:
        if isinstance(self.x, LazyImages):
            return  # bytes divided by 255 when they are decoded
        low, high = (float(v) for v in self.x.aminmax())  # NaN and infinity show up in at least one of them
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            row = int((~self.x.isfinite()).flatten(1).any(1).nonzero()[0, 0])
            raise self._error(f"image {row} (counted from 0) holds a value that is not finite")
        if low < 0 or high > 1:
            hint = "; divide by 255" if high > 2 else ""
            raise self._error(f"pixels need to lie in [0, 1], got [{low:g}, {high:g}]{hint}")

    def _error(self, message: str) -> DataError:
        return DataError(f"image set {self.name!r}: {message}")

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        size = "x".join(str(s) for s in self.shape)
        return f"ImageSet({self.name!r}: {len(self)} images of {size}, {self.n_classes} classes)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        _, c, h, w = self.x.shape
        return c, h, w

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels that occur, ascending."""
        return tuple(torch.unique(self.y).tolist())

    @property
    def n_classes(self) -> int:
        """Number of labels that occur."""
        return len(self.classes)

    def take(self, index: Tensor | Sequence[int], *, min_classes: int | None = None) -> ImageSet:
        """Return the images at the given rows, in the given order.

        ``min_classes`` replaces the set's own value, for a subset that may hold a single class.
        """
        rows = torch.as_tensor(index, device=self.x.device)
        if rows.ndim != 1 or (len(rows) and rows.dtype != torch.int64):
            raise InvalidArgument("index", "a list of integer rows", f"{rows.dtype} of {tuple(rows.shape)}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise InvalidArgument("index", f"rows in [0, {len(self)})", [int(rows.min()), int(rows.max())])
        rows = rows.long()
        least = self.min_classes if min_classes is None else min_classes
        x = self.x.subset(rows) if isinstance(self.x, LazyImages) else self.x[rows]
        return replace(self, x=x, y=self.y[rows], min_classes=least)

    def of_classes(self, classes: Iterable[int], *, min_classes: int | None = None) -> ImageSet:
        """Return all images of the given classes, in their order here."""
        wanted = sorted(set(classes))
        absent = sorted(set(wanted) - set(self.classes))
        if absent:
            raise self._error(f"there are no images of classes {absent}; present are {list(self.classes)}")
        keep = torch.isin(self.y, torch.tensor(wanted, dtype=torch.int64, device=self.y.device))
        return self.take(keep.nonzero()[:, 0], min_classes=min_classes)

    def first_per_class(self, k: int) -> ImageSet:
        """Return the first ``k`` images of every class, in their order here; a smaller class is an error."""
        return self.take(first_rows_per_class(self.y, k, self.name))

    def first(self, n: int, *, min_classes: int | None = None) -> ImageSet:
        """Return the first ``n`` images."""
        if not 1 <= n <= len(self):
            raise InvalidArgument("n", f"an integer in [1, {len(self)}], the size of {self.name!r}", n)
        return self.take(torch.arange(n), min_classes=min_classes)

    def fingerprint(self) -> str:
        """Return the sha256, in hexadecimal, of the bytes of ``x`` and then of ``y``.

        Files are not decoded for it: their names, their sizes in bytes and the sides of resizing and
        cropping stand for ``x``, so a file that changed without changing its size is not noticed.
        """
        digest = hashlib.sha256()
        if isinstance(self.x, LazyImages):
            digest.update(self.x.listing())
        for part in (self.x, self.y):
            if isinstance(part, Tensor):
                digest.update(part.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class DataSplit:
    """A training set and a test set that belong together.

    Parameters
    ----------
    train, test
        The two sides; images of equal shape.
    name
        Name of the data set.
    protocol
        ``"closed"``: every class of the test set is trained on. ``"zero-shot"``: none is.

    Raises
    ------
    DataError
        If a class stands on both sides of a zero-shot split, if a closed test set holds a class that is
        never trained on, or if the images differ in shape.
    """

    train: ImageSet
    test: ImageSet
    name: str
    protocol: Protocols

    def __post_init__(self) -> None:
        train, test = set(self.train.classes), set(self.test.classes)
        if self.protocol not in ("closed", "zero-shot"):
            raise InvalidArgument("protocol", "'closed' or 'zero-shot'", self.protocol)
        if self.protocol == "zero-shot" and train & test:
            raise DataError(
                f"split {self.name!r} is zero-shot, but classes stand on both sides: {sorted(train & test)}"
            )
        if self.protocol == "closed" and test - train:
            raise DataError(
                f"split {self.name!r} is closed, but test classes are not trained on: {sorted(test - train)}"
            )
        if self.train.shape != self.test.shape:
            raise DataError(
                f"split {self.name!r}: train images are {self.train.shape}, test images {self.test.shape}"
            )


def class_disjoint(
    images: ImageSet, train_classes: Iterable[int], test_classes: Iterable[int], name: str
) -> DataSplit:
    """Split one set by class, so that the test set holds only classes that training never saw.

    Raises
    ------
    DataError
        If a class is named on both sides or has no images.

    Examples
    --------
    >>> images = ImageSet(torch.zeros(4, 1, 8, 8), torch.arange(4), "toy")
    >>> class_disjoint(images, [0, 1], [2, 3], "toy").test.classes
    (2, 3)
    """
    train = replace(images.of_classes(train_classes), name=f"{name} train")
    test = replace(images.of_classes(test_classes), name=f"{name} test")
    return DataSplit(train, test, name, "zero-shot")


class DataSource(Protocol):
    """A frozen dataclass of plain fields that knows where its images come from."""

    @property
    def name(self) -> str:
        """Name in the table of data sets."""
        ...

    def load(self) -> DataSplit:
        """Read, check and split the images."""
        ...


def first_rows_per_class(y: Tensor, k: int, name: str) -> Tensor:
    """Return the rows of the first ``k`` samples of every class, ascending; y (n,) -> (classes * k,)."""
    if k < 1:
        raise InvalidArgument("k", "an integer >= 1", k)
    labels, inverse, counts = torch.unique(y, return_inverse=True, return_counts=True)
    if int(counts.min()) < k:
        small = int(counts.argmin())
        raise DataError(
            f"image set {name!r}: need {k} images of every class, but class {int(labels[small])} "
            f"has {int(counts[small])}"
        )
    order = inverse.argsort(stable=True)  # rows grouped by class, in file order within each
    starts = counts.cumsum(0) - counts
    nth = torch.arange(len(y), device=y.device) - starts.repeat_interleave(counts)
    rows: Tensor = order[nth < k].sort().values
    return rows
