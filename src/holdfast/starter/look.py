"""A look at a folder of images: every file is opened once, nothing in it is changed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.decode import FORMATS, pixels
from ..data.folder import SUFFIXES, list_images
from ..data.lazy import processors
from ..data.paths import sizes_inside
from ..errors import CorruptFile, DataError
from .alike import GLANCE, MOST, groups, near_pairs, pixel_hash

Kind = Literal["colour", "grey", "transparent", "palette", "16-bit", "CMYK"]
_TURNED = 0x0112  # EXIF tag of the orientation


@dataclass(frozen=True, eq=False)
class Picture:
    """One file that can be read.

    Attributes
    ----------
    name
        Path below the folder, parts joined by ``/``.
    side
        ``"train/"`` or ``"test/"``, or ``""`` where the folder has no sides.
    label
        Its class, ``""`` for a picture that lies in no class folder.
    width, height
        In pixels, as stored.
    kind
        How it is stored.
    turned
        Whether its EXIF data asks for turning or mirroring.
    glance : ndarray
        (32, 32, 3) uint8, the whole picture squeezed.
    """

    name: str
    side: str
    label: str
    width: int
    height: int
    kind: Kind
    turned: bool
    glance: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Look:
    """What is in a folder of images.

    Attributes
    ----------
    root
        The folder.
    pictures
        All that can be read, by name.
    broken
        Name of every image file that cannot be read -> why.
    others
        Files that are no images, by suffix in small letters -> names.
    deeper
        Images in folders below the class folders, which nothing uses.
    loose
        Images beside the class folders, which nothing uses.
    empty
        Class folders without any image.
    copies
        Groups of names with the same pixels, the one to keep first: in train/, with the shortest name.
    alike
        Groups of names that look nearly the same, one for all copies.
    total
        Image files that there are; fewer are looked at when that was asked for.
    compared
        Whether near-duplicates were looked for; of very many pictures they are not.
    """

    root: Path
    pictures: tuple[Picture, ...]
    broken: dict[str, str]
    others: dict[str, list[str]]
    deeper: list[str]
    loose: list[str]
    empty: list[str]
    copies: list[list[str]]
    alike: list[list[str]]
    total: int
    compared: bool = True

    @property
    def sided(self) -> bool:
        """Whether the folder has the sides train/ and test/."""
        return any(p.side for p in self.pictures)

    @property
    def flat(self) -> bool:
        """Whether the images lie in no class folders."""
        return all(not p.label for p in self.pictures)

    def counts(self, side: str | None = None) -> dict[str, int]:
        """Return the number of usable images of every class, of one side or of all."""
        return dict(Counter(p.label for p in self.pictures if side is None or p.side == side))

    def labels(self) -> dict[str, str]:
        """Return the class of every usable picture by its name."""
        return {p.name: p.label for p in self.pictures}

    def contradictory(self) -> list[list[str]]:
        """Return the groups of same pixels that stand in several classes: label errors."""
        labels = self.labels()
        return [group for group in self.copies if len({labels[name] for name in group}) > 1]

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        counts = self.counts()
        return {
            "root": str(self.root),
            "files": self.total,
            "images": len(self.pictures),
            "classes": counts,
            "sides": sorted({p.side.rstrip("/") for p in self.pictures if p.side}),
            "kinds": dict(Counter(p.kind for p in self.pictures)),
            "turned": [p.name for p in self.pictures if p.turned],
            "widths": [p.width for p in self.pictures],
            "heights": [p.height for p in self.pictures],
            "broken": self.broken,
            "others": self.others,
            "deeper": self.deeper,
            "loose": self.loose,
            "empty": self.empty,
            "copies": self.copies,
            "contradictory": self.contradictory(),
            "alike": self.alike,
            "compared": self.compared,
            "single": [label for label, count in counts.items() if count == 1 and label],
        }


def look(
    root: str | Path, *, most: int | None = None, on_file: Callable[[int, int], None] | None = None
) -> Look:
    """Look at a folder: CLASS/image.jpg, or train/CLASS/image.jpg and test/CLASS/image.jpg, or images alone.

    Parameters
    ----------
    root
        The folder. Names that begin with a dot are passed over.
    most
        Look at about so many images, spread evenly over at most ``most / 8`` classes and their files.
    on_file
        Called with the number of image files looked at, and of all.

    Raises
    ------
    DataError
        If there is no such folder, no image in it, or a link leads out of it.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    listed = list_images(root, empty=True)
    named = [
        (f"{side}{label}/{name}", side, label)
        for side, classes in listed.items()
        for label, names in classes.items()
        for name in names
    ]
    empty = [
        f"{side}{label}" for side, classes in listed.items() for label, names in classes.items() if not names
    ]
    stray, others = _strays(root, {name for name, _, _ in named})
    loose = [name for name in stray if "/" not in name or name.rpartition("/")[0] in ("train", "test")]
    deeper = sorted(set(stray).difference(loose))
    if not named:  # no classes
        named, loose = [(name, "", "") for name in loose], []
    total = len(named)
    if most is not None and total > most:
        named = _thin(named, most)
    if not named:
        raise DataError(f"{root}: no image in it or in the folders in it; known are {', '.join(SUFFIXES)}")
    sizes_inside(root, [name for name, _, _ in named])
    pictures, broken = _read(root, named, on_file)
    copies, alike = _compare(root, pictures)
    return Look(
        root=root, pictures=tuple(pictures), broken=broken, others=others, deeper=deeper, loose=loose,
        empty=empty, copies=copies, alike=alike, total=total,
        compared=len(pictures) <= MOST,
    )  # fmt: skip


