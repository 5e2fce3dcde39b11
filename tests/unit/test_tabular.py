"""Tables: official splits and scaling against measured figures, file formats, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from holdfast.data.tabular import TABLES, Table, load_table
from holdfast.errors import CorruptFile, DataError, InvalidArgument, UnknownName

SHARED = Path(__file__).resolve().parents[3] / "shared"
DATA = SHARED / "data"
RNG = np.random.default_rng(0)


def nearest_gap(t: Table) -> np.ndarray:
    """Squared distance to the nearest of another class less that to the nearest of the own class."""
    d = ((t.x_test**2).sum(1)[:, None] + (t.x_train**2).sum(1)) - 2 * t.x_test @ t.x_train.T
    same = t.y_test[:, None] == t.y_train
    gap: np.ndarray = np.where(same, np.inf, d).min(1) - np.where(same, d, np.inf).min(1)
    return gap


@pytest.mark.parametrize(
    ("name", "train", "test", "wrong"),
    [("digits", (1257, 64), 540, 8), ("breast-cancer", (398, 30), 171, 11), ("wine", (124, 13), 54, 0)],
)
def test_bundled_sets_follow_the_published_protocol(
    name: str, train: tuple[int, int], test: int, wrong: int
) -> None:
    t = load_table(name)
    assert t.x_train.shape == train
    assert len(t.y_test) == test
    assert t.name == name
    assert t.x_train.min() == 0
    assert abs(t.x_train.max() - 1) < 1e-15
    assert int((nearest_gap(t) <= 1e-12).sum()) == wrong  # 1.5 %, 6.4 %, 0 % of the baseline page
    assert "random_state=0" in t.provenance
    assert "MinMaxScaler" in t.provenance


def test_test_features_may_leave_the_unit_interval_and_constant_columns_stay() -> None:
    t = load_table("breast-cancer")
    assert round(t.x_test.min(), 2) == -0.07
    assert round(t.x_test.max(), 2) == 1.38
    digits = load_table("digits")
    constant = np.ptp(digits.x_train, axis=0) == 0
    assert constant.any()
    assert digits.x_train[:, constant].max() == 0
    assert digits.x_test.max() == pytest.approx(8 / 3)
    assert t.features == tuple(load_breast_cancer().feature_names)
    assert t.class_names == (
        "malignant",
        "benign",
    )


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(("name", "train", "test", "wrong"), [
    ("pendigits", (7494, 16), 3498, 12), ("dna", (2000, 180), 1186, 141),
])  # fmt: skip
def test_official_files(name: str, train: tuple[int, int], test: int, wrong: int) -> None:
    t = load_table(name, DATA)
    assert t.x_train.shape == train
    assert t.x_test.shape == (test, train[1])
    part = load_table(name, DATA, n_test=500)
    assert np.array_equal(part.x_test, t.x_test[:500])
    assert int((nearest_gap(part) <= 1e-9).sum()) == wrong  # 2.4 % and 28.2 %, ties being wrong
    assert np.array_equal(load_table(name, DATA / name).x_train, t.x_train)


@pytest.mark.skipif(not (SHARED / "golden" / "arml_runs.npz").is_file(), reason="golden file is not here")
@pytest.mark.parametrize(("ours", "theirs"), [("wine", "wine"), ("breast-cancer", "breast")])
def test_the_order_of_test_points_is_that_of_the_golden_radii(ours: str, theirs: str) -> None:
    with np.load(SHARED / "golden" / "arml_runs.npz") as file:
        radius = file[f"{theirs}.euclidean.exact1"]
    t = load_table(ours)
    gap = nearest_gap(t)
    assert np.array_equal(radius > 0, gap > 0)
    near = np.sqrt(((t.x_test[:, None] - t.x_train) ** 2).sum(2) + 0.0)
    other = np.where(t.y_test[:, None] == t.y_train, np.inf, near).min(1)
    assert (radius <= other + 1e-5).all()  # moving onto a point of another class changes the answer


def libsvm(rows: int, d: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    lines = [
        f"{1 + i % 2} " + " ".join(f"{j}:{v:.3f}" for j, v in enumerate(rng.random(d), 1))
        for i in range(rows)
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("end", "pack"), [
    ("", lambda data: data), (".gz", gzip.compress), (".bz2", bz2.compress),
])  # fmt: skip
def test_libsvm_text_plain_and_packed(tmp_path: Path, end: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "splice").mkdir()
    for seed, file in enumerate(("splice", "splice.t")):
        (tmp_path / "splice" / f"{file}{end}").write_bytes(pack(libsvm(6, 60, seed).encode()))
    t = load_table("splice", tmp_path, n_test=4)
    assert t.x_train.shape == (6, 60)
    assert t.x_test.shape == (4, 60)
    assert t.y_train.tolist() == [1, 2, 1, 2, 1, 2]
    rows = np.random.default_rng(0).random(60)
    whole = np.array(
        [[float(v.split(":")[1]) for v in line.split()[1:]] for line in libsvm(6, 60, 0).split("\n")[:6]]
    )
    assert whole[0] == pytest.approx(rows, abs=5e-4)
    assert t.x_train == pytest.approx((whole - whole.min(0)) / np.ptp(whole, axis=0))


def test_missing_files_are_named_with_the_places(tmp_path: Path) -> None:
    (tmp_path / "usps").write_text(libsvm(4, 256, 0))
    with pytest.raises(DataError, match=r"usps: missing usps and usps\.t .*looked in .*usps, "):
        load_table("usps", tmp_path)
    with pytest.raises(DataError, match=r"pendigits: missing .*or pendigits\.libsvm"):
        load_table("pendigits", tmp_path)
    with pytest.raises(DataError, match="name their folder with --data-dir"):
        load_table("letter")
    with pytest.raises(DataError, match=r"no such file"):
        load_table(f"csv:{tmp_path / 'none.csv'}")
    with pytest.raises(DataError, match=r"no such file"):
        load_table(f"npz:{tmp_path / 'none.npz'}")


@pytest.mark.parametrize("text", ["1 1:x\n", "1 1:1 999999999:1\n", "1.5 1:1\n", "", "1 0:3\n", "\x00\x01"])
def test_damaged_libsvm_text_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "splice").write_text(text)
    (tmp_path / "splice.t").write_text(libsvm(4, 60, 1))
    with pytest.raises(CorruptFile, match="splice"):
        load_table("splice", tmp_path)


def test_a_cut_off_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "splice.gz").write_bytes(gzip.compress(libsvm(40, 60, 0).encode())[:-200])
    (tmp_path / "splice.t").write_text(libsvm(4, 60, 1))
    with pytest.raises(CorruptFile, match=r"splice\.gz"):
        load_table("splice", tmp_path)


def test_pendigits_in_one_file_needs_more_than_the_training_rows(tmp_path: Path) -> None:
    (tmp_path / "pendigits.libsvm").write_text(libsvm(10, 16, 0))
    with pytest.raises(DataError, match="more than 7494 rows, got 10"):
        load_table("pendigits", tmp_path)


def test_idx_pixels_are_divided_by_255(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (4, 2, 3), dtype=np.uint8)
    labels = np.array([1, 0, 1, 0], dtype=np.uint8)
    for side in ("train", "t10k"):
        head = struct.pack(">4B3I", 0, 0, 8, 3, 4, 2, 3)
        (tmp_path / f"{side}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (tmp_path / f"{side}-labels-idx1-ubyte").write_bytes(
            struct.pack(">4BI", 0, 0, 8, 1, 4) + labels.tobytes()
        )
    t = load_table("mnist", tmp_path, n_test=3)
    assert t.x_train == pytest.approx(pixels.reshape(4, 6) / 255, abs=1e-7)
    assert t.y_test.tolist() == [1, 0, 1]
    assert t.x_train.dtype == np.float64


def rows_of(text: str, path: Path) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


BODY = "".join(f"{i},{i % 3},{'ab'[i % 2]}\n" for i in range(20))


def test_csv_with_and_without_names(tmp_path: Path) -> None:
    plain = load_table(f"csv:{rows_of(BODY, tmp_path / 'plain.csv')}")
    named = load_table(
        f"csv:{rows_of(chr(0xFEFF) + 'size,rest,kind' + chr(10) + BODY, tmp_path / 'named.csv')}"
    )
    assert plain.x_train.shape == (14, 2)
    assert len(plain.y_test) == 6
    assert np.array_equal(plain.x_train, named.x_train)
    assert named.features == ("size", "rest")
    assert plain.class_names == ("a", "b")
    assert set(plain.y_train) == {0, 1}
    assert plain.features == ()
    first = [0.0, 1.0]
    assert [plain.x_train[:, 0].min(), plain.x_train[:, 0].max()] == first


def test_csv_with_a_named_label_column(tmp_path: Path) -> None:
    text = "kind;a;b\n" + "".join(f"{i % 2};{i};{-i}\n" for i in range(10))
    t = load_table(f"csv:{rows_of(text, tmp_path / 'x.csv')}#kind")
    assert t.features == ("a", "b")
    assert t.class_names == ()
    assert set(t.y_train) == {0, 1}
    assert t.x_train[:, 0] == pytest.approx(1 - t.x_train[:, 1])
    with pytest.raises(UnknownName, match="did you mean kind"):
        load_table(f"csv:{tmp_path / 'x.csv'}#knd")
    with pytest.raises(InvalidArgument, match="first line names its columns"):
        load_table(f"csv:{rows_of(BODY, tmp_path / 'plain.csv')}#kind")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a,b\n1,0\n2\n", "line 3: need 2 columns, got 1"),
        ("a,b,y\n1,2,0\n1,oops,1\n", "line 3, column b: need a number, got 'oops'"),
        ("a,b,y\n1,nan,0\n", "column b: need a number, got 'nan'"),
        ("y\n1\n2\n", "a feature and a label"),
        ("a,y\n", "at least one row"),
    ],
)
def test_bad_csv_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        load_table(f"csv:{rows_of(text, tmp_path / 'bad.csv')}")


def test_classes_too_small_to_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class 1 has one row"):
        load_table(f"csv:{rows_of('1,0' + chr(10) + '2,0' + chr(10) + '3,1' + chr(10), tmp_path / 'x.csv')}")
    few = "".join(f"{i},{i % 3}\n" for i in range(6))  # 2 test rows, 3 classes
    with pytest.raises(DataError, match="cannot be split"):
        load_table(f"csv:{rows_of(few, tmp_path / 'y.csv')}")


def test_npz_as_it_is_and_split(tmp_path: Path) -> None:
    x, y = RNG.normal(size=(30, 2, 3)), np.array(["b", "a"] * 15)
    np.savez(tmp_path / "xy.npz", X=x, y=y)
    t = load_table(f"npz:{tmp_path / 'xy.npz'}")
    assert t.x_train.shape == (21, 6)
    assert t.class_names == ("a", "b")
    four = {
        "x_train": x[:20, 0] * 9,
        "y_train": np.arange(20) % 2,
        "x_test": x[20:, 0],
        "y_test": np.ones(10, int),
    }
    np.savez(tmp_path / "four.npz", **four)
    t = load_table(f"npz:{tmp_path / 'four.npz'}", n_test=2)
    assert np.array_equal(t.x_train, x[:20, 0] * 9)
    assert len(t.y_test) == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 2))}, "lacks y"),
        ({"x_train": np.zeros((3, 2)), "y": np.zeros(3)}, "lacks y_train, x_test, y_test"),
        ({"x": np.zeros(3), "y": np.zeros(3)}, "x needs rows of numbers"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((3, 1))}, "y needs one label for each row"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2, int)}, "one label for each of the 3 rows, got 2"),
        ({"x": np.zeros((3, 2), "U3"), "y": np.zeros(3)}, "x needs rows of numbers"),
    ],
)
def test_bad_npz_says_what_it_lacks(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_table(f"npz:{tmp_path / 'bad.npz'}")


def test_pickles_in_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", x=np.array([{}], dtype=object), y=np.zeros(1), allow_pickle=True)
    with pytest.raises(CorruptFile, match="plain arrays"):
        load_table(f"npz:{tmp_path / 'evil.npz'}")


def test_unknown_names_come_with_near_ones() -> None:
    with pytest.raises(UnknownName, match="did you mean digits"):
        load_table("digit")
    with pytest.raises(UnknownName, match="did you mean breast-cancer"):
        load_table("breast_cancer")
    assert len(TABLES) == 12


GOOD: dict[str, Any] = {
    "name": "toy", "x_train": np.eye(3), "y_train": np.array([0, 1, 1]), "x_test": np.eye(3)[:1],
    "y_test": np.array([1]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": np.array([7])}, r"y_test: need labels that occur in y_train, got \[7\]"),
        ({"x_test": np.full((1, 3), np.nan)}, "x_test: need finite numbers, got 'NaN or infinity in row 0'"),
        ({"x_test": np.eye(2)[:1]}, "x_test: need 3 columns, got 2"),
        ({"y_train": np.zeros(3, int)}, "at least 2 classes"),
        ({"y_train": np.zeros(2, int)}, "3 integer labels"),
        ({"y_train": np.zeros(3)}, "3 integer labels"),
        ({"x_train": np.zeros((0, 3))}, "rows of numbers"),
    ],
)
def test_a_table_is_checked_once(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Table(**{**GOOD, **change})


@pytest.mark.parametrize("n_test", [0, -1, 2])
def test_n_test_must_fit(n_test: int) -> None:
    with pytest.raises(InvalidArgument, match=r"n_test: need an integer in \[1, 1\]"):
        Table(**GOOD).first(n_test)


def test_the_fingerprint_tells_every_change() -> None:
    t = Table(**GOOD)
    other = Table(**{**GOOD, "y_train": np.array([0, 0, 1])})
    assert t.fingerprint("train") != other.fingerprint("train")
    assert t.fingerprint("test") == other.fingerprint("test") != t.fingerprint("train")
    assert Table(**{**GOOD, "x_train": np.eye(3) + 1e-9}).fingerprint("train") != t.fingerprint("train")
