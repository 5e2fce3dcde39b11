"""Pictures that are alike: the same pixels, or nearly the same to the eye [D]."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..data.decode import BOMBS, BROKEN, FORMATS, PIXEL_LIMIT
from ..data.paths import plain_file
from ..errors import CorruptFile

GLANCE = 32
"""Side of the small picture that is compared, in pixels."""
BITS = 8
"""At most so many of the 64 bits of two near-duplicates differ ..."""
CORRELATION = 0.985
"""... and their small colour pictures correlate at least so much."""
MOST = 40_000
"""Pictures that are compared, each with each; more are not."""
_BLOCK = 2048
_BAND = 1 << 22
"""Pixels that are converted at a time."""


def perceptual_bits(glance: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return 64 bits that survive rescaling and compression.

    Parameters
    ----------
    glance
        (GLANCE, GLANCE, 3) uint8.

    Returns
    -------
    ndarray
        (64,) bool: which of the 8x8 lowest frequencies of the grey picture lie above their median. [D]
    """
    grey = glance.astype(np.float64) @ (0.299, 0.587, 0.114)
    low = dctn(grey, norm="ortho")[:8, :8].ravel()
    low[0] = 0.0  # brightness
    return np.asarray(low > np.median(low))


def near_pairs(glances: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, of pictures that look nearly the same.

    Parameters
    ----------
    glances
        (n, GLANCE, GLANCE, 3) uint8.

    Notes
    -----
    Bits alone take plain pictures with little in them for the same, so the pairs they propose are compared in
    colour. Found: other sizes, formats, compressions, slight crops and changes of brightness. Not found:
    mirror images and large crops.
    """
    n = len(glances)
    if n < 2 or n > MOST:
        return []
    bits = np.stack([perceptual_bits(g) for g in glances]).astype(np.float32) * 2 - 1  # (n, 64)
    small = glances.reshape(n, 16, 2, 16, 2, 3).mean((2, 4)).reshape(n, -1).astype(np.float32)
    small -= small.mean(1, keepdims=True)
    size = np.linalg.norm(small, axis=1)
    flat = size < 1.0 * np.sqrt(small.shape[1])  # one colour, more or less: nothing to correlate
    small /= np.maximum(size, 1e-6)[:, None]
    mean = glances.reshape(n, -1, 3).mean(1)  # (n, 3)
    found = []
    for start in range(0, n, _BLOCK):
        differing = (64 - bits[start : start + _BLOCK] @ bits[start:].T) / 2
        plain = flat[start : start + _BLOCK, None] & flat[None, start:]
        rows, columns = np.nonzero((differing <= BITS) | plain)
        later = columns > rows
        for i, j in zip(rows[later] + start, columns[later] + start, strict=True):
            close = np.abs(mean[i] - mean[j]).max() <= 2 if flat[i] or flat[j] else True
            if flat[i] == flat[j] and close and (flat[i] or small[i] @ small[j] >= CORRELATION):
                found.append((int(i), int(j)))
    return found


def pixel_hash(path: str | Path) -> str:
    """Return the sha256 of a file's decoded pixels, size and mode: the same in any lossless format.

    Raises
    ------
    CorruptFile
        For what :func:`~holdfast.data.decode.decode` refuses too.
    """
    try:
        plain_file(path)
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > PIXEL_LIMIT:
                raise CorruptFile(path, None, f"{width}x{height} pixels, limit is {PIXEL_LIMIT} in all")
            image.load()
            mode = "RGBA" if image.has_transparency_data else "RGB"
            found = hashlib.sha256(repr((mode, image.size)).encode())
            rows = max(1, _BAND // max(width, 1))
            for top in range(0, height, rows):
                band = image.crop((0, top, width, min(top + rows, height)))
                found.update(band.convert(mode).tobytes())
            return found.hexdigest()
    except CorruptFile:
        raise
    except (*BOMBS, *BROKEN) as error:  # a DataError among them: it is a ValueError
        raise CorruptFile(path, None, f"damaged image: {error}") from error


def groups(n: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the connected groups of two and more among ``n``, each ascending.

    Examples
    --------
    >>> groups(5, [(0, 3), (3, 4)])
    [[0, 3, 4]]
    """
    if not pairs:
        return []
    rows, columns = zip(*pairs, strict=True)
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(n, n))
    label = connected_components(graph, directed=False)[1]
    members: dict[int, list[int]] = {}
    for i in sorted({*rows, *columns}):
        members.setdefault(int(label[i]), []).append(i)
    return list(members.values())