def _thin(named: list[tuple[str, str, str]], most: int) -> list[tuple[str, str, str]]:
    """Return about ``most`` files: of every few classes some, of every few files one."""
    classes: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for item in named:
        classes.setdefault(item[1:], []).append(item)
    labels = _spread(sorted({label for _, label in classes}), max(2, most // 8))
    chosen = {key: files for key, files in classes.items() if key[1] in set(labels)}
    each = max(4, most // len(chosen))
    return [item for files in chosen.values() for item in _spread(files, each)]


def _spread(items: list[Any], most: int) -> list[Any]:
    """Return at most so many items, at even distances."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _strays(root: Path, used: set[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the images that no class holds, and the files that are no images."""
    images: list[str] = []
    others: dict[str, list[str]] = {}
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "__MACOSX")
        for file in sorted(files):
            name = (Path(folder) / file).relative_to(root).as_posix()
            if file.startswith(".") or name in used:
                continue
            if file.lower().endswith(SUFFIXES):
                images.append(name)
            else:
                others.setdefault(Path(file).suffix.lower() or "no suffix", []).append(name)
    return images, others


def _read(
    root: Path, named: Iterable[tuple[str, str, str]], on_file: Callable[[int, int], None] | None
) -> tuple[list[Picture], dict[str, str]]:
    def read(item: tuple[str, str, str]) -> Picture | str:
        name, side, label = item
        try:
            glance = pixels(root / name, GLANCE, (0, 0, GLANCE, GLANCE), False, upright=True, draft=True)
            with Image.open(root / name, formats=FORMATS) as image:
                width, height = image.size
                return Picture(name, side, label, width, height, _kind(image), _is_turned(image), glance)
        except CorruptFile as error:
            return str(error).partition(": cannot be read: ")[2]

    named, pictures, broken = list(named), [], {}
    with ThreadPoolExecutor(min(16, processors()), "holdfast-look") as pool:
        for nth, ((name, _, _), found) in enumerate(zip(named, pool.map(read, named), strict=True)):
            if isinstance(found, str):
                broken[name] = found
            else:
                pictures.append(found)
            if on_file is not None:
                on_file(nth + 1, len(named))
    return pictures, broken


def _kind(image: Image.Image) -> Kind:
    deep = image.mode.startswith("I") or any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if deep:
        return "16-bit"
    if image.has_transparency_data:
        return "transparent"
    if image.mode == "P":
        return "palette"
    if image.mode == "CMYK":
        return "CMYK"
    return "grey" if image.mode in ("1", "L", "LA") else "colour"


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(_TURNED, 1) in range(2, 9)


def _first(pictures: list[Picture]) -> Callable[[int], tuple[bool, int, int]]:
    return lambda i: (pictures[i].side == "test/", len(pictures[i].name), i)


def _compare(root: Path, pictures: list[Picture]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the groups of the same pixels, and the other groups of pictures that are alike."""
    if not pictures:
        return [], []
    near = near_pairs(np.stack([p.glance for p in pictures]))
    hashes: dict[int, str] = {}
    for i in sorted({i for pair in near for i in pair}):
        hashes[i] = pixel_hash(root / pictures[i].name)
    same = [(i, j) for i, j in near if hashes[i] == hashes[j]]
    copies = [sorted(group, key=_first(pictures)) for group in groups(len(pictures), same)]
    stands_for = {i: group[0] for group in copies for i in group}
    firsts = [(stands_for.get(i, i), stands_for.get(j, j)) for i, j in near]
    alike = groups(len(pictures), [(i, j) for i, j in firsts if i != j])

    def names(found: list[list[int]]) -> list[list[str]]:
        return [[pictures[i].name for i in group] for group in found]

    return names(copies), names(alike)
