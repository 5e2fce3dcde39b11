"""Files appear whole or not at all, and damaged ones are named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from holdfast.errors import CorruptFile
from holdfast.files import (
    append_lines,
    read_arrays,
    read_json,
    read_lines,
    replacing,
    write_arrays,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"  # folders are made
    write_text(path, "old")
    write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert names(path.parent) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            assert temporary.parent == path.parent  # a rename within one file system
            assert path.read_text() == "old"
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failed_rename_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": object()}])
def test_json_that_nobody_could_read_is_not_written(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert read_json(path) == {"a": 1}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        ('{"ä": 1, oops}'.encode(), 10),  # bytes, not characters
        (b'{"a": 1', 7),
        (b"", 0),
        (b'{"a": "\xff"}', 7),
        (b'{\r\n"a": 1,\r\noops}', 12),
    ],
    ids=["token", "torn", "empty", "not utf-8", "line ends"],
)
def test_broken_json_is_named_with_its_byte(tmp_path: Path, data: bytes, offset: int) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(CorruptFile) as caught:
        read_json(path)
    assert caught.value.path == str(path)
    assert caught.value.offset == offset


def test_arrays_keep_values_dtypes_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 4), dtype=np.int64),
        "flag": np.array([True, False]),
        "attacked.rank": np.array(0.5),
        "words": np.array(["a", "bc"]),
    }
    write_arrays(path, arrays)
    back = read_arrays(path)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array, strict=True)


class Bomb:
    """Leaves a file where its pickle is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    mark, path = tmp_path / "boom", tmp_path / "a.npz"
    with pytest.raises(ValueError):
        write_arrays(path, {"a": np.array([Bomb(mark)], dtype=object)})
    assert names(tmp_path) == []
    np.savez(path, a=np.array([Bomb(mark)], dtype=object))
    with pytest.raises(CorruptFile, match=r"a\.npz"):
        read_arrays(path)
    bare = tmp_path / "bare.npz"
    bare.write_bytes(np.array([Bomb(mark)], dtype=object).dumps())
    with pytest.raises(CorruptFile):
        read_arrays(bare)
    assert not mark.exists()


def test_every_truncation_is_corrupt(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole.npz", tmp_path / "torn.npz"
    write_arrays(whole, {"a": np.arange(5.0), "b": np.ones((2, 3), np.float32)})
    data = whole.read_bytes()
    for length in range(0, len(data), 7):
        torn.write_bytes(data[:length])
        with pytest.raises(CorruptFile):
            read_arrays(torn)


def test_every_flipped_bit_is_corrupt_or_harmless(tmp_path: Path) -> None:
    whole, spoilt = tmp_path / "whole.npz", tmp_path / "spoilt.npz"
    arrays = {"a": np.arange(5.0)}
    write_arrays(whole, arrays)
    data = whole.read_bytes()
    refused = 0
    for place in range(len(data)):
        for bit in (1, 8, 32):
            changed = bytearray(data)
            changed[place] ^= bit
            spoilt.write_bytes(bytes(changed))
            try:
                back = read_arrays(spoilt)
            except CorruptFile:
                refused += 1
            else:  # a time stamp, a comment, a name: never other numbers
                assert all(np.array_equal(array, arrays["a"]) for array in back.values())
    assert refused > len(data)


def test_what_is_no_archive_is_corrupt(tmp_path: Path) -> None:
    single, text = tmp_path / "single.npy", tmp_path / "text.npz"
    np.save(single, np.arange(3))
    text.write_text("hello")
    for path in (single, text):
        with pytest.raises(CorruptFile, match=path.name):
            read_arrays(path)


@pytest.mark.parametrize("read", [read_json, read_arrays, read_lines])
def test_a_missing_file_is_missing_and_not_corrupt(tmp_path: Path, read: object) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")  # type: ignore[operator]


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "log.jsonl"
    append_lines(path, [{"a": 1}, {"b": "x\ny"}])
    append_lines(path, [])
    append_lines(path, [{"c": None}])
    assert read_lines(path) == [{"a": 1}, {"b": "x\ny"}, {"c": None}]
    assert path.read_bytes().count(b"\n") == 3


def test_every_torn_tail_costs_only_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_lines(path, [{"a": 1}, {"b": "grün"}])
    data = path.read_bytes()
    start = data.index(b"\n") + 1
    for length in range(start, len(data)):
        path.write_bytes(data[:length])
        whole = length == len(data) - 1  # only the line end is missing
        kept = [{"a": 1}, {"b": "grün"}] if whole else [{"a": 1}]
        assert read_lines(path) == kept
        append_lines(path, [{"c": 2}])
        assert read_lines(path) == [*kept, {"c": 2}]


def test_nothing_is_written_when_one_value_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_lines(path, [{"a": 1}])
    with pytest.raises(ValueError):
        append_lines(path, [{"b": 2}, {"c": float("nan")}])
    assert read_lines(path) == [{"a": 1}]


@pytest.mark.parametrize("line", ["[1]", "3", '"text"', "null", "true"])
def test_a_whole_line_that_is_no_object_is_corrupt(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"a": 1}}\n\n{line}\n')
    with pytest.raises(CorruptFile) as caught:
        read_lines(path)
    assert caught.value.offset == 10
