"""Embeddings on disk: streaming, hash, memory map, damage."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.encoders import SmallCNN
from holdfast.errors import CorruptFile, DataError, InvalidArgument
from holdfast.evaluation.embed import embed
from holdfast.evaluation.vectors import embedded_parts, fingerprint, open_vectors, write_vectors
from holdfast.functional.distance import Euclidean
from holdfast.functional.ranking import retrieval_scores
from holdfast.rng import stream


def rows(n: int = 50, e: int = 6) -> tuple[Tensor, Tensor]:
    g = stream(0, "vectors")
    return torch.randn(n, e, generator=g), torch.randint(5, (n,), generator=g)


def parts(z: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(z.split(size), y.split(size), strict=True)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    z, y = rows()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = write_vectors(tmp_path / "v", parts(z, y, 7))
        again = open_vectors(tmp_path / "v")
    assert found.y is not None
    assert torch.equal(found.z, z)
    assert torch.equal(found.y, y)
    assert len(found) == 50
    assert found.z.dtype == torch.float32
    assert found.fingerprint == again.fingerprint == fingerprint(z, y)
    again.verify()
    assert torch.equal(again.gallery.z, z)
    assert again.gallery.ids.tolist() == list(range(50))
    assert np.array_equal(np.load(tmp_path / "v" / "z.npy"), z.numpy())  # a plain NumPy file
    assert [p.name for p in tmp_path.iterdir()] == ["v"]


def test_the_fingerprint_is_a_sha256_of_shape_numbers_and_labels(tmp_path: Path) -> None:
    z, y = rows(3, 2)
    inner = hashlib.sha256(z.numpy().tobytes()).digest()
    expected = hashlib.sha256(b"(3, 2)" + inner + y.numpy().tobytes()).hexdigest()
    assert fingerprint(z, y) == expected
    assert write_vectors(tmp_path / "one", [(z, y)]).fingerprint == expected
    assert write_vectors(tmp_path / "parts", parts(z.double(), y.int(), 1)).fingerprint == expected
    assert len({expected, fingerprint(z), fingerprint(z, y + 1), fingerprint(z + 1, y)}) == 4
    assert fingerprint(z.reshape(2, 3)) != fingerprint(z)


def test_parts_are_asked_for_one_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    def stream_of_parts() -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(5):
            held = (tmp_path / f".v.{os.getpid()}.tmp").exists()
            assert held
            assert not (tmp_path / "v").exists()  # no name before the end
            alive.append(i)
            yield torch.full((4, 3), float(i)), torch.full((4,), i)

    found = write_vectors(tmp_path / "v", stream_of_parts())
    assert alive == list(range(5))
    assert found.z[::4, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
        raise RuntimeError("the encoder broke")

    with pytest.raises(RuntimeError, match="broke"):
        write_vectors(tmp_path / "v", failing())
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    z, y = rows(4)
    for bad, message in (
        ([], "at least one row"),
        ([(z[:0], y[:0])], "at least one row"),
        ([(z, y), (z[:, :3], y)], "part 1: need embeddings"),
        ([(z, y[:2])], "labels"),
        ([(z[0], y)], "part 0"),
        ([(z * torch.nan, y)], "finite"),
    ):
        with pytest.raises(DataError, match=message):
            write_vectors(tmp_path / "v", bad)
    assert list(tmp_path.iterdir()) == []
    write_vectors(tmp_path / "v", [(z, y)])
    with pytest.raises(InvalidArgument, match="folder"):
        write_vectors(tmp_path / "v", [(z, y)])


def test_the_file_is_never_written_through_the_map(tmp_path: Path) -> None:
    z, y = rows()
    found = write_vectors(tmp_path / "v", [(z, y)])
    found.z[0] = 7.0
    assert torch.equal(open_vectors(tmp_path / "v").z, z)
    with pytest.raises(CorruptFile, match="sha256"):
        found.verify()


def test_a_bare_file(tmp_path: Path) -> None:
    z, _ = rows()
    np.save(tmp_path / "z.npy", z.numpy())
    found = open_vectors(tmp_path / "z.npy")
    assert torch.equal(found.z, z)
    assert found.y is None
    assert found.fingerprint == fingerprint(z)
    with pytest.raises(DataError, match="labels"):
        _ = found.gallery
    for name, array in (
        ("double", z.double().numpy()),
        ("flat", z.flatten().numpy()),
        ("fortran", np.asfortranarray(z.numpy())),
        ("empty", z[:0].numpy()),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(CorruptFile, match="rows of float32"):
            open_vectors(tmp_path / f"{name}.npy")
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(CorruptFile, match="header"):
        open_vectors(tmp_path / "text.npy")
    with pytest.raises(FileNotFoundError):
        open_vectors(tmp_path / "missing.npy")


def test_damage_is_named(tmp_path: Path) -> None:
    z, y = rows()
    folder = write_vectors(tmp_path / "v", [(z, y)]).path

    def damaged(name: str, data: bytes, match: str, kind: type[Exception] = CorruptFile) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        with pytest.raises(kind, match=match):
            open_vectors(folder).verify()
        (folder / name).write_bytes(whole)

    data = (folder / "z.npy").read_bytes()
    damaged("z.npy", data[:-4], "need 1328 bytes, got 1324")
    damaged("z.npy", data + b"1234", "need 1328 bytes, got 1332")
    damaged("z.npy", data[:200] + bytes([data[200] ^ 1]) + data[201:], "sha256")
    labels = (folder / "y.npy").read_bytes()
    damaged("y.npy", labels[:-8], "npy file")
    damaged("y.npy", labels[:-8] + bytes(7) + b"\x01", "sha256")
    meta = json.loads((folder / "vectors.json").read_text())
    damaged("vectors.json", json.dumps({**meta, "shape": [49, 6]}).encode(), "need shape")
    damaged("vectors.json", json.dumps({**meta, "schema": 2}).encode(), "schema 1")
    damaged("vectors.json", b"[]", "schema 1")
    open_vectors(folder).verify()
    np.save(folder / "y.npy", y[:10].numpy())
    with pytest.raises(CorruptFile, match="50 whole numbers"):
        open_vectors(folder)
    (folder / "y.npy").unlink()
    with pytest.raises(DataError, match=r"without y\.npy"):
        open_vectors(folder)


def test_a_map_is_a_gallery(tmp_path: Path) -> None:
    z, y = rows(3000, 4)
    z = z.mul(4).round()
    found = write_vectors(tmp_path / "v", parts(z, y, 1000)).gallery
    own = torch.arange(40)
    mapped = retrieval_scores(z[:40], y[:40], found.z, found.y, Euclidean(), own, memory=2**19)
    held = retrieval_scores(z[:40], y[:40], z, y, Euclidean(), own)
    assert all(torch.equal(a, b) for a, b in zip(mapped, held, strict=True))


def test_images_are_embedded_in_parts(tmp_path: Path) -> None:
    encoder = SmallCNN().build((1, 8, 8), seed=0)
    x = torch.rand(10, 1, 8, 8, generator=stream(0))
    found = write_vectors(tmp_path / "v", embedded_parts(encoder, x, torch.arange(10), batch_size=4))
    torch.testing.assert_close(found.z, embed(encoder, x), atol=1e-6, rtol=0)
    with pytest.raises(DataError, match="labels"):
        list(embedded_parts(encoder, x, torch.arange(9)))
