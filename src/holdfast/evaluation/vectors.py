"""Embeddings on disk: written in parts, hashed on the way, read through a memory map."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import shutil
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ..errors import CorruptFile, DataError, InvalidArgument, told
from ..files import read_json, replacing, write_json
from ..functional.ranking import chunks
from ..types import Encoder, Gallery, Images
from .embed import embed

Z, Y, META = "z.npy", "y.npy", "vectors.json"
SCHEMA = 1
STEP = 2**22
"""Bytes that are read at a time where a file is hashed again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """Embeddings of a folder or a ``.npy`` file, mapped into memory and not read until they are used.

    Attributes
    ----------
    path
        Where they lie.
    z
        (m, e) float32 over the map. Writing into it changes private pages and never the file.
    y
        (m,) int64 labels; ``None`` for a bare file of embeddings.
    fingerprint
        sha256 of shape, embeddings and labels, in hexadecimal.
    """

    path: Path
    z: Tensor
    y: Tensor | None
    fingerprint: str

    def __len__(self) -> int:
        return len(self.z)

    @property
    def gallery(self) -> Gallery:
        """The rows as a gallery; an error where there are no labels."""
        if self.y is None:
            raise DataError(f"{self.path}: need labels beside the embeddings, got none")
        return Gallery(self.z, self.y, torch.arange(len(self)))

    def verify(self) -> None:
        """Read everything and compare with the fingerprint.

        Raises
        ------
        CorruptFile
            If a number has changed since it was written.
        """
        found = fingerprint(self.z, self.y)
        if found != self.fingerprint:
            raise CorruptFile(
                self.path, None, f"need embeddings with sha256 {self.fingerprint[:16]}, got {found[:16]}"
            )


