from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.data import DataSplit, Omniglot, find
from holdfast.errors import CorruptFile, DataError, InvalidArgument

ROOT = Path(__file__).resolve().parents[2].parent / "shared" / "data"
real = pytest.mark.skipif(not (ROOT / "omniglot").exists(), reason="Omniglot is not here")
SMALL1, SMALL2 = "images_background_small1.zip", "images_background_small2.zip"


def png(pixels: np.ndarray, mode: str = "1") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def drawing(row: int) -> bytes:
    """White paper of 12x12 with one black line."""
    paper = np.ones((12, 12))
    paper[row] = 0
    return png(paper)


def archive(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{path.stem}/", b"")
        for name, data in members.items():
            file.writestr(name, data)


def toy(folder: Path, extra: dict[str, bytes] | None = None) -> Omniglot:
    """Two alphabets of two characters; the members are stored in no useful order."""
    folder.mkdir(parents=True, exist_ok=True)
    first = {
        "s/Beta/character02/2_1.png": drawing(7),
        "s/Beta/character01/1_2.png": drawing(6),
        "s/Alpha/character01/9_1.png": drawing(2),
        "s/Beta/character01/1_1.png": drawing(5),
        "s/Alpha/character02/3_1.png": drawing(4),
        "__MACOSX/s/Beta/._x.png": b"no image",
        "s/readme.txt": b"no image",
    }
    archive(folder / SMALL1, first | (extra or {}))
    second = {f"s/{name}/character0{c}/1_1.png": drawing(c) for name in ("Alpha", "Gamma") for c in (1, 2)}
    archive(folder / SMALL2, second)
    return Omniglot(str(folder), size=12, train_alphabets=("Alpha", "Beta"), test_alphabets=("Gamma",))


def test_order_labels_and_ink(tmp_path: Path) -> None:
    split = toy(tmp_path).load()
    assert split.protocol == "zero-shot"
    assert split.train.class_names == split.test.class_names
    assert split.train.class_names == (
        "Alpha/character01",
        "Alpha/character02",
        "Beta/character01",
        "Beta/character02",
        "Gamma/character01",
        "Gamma/character02",
    )
    assert split.train.y.tolist() == [0, 1, 2, 2, 3]
    assert split.test.y.tolist() == [4, 5]
    ink = split.train.x[:, 0]  # (5, 12, 12): one line of ones each
    assert ink.sum((1, 2)).tolist() == [12.0] * 5
    assert ink.mean(2).argmax(1).tolist() == [2, 4, 5, 6, 7]


def test_resizing_averages_areas(tmp_path: Path) -> None:
    toy(tmp_path)
    split = Omniglot(str(tmp_path), size=4, train_alphabets=("Beta",), test_alphabets=("Gamma",)).load()
    assert split.train.shape == (1, 4, 4)
    expected = torch.zeros(3, 1, 4, 4)
    for image, row in enumerate((5, 6, 7)):
        expected[image, 0, row // 3] = 85 / 255  # one line in three
    assert torch.allclose(split.train.x, expected)


def test_all_png_modes_are_read(tmp_path: Path) -> None:
    paper = np.ones((12, 12))
    paper[3] = 0
    extra = {f"s/Beta/character03/{mode}.png": png(paper, mode) for mode in ("1", "L", "RGB", "P")}
    split = toy(tmp_path, extra).load()
    same = split.train.x[split.train.y == 4]
    assert len(same) == 4
    assert (same == same[0]).all()


def test_folders_and_find(tmp_path: Path) -> None:
    toy(tmp_path / "omniglot")
    assert find(tmp_path)["omniglot"] == str(tmp_path / "omniglot")
    assert find(tmp_path / "omniglot")["omniglot"] == str(tmp_path / "omniglot")
    (tmp_path / "omniglot" / SMALL2).unlink()
    assert find(tmp_path)["omniglot"] == "not found"
    with pytest.raises(DataError) as caught:
        Omniglot(str(tmp_path)).load()
    assert f"missing {SMALL2}; looked in {tmp_path / 'omniglot'}, {tmp_path}" in str(caught.value)
    assert SMALL1 not in str(caught.value)


def test_an_absent_alphabet_is_told_with_those_present(tmp_path: Path) -> None:
    toy(tmp_path)
    source = Omniglot(str(tmp_path), train_alphabets=("Alpha", "Delta"), test_alphabets=("Gamma",))
    with pytest.raises(DataError, match=r"no alphabet \['Delta'\]; present are \['Alpha', 'Beta'\]"):
        source.load()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"size": 3}, "size"),
        ({"size": 100000}, "size"),
        ({"train_alphabets": ()}, "train_alphabets"),
        ({"test_alphabets": "Tagalog"}, "test_alphabets"),
        ({"test_alphabets": ("Greek", "Sanskrit")}, r"not trained on, got \['Greek'\]"),
    ],
)
def test_bad_fields_are_told(fields: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        Omniglot("anywhere", **fields)  # type: ignore[arg-type]


def header_only_png(width: int, height: int) -> bytes:
    good = bytearray(drawing(0))
    good[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    good[29:33] = zlib.crc32(good[12:29]).to_bytes(4, "big")
    return bytes(good)


def spoiled(data: bytes) -> bytes:
    middle = data.index(b"IDAT") + 8
    return data[:middle] + bytes(b ^ 0x5A for b in data[middle:])


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("s/Beta/character01/bad.png", b"not an image", "damaged PNG"),
        ("s/Beta/character01/bad.png", b"", "damaged PNG"),
        ("s/Beta/character01/bad.png", drawing(3)[:50], "damaged PNG"),
        ("s/Beta/character01/bad.png", spoiled(drawing(3)), "damaged PNG"),
        ("s/Beta/character01/bad.png", b"GIF89a" + b"\0" * 40, "damaged PNG"),
        ("s/Beta/character01/bad.png", b"\0" * ((1 << 20) + 1), "unpacks to 1048577 bytes"),
        ("s/Beta/character01/bad.png", header_only_png(3000, 5), "limit is 2048"),
        ("s/Beta/character01/bad.png", header_only_png(60000, 60000), "damaged PNG|limit is 2048"),
        ("/s/Beta/character01/bad.png", drawing(3), "unsafe member name"),
        ("s/../character01/bad.png", drawing(3), "unsafe member name"),
        ("s\\..\\bad.png", drawing(3), "unsafe member name"),
        ("C:/Beta/character01/bad.png", drawing(3), "unsafe member name"),
    ],
)
def test_bad_members_are_told_by_name(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    source = toy(tmp_path, {name: data})
    with pytest.raises(CorruptFile, match=says) as caught:
        source.load()
    assert caught.value.path == f"{tmp_path / SMALL1}!{name}"


def test_a_damaged_member_is_told_by_name(tmp_path: Path) -> None:
    source = toy(tmp_path)
    path = tmp_path / SMALL1
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("s/Beta/character01/1_2.png")
    data = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    for at in range(start, start + info.compress_size):
        data[at] ^= 0x5A
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match="damaged zip member") as caught:
        source.load()
    assert caught.value.path == f"{path}!s/Beta/character01/1_2.png"


