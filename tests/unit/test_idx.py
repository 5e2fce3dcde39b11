from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from holdfast.data import MNIST, FashionMNIST, find, read_idx
from holdfast.errors import CorruptFile, DataError, InvalidArgument

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}
TRAIN_X, TRAIN_Y, TEST_X, TEST_Y = FashionMNIST.files
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
real = pytest.mark.skipif(not (REAL / "fashion-mnist").exists(), reason="Fashion-MNIST is not here")


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def written(folder: Path, data: bytes, packed: bool = False) -> Path:
    path = folder / "array"  # no suffix: the reader has to look at the bytes
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", CODES)
def test_round_trip_of_every_dtype(tmp_path: Path, dtype: str, packed: bool) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 5 - (0 if dtype == "uint8" else 40)).astype(dtype)
    found = read_idx(written(tmp_path, idx_bytes(array), packed))
    assert found.dtype == array.dtype
    assert found.dtype.isnative
    assert np.array_equal(found, array)


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_longer_than_one_read(tmp_path: Path, packed: bool) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 1 << 20), dtype=np.uint8)
    assert np.array_equal(read_idx(written(tmp_path, idx_bytes(array), packed)), array)


arrays = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6))


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(array=arrays, packed=st.booleans())
def test_any_bytes_round_trip(array: np.ndarray, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = read_idx(written(Path(folder), idx_bytes(array), packed))
    assert found.shape == array.shape
    assert np.array_equal(found, array)


@pytest.mark.property
@settings(max_examples=120, deadline=None)
@given(array=arrays, packed=st.booleans(), share=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_told(array: np.ndarray, packed: bool, share: float) -> None:
    data = idx_bytes(array)
    data = gzip.compress(data) if packed else data
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), data[: int(share * len(data))])
        with pytest.raises(CorruptFile, match="at byte") as caught:
            read_idx(path)
    assert caught.value.path == str(path)


@pytest.mark.property
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_in_gzip_is_told_or_harmless(data: st.DataObject) -> None:
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    packed = bytearray(gzip.compress(idx_bytes(array)))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "array"
        path.write_bytes(packed)
        try:
            found = read_idx(path)
        except CorruptFile:
            return
    assert np.array_equal(found, array)  # header fields that do not matter, such as the time


