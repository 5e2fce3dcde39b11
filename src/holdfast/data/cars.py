"""Cars196: Stanford Cars."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..errors import CorruptFile
from .base import DataSplit
from .source import FileSource, Listed

_CLASSES, _TRAINED = 196, 98


@dataclass(frozen=True)
class Cars196(FileSource):
    """Cars196: 196 models of cars; 1 to 98 train (8 054 images), 99 to 196 test (8 131); zero-shot.

    Parameters
    ----------
    root
        Folder with ``cars_annos.mat`` and ``car_ims/``, or one that holds it as ``cars196/``, ``cars/`` or
        ``stanford_cars/``.
    resize, crop
        Sides in pixels; see :class:`~holdfast.data.LazyImages`.

    Notes
    -----
    All 16 185 images of ``cars_annos.mat`` are divided by class; its own ``test`` mark is not looked at. The
    other form of the data set (``cars_train/``, ``cars_test/``, ``devkit/``) is not read. Labels count from 0
    in the order of the class numbers.

    References
    ----------
    Krause, Stark, Deng and Fei-Fei, "3D Object Representations for Fine-Grained Categorization",
    3dRR workshop 2013.
    """

    name: ClassVar[str] = "cars"
    folders: ClassVar[tuple[str, ...]] = ("cars196", "cars", "stanford_cars", ".")
    files: ClassVar[tuple[str, ...]] = ("cars_annos.mat",)
    origin: ClassVar[str] = (
        "cars_annos.mat is published by itself, and car_ims.tgz unpacks to car_ims/ beside it"
    )

    def load(self) -> DataSplit:
        """Read the annotations; images are decoded when they are used.

        Raises
        ------
        DataError
            If ``root`` is None, or the annotations or an image are missing or lie outside.
        CorruptFile
            If the annotations cannot be read.
        """
        folder = self._folder()
        paths, labels, known = _annotations(folder / self.files[0])
        rows = [Listed(path, label, label > _TRAINED) for path, label in zip(paths, labels, strict=True)]
        names: dict[int | str, str] = {label: known[label - 1] for label in labels}
        return self._split(folder, rows, names, "zero-shot")


def _annotations(path: Path) -> tuple[list[str], list[int], list[str]]:
    """Return paths, class numbers from 1, and the names of all classes."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    errors = (MatReadError, NotImplementedError, KeyError, ValueError, TypeError, IndexError, AttributeError)
    more = (OSError, EOFError, MemoryError, OverflowError, struct.error, zlib.error)
    try:
        stored = loadmat(path, squeeze_me=True, variable_names=["annotations", "class_names"])
        table = np.atleast_1d(stored["annotations"])
        paths = [str(p) for p in table["relative_im_path"]]
        labels = [int(c) for c in table["class"]]
        names = [str(n) for n in np.atleast_1d(stored["class_names"])]
    except (*errors, *more) as error:
        raise CorruptFile(
            path,
            None,
            f"need a MATLAB file with annotations (relative_im_path, class) and class_names: {error}",
        ) from error
    if len(names) != _CLASSES or not labels or not 1 <= min(labels) <= max(labels) <= _CLASSES:
        found = f"classes {min(labels, default=0)} to {max(labels, default=0)} and {len(names)} names"
        raise CorruptFile(path, None, f"need classes 1 to {_CLASSES} and their names, got {found}")
    return paths, labels, names
