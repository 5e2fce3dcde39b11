"""Image files that are read once: pictures small enough for memory, and files that turn out damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CorruptFile
from .decode import pixels
from .lazy import processors

Stamp = tuple[str, int, int]  # name, bytes, time of the last change


@dataclass(frozen=True, eq=False)
class Pool:
    """Pictures that were read.

    Attributes
    ----------
    pixels : ndarray
        (k, side, side, 3) uint8 of the files that could be read.
    rows : dict
        Name of a file -> its row of ``pixels``.
    damaged : dict
        Name of every other file -> what is wrong with it.
    """

    pixels: NDArray[np.uint8]
    rows: dict[str, int]
    damaged: dict[str, str]

    def images(self, names: Sequence[str]) -> Tensor:
        """Return images (n, 3, side, side) float32 in [0, 1]."""
        chosen = torch.from_numpy(self.pixels[[self.rows[name] for name in names]])
        return chosen.permute(0, 3, 1, 2).float().contiguous() / 255


def read_once(
    base: str | Path,
    names: Sequence[str],
    *,
    resize: int,
    crop: int,
    upright: bool = False,
    on_file: Callable[[int, int], None] | None = None,
) -> Pool:
    """Read files as :class:`~holdfast.data.LazyImages` shows them, large JPEG files as drafts.

    The last set is kept, so a second call for the same files, unchanged, costs nothing.

    Parameters
    ----------
    base, names
        Folder, and paths relative to it.
    resize, crop, upright
        See :class:`~holdfast.data.LazyImages`.
    on_file
        Called with the number of files that were read, and of all.
    """
    top = Path(base).resolve()
    stats = [(top / name).stat() for name in names]
    stamps = tuple((n, s.st_size, s.st_mtime_ns) for n, s in zip(names, stats, strict=True))
    if on_file is not None:
        return _read(top, stamps, resize, crop, upright, on_file)
    return _kept(top, stamps, resize, crop, upright)


def _read(
    base: Path,
    stamps: Sequence[Stamp],
    resize: int,
    crop: int,
    upright: bool,
    on_file: Callable[[int, int], None] | None = None,
) -> Pool:
    corner = (resize - crop) // 2
    box = (corner, corner, corner + crop, corner + crop)

    def read(name: str) -> NDArray[np.uint8] | str:
        try:
            return pixels(base / name, resize, box, False, upright=upright, draft=True)
        except CorruptFile as error:
            return str(error).partition(": cannot be read: ")[2]

    names = [stamp[0] for stamp in stamps]
    found: list[NDArray[np.uint8]] = []
    rows, damaged = dict[str, int](), dict[str, str]()
    with ThreadPoolExecutor(min(16, processors()), "holdfast-decode") as pool:
        for nth, (name, outcome) in enumerate(zip(names, pool.map(read, names), strict=True)):
            if isinstance(outcome, str):
                damaged[name] = outcome
            else:
                rows[name] = len(found)
                found.append(outcome)
            if on_file is not None:
                on_file(nth + 1, len(names))
    empty = np.empty((0, crop, crop, 3), dtype=np.uint8)
    return Pool(np.stack(found) if found else empty, rows, damaged)


@lru_cache(maxsize=1)
def _kept(base: Path, stamps: tuple[Stamp, ...], resize: int, crop: int, upright: bool) -> Pool:
    return _read(base, stamps, resize, crop, upright)
