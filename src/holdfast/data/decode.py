"""One image file to pixels: what is accepted, what is refused, and how transparency is seen."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import CorruptFile, DataError
from .paths import plain_file

PIXEL_LIMIT = 1 << 26
"""Most pixels that are decoded, read from the header; below the number at which Pillow warns."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""The only decoders that are tried, whatever a file is called; of a moving image the first frame counts."""

BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
BROKEN = (
    UnidentifiedImageError, SyntaxError, ValueError, OSError, EOFError, struct.error, zlib.error, TypeError,
    KeyError, IndexError, AttributeError, OverflowError, MemoryError, RuntimeError,
)  # fmt: skip
"""What Pillow raises for damaged files."""

_BAND = 1 << 22
"""Pixels whose colours are changed at a time: large pictures stay below four of their size in memory."""

DRAFT = 4
"""A draft of a JPEG is read at the smallest size that still has so many times the side asked for."""


def decode(path: str | Path, side: int, *, upright: bool = False, draft: bool = False) -> Image.Image:
    """Read an image file and resize it to ``side`` x ``side``.

    Parameters
    ----------
    path
        The file.
    side
        In pixels. The aspect ratio is not kept; bilinear, averaging when it shrinks, as Pillow does it.
    upright
        Turn and mirror as the orientation in the EXIF data says, which cameras write; it is ignored
        otherwise, as in the published evaluations.
    draft
        Read JPEG files that are at least ``2 * DRAFT`` times as large as ``side`` at a half, a quarter or an
        eighth of their size, several times faster; pixels differ by a few levels.

    Returns
    -------
    Image
        Mode RGB. Grey becomes three equal channels, 16-bit grey is cut to 8 bits, and whatever is transparent
        lies over white.

    Raises
    ------
    CorruptFile
        If the file is gone, no plain file, cut off, of no known format, or has more than :data:`PIXEL_LIMIT`
        pixels.
    """
    try:
        plain_file(path)
    except DataError as error:
        gone = "it is no plain file, or was there when the data set was loaded, and is gone"
        raise CorruptFile(path, None, gone) from error
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > PIXEL_LIMIT:
                raise CorruptFile(path, None, f"{width}x{height} pixels, limit is {PIXEL_LIMIT} in all")
            if draft:
                image.draft(None, (DRAFT * side, DRAFT * side))
            image.load()
            seen = ImageOps.exif_transpose(image) if upright else image
            return _rgb(seen).resize((side, side), Image.Resampling.BILINEAR)
    except CorruptFile:
        raise
    except BOMBS as error:
        raise CorruptFile(path, None, f"too many pixels, limit is {PIXEL_LIMIT}: {error}") from error
    except UnidentifiedImageError as error:
        raise CorruptFile(path, None, f"no image of the formats {', '.join(FORMATS)}") from error
    except BROKEN as error:
        raise CorruptFile(path, None, f"damaged image: {error}") from error


def pixels(
    path: str | Path,
    side: int,
    box: tuple[int, int, int, int],
    flip: bool,
    *,
    upright: bool = False,
    draft: bool = False,
) -> NDArray[np.uint8]:
    """Decode, resize, crop to ``box`` (left, top, right, bottom), mirror if asked; (h, w, 3) bytes."""
    image = decode(path, side, upright=upright, draft=draft).crop(box)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image, dtype=np.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    width, height = image.size
    rows = max(1, _BAND // max(width, 1))
    if height <= rows or not (image.mode.startswith("I") or image.has_transparency_data):
        return _coloured(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        whole.paste(_coloured(image.crop((0, top, width, min(top + rows, height)))), (0, top))
    return whole


def _coloured(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        deep = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(deep.astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
