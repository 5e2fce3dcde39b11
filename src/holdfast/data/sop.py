"""Stanford Online Products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import DataSplit
from .paths import read_table
from .source import FileSource, Listed


@dataclass(frozen=True)
class SOP(FileSource):
    """Stanford Online Products: 11 318 products train (59 551 images), 11 316 test (60 502); zero-shot.

    Parameters
    ----------
    root
        Folder with ``Ebay_train.txt``, ``Ebay_test.txt`` and the twelve ``*_final/`` folders, or one that
        holds it as ``Stanford_Online_Products/``, ``sop/`` or ``sop/Stanford_Online_Products/``.
    resize, crop
        Sides in pixels; see :class:`~holdfast.data.LazyImages`.

    Notes
    -----
    Labels count from 0 in the order of the product numbers; a product is named by its folder and number.

    References
    ----------
    Song, Xiang, Jegelka and Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding",
    CVPR 2016.
    """

    name: ClassVar[str] = "sop"
    folders: ClassVar[tuple[str, ...]] = (
        "Stanford_Online_Products",
        "sop/Stanford_Online_Products",
        "sop",
        ".",
    )
    files: ClassVar[tuple[str, ...]] = ("Ebay_train.txt", "Ebay_test.txt")
    origin: ClassVar[str] = (
        "Stanford_Online_Products.zip unpacks to Stanford_Online_Products/ with Ebay_train.txt, "
        "Ebay_test.txt and folders such as bicycle_final/"
    )

    def load(self) -> DataSplit:
        """Read the lists; images are decoded when they are used.

        Raises
        ------
        DataError
            If ``root`` is None, a list or an image is missing or lies outside, or a product stands in both
            lists.
        CorruptFile
            If a list is damaged.
        """
        folder = self._folder()
        columns = (int, int, int, str)  # image, product, kind of product, path
        rows = [
            Listed(path, product, file == self.files[1])
            for file in self.files
            for _, product, _, path in read_table(folder / file, columns, skip=1)
        ]
        names: dict[int | str, str] = {row.key: row.path.rpartition("_")[0] for row in reversed(rows)}
        return self._split(folder, rows, names, "zero-shot")