def fingerprint(z: Tensor, y: Tensor | None = None) -> str:
    """Return the sha256 of embeddings (m, e) as float32 and labels (m,), a few megabytes at a time."""
    inner = hashlib.sha256()
    for rows in chunks(len(z), max(1, STEP // (4 * max(z.shape[1], 1)))):
        inner.update(_plain(z[rows]))
    return _combine(tuple(z.shape), inner, None if y is None else y.detach().cpu().numpy().astype("<i8"))


def _plain(z: Tensor) -> bytes:
    return z.detach().cpu().float().numpy().astype("<f4", copy=False).tobytes()


def _combine(shape: tuple[int, ...], inner: Any, y: np.ndarray[Any, Any] | None) -> str:
    whole = hashlib.sha256(repr(shape).encode())
    whole.update(inner.digest())
    whole.update(b"" if y is None else y.tobytes())
    return whole.hexdigest()


def write_vectors(folder: str | Path, parts: Iterable[tuple[Tensor, Tensor]]) -> Vectors:
    """Write embeddings and labels that come in parts; never more than one part is held.

    Parameters
    ----------
    folder
        Created; must not exist. It takes its name when everything is written.
    parts
        Pairs of (k, e) embeddings, stored as float32, and (k,) labels.

    Raises
    ------
    InvalidArgument
        If the folder exists.
    DataError
        If there is no row, widths differ, labels do not fit, or a number is NaN or infinite.
    """
    folder = Path(folder)
    if folder.exists():
        raise InvalidArgument("folder", "a folder that does not exist", str(folder))
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with replacing(temporary / Z) as path, path.open("wb") as handle:
            shape, inner, y = _stream(handle, parts)
        with replacing(temporary / Y) as path, path.open("wb") as handle:
            np.save(handle, y, allow_pickle=False)
        found = _combine(shape, inner, y)
        write_json(temporary / META, {"schema": SCHEMA, "shape": list(shape), "sha256": found})
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_vectors(folder)


def _header(handle: BinaryIO, shape: tuple[int, int]) -> None:
    """Write a header of one length whatever the number of rows, to be written again at the end."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape[0]}, {shape[1]}), }}"
    handle.write(npy.magic(1, 0) + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n")


def _stream(handle: BinaryIO, parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[tuple[int, int], Any, Any]:
    inner, rows, width, labels = hashlib.sha256(), 0, -1, []
    _header(handle, (0, 0))
    for number, (z, y) in enumerate(parts):
        width = z.shape[1] if z.ndim == 2 and width < 0 else width
        if z.ndim != 2 or z.shape[1] != width or y.shape != z.shape[:1]:
            got = f"{tuple(z.shape)} and {tuple(y.shape)}"
            raise DataError(f"part {number}: need embeddings (k, {width}) and labels (k,), got {got}")
        if not bool(torch.isfinite(z).all()):
            raise DataError(f"part {number}: need finite embeddings, got NaN or infinity")
        data = _plain(z)
        inner.update(data)
        handle.write(data)
        labels.append(y.detach().cpu().numpy().astype("<i8"))
        rows += len(z)
    if not rows:
        raise DataError("embeddings: need at least one row, got 0")
    handle.seek(0)
    _header(handle, (rows, width))
    return (rows, width), inner, np.concatenate(labels)


def open_vectors(path: str | Path) -> Vectors:
    """Map a folder of :func:`write_vectors`, or a ``.npy`` file of float32 embeddings without labels.

    A bare file is read once for its fingerprint; a folder records it, and :meth:`Vectors.verify` checks it.

    Raises
    ------
    CorruptFile
        If a file is torn, of another kind, or of another size than recorded.
    DataError
        If a file of the folder is missing.
    """
    path = Path(path)
    if not path.is_dir():
        z = _mapped(path)
        return Vectors(path=path, z=z, y=None, fingerprint=fingerprint(z))
    for name in (META, Z, Y):
        if not (path / name).is_file():
            raise DataError(f"{path}: need a folder that write_vectors wrote, got one without {name}")
    meta = read_json(path / META)
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA or not isinstance(meta.get("sha256"), str):
        raise CorruptFile(path / META, None, f"need a record of schema {SCHEMA}, got {str(meta)[:60]}")
    z = _mapped(path / Z)
    if list(z.shape) != meta.get("shape"):
        raise CorruptFile(path / Z, None, f"need shape {meta.get('shape')}, got {list(z.shape)}")
    y = read_labels(path / Y)
    if y.shape != (len(z),) or y.dtype.kind != "i":
        raise CorruptFile(path / Y, None, f"need {len(z)} whole numbers, got {y.dtype} {y.shape}")
    return Vectors(path=path, z=z, y=torch.from_numpy(y.astype(np.int64)), fingerprint=meta["sha256"])


_HEADERS = (
    ValueError, TypeError, LookupError, ArithmeticError, SyntaxError, tokenize.TokenError, MemoryError,
    RecursionError, EOFError, UnicodeError,
)  # fmt: skip
"""What NumPy raises for headers that are none: they are parsed as Python literals."""


def _npy_header(handle: BinaryIO, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an ``.npy`` file, and compare what it promises with the size of the file."""
    try:
        version = npy.read_magic(handle)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(handle)
        start, size = handle.tell(), os.fstat(handle.fileno()).st_size
        whole = start + dtype.itemsize * math.prod(shape)
    except _HEADERS as error:
        raise CorruptFile(path, 0, f"need the header of an .npy file ({told(error)})") from error
    if dtype.hasobject or any(type(n) is not int or n < 0 for n in shape):
        raise CorruptFile(path, 0, "need an .npy file of plain numbers")
    if size != whole:
        raise CorruptFile(path, min(size, whole), f"need {whole} bytes, got {size} in this npy file")
    return shape, fortran, dtype


def read_labels(path: str | Path) -> np.ndarray[Any, Any]:
    """Read an ``.npy`` file of whole numbers; nothing is allocated that the file does not hold.

    Raises
    ------
    DataError
        If there is no such file, or it is a pipe or a device.
    CorruptFile
        If it is no ``.npy`` file of plain numbers, or of another size than its header promises.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; need labels in an .npy file")
    with path.open("rb") as handle:
        shape, fortran, dtype = _npy_header(handle, path)
        if dtype.kind not in "iu" or (fortran and len(shape) > 1):
            raise CorruptFile(path, 0, f"need whole numbers, got {dtype} {shape}")
        return np.frombuffer(bytearray(handle.read()), dtype).reshape(shape)


def _mapped(path: Path) -> Tensor:
    """Map a float32 ``.npy`` file as a tensor."""
    if path.exists() and not path.is_file():
        raise CorruptFile(path, None, "need a plain .npy file")
    with path.open("rb") as handle:  # a missing file stays a FileNotFoundError
        shape, fortran, dtype = _npy_header(handle, path)
        if dtype != np.dtype("<f4") or len(shape) != 2 or fortran or 0 in shape:
            raise CorruptFile(path, 0, f"need rows of float32, got {dtype} {shape}")
        start = handle.tell()
        # private and copy-on-write: PyTorch warns of tensors over memory that cannot be written
        pages = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(pages, dtype=torch.float32, offset=start).view(shape)


def embedded_parts(
    encoder: Encoder, x: Images, y: Tensor, batch_size: int = 256
) -> Iterator[tuple[Tensor, Tensor]]:
    """Embed images a batch at a time, for :func:`write_vectors`: never all embeddings at once.

    Parameters
    ----------
    encoder
        (n, c, h, w) in [0, 1] -> (n, e).
    x, y
        Images and labels.
    batch_size
        Images at a time.
    """
    if len(x) != len(y):
        raise DataError(f"labels: need one for each of {len(x)} images, got {len(y)}")
    for rows in chunks(len(x), batch_size):
        yield embed(encoder, x[rows], batch_size), y[rows]
