"""What all sources of image files share: where they look, what they miss, and how rows become a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from .base import DataSplit, ImageSet, Protocols
from .lazy import LazyImages, check_sides


class Listed(NamedTuple):
    """One image of a list: its path, the class as the list calls it, and its side."""

    path: str
    key: int | str
    test: bool


@dataclass(frozen=True)
class FileSource:
    """Image files under a root; a data set fills in the names and ``load``."""

    root: str | None = None
    _: KW_ONLY
    resize: int = 256
    crop: int = 224

    name: ClassVar[str]
    folders: ClassVar[tuple[str, ...]] = (".",)  # where to look below the root
    files: ClassVar[tuple[str, ...]] = ()  # what must be there
    origin: ClassVar[str] = ""  # where the official archive puts them

    def __post_init__(self) -> None:
        check_sides(self.resize, self.crop)

    @classmethod
    def locate(cls, root: str | Path) -> Path | None:
        """Return the first folder that holds the lists of the data set, or None; nothing is opened."""
        found = [f for f in cls._places(root) if all((f / file).is_file() for file in cls.files)]
        return found[0] if found else None

    @classmethod
    def _places(cls, root: str | Path) -> list[Path]:
        return [Path(root) / folder for folder in cls.folders]

    def _root(self) -> Path:
        if self.root is None:
            raise DataError(
                f"{self.name} is read from files: name their folder with --data-dir (root= in Python)"
            )
        return Path(self.root)

    def _folder(self) -> Path:
        """Return the folder of the lists, or tell what is missing."""
        root = self._root()
        folder = self.locate(root)
        if folder is not None:
            return folder
        places = self._places(root)
        most = max(places, key=lambda place: sum((place / file).is_file() for file in self.files))
        missing = ", ".join(file for file in self.files if not (most / file).is_file())
        looked = ", ".join(str(place) for place in places)
        raise DataError(f"{self.name}: missing {missing}; looked in {looked}; {self.origin}")

    def _split(
        self,
        base: Path,
        rows: Sequence[Listed],
        names: Mapping[int | str, str],
        protocol: Protocols,
        images: Callable[[Sequence[str]], LazyImages | Tensor] | None = None,
    ) -> DataSplit:
        """Number the classes in the order of their keys and divide the rows.

        ``images`` makes the images of some paths; by default they stay files.
        """
        images = images or partial(LazyImages, base, resize=self.resize, crop=self.crop, origin=self.origin)
        number = {key: i for i, key in enumerate(sorted(names))}
        class_names = tuple(names[key] for key in number)

        def side(word: str) -> ImageSet:
            part = [row for row in rows if row.test == (word == "test")]
            try:
                x = images([row.path for row in part])
            except DataError as error:
                raise DataError(f"{self.name}: {error}") from error
            y = torch.tensor([number[row.key] for row in part], dtype=torch.int64)
            return ImageSet(x, y, f"{self.name} {word}", class_names)

        return DataSplit(side("train"), side("test"), self.name, protocol)
