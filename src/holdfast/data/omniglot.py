"""Omniglot: handwritten characters, split by alphabet; read from the published zip archives."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import CorruptFile, DataError, InvalidArgument
from .base import DataSplit, ImageSet
from .decode import BOMBS, BROKEN
from .paths import most_unpacked, plain_file, shown

_MEMBER_LIMIT = 1 << 20  # bytes of one drawing; the real ones have about 400
_SIDE_LIMIT = 2048  # pixels
_PIXELS = 1 << 29  # of all drawings that are read; those of the largest published archive have 2.1e8
_DRAWINGS = 100_000
_ARCHIVES = ("images_background_small1.zip", "images_background_small2.zip")
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
_DIRECTORY_ERRORS = (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error)


@dataclass(frozen=True)
class Omniglot:
    """Characters of five alphabets to train on, of three others to test on; 20 drawings of each; zero-shot.

    Parameters
    ----------
    root
        Folder with the two "small background" archives, or one that holds them in ``omniglot/``. They are
        read in memory and never extracted.
    size
        Images are resized to ``size`` x ``size`` by area averaging; the originals have 105.
    train_alphabets
        Alphabets of the first archive; the default takes all five (136 characters).
    test_alphabets
        Alphabets of the second archive; the default takes the three that are not in the first (106
        characters). Its Greek and Latin are also in the first: an alphabet named on both
        sides is refused.

    Notes
    -----
    Strokes are 1 and paper is 0, the reverse of the files. Classes are named "alphabet/character" and
    numbered in the order of their names, training classes first; drawings are ordered by file name.
    Pixels are multiples of 1/255.

    References
    ----------
    Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program
    induction", Science 350 (2015).
    """

    root: str | None = None
    _: KW_ONLY
    size: int = 28
    train_alphabets: tuple[str, ...] = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
    test_alphabets: tuple[str, ...] = ("Japanese_(katakana)", "Sanskrit", "Tagalog")
    name: ClassVar[str] = "omniglot"

    def __post_init__(self) -> None:
        if not 4 <= self.size <= _SIDE_LIMIT:
            raise InvalidArgument("size", f"an integer in [4, {_SIDE_LIMIT}]", self.size)
        for field in ("train_alphabets", "test_alphabets"):
            if isinstance(getattr(self, field), str) or not getattr(self, field):
                raise InvalidArgument(field, "a non-empty tuple of alphabet names", getattr(self, field))
        both = sorted(set(self.train_alphabets) & set(self.test_alphabets))
        if both:
            raise InvalidArgument("test_alphabets", "alphabets that are not trained on", both)

    @classmethod
    def locate(cls, root: str | Path) -> Path | None:
        """Return the first folder that holds both archives, or None; nothing is opened."""
        found = [f for f in _places(root) if all((f / archive).is_file() for archive in _ARCHIVES)]
        return found[0] if found else None

    def load(self) -> DataSplit:
        """Read both archives.

        Raises
        ------
        DataError
            If ``root`` is None, an archive is missing, or it lacks an alphabet.
        CorruptFile
            If an archive or a drawing is damaged, too large, or has an unsafe name.
        """
        if self.root is None:
            raise DataError(
                "omniglot is read from files: name their folder with --data-dir (root= in Python)"
            )
        folder = self.locate(self.root)
        if folder is None:
            places = _places(self.root)
            most = max(places, key=lambda place: sum((place / file).is_file() for file in _ARCHIVES))
            missing = ", ".join(file for file in _ARCHIVES if not (most / file).is_file())
            raise DataError(f"omniglot: missing {missing}; looked in " + ", ".join(str(p) for p in places))
        x, rows, train_names = _read(folder / _ARCHIVES[0], self.train_alphabets, self.size)
        x_test, rows_test, test_names = _read(folder / _ARCHIVES[1], self.test_alphabets, self.size)
        names = train_names + test_names
        train = ImageSet(x, rows, "omniglot train", names)
        test = ImageSet(x_test, rows_test + len(train_names), "omniglot test", names)
        return DataSplit(train, test, self.name, "zero-shot")


def _places(root: str | Path) -> list[Path]:
    return [Path(root) / "omniglot", Path(root)]


def _read(path: Path, alphabets: Sequence[str], size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return images (n, 1, size, size), labels (n,) from 0, and the class names."""
    size_of_file = plain_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _weigh(archive, path, size_of_file)
            drawings = sorted(_drawings(archive, path), key=lambda pair: pair[0])
            present = {parts[0] for parts, _ in drawings}
            absent = sorted(set(alphabets) - present)
            if absent:
                raise DataError(
                    f"{path}: there is no alphabet {absent}; present are {shown(sorted(present), 600)}"
                )
            drawings = [pair for pair in drawings if pair[0][0] in alphabets]
            left = _PIXELS
            for place, (_, info) in enumerate(drawings):
                image, seen = _decode(archive, path, info, size)
                left -= seen
                if left < 0:
                    raise CorruptFile(path, None, f"its drawings have more than {_PIXELS} pixels in all")
                if not place:
                    x = np.empty((len(drawings), size, size), dtype=np.uint8)
                x[place] = image
    except DataError:
        raise
    except _DIRECTORY_ERRORS as error:
        raise CorruptFile(path, None, f"damaged zip archive: {error}") from error
    classes = [f"{alphabet}/{character}" for (alphabet, character, _), _ in drawings]
    names = tuple(dict.fromkeys(classes))  # already in order
    number = {name: i for i, name in enumerate(names)}
    y = torch.tensor([number[name] for name in classes])
    return torch.from_numpy(x).float().div_(255)[:, None], y, names


