"""Readers of image folders, on tiny copies of their official layouts."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import struct
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from holdfast.config import allow, from_plain, to_plain
from holdfast.data import (
    CUB200,
    DATASETS,
    SOP,
    Cars196,
    DataSplit,
    ImageFolder,
    ImageSet,
    InShop,
    LazyImages,
    Manifest,
    find,
)
from holdfast.data import decode as decoding
from holdfast.errors import CorruptFile, DataError, InvalidArgument, MissingExtra
from holdfast.rng import stream

SMALL = {"resize": 16, "crop": 12}


def picture(path: Path, shade: int = 100, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    color = (shade, 255 - shade, 7) if mode == "RGB" else shade
    Image.new(mode, size, color).save(path)
    return path


def gradient(path: Path, side: int = 16) -> Path:
    """No two pixels are equal: red counts columns, green counts rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    down, across = np.indices((side, side))
    raw = np.stack([across * 10, down * 10, np.zeros_like(down)], axis=-1).astype(np.uint8)
    Image.fromarray(raw).save(path)
    return path


# --- official layouts -------------------------------------------------------------------------------------


def cub(root: Path) -> Path:
    names, labels = [], []
    for number, (label, species) in enumerate(
        [
            (200, "200.Wren"),
            (1, "001.Albatross"),
            (100, "100.Pelican"),
            (101, "101.Pelican"),
            (1, "001.Albatross"),
        ],
        start=1,
    ):
        names.append(f"{number} {species}/{number}.jpg")
        labels.append(f"{number} {label}")
        picture(root / "CUB_200_2011" / "images" / species / f"{number}.jpg", label)
    (root / "CUB_200_2011" / "images.txt").write_text("\n".join(reversed(names)) + "\n")
    (root / "CUB_200_2011" / "image_class_labels.txt").write_text("\n".join(labels) + "\n")
    return root / "CUB_200_2011"


def cars(
    root: Path, labels: tuple[int, ...] = (196, 1, 98, 99), key: str = "class", n_names: int = 196
) -> Path:
    kinds = [("relative_im_path", object), ("bbox_x1", object), (key, object), ("test", object)]
    table = np.empty((1, len(labels)), dtype=kinds)
    for i, label in enumerate(labels):
        table[0, i] = (f"car_ims/{i + 1:06d}.jpg", np.uint8(3), np.uint8(label), np.uint8(i % 2))
        picture(root / "cars196" / "car_ims" / f"{i + 1:06d}.jpg", label)
    names = np.empty((1, n_names), dtype=object)
    names[0] = [f"Car {i + 1}" for i in range(n_names)]
    savemat(root / "cars196" / "cars_annos.mat", {"annotations": table, "class_names": names})
    return root / "cars196"


def sop(root: Path) -> Path:
    folder = root / "Stanford_Online_Products"
    lists: dict[str, list[tuple[int, str]]] = {
        "Ebay_train.txt": [
            (1, "bicycle_final/111_0.JPG"),
            (1, "bicycle_final/111_1.JPG"),
            (2, "mug_final/22_0.JPG"),
        ],
        "Ebay_test.txt": [(11319, "mug_final/33_0.JPG"), (11320, "mug_final/44_0.JPG")],
    }
    for name, rows in lists.items():
        lines = [f"{i} {product} 1 {path}" for i, (product, path) in enumerate(rows, 1)]
        for product, path in rows:
            picture(folder / path.replace("JPG", "jpg"), product % 255).rename(folder / path)
        (folder / name).write_text("image_id class_id super_class_id path\n" + "\n".join(lines) + "\n")
    return folder


def in_shop(root: Path, images: str = "Img") -> Path:
    folder = root / "in-shop"
    rows = [
        ("1", "train"),
        ("2", "train"),
        ("1", "train"),
        ("3", "query"),
        ("4", "gallery"),
        ("3", "gallery"),
    ]
    lines = []
    for i, (item, side) in enumerate(rows):
        path = f"img/WOMEN/Dresses/id_{item}/{i}.jpg"
        picture(folder / images / path, i)
        lines.append(f"{path}   id_{item}  {side}")
    (folder / "Eval").mkdir()
    head = f"{len(rows)}\nimage_name item_id evaluation_status\n"
    (folder / "Eval" / "list_eval_partition.txt").write_text(head + "\n".join(lines) + "\n")
    return folder


def folder(root: Path, classes: str = "abcd", images: int = 4) -> Path:
    for i, name in enumerate(classes):
        for k in range(images):
            picture(root / name / f"{k}.{('png', 'JPG', 'bmp', 'webp')[k % 4]}", 20 * i + k)
    return root


