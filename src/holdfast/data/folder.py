"""A folder of images, one subfolder for each class."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ..errors import DataError, InvalidArgument
from .base import DataSplit, ImageSet, Protocols
from .lazy import LazyImages
from .source import FileSource, Listed

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class ImageFolder(FileSource):
    """Your own images: one folder for each class, alone or within train/ and test/; zero-shot or closed.

    Parameters
    ----------
    root
        Folder with ``CLASS/image.jpg``, or with ``train/CLASS/image.jpg`` and ``test/CLASS/image.jpg``.
    protocol
        ``"zero-shot"``: no class is trained on and tested. ``"closed"``: every tested class is trained on.
    test_share
        Without ``train/`` and ``test/``: the share of classes (zero-shot) or of the images of every class
        (closed) that tests, in (0, 1). The last in the order of names test; nothing is random.
    resize, crop
        Sides in pixels; see :class:`~holdfast.data.LazyImages`.

    Notes
    -----
    Names that begin with a dot are passed over, and so are files with another suffix than jpg, jpeg, png,
    webp, bmp and gif. ``train`` and ``test`` are sides if both hold folders, and classes otherwise. In a
    closed split by ``test_share``, a class of a single image trains. Labels count from 0 in the order of
    class names.
    """

    _: KW_ONLY
    protocol: Protocols = "zero-shot"
    test_share: float = 0.5
    name: ClassVar[str] = "folder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in ("closed", "zero-shot"):
            raise InvalidArgument("protocol", "'closed' or 'zero-shot'", self.protocol)
        if not 0 < self.test_share < 1:
            raise InvalidArgument("test_share", "a number in (0, 1)", self.test_share)

    @classmethod
    def locate(cls, root: str | Path) -> Path | None:
        """Return ``root`` if at least two folders in it, or in its train/ and test/, hold images."""
        root = Path(root)
        try:
            sides = [root / "train", root / "test"] if _has_sides(root) else [root]
            full = all(sum(bool(_images(f)) for f in _classes(side)) >= 2 for side in sides)
        except DataError:
            return None
        return root if full else None

    def load(self) -> DataSplit:
        """List the files; images are decoded when they are used.

        Raises
        ------
        DataError
            If ``root`` is None or holds no classes, a class folder holds no image, a link leads out of
            ``root``, or the classes do not fit the protocol.
        """
        root = self._root()
        if not _classes(root):
            there = "there are no folders in it" if root.is_dir() else "there is no such folder"
            raise DataError(
                f"folder: {root}: {there}; need CLASS/image.jpg, or train/CLASS/image.jpg and "
                "test/CLASS/image.jpg"
            )
        if _has_sides(root):
            rows = [
                Listed(f"{side}/{c.name}/{image}", c.name, side == "test")
                for side in ("train", "test")
                for c in _classes(root / side)
                for image in _found(c)
            ]
        else:
            rows = self._divide({c.name: _found(c) for c in _classes(root)})
        return self._split(root, rows, {row.key: str(row.key) for row in rows}, self.protocol)

    def _divide(self, images: dict[str, list[str]]) -> list[Listed]:
        rows = []
        tested = min(max(round(self.test_share * len(images)), 1), len(images) - 1)
        for place, (name, files) in enumerate(images.items()):
            last = min(round(self.test_share * len(files)), len(files) - 1)
            for nth, file in enumerate(files):
                closed = nth >= len(files) - last
                test = closed if self.protocol == "closed" else place >= len(images) - tested
                rows.append(Listed(f"{name}/{file}", name, test))
        return rows


def images_in(root: str | Path, size: int = 224) -> ImageSet:
    """Return every image of a folder, undecoded, to be looked at and not split.

    Parameters
    ----------
    root
        With folders in it, each is a class; else its own images, which then share the label 0 and have no
        class names.
    size
        Side in pixels: images are resized to 8/7 of it and cut to their centre (256 and 224, say).

    Raises
    ------
    DataError
        If there is no image, or a folder without one.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"images: {root}: there is no such folder")
    classes = _classes(root)
    names = [f"{c.name}/{image}" for c in classes for image in _found(c)] if classes else _images(root)
    if not names:
        raise DataError(f"images: {root}: no image; need {', '.join(SUFFIXES)} files, or class folders")
    y = [i for i, c in enumerate(classes) for _ in _found(c)] if classes else [0] * len(names)
    x = LazyImages(root, names, resize=max(size, round(size * 8 / 7)), crop=size)
    return ImageSet(x, torch.tensor(y), root.name, tuple(c.name for c in classes), min_classes=1)


def _has_sides(root: Path) -> bool:
    return all(_classes(root / side) for side in ("train", "test"))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"folder: {folder}: cannot be listed: {error.strerror}") from error


def _classes(folder: Path) -> list[Path]:
    """Return the folders in a folder by name; none if it is no folder."""
    if not folder.is_dir():
        return []
    return [Path(e.path) for e in _entries(folder) if e.is_dir() and e.name != "__MACOSX"]


def _images(folder: Path) -> list[str]:
    return [e.name for e in _entries(folder) if e.name.lower().endswith(SUFFIXES) and not e.is_dir()]


def _found(folder: Path) -> list[str]:
    images = _images(folder)
    if not images:
        raise DataError(
            f"folder: {folder}: no image in this class; need {', '.join(SUFFIXES)} files directly in it"
        )
    return images
