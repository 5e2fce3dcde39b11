"""The IDX format: arrays as MNIST and its relatives are published."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFile
from .paths import most_unpacked, plain_file

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20

Readable = BinaryIO | gzip.GzipFile


def read_idx(path: str | Path, limit: int = 4 << 30) -> NDArray[Any]:
    """Read an array from an IDX file, gzipped or not (told by the first bytes, not by the name).

    Parameters
    ----------
    path
        The file.
    limit
        Largest array accepted, in bytes; of a gzipped file at most
        :func:`~holdfast.data.paths.most_unpacked`. The header is checked against it before any data are read,
        and no more is read, or unpacked, than the header promises.

    Returns
    -------
    ndarray
        In native byte order; shape and dtype as the header says.

    Raises
    ------
    DataError
        If the file does not exist, or is a folder, a pipe or a device.
    CorruptFile
        If it is not IDX, is damaged or cut off, promises more than ``limit``, or goes on after the data.
        Offsets in a gzipped file count unpacked bytes.

    References
    ----------
    LeCun, Cortes and Burges, "The MNIST database", section *File formats*.
    """
    path = Path(path)
    size = plain_file(path)
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            return _parse(raw, path, limit)
        with gzip.GzipFile(fileobj=raw) as unpacked:
            return _parse(unpacked, path, min(limit, most_unpacked(size)))


def _parse(handle: Readable, path: Path, limit: int) -> NDArray[Any]:
    magic = _exactly(handle, 0, 4, path, "the magic number")
    zero, code, ndim = int.from_bytes(magic[:2], "big"), magic[2], magic[3]
    if zero != 0 or code not in _DTYPES or ndim == 0:
        raise CorruptFile(
            path, 0, f"not IDX: need two zero bytes, a dtype code and >= 1 dimension, got {magic.hex(' ')}"
        )
    dtype = np.dtype(_DTYPES[code])
    start = 4 + 4 * ndim
    sizes = np.frombuffer(_exactly(handle, 4, 4 * ndim, path, "the dimension sizes"), ">u4")
    shape = tuple(int(s) for s in sizes)
    promised = math.prod(shape) * dtype.itemsize
    whole = math.prod(max(size, 1) for size in shape) * dtype.itemsize  # one empty dimension hides no others
    if whole > limit or ndim > 32:
        raise CorruptFile(path, 4, f"header promises {whole} bytes in {ndim} dimensions, limit is {limit}")
    data = _exactly(handle, start, promised, path, f"data of shape {shape}")
    if _read(handle, start + promised, 1, path):
        raise CorruptFile(path, start + promised, f"data of shape {shape} should end here, but more follows")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read(handle: Readable, offset: int, size: int, path: Path) -> bytes:
    try:
        return handle.read(size)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorruptFile(path, offset, f"damaged gzip: {error}") from error


def _exactly(handle: Readable, offset: int, size: int, path: Path, what: str) -> bytearray:
    data = bytearray()  # grows with what is there, not with what a header promises
    while len(data) < size:
        part = _read(handle, offset + len(data), min(_CHUNK, size - len(data)), path)
        if not part:
            raise CorruptFile(
                path, offset + len(data), f"file ends within {what}: need {size} bytes, got {len(data)}"
            )
        data += part
    return data