def manifest(root: Path, text: str | None = None, images: str = "abcd") -> Path:
    for i, name in enumerate(images):
        for k in range(2):
            picture(root / "pictures" / f"{name}{k}.png", 20 * i + k)
    rows = [
        f"pictures/{n}{k}.png,class {n},{'train' if n < 'c' else 'test'}" for n in images for k in range(2)
    ]
    path = root / "manifest.csv"
    path.write_text(text if text is not None else "path,label,split\n" + "\n".join(rows) + "\n")
    return path


LAYOUTS: dict[str, tuple[Callable[[Path], Path], type]] = {
    "cub": (cub, CUB200),
    "cars": (cars, Cars196),
    "sop": (sop, SOP),
    "in-shop": (in_shop, InShop),
    "folder": (folder, ImageFolder),
    "manifest": (manifest, Manifest),
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path, type]:
    """Name, root, the data set's own folder or file, and its class."""
    make, source = LAYOUTS[request.param]
    return request.param, tmp_path, make(tmp_path), source


def files(found: ImageSet) -> list[str]:
    assert isinstance(found.x, LazyImages)
    return list(found.x.names)


def labelled(found: ImageSet) -> list[str]:
    return [found.class_names[i] for i in found.y.tolist()]


def test_every_layout_loads_lazily(layout: tuple[str, Path, Path, type]) -> None:
    name, root, own, source = layout
    split: DataSplit = source(str(root), **SMALL).load()
    assert DATASETS[name] is source
    assert split.name == name
    assert split.protocol == "zero-shot"
    assert split.train.shape == split.test.shape == (3, 12, 12)
    assert isinstance(split.train.x, LazyImages)
    x = split.test.x[:2]
    assert isinstance(x, torch.Tensor)
    assert x.shape == (2, 3, 12, 12)
    assert x.dtype == torch.float32
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    again: DataSplit = source(str(own), **SMALL).load()
    assert again.train.fingerprint() == split.train.fingerprint()  # the root does not count
    assert find(root)[name] != "not found"
    value = source(str(root), **SMALL)
    assert from_plain(json.loads(json.dumps(to_plain(value))), allow(source)) == value


def test_a_missing_image_is_named_with_its_place(layout: tuple[str, Path, Path, type]) -> None:
    name, root, _, source = layout
    split = source(str(root), **SMALL).load()
    lost = split.test.x.base / split.test.x.names[0]
    lost.unlink()
    if name == "folder":  # what is not there is not listed
        assert len(source(str(root), **SMALL).load().test) == len(split.test) - 1
        return
    with pytest.raises(DataError, match=f"{name}: missing image") as caught:
        source(str(root), **SMALL).load()
    assert str(lost) in str(caught.value)
    assert source.origin in str(caught.value)


@pytest.mark.parametrize("name", ["cub", "cars", "sop", "in-shop"])
def test_a_missing_list_is_named_with_places_and_archive(name: str, tmp_path: Path) -> None:
    make, source = LAYOUTS[name]
    own = make(tmp_path)
    (own / source.files[-1]).unlink()
    with pytest.raises(DataError) as caught:
        source(str(tmp_path), **SMALL).load()
    said = str(caught.value)
    assert f"{name}: missing {source.files[-1]}; looked in " in said
    assert str(own) in said
    assert said.endswith(source.origin)
    assert find(tmp_path)[name] == "not found"


def test_find_in_an_empty_or_absent_folder(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        assert all(place in ("embedded", "not found") for place in find(root).values())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_find_survives_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir(mode=0o000)
    assert find(tmp_path)["folder"] == "not found"


def test_cub_divides_by_class_and_orders_by_number(tmp_path: Path) -> None:
    cub(tmp_path)
    split = CUB200(str(tmp_path)).load()
    assert files(split.train) == ["001.Albatross/2.jpg", "100.Pelican/3.jpg", "001.Albatross/5.jpg"]
    assert files(split.test) == ["200.Wren/1.jpg", "101.Pelican/4.jpg"]
    assert split.train.y.tolist() == [0, 1, 0]
    assert split.test.y.tolist() == [3, 2]
    assert split.train.class_names == ("001.Albatross", "100.Pelican", "101.Pelican", "200.Wren")
    assert split.train.shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("image_class_labels.txt", "5 1", "5 201", r"class 201 is not in \[1, 200\]"),
        ("image_class_labels.txt", "5 1", "5 0", r"class 0 is not in"),
        ("image_class_labels.txt", "5 1", "6 1", "one label for each of the 5 images"),
        ("image_class_labels.txt", "5 1", "1 1", "one label for each of the 5 images"),
        ("image_class_labels.txt", "5 1", "5 one", "at byte 22: line 5: invalid literal"),
        ("image_class_labels.txt", "5 1", "5 1 1", "line 5: need 2 columns, got 3"),
        ("images.txt", "5 001", "4 001", "one label for each of the 5 images"),
        ("images.txt", "5 001", "5 \udcff", "at byte 0: line 1: .*utf-8"),
    ],
)
def test_cub_refuses_damaged_lists(tmp_path: Path, file: str, old: str, new: str, says: str) -> None:
    path = cub(tmp_path) / file
    path.write_text(path.read_text().replace(old, new), errors="surrogateescape")
    with pytest.raises(CorruptFile, match=says) as caught:
        CUB200(str(tmp_path)).load()
    assert str(path.parent) in str(caught.value)


