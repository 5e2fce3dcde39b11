"""Images that stay files until they are asked for: what does not fit in memory at 224 pixels."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import stream
from .decode import pixels
from .paths import sizes_inside

_MANY = 16  # threads; more than that wait for each other


class Window(NamedTuple):
    """Which part of a resized image is seen, and whether it is mirrored."""

    left: int
    top: int
    flip: bool = False


def check_sides(resize: int, crop: int) -> None:
    """Raise InvalidArgument unless 1 <= crop <= resize <= 4096."""
    if type(resize) is not int or not 1 <= resize <= 4096:
        raise InvalidArgument("resize", "an integer in [1, 4096]", resize)
    if type(crop) is not int or not 1 <= crop <= resize:
        raise InvalidArgument("crop", f"an integer in [1, {resize}], the resized side", crop)


class LazyImages:
    """Image files that are indexed like a tensor (n, 3, crop, crop) and decoded at each indexing.

    ``x[rows]`` takes what a tensor's first dimension takes (a slice, a list, an int64 or bool tensor of any
    shape) and returns float32 in [0, 1]: every file resized to ``resize`` x ``resize`` without regard to its
    aspect ratio, and cut to its centre, as published for 224-pixel networks. :meth:`augmented` is the form
    for training. Nothing is kept between calls.

    Parameters
    ----------
    base
        Folder of the files.
    names
        (n,) paths relative to it.
    resize, crop
        Sides in pixels, 1 <= crop <= resize.
    workers
        Threads that decode; by default one for each processor, 16 at most. Results do not depend on it.
    origin
        What a message about a missing file adds.
    upright
        Turn images as their EXIF orientation says.

    Attributes
    ----------
    sizes : tuple of int
        Bytes of every file when the set was made.
    device : torch.device
        Where decoded images are put; see :meth:`to`.

    Raises
    ------
    DataError
        If a file is missing or lies outside ``base``. A file that cannot be decoded shows up when it is
        indexed, as a :class:`~holdfast.errors.CorruptFile` that names it.

    Notes
    -----
    For formats, transparency, EXIF orientation and the limit of pixels see
    :func:`holdfast.data.decode.decode`.
    """

    ndim = 4
    dtype = torch.float32

    def __init__(
        self,
        base: str | Path,
        names: Sequence[str],
        *,
        resize: int = 256,
        crop: int = 224,
        workers: int | None = None,
        origin: str = "",
        upright: bool = False,
    ) -> None:
        check_sides(resize, crop)
        if workers is not None and workers < 1:
            raise InvalidArgument("workers", "an integer >= 1, or None", workers)
        self.base, self.names = Path(base), tuple(names)
        self.resize, self.crop, self.upright = resize, crop, upright
        self.workers = workers or min(_MANY, processors())
        self.device = torch.device("cpu")
        self.sizes = sizes_inside(base, self.names, origin)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"LazyImages({len(self)} files of {self.base}, {self.resize} -> {self.crop} pixels)"

    @property
    def shape(self) -> torch.Size:
        """(n, 3, crop, crop)."""
        return torch.Size((len(self), 3, self.crop, self.crop))

    def to(self, device: torch.device | str) -> LazyImages:
        """Return the same files, to be put on another device once they are decoded."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def subset(self, rows: Tensor | Sequence[int]) -> LazyImages:
        """Return some of the files, still undecoded; rows (k,)."""
        chosen = self._numbers(rows).tolist()
        part = copy.copy(self)
        part.names = tuple(self.names[i] for i in chosen)
        part.sizes = tuple(self.sizes[i] for i in chosen)
        return part

    def __getitem__(self, rows: Any, /) -> Tensor:
        numbers = self._numbers(rows)
        middle = (self.resize - self.crop) // 2
        flat = numbers.flatten().tolist()
        decoded = self.from_bytes(self._decode(flat, [Window(middle, middle)] * len(flat)))
        return decoded.reshape(*numbers.shape, *decoded.shape[1:])

    def augmented(self, rows: Tensor | Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Return images cut at a random place and mirrored with probability one half; (k,) -> (k, 3, h, w).

        One number is drawn from ``generator``. Together with an image's own row it names the image's stream,
        so a crop depends neither on the order of the batch nor on the other images. An image that comes
        twice in a batch is cut twice, independently.
        """
        return self.from_bytes(self.augmented_bytes(rows, generator))

    def augmented_bytes(
        self, rows: Tensor | Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return what :meth:`augmented` makes images of: (k,) -> (k, h, w, 3) uint8 on the CPU."""
        chosen = self._numbers(rows).tolist()
        seed = int(torch.randint(2**62, (1,), generator=generator))
        seen: Counter[int] = Counter()
        windows = []
        for row in chosen:
            windows.append(self._window(stream(seed, "augment", row, seen[row])))
            seen[row] += 1
        return self._decode(chosen, windows)

    def from_bytes(self, raw: Tensor) -> Tensor:
        """Put pixels (k, h, w, 3) uint8 on the device as images: (k, 3, h, w) in [0, 1].

        From pinned memory the copy to a CUDA device does not wait.
        """
        x = raw.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().contiguous()
        return x / torch.tensor(255.0, device=self.device)  # a tensor, for a scalar is inexact on CUDA

    def listing(self) -> bytes:
        """Return names, sizes in bytes and sides as JSON: what a fingerprint of the set is made of."""
        plain: list[Any] = [self.resize, self.crop, list(self.names), list(self.sizes)]
        if self.upright:
            plain.append("upright")
        return json.dumps(plain, separators=(",", ":")).encode()

    def _window(self, generator: torch.Generator) -> Window:
        left, top, flip = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
        places = self.resize - self.crop + 1
        return Window(int(left * places), int(top * places), flip < 0.5)

    def _numbers(self, rows: Any) -> Tensor:
        """Read an index as a tensor would; shape of the result as a tensor's first dimension."""
        index = rows.cpu() if isinstance(rows, Tensor) else rows
        numbers: Tensor = torch.arange(len(self))[index]
        return numbers

    def _decode(self, rows: Sequence[int], windows: Sequence[Window]) -> Tensor:
        side = self.crop
        raw = np.empty((len(rows), side, side, 3), dtype=np.uint8)

        def fill(place: int) -> None:
            left, top, flip = windows[place]
            box = (left, top, left + side, top + side)
            path = self.base / self.names[rows[place]]
            raw[place] = pixels(path, self.resize, box, flip, upright=self.upright)

        if self.workers == 1 or len(rows) < 2:
            for place in range(len(rows)):
                fill(place)
        else:
            with ThreadPoolExecutor(min(self.workers, len(rows)), "holdfast-decode") as pool:
                list(pool.map(fill, range(len(rows))))  # raises the first error; the rest is called off
        return torch.from_numpy(raw)


def processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
