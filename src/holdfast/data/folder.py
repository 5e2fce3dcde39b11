"""A folder of images, one subfolder for each class."""

from __future__ import annotations

import os
import warnings
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch

from ..errors import CorruptFile, DataError, HoldfastWarning, InvalidArgument
from .base import DataSplit, ImageSet, Protocols
from .lazy import LazyImages
from .memory import Pool, read_once
from .paths import sizes_inside
from .source import FileSource, Listed

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_GLANCE = 8  # pixels: enough to see whether a file can be decoded
_TOLD = 5  # names in a warning


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
    broken
        What a file that cannot be decoded does: ``"refuse"`` stops with its name, ``"skip"`` reads every file
        once, passes over the broken ones and warns with their number and names.
    leave_out
        Paths below ``root`` that are not used: pictures of doubtful class, say.
    min_images
        Classes with fewer images on their side are not used; 1 takes all.
    upright
        Turn images as their EXIF orientation says, as cameras write it; published evaluations do not.
    memory
        Decode every image once, at ``resize`` and cut to the middle ``crop``, and hold all as one tensor: for
        small images, which would cost more to decode at every step than to train on. Training images are then
        changed by ``Run.augment``, not by random crops.

    Notes
    -----
    Every image becomes RGB: grey as three equal channels, transparent parts over white; see
    :func:`holdfast.data.decode.decode`.

    In a closed split of ``train`` and ``test``, a class with too few images to train is not tested either.

    Names that begin with a dot are passed over, and so are files with another suffix than jpg, jpeg, png,
    webp, bmp and gif. ``train`` and ``test`` are sides if both hold folders, and classes otherwise. In a
    closed split by ``test_share``, a class of a single image trains. Labels count from 0 in the order of
    class names.
    """

    _: KW_ONLY
    protocol: Protocols = "zero-shot"
    test_share: float = 0.5
    broken: Literal["refuse", "skip"] = "refuse"
    leave_out: tuple[str, ...] = ()
    min_images: int = 1
    upright: bool = False
    memory: bool = False
    name: ClassVar[str] = "folder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in ("closed", "zero-shot"):
            raise InvalidArgument("protocol", "'closed' or 'zero-shot'", self.protocol)
        if not 0 < self.test_share < 1:
            raise InvalidArgument("test_share", "a number in (0, 1)", self.test_share)
        if self.broken not in ("refuse", "skip"):
            raise InvalidArgument("broken", "'refuse' or 'skip'", self.broken)
        if type(self.leave_out) is not tuple:
            raise InvalidArgument("leave_out", "a tuple of paths below root", self.leave_out)
        if self.min_images < 1:
            raise InvalidArgument("min_images", "an integer >= 1", self.min_images)

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
        CorruptFile
            If images are held in memory and one cannot be decoded, unless those are passed over.
        """
        root = self._root()
        if not _classes(root):
            there = "there are no folders in it" if root.is_dir() else "there is no such folder"
            raise DataError(
                f"folder: {root}: {there}; need CLASS/image.jpg, or train/CLASS/image.jpg and "
                "test/CLASS/image.jpg"
            )
        files = list_images(root, empty=self.min_images > 1)
        every = [f"{side}{label}/{n}" for side in files for label in files[side] for n in files[side][label]]
        left_out = set(self.leave_out)
        every = [name for name in every if name not in left_out]
        pool = self._pool(root, every)
        usable = set(every).difference(pool.damaged if pool else ())
        rows = self._rows(files, usable)
        keys = {row.key: str(row.key) for row in rows}
        if pool is not None and self.memory:
            return self._split(root, rows, keys, self.protocol, pool.images)
        images = partial(LazyImages, root, resize=self.resize, crop=self.crop, upright=self.upright)
        return self._split(root, rows, keys, self.protocol, images)

    def _pool(self, root: Path, names: list[str]) -> Pool | None:
        """Read all files if that is wanted, and tell or refuse what is broken."""
        if not self.memory and self.broken == "refuse":
            return None
        sizes_inside(root, names)
        sides = (self.resize, self.crop) if self.memory else (_GLANCE, _GLANCE)
        pool = read_once(root, names, resize=sides[0], crop=sides[1], upright=self.upright and self.memory)
        if pool.damaged:
            first = next(iter(pool.damaged))
            if self.broken == "refuse":
                reason = f"{pool.damaged[first]}; mend or remove it, or pass over such files: broken='skip'"
                raise CorruptFile(root / first, None, reason)
            told = "; ".join(f"{name} ({reason})" for name, reason in list(pool.damaged.items())[:_TOLD])
            more = f"; and {len(pool.damaged) - _TOLD} more" if len(pool.damaged) > _TOLD else ""
            count = f"{len(pool.damaged)} of {len(names)} files cannot be read and are left out"
            warnings.warn(f"folder: {root}: {count}: {told}{more}", HoldfastWarning, stacklevel=3)
        return pool

    def _rows(self, files: dict[str, dict[str, list[str]]], usable: set[str]) -> list[Listed]:
        """Divide what may be used of the classes that have enough of it."""
        kept: dict[str, dict[str, list[str]]] = {side: {} for side in files}
        for side, classes in files.items():
            for label, names in classes.items():
                chosen = [name for name in names if f"{side}{label}/{name}" in usable]
                if len(chosen) >= self.min_images:
                    kept[side][label] = chosen
        if "" in kept:
            return self._divide(kept[""])
        if self.protocol == "closed" and self.min_images > 1:  # a class too small to train on
            kept["test/"] = {k: names for k, names in kept["test/"].items() if k in kept["train/"]}
        return [
            Listed(f"{side}{label}/{name}", label, side == "test/")
            for side, classes in kept.items()
            for label, names in classes.items()
            for name in names
        ]

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


def list_images(root: str | Path, *, empty: bool = False) -> dict[str, dict[str, list[str]]]:
    """Return the names of a folder's images by side and class: ``{"": {"cat": ["1.jpg"]}}``.

    Parameters
    ----------
    root
        See :class:`ImageFolder`. The sides are ``"train/"`` and ``"test/"``, or ``""`` alone.
    empty
        Whether a class may hold no image.

    Raises
    ------
    DataError
        If a folder cannot be listed, or a class holds no image and ``empty`` is off.
    """
    root = Path(root)
    sides = ("train/", "test/") if _has_sides(root) else ("",)
    found = _images if empty else _found
    return {side: {c.name: found(c) for c in _classes(root / side)} for side in sides}


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