SMALL = idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3))  # 12 bytes of header


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("data", "offset", "says"),
    [
        (b"", 0, "within the magic number: need 4 bytes, got 0"),
        (b"\0\0\x08", 3, "within the magic number: need 4 bytes, got 3"),
        (b"\0\1" + SMALL[2:], 0, "not IDX.*got 00 01 08 02"),
        (b"\0\0\x0a" + SMALL[3:], 0, "not IDX.*got 00 00 0a 02"),
        (b"\0\0\x08\0" + SMALL[4:], 0, "not IDX.*got 00 00 08 00"),
        (SMALL[:10], 10, "within the dimension sizes: need 8 bytes, got 6"),
        (SMALL[:-2], 16, r"within data of shape \(2, 3\): need 6 bytes, got 4"),
        (SMALL + b"!", 18, "should end here, but more follows"),
        (b"\0\0\x08\3" + b"\xff" * 12, 4, "promises"),
        (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"a", 4, "255 dimensions"),
    ],
)
def test_damage_is_told_with_file_and_offset(
    tmp_path: Path, data: bytes, offset: int, says: str, packed: bool
) -> None:
    path = written(tmp_path, data, packed)
    with pytest.raises(CorruptFile, match=says) as caught:
        read_idx(path)
    assert (caught.value.path, caught.value.offset) == (str(path), offset)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda packed: packed[:-8] + b"\0" * 8, "damaged gzip: CRC"),
        (lambda packed: packed + b"junk", "damaged gzip"),
        (lambda packed: packed + packed, "more follows"),
        (lambda packed: b"\x1f\x8b" + b"\xff" * 30, "damaged gzip"),
    ],
)
def test_bad_gzip_is_told(tmp_path: Path, spoil: object, says: str) -> None:
    path = tmp_path / "array"
    path.write_bytes(spoil(gzip.compress(SMALL)))  # type: ignore[operator]
    with pytest.raises(CorruptFile, match=says):
        read_idx(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, SMALL + b"\0" * (64 << 20), packed=True)
    asked: list[int] = []
    read = gzip.GzipFile.read

    def counting(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        asked.append(-1 if size is None else size)
        return read(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    with pytest.raises(CorruptFile, match="more follows"):
        read_idx(path)
    assert min(asked) >= 0
    assert sum(asked) == len(SMALL) + 1


def test_the_limit_is_checked_before_reading(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    assert read_idx(path, limit=6).size == 6
    with pytest.raises(CorruptFile, match="promises 6 bytes in 2 dimensions, limit is 5"):
        read_idx(path, limit=5)
    wide = written(tmp_path, idx_bytes(np.zeros(3, np.float64)))
    with pytest.raises(CorruptFile, match="promises 24 bytes"):
        read_idx(wide, limit=23)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_idx(tmp_path / "nothing")
    with pytest.raises(DataError, match="no such file"):
        read_idx(tmp_path)


TOY_Y = np.array([1, 0, 1, 2, 0, 0, 2, 1, 2, 1, 0], np.uint8)


def toy(folder: Path, **replaced: np.ndarray) -> Path:
    """Eleven training and six test images of 2x3 pixels; training image i is filled with 5 i."""
    folder.mkdir(parents=True, exist_ok=True)
    fill = (np.arange(11, dtype=np.uint8) * 5)[:, None, None]
    parts = {
        "train_x": np.broadcast_to(fill, (11, 2, 3)),
        "train_y": TOY_Y,
        "test_x": np.full((6, 2, 3), 255, np.uint8),
        "test_y": np.array([0, 1, 2, 0, 1, 2], np.uint8),
    } | replaced
    for number, (file, key) in enumerate(zip(FashionMNIST.files, parts, strict=True)):
        data = idx_bytes(np.ascontiguousarray(parts[key]))
        if number % 2:
            (folder / f"{file}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / file).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (FashionMNIST, "."),
        (FashionMNIST, "fashion-mnist"),
        (FashionMNIST, "FashionMNIST/raw"),
        (MNIST, "."),
        (MNIST, "mnist"),
        (MNIST, "MNIST/raw"),
    ],
)
def test_the_usual_folders_are_looked_in(
    tmp_path: Path, source: type[MNIST] | type[FashionMNIST], place: str
) -> None:
    toy(tmp_path / place)
    split = source(str(tmp_path)).load()
    assert split.protocol == "closed"
    assert split.name == source.name
    assert split.train.shape == (1, 2, 3)
    assert split.train.y.tolist() == TOY_Y.tolist()
    assert torch.equal(split.train.x[:, 0, 0, 0], torch.arange(11) * 5 / 255)
    assert (split.test.x == 1).all()
    assert len(split.train.class_names) == 10
    assert find(tmp_path)[source.name] == str(tmp_path / place)


def test_other_data_sets_folders_are_not_taken(tmp_path: Path) -> None:
    toy(tmp_path / "fashion-mnist")
    found = find(tmp_path)
    assert found["mnist"] == found["omniglot"] == "not found"
    with pytest.raises(DataError, match="mnist: missing"):
        MNIST(str(tmp_path)).load()


def test_subsets_keep_the_file_order(tmp_path: Path) -> None:
    split = FashionMNIST(str(toy(tmp_path)), train_per_class=2, test_images=3).load()
    assert (split.train.x[:, 0, 0, 0] * 51).round().int().tolist() == [0, 1, 2, 3, 4, 6]
    assert split.train.y.tolist() == [1, 0, 1, 2, 0, 2]
    assert split.test.y.tolist() == [0, 1, 2]


def test_subsets_that_are_too_large_are_told(tmp_path: Path) -> None:
    root = str(toy(tmp_path))
    with pytest.raises(DataError, match="4 images of every class, but class 2 has 3"):
        FashionMNIST(root, train_per_class=4).load()
    with pytest.raises(DataError, match="test_images=7, but the file holds 6"):
        FashionMNIST(root, test_images=7).load()
    with pytest.raises(InvalidArgument, match="train_per_class"):
        FashionMNIST(root, train_per_class=0)
    with pytest.raises(InvalidArgument, match="test_images"):
        FashionMNIST(root, test_images=-1)


def test_a_missing_member_is_named_with_all_folders(tmp_path: Path) -> None:
    folder = toy(tmp_path / "fashion-mnist")
    (folder / f"{TEST_Y}.gz").unlink()
    with pytest.raises(DataError) as caught:
        FashionMNIST(str(tmp_path)).load()
    message = str(caught.value)
    assert f"missing {TEST_Y} (or the same with .gz)" in message
    assert TRAIN_X not in message
    for place in ("fashion-mnist", "FashionMNIST/raw", ""):
        assert str(tmp_path / place) in message
    assert find(tmp_path)["fashion-mnist"] == "not found"


@pytest.mark.parametrize(
    ("replaced", "file", "says"),
    [
        ({"train_y": TOY_Y[:-1]}, TRAIN_Y, "need 11 byte labels"),
        ({"train_y": TOY_Y.astype(np.int32)}, TRAIN_Y, "need 11 byte labels, got int32"),
        ({"test_x": np.zeros((6, 6), np.uint8)}, TEST_X, r"bytes of shape \(n, h, w\), got uint8 \(6, 6\)"),
        ({"test_x": np.zeros((6, 2, 3), np.float32)}, TEST_X, "got float32"),
    ],
)
def test_files_that_do_not_fit_together(
    tmp_path: Path, replaced: dict[str, np.ndarray], file: str, says: str
) -> None:
    with pytest.raises(CorruptFile, match=says) as caught:
        FashionMNIST(str(toy(tmp_path, **replaced))).load()
    assert caught.value.path == str(tmp_path / file)


def test_labels_beyond_the_classes_and_empty_files_are_told(tmp_path: Path) -> None:
    strange = TOY_Y.copy()
    strange[4] = 10
    with pytest.raises(DataError, match="label 10 has no name"):
        FashionMNIST(str(toy(tmp_path / "a", train_y=strange))).load()
    empty = {"train_x": np.zeros((0, 2, 3), np.uint8), "train_y": np.zeros(0, np.uint8)}
    with pytest.raises(DataError, match="at least one image"):
        FashionMNIST(str(toy(tmp_path / "b", **empty)), train_per_class=2).load()


def test_the_two_data_sets_cannot_be_confused(tmp_path: Path) -> None:
    labels = np.concatenate([np.frombuffer(MNIST.first_labels, np.uint8), [0]]).astype(np.uint8)
    with pytest.raises(DataError, match=r"fashion-mnist: the files in .* are those of mnist"):
        FashionMNIST(str(toy(tmp_path, train_y=labels))).load()
    assert len(MNIST(str(tmp_path)).load().train) == 11


@real
def test_real_fashion_mnist_in_full() -> None:
    split = FashionMNIST(str(REAL)).load()
    assert (len(split.train), len(split.test)) == (60000, 10000)
    assert split.train.shape == split.test.shape == (1, 28, 28)
    assert split.train.y.bincount().tolist() == [6000] * 10
    assert split.test.y.bincount().tolist() == [1000] * 10
    assert (float(split.train.x.min()), float(split.train.x.max())) == (0.0, 1.0)
    assert float(split.train.x.mean(dtype=torch.float64)) == pytest.approx(0.2860, abs=5e-5)
    assert split.train.class_names[int(split.train.y[0])] == "Ankle boot"
    with pytest.raises(DataError, match="those of fashion-mnist"):
        MNIST(str(REAL / "fashion-mnist")).load()


@real
def test_real_fashion_mnist_small_protocol() -> None:
    assert find(REAL)["fashion-mnist"] == str(REAL / "fashion-mnist")
    split = FashionMNIST(str(REAL / "fashion-mnist"), train_per_class=200, test_images=500).load()
    assert split.train.y.bincount().tolist() == [200] * 10
    labels = read_idx(REAL / "fashion-mnist" / f"{TRAIN_Y}.gz")
    assert split.train.y[:1000].tolist() == labels[:1000].tolist()  # nothing is dropped that early
    assert len(split.test) == 500
    assert split.test.y.tolist() == read_idx(REAL / "fashion-mnist" / f"{TEST_Y}.gz")[:500].tolist()