def test_cars_divides_all_images_by_class(tmp_path: Path) -> None:
    cars(tmp_path)
    split = Cars196(str(tmp_path)).load()
    assert files(split.train) == ["car_ims/000002.jpg", "car_ims/000003.jpg"]
    assert labelled(split.train) == ["Car 1", "Car 98"]
    assert files(split.test) == ["car_ims/000001.jpg", "car_ims/000004.jpg"]
    assert labelled(split.test) == ["Car 196", "Car 99"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"labels": (1, 2, 99, 197)}, "got classes 1 to 197 and 196 names"),
        ({"labels": (0, 2, 99, 196)}, "got classes 0 to 196"),
        ({"n_names": 195}, "195 names"),
        ({"key": "kind"}, "need a MATLAB file with annotations"),
    ],
)
def test_cars_refuses_damaged_annotations(tmp_path: Path, settings: dict[str, object], says: str) -> None:
    path = cars(tmp_path, **settings) / "cars_annos.mat"  # type: ignore[arg-type]
    with pytest.raises(CorruptFile, match=says) as caught:
        Cars196(str(tmp_path)).load()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 127, 128, 140, 200, -5])
def test_cars_refuses_cut_annotations(tmp_path: Path, keep: int) -> None:
    path = cars(tmp_path) / "cars_annos.mat"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFile, match=r"cars_annos.mat"):
        Cars196(str(tmp_path)).load()


def test_sop_takes_sides_from_its_lists(tmp_path: Path) -> None:
    own = sop(tmp_path)
    split = SOP(str(tmp_path)).load()
    assert files(split.train) == ["bicycle_final/111_0.JPG", "bicycle_final/111_1.JPG", "mug_final/22_0.JPG"]
    assert labelled(split.train) == ["bicycle_final/111", "bicycle_final/111", "mug_final/22"]
    assert labelled(split.test) == ["mug_final/33", "mug_final/44"]
    assert split.train.y.tolist() == [0, 0, 1]
    path = own / "Ebay_test.txt"
    path.write_text(path.read_text().replace("11320", "2"))
    with pytest.raises(DataError, match=r"both sides: \[1\]"):
        SOP(str(tmp_path)).load()


@pytest.mark.parametrize("images", ["Img", "."])
def test_in_shop_joins_query_and_gallery(tmp_path: Path, images: str) -> None:
    path = in_shop(tmp_path, images) / "Eval" / "list_eval_partition.txt"
    split = InShop(str(tmp_path)).load()
    assert labelled(split.train) == ["id_1", "id_2", "id_1"]
    assert labelled(split.test) == ["id_3", "id_4", "id_3"]
    path.write_text(path.read_text().replace("query", "quarry"))
    with pytest.raises(CorruptFile, match="one of train, query, gallery, got 'quarry'"):
        InShop(str(tmp_path)).load()


# --- your own images --------------------------------------------------------------------------------------


def test_folder_zero_shot_tests_the_last_classes(tmp_path: Path) -> None:
    folder(tmp_path, "edcba", images=2)
    split = ImageFolder(str(tmp_path), test_share=0.4).load()
    assert files(split.train) == [f"{c}/{k}" for c in "abc" for k in ("0.png", "1.JPG")]
    assert split.train.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert split.test.classes == (3, 4)
    assert split.test.class_names == tuple("abcde")


def test_folder_closed_tests_the_last_images_of_every_class(tmp_path: Path) -> None:
    folder(tmp_path, "ab")
    picture(tmp_path / "c" / "only.png")
    split = ImageFolder(str(tmp_path), protocol="closed", test_share=0.25).load()
    assert files(split.test) == ["a/3.webp", "b/3.webp"]
    assert split.train.classes == (0, 1, 2)
    assert len(split.train) == 7
    most = ImageFolder(str(tmp_path), protocol="closed", test_share=0.75).load()
    assert files(most.train) == ["a/0.png", "b/0.png", "c/only.png"]


