"""MNIST and Fashion-MNIST: two data sets under the same four file names."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import CorruptFile, DataError, InvalidArgument
from .base import DataSplit, ImageSet, first_rows_per_class
from .idx import read_idx


@dataclass(frozen=True)
class _IdxSource:
    """Four IDX files under their official names; see the two data sets below."""

    root: str | None = None
    _: KW_ONLY
    train_per_class: int | None = None
    test_images: int | None = None
    validate_per_class: int | None = None

    name: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]
    class_names: ClassVar[tuple[str, ...]]
    first_labels: ClassVar[bytes]
    files: ClassVar[tuple[str, ...]] = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )

    def __post_init__(self) -> None:
        for field in ("train_per_class", "test_images", "validate_per_class"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InvalidArgument(field, "an integer >= 1, or None", value)
        if self.validate_per_class is not None and self.train_per_class is None:
            raise InvalidArgument(
                "validate_per_class", "train_per_class beside it, so that images are left to validate on",
                self.validate_per_class,
            )  # fmt: skip

    @classmethod
    def locate(cls, root: str | Path) -> Path | None:
        """Return the first folder that holds all four files, or None; nothing is decoded."""
        found = [f for f in cls._places(root) if all(_named(f, file) for file in cls.files)]
        return found[0] if found else None

    @classmethod
    def _places(cls, root: str | Path) -> list[Path]:
        return [Path(root) / folder for folder in cls.folders]

    def load(self) -> DataSplit:
        """Read the files.

        Raises
        ------
        DataError
            If ``root`` is None, a file is missing (says which, and where it was looked for), or a class has
            fewer than ``train_per_class`` images.
        CorruptFile
            If a file is damaged or does not fit its partner.
        """
        if self.root is None:
            raise DataError(
                f"{self.name} is read from files: name their folder with --data-dir (root= in Python)"
            )
        folder = self.locate(self.root)
        if folder is None:
            places = self._places(self.root)
            most = max(places, key=lambda place: sum(bool(_named(place, file)) for file in self.files))
            missing = ", ".join(file for file in self.files if not _named(most, file))
            raise DataError(
                f"{self.name}: missing {missing} (or the same with .gz); looked in "
                + ", ".join(str(place) for place in places)
            )
        test = "test" if self.validate_per_class is None else "validation"
        return DataSplit(self._side(folder, "train"), self._side(folder, test), self.name, "closed")

    def _side(self, folder: Path, side: str) -> ImageSet:
        image_file, label_file = self.files[2:] if side == "test" else self.files[:2]
        pixels, labels = (
            read_idx(_named(folder, file) or folder / file) for file in (image_file, label_file)
        )
        if pixels.ndim != 3 or pixels.dtype != np.uint8:
            raise CorruptFile(
                folder / image_file, 0, f"need bytes of shape (n, h, w), got {pixels.dtype} {pixels.shape}"
            )
        if labels.dtype != np.uint8 or labels.shape != pixels.shape[:1]:
            raise CorruptFile(
                folder / label_file, 0, f"need {len(pixels)} byte labels, got {labels.dtype} {labels.shape}"
            )
        self._not_the_other(labels, folder)
        y = torch.from_numpy(labels).long()
        name = f"{self.name} {side}"
        rows = torch.arange(len(y))
        if side == "train" and self.train_per_class is not None and len(y):
            rows = first_rows_per_class(y, self.train_per_class, name)
        elif (
            side == "validation" and self.train_per_class is not None and self.validate_per_class is not None
        ):
            many = first_rows_per_class(y, self.train_per_class + self.validate_per_class, name)
            rows = many[~torch.isin(many, first_rows_per_class(y, self.train_per_class, name))]
        elif side == "test" and self.test_images is not None:
            if self.test_images > len(y):
                raise DataError(f"{name}: test_images={self.test_images}, but the file holds {len(y)}")
            rows = rows[: self.test_images]
        x = torch.from_numpy(pixels)[rows].float().div_(255)[:, None]
        return ImageSet(x, y[rows], name, self.class_names)

    def _not_the_other(self, labels: NDArray[Any], folder: Path) -> None:
        begin = labels[:10].tobytes()  # file names are the same, the training labels tell them apart
        for other in (FashionMNIST, MNIST):
            if begin == other.first_labels != self.first_labels:
                raise DataError(f"{self.name}: the files in {folder} are those of {other.name}")


@dataclass(frozen=True)
class FashionMNIST(_IdxSource):
    """Fashion-MNIST: 60 000 training and 10 000 test images of clothing, 28x28 grey, 10 classes; closed.

    Parameters
    ----------
    root
        Folder with the four official IDX files (plain or ``.gz``), or one that holds them in
        ``fashion-mnist/`` or ``FashionMNIST/raw/``.
    train_per_class
        Keep the first so many training images of every class, in file order; None keeps all.
    test_images
        Keep the first so many test images; None keeps all.
    validate_per_class
        Test on so many further training images of every class (those after the first ``train_per_class``)
        and leave the test images alone: for choosing settings.

    References
    ----------
    Xiao, Rasul and Vollgraf, "Fashion-MNIST", arXiv:1708.07747.
    """

    name: ClassVar[str] = "fashion-mnist"
    folders: ClassVar[tuple[str, ...]] = ("fashion-mnist", "FashionMNIST/raw", ".")
    first_labels: ClassVar[bytes] = bytes([9, 0, 0, 3, 0, 2, 7, 2, 5, 5])
    class_names: ClassVar[tuple[str, ...]] = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )


@dataclass(frozen=True)
class MNIST(_IdxSource):
    """MNIST: 60 000 training and 10 000 test images of digits, 28x28 grey, 10 classes; closed.

    Parameters
    ----------
    root
        Folder with the four official IDX files (plain or ``.gz``), or one that holds them in ``mnist/`` or
        ``MNIST/raw/``.
    train_per_class, test_images, validate_per_class
        As for :class:`FashionMNIST`.

    References
    ----------
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    """

    name: ClassVar[str] = "mnist"
    folders: ClassVar[tuple[str, ...]] = ("mnist", "MNIST/raw", ".")
    first_labels: ClassVar[bytes] = bytes([5, 0, 4, 1, 9, 2, 1, 3, 1, 4])
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")


def _named(folder: Path, file: str) -> Path | None:
    for path in (folder / file, folder / f"{file}.gz"):
        if path.is_file():
            return path
    return None
