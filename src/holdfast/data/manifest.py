"""A table of images: path, label, split."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import CorruptFile, DataError, InvalidArgument, MissingExtra
from .base import DataSplit, Protocols
from .paths import TEXT_LIMIT, plain_file, shown
from .source import FileSource, Listed

COLUMNS = ("path", "label", "split")
_PARQUET = (".parquet", ".pq")
_ROWS = 1 << 24  # of a Parquet table; a few bytes can promise any number


@dataclass(frozen=True)
class Manifest(FileSource):
    """Your own images, listed in a table with the columns path, label and split; zero-shot or closed.

    Parameters
    ----------
    root
        A CSV file (UTF-8, commas, a header line), a Parquet file (``.parquet``, needs pyarrow), or a folder
        with ``manifest.csv`` or ``manifest.parquet``.
    protocol
        ``"zero-shot"``: no class is trained on and tested. ``"closed"``: every tested class is trained on.
    resize, crop
        Sides in pixels; see :class:`~holdfast.data.LazyImages`.

    Notes
    -----
    ``path`` is relative to the table's folder and may not leave it; ``label`` is any text; ``split`` is
    ``train`` or ``test``. Other columns are ignored, the order of rows is kept, and no path may come twice.
    Labels count from 0 in the order of their texts.
    """

    _: KW_ONLY
    protocol: Protocols = "zero-shot"
    name: ClassVar[str] = "manifest"
    files: ClassVar[tuple[str, ...]] = ("manifest.csv", "manifest.parquet")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in ("closed", "zero-shot"):
            raise InvalidArgument("protocol", "'closed' or 'zero-shot'", self.protocol)

    @classmethod
    def locate(cls, root: str | Path) -> Path | None:
        """Return the table that ``root`` is or holds, or None; nothing is opened."""
        root = Path(root)
        own = [root] if root.suffix.lower() in (".csv", *_PARQUET) else []
        return next((p for p in [*own, *(root / file for file in cls.files)] if p.is_file()), None)

    def load(self) -> DataSplit:
        """Read the table; images are decoded when they are used.

        Raises
        ------
        DataError
            If ``root`` is None, the table or an image is missing, a path leaves the table's folder or comes
            twice, or the classes do not fit the protocol.
        CorruptFile
            If the table cannot be read, lacks a column, or has an empty cell or an unknown split.
        MissingExtra
            For a Parquet file without pyarrow.
        """
        path = self.locate(self._root())
        if path is None:
            raise DataError(
                f"manifest: no table {self.root}: need a .csv or .parquet file, or a folder with "
                + " or ".join(self.files)
            )
        read = _parquet if path.suffix.lower() in _PARQUET else _csv
        rows, seen = [], set[str]()
        for place, (image, label, side) in read(path):
            if not image or not label or side not in ("train", "test"):
                got = ", ".join(repr(shown(cell)) for cell in (image, label, side))
                raise CorruptFile(path, None, f"{place}: need a path, a label, and train or test, got {got}")
            if image in seen:
                raise DataError(f"{path}: {place}: {shown(image)!r} is listed twice")
            seen.add(image)
            rows.append(Listed(image, label, side == "test"))
        return self._split(path.parent, rows, {row.key: str(row.key) for row in rows}, self.protocol)


Row = tuple[str, Sequence[str]]  # where it stands; path, label, split


def _csv(path: Path) -> Iterator[Row]:
    plain_file(path, TEXT_LIMIT)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptFile(path, error.start, f"not UTF-8: {error.reason}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        where = _places(path, header)
        for cells in reader:
            if cells and len(cells) != len(header):
                raise CorruptFile(
                    path, None, f"line {reader.line_num}: need {len(header)} columns, got {len(cells)}"
                )
            if cells:
                yield f"line {reader.line_num}", [cells[i] for i in where]
    except csv.Error as error:
        raise CorruptFile(path, None, f"line {reader.line_num}: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", f"{path.name} as a table") from error
    try:
        file = parquet.ParquetFile(path)
        _places(path, list(file.schema_arrow.names))
        promised = int(getattr(getattr(file, "metadata", None), "num_rows", 0))
        if promised > _ROWS:
            raise CorruptFile(path, None, f"{promised} rows, limit is {_ROWS}")
        columns = file.read(columns=list(COLUMNS)).to_pydict()
    except CorruptFile:
        raise
    except (ValueError, OSError, KeyError, TypeError, RuntimeError, NotImplementedError) as error:
        raise CorruptFile(path, None, f"no Parquet table: {error}") from error
    for number, cells in enumerate(zip(*(columns[name] for name in COLUMNS), strict=True)):
        yield f"row {number}", ["" if cell is None else str(cell) for cell in cells]


def _places(path: Path, header: Sequence[str]) -> list[int]:
    if any(header.count(name) != 1 for name in COLUMNS):
        raise CorruptFile(
            path, 0, f"need the columns {', '.join(COLUMNS)} once each, got {shown(list(header))}"
        )
    return [header.index(name) for name in COLUMNS]