def test_folder_with_sides(tmp_path: Path) -> None:
    folder(tmp_path / "train", "ab", images=2)
    folder(tmp_path / "test", "cd", images=1)
    split = ImageFolder(str(tmp_path)).load()
    assert labelled(split.train) == ["a", "a", "b", "b"]
    assert files(split.test) == ["test/c/0.png", "test/d/0.png"]
    with pytest.raises(DataError, match=r"not trained on: \[2, 3\]"):
        ImageFolder(str(tmp_path), protocol="closed").load()
    folder(tmp_path / "train", "c", images=1)
    with pytest.raises(DataError, match=r"both sides: \[2\]"):
        ImageFolder(str(tmp_path)).load()


def test_folder_takes_train_for_a_class_when_there_is_no_test(tmp_path: Path) -> None:
    for name in ("train", "bus", "car", "tram"):
        folder(tmp_path / name, images=0)
        picture(tmp_path / name / "0.png")
    assert labelled(ImageFolder(str(tmp_path)).load().test) == ["train", "tram"]


def test_folder_passes_over_what_is_no_image(tmp_path: Path) -> None:
    folder(tmp_path)
    for path in (".hidden/x.png", "a/.x.png", "__MACOSX/y.png", "b/notes.txt", "readme.png"):
        picture(tmp_path / (path if path.endswith("png") else "b/n.png")).rename(tmp_path / path)
    (tmp_path / "a" / "nested.png").mkdir()
    split = ImageFolder(str(tmp_path)).load()
    assert (len(split.train), len(split.test)) == (8, 8)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda root: (root / "e").mkdir(), "e: no image in this class"),
        (
            lambda root: [p.rename(root.parent / f"away {p.name}") for p in list(root.iterdir())],
            "there are no folders",
        ),
        (lambda root: root.rename(root.parent / "elsewhere"), "there is no such folder"),
        (lambda root: [(root / c).rename(root.parent / c) for c in "cd"], "at least 2 classes, got 1"),
    ],
)
def test_folder_refuses(tmp_path: Path, break_it: Callable[[Path], object], says: str) -> None:
    root = folder(tmp_path / "root")
    break_it(root)
    with pytest.raises(DataError, match=says):
        ImageFolder(str(root)).load()


@pytest.mark.parametrize("source", [ImageFolder, Manifest, CUB200])
def test_settings_are_checked(source: type) -> None:
    for settings, says in [
        ({"resize": 0}, "resize: need"),
        ({"resize": 5000}, "resize: need"),
        ({"crop": 257}, r"crop: need an integer in \[1, 256\]"),
        ({"crop": 0}, "crop: need"),
        ({"resize": 16.0, "crop": 8}, "resize: need"),
    ]:
        with pytest.raises(InvalidArgument, match=says):
            source("x", **settings)
    if source is not CUB200:
        with pytest.raises(InvalidArgument, match="protocol"):
            source("x", protocol="open")
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidArgument, match="test_share"):
            ImageFolder("x", test_share=share)


def test_manifest_reads_csv(tmp_path: Path) -> None:
    text = (
        "\ufefflabel,note,path,split\r\n"
        '"Größe, 7",,pictures/a0.png,train\r\n'
        "\r\n"
        '"say ""x""",1,pictures/b0.png,train\r\n'
        "c,2,pictures/c0.png,test\r\n"
        "10,3,pictures/d1.png,test"
    )
    path = manifest(tmp_path, text)
    split = Manifest(str(path)).load()
    assert labelled(split.train) == ["Größe, 7", 'say "x"']
    assert labelled(split.test) == ["c", "10"]
    assert files(split.test) == ["pictures/c0.png", "pictures/d1.png"]
    assert split.train.class_names == tuple(sorted(["Größe, 7", 'say "x"', "c", "10"]))
    assert Manifest.locate(tmp_path) == path
    other = path.rename(tmp_path / "other.CSV")
    assert files(Manifest(str(other)).load().train) == ["pictures/a0.png", "pictures/b0.png"]
    with pytest.raises(DataError, match=r"need a .csv or .parquet file"):
        Manifest(str(tmp_path)).load()


def test_manifest_closed(tmp_path: Path) -> None:
    rows = ["a0.png,x,train", "a1.png,x,test", "b0.png,y,train", "b1.png,y,test"]
    text = "path,label,split\n" + "".join(f"pictures/{row}\n" for row in rows)
    path = manifest(tmp_path, text)
    assert Manifest(str(path), protocol="closed").load().test.y.tolist() == [0, 1]
    with pytest.raises(DataError, match="both sides"):
        Manifest(str(path)).load()


