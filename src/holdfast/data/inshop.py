"""DeepFashion In-Shop Clothes Retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import CorruptFile
from .base import DataSplit
from .paths import read_table
from .source import FileSource, Listed

_SIDES = ("train", "query", "gallery")


@dataclass(frozen=True)
class InShop(FileSource):
    """In-Shop Clothes: 3 997 items train (25 882 images), 3 985 test (26 830 images); zero-shot.

    Parameters
    ----------
    root
        Folder with ``Eval/list_eval_partition.txt`` and ``img/`` (directly or in ``Img/``), or one that holds
        it as ``In-shop Clothes Retrieval Benchmark/``, ``in-shop/`` or ``inshop/``.
    resize, crop
        Sides in pixels; see :class:`~holdfast.data.LazyImages`.

    Notes
    -----
    The test set is query (14 218) and gallery (12 612) images joined: every image is a query against all
    the others. The published protocol searches queries in the gallery images alone, so numbers differ from
    it. Labels count from 0 in the order of the items' names.

    References
    ----------
    Liu, Luo, Qiu, Wang and Tang, "DeepFashion", CVPR 2016.
    """

    name: ClassVar[str] = "in-shop"
    folders: ClassVar[tuple[str, ...]] = ("In-shop Clothes Retrieval Benchmark", "in-shop", "inshop", ".")
    files: ClassVar[tuple[str, ...]] = ("Eval/list_eval_partition.txt",)
    origin: ClassVar[str] = (
        "the In-shop Clothes Retrieval Benchmark has Eval/list_eval_partition.txt, and its Img/img.zip "
        "unpacks to img/, which may lie in Img/ or beside Eval/"
    )

    def load(self) -> DataSplit:
        """Read the list; images are decoded when they are used.

        Raises
        ------
        DataError
            If ``root`` is None, the list or an image is missing or lies outside, or an item is trained on and
            tested.
        CorruptFile
            If the list is damaged.
        """
        folder = self._folder()
        path = folder / self.files[0]
        rows = []
        for image, item, side in read_table(path, (str, str, str), skip=2):
            if side not in _SIDES:
                raise CorruptFile(path, None, f"{image}: need one of {', '.join(_SIDES)}, got {side!r}")
            rows.append(Listed(image, item, side != "train"))
        base = folder / "Img" if (folder / "Img" / "img").is_dir() else folder
        return self._split(base, rows, {row.key: str(row.key) for row in rows}, "zero-shot")