def test_a_damaged_archive_is_told_wherever_it_is_damaged(tmp_path: Path) -> None:
    source = toy(tmp_path)
    good = source.load()
    path = tmp_path / SMALL1
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFile):
            source.load()
    told = 0
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found = source.load()
        except DataError:  # a changed name can also make an alphabet vanish
            told += 1
        else:  # a date or a flag that does not matter; or a renamed member that is no drawing any more
            assert len(found.train) <= len(good.train)
    assert told > 50


@pytest.fixture(scope="module")
def omniglot() -> DataSplit:
    return Omniglot(str(ROOT)).load()


@real
def test_real_omniglot_counts(omniglot: DataSplit) -> None:
    train, test = omniglot.train, omniglot.test
    assert (len(train), train.n_classes, len(test), test.n_classes) == (2720, 136, 2120, 106)
    assert train.shape == test.shape == (1, 28, 28)
    assert train.y.bincount().tolist() == [20] * 136
    assert test.classes == tuple(range(136, 242))
    alphabets = {train.class_names[c].split("/")[0] for c in train.classes}
    assert alphabets == {"Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"}
    assert {test.class_names[c].split("/")[0] for c in test.classes} == {
        "Japanese_(katakana)",
        "Sanskrit",
        "Tagalog",
    }
    assert list(train.class_names[:136]) == sorted(train.class_names[:136])


@real
def test_real_omniglot_has_white_strokes_on_black(omniglot: DataSplit) -> None:
    x = omniglot.train.x
    assert float(x[:, :, 0].mean()) < 0.02  # the border is paper
    assert 0.02 < float(x.mean()) < 0.15
    assert float(x.flatten(1).max(1).values.min()) > 0.3  # every drawing has ink


@real
def test_real_omniglot_alphabets_and_size_can_be_chosen() -> None:
    source = Omniglot(str(ROOT), size=105, train_alphabets=("Greek",), test_alphabets=("Tagalog",))
    split = source.load()
    assert (split.train.n_classes, split.test.n_classes) == (24, 17)
    assert split.train.shape == (1, 105, 105)
    assert set(split.train.x.unique().tolist()) == {0.0, 1.0}  # the originals are binary
    assert split.train.fingerprint() == source.load().train.fingerprint()
