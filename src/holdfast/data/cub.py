"""CUB-200-2011: birds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import CorruptFile
from .base import DataSplit
from .paths import read_table
from .source import FileSource, Listed

_CLASSES, _TRAINED = 200, 100


@dataclass(frozen=True)
class CUB200(FileSource):
    """CUB-200-2011: 200 species of birds; 1 to 100 train (5 864 images), 101 to 200 test (5 924); zero-shot.

    Parameters
    ----------
    root
        Folder with ``images.txt``, ``image_class_labels.txt`` and ``images/``, or one that holds it as
        ``CUB_200_2011/``, ``cub/`` or ``cub/CUB_200_2011/``.
    resize, crop
        Sides in pixels; see :class:`~holdfast.data.LazyImages`.

    Notes
    -----
    The division by class is that of metric learning; the data set's own ``train_test_split.txt`` is not
    looked at. Labels count from 0 in the order of the class numbers.

    References
    ----------
    Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
    """

    name: ClassVar[str] = "cub"
    folders: ClassVar[tuple[str, ...]] = ("CUB_200_2011", "cub/CUB_200_2011", "cub", ".")
    files: ClassVar[tuple[str, ...]] = ("images.txt", "image_class_labels.txt")
    origin: ClassVar[str] = (
        "CUB_200_2011.tgz unpacks to CUB_200_2011/ with images.txt, image_class_labels.txt and images/"
    )

    def load(self) -> DataSplit:
        """Read the lists; images are decoded when they are used.

        Raises
        ------
        DataError
            If ``root`` is None, or a list or an image is missing or lies outside.
        CorruptFile
            If a list is damaged or does not fit the other.
        """
        folder = self._folder()
        paths = read_table(folder / self.files[0], (int, str))
        labels = read_table(folder / self.files[1], (int, int))
        label_of = dict(labels)
        if len(label_of) != len(labels) or sorted(label_of) != sorted(number for number, _ in paths):
            raise CorruptFile(
                folder / self.files[1],
                None,
                f"need one label for each of the {len(paths)} images of {self.files[0]}",
            )
        wrong = [label for label in label_of.values() if not 1 <= label <= _CLASSES]
        if wrong:
            raise CorruptFile(folder / self.files[1], None, f"class {wrong[0]} is not in [1, {_CLASSES}]")
        rows = [Listed(path, label_of[number], label_of[number] > _TRAINED) for number, path in sorted(paths)]
        names: dict[int | str, str] = {row.key: row.path.partition("/")[0] for row in rows}
        return self._split(folder / "images", rows, names, "zero-shot")