def _weigh(archive: zipfile.ZipFile, path: Path, size: int) -> None:
    """Refuse an archive that unpacks to far more than it is, or that holds a name twice."""
    members = archive.infolist()
    if len(members) > _DRAWINGS:
        raise CorruptFile(path, None, f"{len(members)} members, limit is {_DRAWINGS}")
    total, most = sum(info.file_size for info in members), most_unpacked(size)
    if total > most:
        raise CorruptFile(path, None, f"unpacks to {total} bytes, limit is {most}")
    names = [info.filename for info in members]
    if len(set(names)) < len(names):
        raise CorruptFile(path, None, "a member comes twice")


def _drawings(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[tuple[str, str, str], zipfile.ZipInfo]]:
    """Yield (alphabet, character, file) and the member of every drawing."""
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        unsafe = info.filename.startswith("/") or ".." in parts or any(c in info.filename for c in "\\:\0")
        if unsafe:
            raise CorruptFile(f"{path}!{shown(info.filename)}", None, "unsafe member name")
        if len(parts) == 4 and parts[0] != "__MACOSX" and parts[3].endswith(".png"):
            yield (parts[1], parts[2], parts[3]), info


def _decode(
    archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo, size: int
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], int]:
    """Return one drawing as (size, size) bytes, strokes 255, and how many pixels it has in the file."""
    member = f"{path}!{shown(info.filename)}"
    if info.file_size > _MEMBER_LIMIT:
        raise CorruptFile(member, None, f"unpacks to {info.file_size} bytes, limit is {_MEMBER_LIMIT}")
    try:
        with archive.open(info) as handle:
            data = handle.read(_MEMBER_LIMIT + 1)
    except _ZIP_ERRORS as error:
        raise CorruptFile(member, info.header_offset, f"damaged zip member: {error}") from error
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if max(image.size) > _SIDE_LIMIT:
                raise CorruptFile(
                    member, None, f"image of {image.size} pixels, limit is {_SIDE_LIMIT} a side"
                )
            grey = image.convert("L")
            seen = image.size[0] * image.size[1]
    except CorruptFile:
        raise
    except (*BROKEN, *BOMBS) as error:
        raise CorruptFile(member, None, f"damaged PNG: {error}") from error
    strokes = Image.fromarray(255 - np.asarray(grey, dtype=np.uint8))
    return np.asarray(strokes.resize((size, size), Image.Resampling.BOX), dtype=np.uint8), seen
