"""Tables of numbers with a fixed split: what metrics are learned on and certified with."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFile, DataError, InvalidArgument, UnknownName
from ..files import read_arrays
from .mnist import MNIST, FashionMNIST
from .paths import TEXT_LIMIT, most_unpacked, plain_file, unpacked

Array = NDArray[Any]
_MOST = 1 << 29  # numbers in a dense table, 4 GiB of float64
_PACKED = ("", ".bz2", ".gz")
_HUGE = 1e150  # squares of larger numbers are none
_WHOLE = 2.0**53  # labels beyond it are not told apart in float64


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """A training and a test part, checked once.

    Attributes
    ----------
    name
        What records and messages call it.
    x_train, x_test
        (n, d) and (m, d) float64, finite. The training part of the named sets lies in [0, 1] (up to the last
        bit); test features may leave it, and constant columns stay constant (0 in training): nothing is
        clipped or dropped.
    y_train, y_test
        (n,) and (m,) int64 labels; every test label occurs in training.
    class_names
        Name of label ``i`` at position ``i``; empty where labels are only numbers.
    features
        Names of the columns, or empty.
    provenance
        Where the numbers come from and how they were split and scaled.

    Raises
    ------
    InvalidArgument
        For shapes that do not fit, values that are not finite, fewer than two classes, or a test label that
        training has never seen.
    """

    name: str
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    class_names: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    provenance: str = ""

    def __post_init__(self) -> None:
        for side in ("train", "test"):
            x = np.ascontiguousarray(getattr(self, f"x_{side}"), dtype=np.float64)
            y = np.asarray(getattr(self, f"y_{side}"))
            if x.ndim != 2 or 0 in x.shape:
                raise InvalidArgument(f"x_{side}", "rows of numbers, (n, d), n and d >= 1", x.shape)
            if not np.isfinite(x).all():
                row = int(np.argwhere(~np.isfinite(x))[0, 0])
                raise InvalidArgument(f"x_{side}", "finite numbers", f"NaN or infinity in row {row}")
            if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
                raise InvalidArgument(f"y_{side}", f"{len(x)} integer labels", f"{y.dtype} {y.shape}")
            object.__setattr__(self, f"x_{side}", x)
            object.__setattr__(self, f"y_{side}", y.astype(np.int64))
        if self.x_test.shape[1] != self.x_train.shape[1]:
            raise InvalidArgument("x_test", f"{self.x_train.shape[1]} columns", self.x_test.shape[1])
        known = np.unique(self.y_train)
        if len(known) < 2:
            raise InvalidArgument("y_train", "at least 2 classes", known.tolist())
        unseen = np.setdiff1d(self.y_test, known).tolist()
        if unseen:
            raise InvalidArgument("y_test", "labels that occur in y_train", unseen)

    @property
    def n_classes(self) -> int:
        """Number of classes in training."""
        return len(np.unique(self.y_train))

    def first(self, n_test: int | None) -> Table:
        """Return the table with only the first ``n_test`` test rows; None keeps all."""
        if n_test is None:
            return self
        if not 1 <= n_test <= len(self.y_test):
            raise InvalidArgument("n_test", f"an integer in [1, {len(self.y_test)}], or None", n_test)
        return replace(self, x_test=self.x_test[:n_test], y_test=self.y_test[:n_test])

    def fingerprint(self, side: str) -> str:
        """Return a hash of the ``"train"`` or the ``"test"`` part."""
        x, y = getattr(self, f"x_{side}"), getattr(self, f"y_{side}")
        digest = hashlib.sha256(repr(x.shape).encode())
        for array in (x, np.ascontiguousarray(y)):
            digest.update(array.data)
        return digest.hexdigest()[:16]


def load_table(name: str, data_dir: str | Path | None = None, *, n_test: int | None = None) -> Table:
    """Load a table by name.

    Parameters
    ----------
    name
        A name of ``TABLES``; or ``csv:PATH`` (the last column is the label) and ``csv:PATH#COLUMN`` (the
        named one is; the first line names the columns unless it is all numbers); or ``npz:PATH`` with arrays
        ``x_train, y_train, x_test, y_test``, taken as they are, or ``x, y``.
    data_dir
        Folder with the files of sets that do not come with scikit-learn: under their official names, there
        or in a folder of the set's name; LIBSVM text may end in ``.bz2`` or ``.gz``.
    n_test
        Keep only the first so many test rows.

    Returns
    -------
    Table
        Sets without an official split (and CSV, and ``x, y``) are split 70 to 30, stratified, with
        ``random_state=0``. All features but pixels (divided by 255) are scaled linearly so that the training
        part fills [0, 1]; this is the published protocol of ARML.

    Raises
    ------
    UnknownName
        If there is no such table.
    DataError
        If a file is missing (says which, and where it was looked for) or a class has too few rows to split.
    CorruptFile
        If a file cannot be read.

    Examples
    --------
    >>> table = load_table("wine")
    >>> table.x_train.shape, table.x_test.shape
    ((124, 13), (54, 13))
    """
    kind, colon, path = name.partition(":")
    if colon and kind in ("csv", "npz"):
        table = _csv(path) if kind == "csv" else _npz(Path(path))
    elif name in TABLES:
        table = TABLES[name](data_dir)
    else:
        raise UnknownName("data", name, [*TABLES, "csv:PATH", "npz:PATH"])
    return table.first(n_test)


def _split(name: str, x: Array, y: Array, origin: str, **names: tuple[str, ...]) -> Table:
    from sklearn.model_selection import train_test_split

    labels, counts = np.unique(y, return_counts=True)
    if len(counts) and counts.min() < 2:
        raise DataError(f"{name}: class {labels[counts.argmin()]} has one row; a stratified split needs 2")
    try:
        x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, stratify=y, random_state=0)
    except ValueError as error:  # fewer rows than classes on one side
        raise DataError(f"{name}: cannot be split: {error}") from error
    how = f"{origin}; train_test_split(test_size=0.3, stratify=y, random_state=0)"
    return _scaled(name, x_train, y_train, x_test, y_test, how, **names)


def _scaled(
    name: str, x_train: Array, y_train: Array, x_test: Array, y_test: Array, origin: str, **names: Any
) -> Table:
    from sklearn.preprocessing import MinMaxScaler

    for side, x in (("train", x_train), ("test", x_test)):
        if x.size and not np.abs(x).max() < _HUGE:  # NaN is not below it either
            raise DataError(f"{name}: need finite numbers below {_HUGE:g} in {side}, to be scaled")
    if not x_train.size or not x_test.size:
        raise DataError(f"{name}: need rows and columns on both sides, got {x_train.shape}, {x_test.shape}")
    scaler = MinMaxScaler().fit(x_train)
    parts = {"x_train": scaler.transform(x_train), "x_test": scaler.transform(x_test)}
    how = f"{origin}; MinMaxScaler fitted on train"
    return Table(name=name, **parts, y_train=y_train, y_test=y_test, provenance=how, **names)


def _bundled(name: str, loader: str) -> Callable[[str | Path | None], Table]:
    def load(data_dir: str | Path | None = None) -> Table:
        import sklearn
        from sklearn import datasets

        raw = getattr(datasets, loader)()
        names = {key: tuple(str(v) for v in raw[of]) for key, of in _NAMES.items() if of in raw}
        origin = f"sklearn.datasets.{loader} of scikit-learn {sklearn.__version__}"
        return _split(name, raw.data, raw.target, origin, **names)

    load.__doc__ = f"Load ``sklearn.datasets.{loader}``."
    return load


_NAMES = {"features": "feature_names", "class_names": "target_names"}


def _libsvm(
    name: str, d: int, files: Sequence[str], one: tuple[str, int] | None = None
) -> Callable[[str | Path | None], Table]:
    """Return the loader of a set in LIBSVM text: two official files, or one and where its test begins."""

    def load(data_dir: str | Path | None = None) -> Table:
        if data_dir is None:
            raise DataError(f"{name} is read from files: name their folder with --data-dir")
        places = [Path(data_dir) / name, Path(data_dir)]
        pair = next((found for place in places if (found := _all(place, files))), None)
        single = next((found for place in places if one and (found := _all(place, one[:1]))), None)
        if pair is None and single is None:
            wanted = " and ".join(files) + (f", or {one[0]}" if one else "")
            raise DataError(
                f"{name}: missing {wanted} (or the same with .bz2 or .gz); looked in "
                + ", ".join(str(place) for place in places)
            )
        x, y = _svmlight(pair or single or [], d)
        if pair is None and one is not None:
            if len(y[0]) <= one[1]:
                raise DataError(f"{name}: {one[0]} needs more than {one[1]} rows, got {len(y[0])}")
            x, y = np.split(x[0], [one[1]]), np.split(y[0], [one[1]])
        origin = f"LIBSVM files {', '.join(p.name for p in pair or single or [])}, official split"
        return _scaled(name, x[0], y[0], x[1], y[1], origin)

    load.__doc__ = f"Load {name} from LIBSVM text."
    return load


def _all(folder: Path, files: Sequence[str]) -> list[Path] | None:
    found = [next((p for end in _PACKED if (p := folder / f"{f}{end}").is_file()), None) for f in files]
    whole = [p for p in found if p is not None]
    return whole if len(whole) == len(files) else None


def _svmlight(paths: Sequence[Path], d: int) -> tuple[list[Array], list[Array]]:
    from sklearn.datasets import load_svmlight_file

    x, y = [], []
    for path in paths:
        limit = most_unpacked(plain_file(path, TEXT_LIMIT))
        try:
            text = io.BytesIO(_text(path, limit))
            rows, labels = load_svmlight_file(text, n_features=d, zero_based=False)
        except CorruptFile:
            raise
        except (ValueError, TypeError, IndexError, OSError, EOFError, zlib.error, OverflowError) as error:
            raise CorruptFile(path, None, f"need LIBSVM text of {d} features ({error})") from error
        if not len(labels) or not (np.abs(labels) < _WHOLE).all() or (labels != np.round(labels)).any():
            raise CorruptFile(path, None, "need rows with whole numbers as labels")
        if 8 * d * len(labels) > limit:
            raise CorruptFile(path, None, f"{len(labels)} rows of {d} features, more than its size allows")
        x.append(rows.toarray())
        y.append(labels.astype(np.int64))
    return x, y


def _text(path: Path, limit: int) -> bytearray:
    """Return the text of a file, unpacked as its name says."""
    opens: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opens(path, "rb") as handle:
        return unpacked(handle, path, limit)


def _images(source: type[MNIST] | type[FashionMNIST]) -> Callable[[str | Path | None], Table]:
    def load(data_dir: str | Path | None = None) -> Table:
        split = source(root=None if data_dir is None else str(data_dir)).load()
        x = [part.x[:].flatten(1).double().numpy() for part in (split.train, split.test)]
        y = [part.y.numpy() for part in (split.train, split.test)]
        return Table(
            name=source.name, x_train=x[0], y_train=y[0], x_test=x[1], y_test=y[1],
            class_names=source.class_names, provenance=f"IDX files of {source.name}, pixels / 255",
        )  # fmt: skip

    load.__doc__ = f"Load {source.name} from its IDX files."
    return load


def _coded(labels: Array) -> tuple[Array, tuple[str, ...]]:
    """Return codes and names of labels that may be text; whole numbers stay what they are."""
    if labels.dtype.kind in "iu":
        return labels.astype(np.int64), ()
    whole = labels.dtype.kind == "f" and bool((np.abs(labels) < _WHOLE).all())
    if whole and (labels == np.round(labels)).all():
        return labels.astype(np.int64), ()
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    return codes.astype(np.int64), tuple(str(n) for n in names)


def _csv(where: str) -> Table:
    text, _, column = where.partition("#")
    path = Path(text)
    try:
        plain_file(path, TEXT_LIMIT)
    except CorruptFile:
        raise
    except DataError as error:
        raise DataError(f"{error}; csv: needs the path of a CSV file") from error
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise CorruptFile(path, None, f"need text in UTF-8 ({error})") from error
    head = lines[0] if lines else ""
    mark = next((c for c in (",", ";", "\t") if c in head), ",")
    reader = csv.reader(lines, delimiter=mark)
    try:
        rows = [(i, row) for i, row in enumerate(reader, start=1) if row]
    except csv.Error as error:
        raise CorruptFile(path, None, f"line {reader.line_num}: {error}") from error
    if not rows:
        raise CorruptFile(path, 0, "need rows of numbers, the file is empty")
    names = [cell.strip() for cell in rows[0][1]]
    titled = not all(_is_number(cell) for cell in names[:-1])
    if titled:
        rows = rows[1:]
    elif column:
        raise InvalidArgument("data", "a CSV file whose first line names its columns", where)
    if column and column not in names:
        raise UnknownName("column", column, names)
    label = names.index(column) if column else len(names) - 1
    x, labels = [], []
    for number, row in rows:
        if len(row) != len(names):
            raise CorruptFile(path, None, f"line {number}: need {len(names)} columns, got {len(row)}")
        cells = [cell.strip() for cell in row]
        bad = next((i for i, cell in enumerate(cells) if i != label and not _is_number(cell)), None)
        if bad is not None:
            where = names[bad] if titled else str(bad + 1)
            raise CorruptFile(path, None, f"line {number}, column {where}: need a number, got {cells[bad]!r}")
        labels.append(cells.pop(label))
        x.append([float(cell) for cell in cells])
    numbers = all(_is_number(cell) for cell in labels)
    y, classes = _coded(np.array([float(c) for c in labels] if numbers else labels))
    if not x or not x[0]:
        raise CorruptFile(path, None, "need at least one row with a feature and a label")
    features = tuple(n for i, n in enumerate(names) if i != label) if titled else ()
    return _split(path.stem, np.array(x), y, f"CSV file {path.name}", features=features, class_names=classes)


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def _npz(path: Path) -> Table:
    try:
        plain_file(path)
    except DataError as error:
        raise DataError(f"{error}; npz: needs the path of an .npz file") from error
    arrays = read_arrays(path)
    arrays = {name.lower(): array for name, array in arrays.items()}
    four = ("x_train", "y_train", "x_test", "y_test")
    wanted = four if any(name in arrays for name in four) else ("x", "y")
    missing = [name for name in wanted if name not in arrays]
    if missing:
        has = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(
            f"{path}: lacks {', '.join(missing)}; need {', '.join(four)}, or x, y; it holds {has}"
        )
    a = {name: np.asarray(arrays[name]) for name in wanted}
    for name, array in a.items():
        if name.startswith("x") and (array.ndim < 2 or array.dtype.kind not in "biuf" or array.size > _MOST):
            raise DataError(f"{path}: {name} needs rows of numbers, got {array.dtype} {array.shape}")
        if name.startswith("y") and array.ndim != 1:
            raise DataError(f"{path}: {name} needs one label for each row, got shape {array.shape}")
        if name.startswith("x"):
            a[name] = array.reshape(len(array), -1)
    if wanted == four:
        coded, classes = _coded(np.concatenate([a["y_train"], a["y_test"]]))
        a["y_train"], a["y_test"] = np.split(coded, [len(a["y_train"])])
        table: Any = {"name": path.stem, **a, "class_names": classes}
        return Table(**table, provenance=f"NumPy file {path.name}, as it is")
    y, classes = _coded(a["y"])
    if len(y) != len(a["x"]):
        raise DataError(f"{path}: need one label for each of the {len(a['x'])} rows, got {len(y)}")
    return _split(path.stem, a["x"].astype(float), y, f"NumPy file {path.name}", class_names=classes)


TABLES: Mapping[str, Callable[[str | Path | None], Table]] = {
    "digits": _bundled("digits", "load_digits"),
    "breast-cancer": _bundled("breast-cancer", "load_breast_cancer"),
    "wine": _bundled("wine", "load_wine"),
    "iris": _bundled("iris", "load_iris"),
    "pendigits": _libsvm("pendigits", 16, ("pendigits", "pendigits.t"), ("pendigits.libsvm", 7494)),
    "dna": _libsvm("dna", 180, ("dna.scale", "dna.scale.t")),
    "splice": _libsvm("splice", 60, ("splice", "splice.t")),
    "satimage": _libsvm("satimage", 36, ("satimage.scale", "satimage.scale.t")),
    "usps": _libsvm("usps", 256, ("usps", "usps.t")),
    "letter": _libsvm("letter", 16, ("letter.scale", "letter.scale.t")),
    "mnist": _images(MNIST),
    "fashion-mnist": _images(FashionMNIST),
}
"""Loaders by name: folder of the files, or None, -> :class:`Table`."""