GOOD = "pictures/a0.png,a,train"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "need the columns path, label, split once each, got"),
        (f"path,label\n{GOOD}\n", "need the columns"),
        (f"path,label,split,path\n{GOOD},x\n", "need the columns"),
        (f"path,label,split\n{GOOD},more\n", "line 2: need 3 columns, got 4"),
        (f"path,label,split\n{GOOD}\npictures/a1.png,a,query\n", "line 3: need .* got .* 'query'"),
        ("path,label,split\npictures/a0.png,,train\n", "line 2: need a path, a label"),
        ("path,label,split\n,a,train\n", "line 2: need a path"),
        ('path,label,split\n"pictures/a0.png,a,train\n', "line 2: unexpected end"),
        (f"path,label,split\n{GOOD}\n{GOOD.replace('train', 'test')}\n", "line 3: .* listed twice"),
        (f"path,label,split\n{GOOD}\n", "at least 2 classes"),
        ("path,label,split\n", "at least one image"),
    ],
)
def test_manifest_refuses(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Manifest(str(manifest(tmp_path, text))).load()


def test_manifest_refuses_other_encodings(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    path.write_bytes(b"path,label,split\n\xff\xfe")
    with pytest.raises(CorruptFile, match="at byte 17: not UTF-8"):
        Manifest(str(path)).load()


def parquet_module(columns: dict[str, list[object]]) -> types.ModuleType:
    """A stand-in with the three calls that are used."""

    class ParquetFile:
        def __init__(self, path: Path) -> None:
            if path.read_bytes() != b"PAR1":
                raise ValueError("no magic")
            self.schema_arrow = types.SimpleNamespace(names=list(columns))

        def read(self, columns: list[str]) -> ParquetFile:
            self.wanted = columns
            return self

        def to_pydict(self) -> dict[str, list[object]]:
            return {name: columns[name] for name in self.wanted}

    module = types.ModuleType("pyarrow.parquet")
    module.ParquetFile = ParquetFile  # type: ignore[attr-defined]
    return module


def test_manifest_reads_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(tmp_path).unlink()
    path = tmp_path / "manifest.parquet"
    path.write_bytes(b"PAR1")
    columns: dict[str, list[object]] = {
        "path": [f"pictures/{n}0.png" for n in "abcd"],
        "label": [3, 1, 4, 2],
        "split": ["train", "train", "test", "test"],
        "extra": [0, 0, 0, 0],
    }
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet_module(columns))
    assert labelled(Manifest(str(tmp_path)).load().train) == ["3", "1"]
    columns["label"][2] = None
    with pytest.raises(CorruptFile, match="row 2: need a path, a label"):
        Manifest(str(tmp_path)).load()
    del columns["split"]
    with pytest.raises(CorruptFile, match="need the columns"):
        Manifest(str(tmp_path)).load()
    path.write_bytes(b"else")
    with pytest.raises(CorruptFile, match="no Parquet table: no magic"):
        Manifest(str(tmp_path)).load()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match="pyarrow"):
        Manifest(str(tmp_path)).load()


def test_manifest_reads_real_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    manifest(tmp_path).unlink()
    columns = {"path": [f"pictures/{n}0.png" for n in "abcd"], "label": [3, 1, 4, 2]}
    parquet.write_table(
        arrow.table({**columns, "split": ["train"] * 2 + ["test"] * 2}), tmp_path / "t.parquet"
    )
    assert labelled(Manifest(str(tmp_path / "t.parquet")).load().train) == ["3", "1"]
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptFile, match="no Parquet table"):
        Manifest(str(tmp_path / "t.parquet")).load()


# --- paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../out.png",
        "a/../../out.png",
        "a/..",
        "{root}/out.png",
        "C:\\out.png",
        "..\\out.png",
        "\\\\host\\x",
        ".",
        "a\0b",
    ],
)
def test_paths_may_not_leave_their_folder(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "out.png")
    picture(tmp_path / "in" / "a" / "x.png")
    with pytest.raises(DataError, match="leaves its folder"):
        LazyImages(tmp_path / "in", [name.format(root=tmp_path)])
    if "\0" not in name and name != ".":
        rows = f"path,label,split\n{name.format(root=tmp_path)},a,train\n"
        with pytest.raises(DataError, match=r"manifest: path .* leaves its folder"):
            Manifest(str(manifest(tmp_path / "in", rows))).load()


def test_links_may_not_leave_their_folder(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    picture(tmp_path / "out" / "x.png")
    picture(tmp_path / "in side" / "x.png")  # shares the beginning of the name
    picture(inside / "real" / "x.png")
    (inside / "file.png").symlink_to(tmp_path / "out" / "x.png")
    (inside / "up").symlink_to("..")
    (inside / "near").symlink_to("../in side")
    (inside / "good").symlink_to("real")
    (inside / "good.png").symlink_to("real/x.png")
    (inside / "dangling.png").symlink_to("nothing.png")
    for name in ("file.png", "up/out/x.png", "near/x.png"):
        with pytest.raises(DataError, match="a link leads to"):
            LazyImages(inside, [name])
    (tmp_path / "alias").symlink_to("in")  # the root itself may be a link
    assert len(LazyImages(tmp_path / "alias", ["good/x.png", "good.png", "real/x.png"])) == 3
    for name in ("dangling.png", "real/absent.png", "real/x.png/y.png"):
        with pytest.raises(DataError, match="missing image"):
            LazyImages(inside, [name])
    with pytest.raises(DataError, match="need a plain file"):
        LazyImages(inside, ["real"])


# --- decoding ---------------------------------------------------------------------------------------------


def test_indexing_is_a_tensors_indexing(tmp_path: Path) -> None:
    names = [picture(tmp_path / f"{i}.png", 40 * i).name for i in range(5)]
    x = LazyImages(tmp_path, names, **SMALL)
    dense = x[:]
    assert isinstance(dense, torch.Tensor)
    assert x.shape == dense.shape == (5, 3, 12, 12)
    assert (x.ndim, x.dtype, x.device) == (dense.ndim, dense.dtype, dense.device)
    assert (dense[:, 0, 0, 0] * 255).round().int().tolist() == [0, 40, 80, 120, 160]
    rows = torch.tensor([3, 0, 3])
    mask = torch.tensor([True, False, True, False, False])
    grid = torch.tensor([[0, 1, 2], [4, 4, 3]])
    for index in (slice(1, 4), slice(None, None, 2), slice(9, 12), [2, 1], rows, mask, grid, 3, -1, rows[:0]):
        assert torch.equal(x[index], dense[index]), index
    for bad in (5, [0, 7], torch.tensor([-6]), (0, 1)):
        with pytest.raises(IndexError):
            x[bad]
    assert torch.equal(x.subset(rows)[:], dense[rows])
    assert x.subset(rows).sizes == tuple(x.sizes[i] for i in (3, 0, 3))
    assert x.to("cpu").to(torch.device("cpu")).device == torch.device("cpu")
    assert x.to("meta").device == torch.device("meta")
    assert x.device == torch.device("cpu")
    assert "5 files" in repr(x)


def test_the_centre_of_the_squeezed_image_is_seen(tmp_path: Path) -> None:
    gradient(tmp_path / "g.png")
    seen = LazyImages(tmp_path, ["g.png"], **SMALL)[0]
    assert (seen[0, 0] * 255 / 10).round().int().tolist() == list(range(2, 14))  # columns
    assert (seen[1, :, 0] * 255 / 10).round().int().tolist() == list(range(2, 14))
    wide = Image.new("RGB", (40, 10), "black")
    wide.paste("white", (20, 0, 40, 10))
    wide.save(tmp_path / "wide.png")
    squeezed = LazyImages(tmp_path, ["wide.png"], resize=8, crop=8)[[0]][0, 0]
    assert torch.equal(squeezed[:, :3], torch.zeros(8, 3))
    assert torch.equal(squeezed[:, 5:], torch.ones(8, 3))


def test_pixels_equal_pillows_own(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "n.jpg")
    with Image.open(tmp_path / "n.jpg") as image:
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR).crop((2, 2, 14, 14)))
    found = LazyImages(tmp_path, ["n.jpg"], **SMALL)[0]
    assert torch.equal(found, torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 255)


def flat(path: Path) -> list[int]:
    """The one colour of an image."""
    x = LazyImages(path.parent, [path.name], resize=4, crop=4)[0]
    assert bool((x == x[:, :1, :1]).all())
    return (x[:, 0, 0] * 255).round().int().tolist()


def test_modes_become_rgb_over_white(tmp_path: Path) -> None:
    def saved(image: Image.Image, name: str, **options: object) -> Path:
        image.save(tmp_path / name, **options)  # type: ignore[arg-type]
        return tmp_path / name

    assert flat(saved(Image.new("L", (6, 5), 90), "grey.png")) == [90, 90, 90]
    assert flat(saved(Image.new("L", (6, 5), 90), "grey.jpg")) == [90, 90, 90]
    assert flat(saved(Image.new("1", (6, 5), 1), "one.png")) == [255, 255, 255]
    assert flat(saved(Image.new("LA", (6, 5), (0, 51)), "la.png")) == [204, 204, 204]
    assert flat(saved(Image.new("RGBA", (6, 5), (0, 255, 0, 0)), "clear.png")) == [255, 255, 255]
    assert flat(saved(Image.new("RGBA", (6, 5), (255, 0, 0, 51)), "pale.png")) == [255, 204, 204]
    assert flat(saved(Image.new("RGBA", (6, 5), (255, 0, 0, 255)), "solid.webp", lossless=True)) == [
        255,
        0,
        0,
    ]
    palette = Image.new("P", (6, 5), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert flat(saved(palette, "palette.png")) == [10, 20, 30]
    assert flat(saved(palette, "palette.gif")) == [10, 20, 30]
    assert flat(saved(palette, "hole.png", transparency=1)) == [255, 255, 255]
    assert flat(saved(Image.new("RGB", (6, 5), (9, 8, 7)), "key.png", transparency=(9, 8, 7))) == [
        255,
        255,
        255,
    ]
    deep = Image.fromarray(np.full((5, 6), 0x8040, dtype=np.uint16))
    assert flat(saved(deep, "deep.png")) == [128, 128, 128]
    red, green, blue = flat(saved(Image.new("CMYK", (6, 5), (0, 255, 255, 0)), "cmyk.jpg"))
    assert red > 240
    assert max(green, blue) < 15


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    picture_ = Image.new("RGB", (8, 8), "black")
    picture_.paste("white", (0, 0, 8, 4))
    exif = picture_.getexif()
    exif[0x0112] = 3  # upside down
    picture_.save(tmp_path / "x.png", exif=exif)
    x = LazyImages(tmp_path, ["x.png"], resize=8, crop=8)[0]
    assert float(x[:, 0].min()) == 1
    assert float(x[:, -1].max()) == 0


def png_of(width: int, height: int) -> bytes:
    """A header that promises a size, without the pixels."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


@pytest.mark.parametrize("side", [8200, 9500, 30000, 2**31 - 1])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_from_the_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(side, side))
    with pytest.raises(CorruptFile, match=r"bomb.png: cannot be read: .*limit is 67108864"):
        LazyImages(tmp_path, ["bomb.png"])[0]


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_when_warnings_are_errors(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(9500, 9500))
    with pytest.raises(CorruptFile, match="limit is 67108864"):
        LazyImages(tmp_path, ["bomb.png"])[0]


def test_the_limit_itself_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PIXEL_LIMIT", 320)
    picture(tmp_path / "at.png", size=(20, 16))
    picture(tmp_path / "over.png", size=(107, 3))
    x = LazyImages(tmp_path, ["at.png", "over.png"], **SMALL)
    assert x[:1].shape == (1, 3, 12, 12)
    with pytest.raises(CorruptFile, match=r"over.png: cannot be read: 107x3 pixels, limit is 320"):
        x[1]


def tiff(path: Path) -> None:
    Image.new("RGB", (6, 5)).save(path, format="TIFF")


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("x.jpg", lambda p: p.write_bytes(p.read_bytes()[:-200]), "damaged image"),
        ("x.png", lambda p: p.write_bytes(p.read_bytes()[:60]), "damaged image"),
        ("x.png", lambda p: p.write_bytes(p.read_bytes()[:20]), "x.png: cannot be read"),
        ("x.jpg", lambda p: p.write_bytes(b""), "no image of the formats JPEG, PNG"),
        ("x.jpg", lambda p: p.write_text("<html>not found</html>"), "no image of the formats"),
        ("x.png", tiff, "no image of the formats"),
        (
            "x.png",
            lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
            "no image of",
        ),
        ("x.png", lambda p: p.unlink(), "and is gone"),
        ("x.png", lambda p: (p.unlink(), p.mkdir()), "x.png: cannot be read"),
    ],
)
@pytest.mark.parametrize("workers", [1, 4])
def test_a_file_that_cannot_be_decoded_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], object], says: str, workers: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    names = [picture(tmp_path / "good.png").name, name, "good.png"]
    x = LazyImages(tmp_path, names, workers=workers, **SMALL)
    damage(tmp_path / name)
    with pytest.raises(CorruptFile, match=says) as caught:
        x[:]
    assert str(tmp_path / name) in str(caught.value)
    assert x[[0, 2]].shape == (2, 3, 12, 12)


def test_flipped_bytes_decode_or_are_refused(tmp_path: Path) -> None:
    """Whatever a damaged file makes Pillow raise, it arrives as one kind of error."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    outcomes = set()
    for suffix in ("png", "jpg", "gif", "bmp", "webp"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(noise).save(path)
        good = path.read_bytes()
        x = LazyImages(tmp_path, [path.name], **SMALL)
        for _ in range(60):
            data = bytearray(good)
            data[rng.integers(len(data))] = rng.integers(256)
            path.write_bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data)
            try:
                outcomes.add(tuple(x[[0]].shape))
            except CorruptFile as error:
                outcomes.add(error.path == str(path))
    assert outcomes == {(1, 3, 12, 12), True}


# --- augmentation -----------------------------------------------------------------------------------------


@pytest.fixture
def ramps(tmp_path: Path) -> LazyImages:
    names = [gradient(tmp_path / f"{i}.png").name for i in range(6)]
    return LazyImages(tmp_path, names, **SMALL)


def test_augmentation_follows_the_stream(ramps: LazyImages) -> None:
    rows = torch.tensor([0, 1, 2, 3])
    first = ramps.augmented(rows, stream(0, "augment", 7))
    assert torch.equal(ramps.augmented(rows, stream(0, "augment", 7)), first)
    assert not torch.equal(ramps.augmented(rows, stream(0, "augment", 8)), first)
    assert not torch.equal(first[0], first[1])  # equal files: each row has numbers of its own
    state = torch.random.get_rng_state()
    ramps.augmented(rows, stream(0, "augment", 7))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_augmentation_does_not_depend_on_the_batch(ramps: LazyImages) -> None:
    one = ramps.augmented([5, 2, 0, 3], stream(0, "augment", 1))
    other = ramps.augmented([2, 4, 3], stream(0, "augment", 1))
    assert torch.equal(other[0], one[1])
    assert torch.equal(other[2], one[3])
    ramps.workers = 1
    assert torch.equal(ramps.augmented([5, 2, 0, 3], stream(0, "augment", 1)), one)


def test_an_image_that_comes_twice_is_cut_twice(ramps: LazyImages) -> None:
    twice = ramps.augmented([1, 1, 3, 1], stream(0, "augment", 1))
    assert not torch.equal(twice[0], twice[1])
    assert torch.equal(twice[0], ramps.augmented([1], stream(0, "augment", 1))[0])


def test_augmentation_reaches_every_place_and_both_sides(ramps: LazyImages) -> None:
    places: dict[tuple[int, int], int] = {}
    flips = 0
    for step in range(60):
        x = (ramps.augmented(range(6), stream(0, "augment", step)) * 25.5).round().int()
        for image in x:
            columns, top = image[0, 0].tolist(), int(image[1, 0, 0])
            assert columns in (sorted(columns), sorted(columns, reverse=True))
            assert max(columns) - min(columns) == 11
            flips += columns[0] > columns[-1]
            places[min(columns), top] = places.get((min(columns), top), 0) + 1
    assert set(places) == {(left, top) for left in range(5) for top in range(5)}  # 16 - 12 + 1 = 5 a side
    assert max(places.values()) < 35  # 360 draws, 14.4 expected
    assert 140 < flips < 220


def test_without_room_only_the_flip_is_random(tmp_path: Path) -> None:
    gradient(tmp_path / "g.png")
    x = LazyImages(tmp_path, ["g.png"], resize=16, crop=16)
    seen = x.augmented([0] * 12, stream(0, "augment", 0))
    plain, mirrored = x[0], x[0].flip(-1)
    kinds = {0 if torch.equal(i, plain) else 1 if torch.equal(i, mirrored) else 2 for i in seen}
    assert kinds == {0, 1}


# --- the set ----------------------------------------------------------------------------------------------


def test_image_set_keeps_files_as_files(ramps: LazyImages) -> None:
    found = ImageSet(ramps, torch.tensor([0, 0, 1, 1, 2, 2]), "toy")
    assert repr(found) == "ImageSet('toy': 6 images of 3x12x12, 3 classes)"
    for part in (found.take([4, 1]), found.of_classes([0, 2]), found.first(4), found.first_per_class(1)):
        assert isinstance(part.x, LazyImages)
    assert files(found.take([4, 1])) == ["4.png", "1.png"]
    with pytest.raises(DataError, match="label for each of the 6 images"):
        ImageSet(ramps, torch.tensor([0, 1]), "toy")
    with pytest.raises(DataError, match="at least one image"):
        found.take([])


def test_fingerprint_is_of_names_sizes_sides_and_labels(tmp_path: Path) -> None:
    names = [picture(tmp_path / "one" / f"{i}.png", i).name for i in range(3)]
    y = torch.tensor([0, 1, 1])

    def mark(base: str = "one", sides: tuple[int, int] = (16, 12), y: torch.Tensor = y) -> str:
        x = LazyImages(tmp_path / base, names, resize=sides[0], crop=sides[1])
        return ImageSet(x, y, "toy").fingerprint()

    sizes = [(tmp_path / "one" / name).stat().st_size for name in names]
    listing = json.dumps([16, 12, names, sizes], separators=(",", ":")).encode()
    assert mark() == hashlib.sha256(listing + y.numpy().tobytes()).hexdigest()
    others = [mark(sides=(17, 12)), mark(sides=(16, 11)), mark(y=torch.tensor([0, 0, 1]))]
    (tmp_path / "one").rename(tmp_path / "two")
    assert mark("two") == (before := mark("two"))
    with (tmp_path / "two" / "1.png").open("ab") as handle:
        handle.write(b"\0")
    others.append(mark("two"))
    assert len({before, *others}) == 5


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_are_checked(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InvalidArgument, match="workers"):
        LazyImages(tmp_path, [], workers=workers)
