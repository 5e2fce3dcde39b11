"""Index builders: the same neighbours as ours, labels and ids, hashes, and a gate at the door."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.data import ImageSet
from holdfast.encoders import SmallCNN
from holdfast.errors import CorruptFile, DataError, InvalidArgument, MissingExtra, RunError
from holdfast.evaluation import embed
from holdfast.evaluation.hubs import HubGate
from holdfast.evaluation.vectors import fingerprint, write_vectors
from holdfast.functional.distance import Cosine, Euclidean, Mahalanobis, SquaredEuclidean
from holdfast.functional.ranking import nearest
from holdfast.rng import stream
from holdfast.stores import FaissStore, QdrantStore, build_faiss, build_qdrant

pytest.importorskip("faiss")
pytest.importorskip("qdrant_client")
BUILDERS = pytest.mark.parametrize("build", [build_faiss, build_qdrant], ids=["faiss", "qdrant"])
Build = Callable[..., Any]


def vectors(n: int = 120, e: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    z = torch.randn(n, e, generator=stream(seed, "stores"))
    return z, torch.arange(n) % 4


@BUILDERS
@pytest.mark.parametrize(
    "distance", [Euclidean(), SquaredEuclidean(), Cosine()], ids=lambda d: type(d).__name__
)
def test_neighbours_are_ours(build: Build, distance: Any) -> None:
    z, y = vectors()
    queries = vectors(20, seed=1)[0]
    store = build(z, y, distance=distance)
    none = torch.full((20,), -1)
    assert torch.equal(store.search(queries, 7), nearest(queries, z, 7, distance, none)[1])


@BUILDERS
def test_images_are_embedded_and_told_by_label_and_id(build: Build) -> None:
    x = torch.rand(30, 1, 8, 8, generator=stream(0, "pixels"))
    encoder = SmallCNN(width=2, embedding_dim=5).build((1, 8, 8), seed=0)
    images = ImageSet(x, torch.arange(30) % 3, "toy")
    z = embed(encoder, x)
    for given in (images, (images.x, images.y)):
        store = build(encoder, given, batch_size=7)
        assert store.search(z[4:9], 1)[:, 0].tolist() == [4, 5, 6, 7, 8]
    with pytest.raises(InvalidArgument, match="gallery"):
        build(encoder, images.x)


def test_qdrant_holds_the_payload() -> None:
    z, y = vectors(10)
    store = build_qdrant(z, y, collection="here")
    points = store.client.retrieve("here", [3, 9], with_payload=True)
    assert [p.payload for p in points] == [{"label": 3, "id": 3}, {"label": 1, "id": 9}]
    assert build_qdrant(z).client.retrieve("gallery", [0])[0].payload == {"label": -1, "id": 0}


@BUILDERS
def test_a_folder_keeps_everything_and_knows_its_embeddings(build: Build, tmp_path: Path) -> None:
    z, y = vectors()
    store = build(z, y, tmp_path / "a")
    load: Any = partial((FaissStore if build is build_faiss else QdrantStore).load, trusted=True)
    found = store.search(z[:5], 3)
    if build is build_qdrant:
        with pytest.raises(RunError, match="cannot be opened"):
            load(tmp_path / "a")
        store.close()
    again = load(tmp_path / "a", fingerprint(z))
    assert torch.equal(again.search(z[:5], 3), found)
    if build is build_faiss:
        assert torch.equal(again.y, y)
    else:
        again.close()
    with pytest.raises(RunError, match="other embeddings"):
        load(tmp_path / "a", "0" * 64)
    with pytest.raises(RunError, match="here"):
        load(tmp_path / "nothing")


def test_a_collection_of_a_stranger_is_not_opened(tmp_path: Path) -> None:
    build_qdrant(*vectors(10), tmp_path / "q").close()
    with pytest.raises(InvalidArgument, match="pickles"):
        QdrantStore.load(tmp_path / "q")


def test_an_index_of_a_stranger_is_not_read(tmp_path: Path) -> None:
    build_faiss(*vectors(10), tmp_path / "f")
    with pytest.raises(InvalidArgument, match="native code"):
        FaissStore.load(tmp_path / "f")


@pytest.mark.parametrize("change", [{"size": True}, {"refused": ["1"]}, {"refused": [True]}])
def test_a_collection_is_as_described(change: dict[str, Any], tmp_path: Path) -> None:
    build_qdrant(*vectors(1), tmp_path / "q").close()
    header = json.loads((tmp_path / "q" / "holdfast.json").read_text())
    (tmp_path / "q" / "holdfast.json").write_text(json.dumps({**header, **change}))
    with pytest.raises(CorruptFile, match=f"need {next(iter(change))}"):
        QdrantStore.load(tmp_path / "q", trusted=True)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    z, y = vectors(50)
    build_faiss(z, y, tmp_path / "f")
    (tmp_path / "f" / "rows.npz").write_bytes(b"torn")
    with pytest.raises(CorruptFile):
        FaissStore.load(tmp_path / "f", trusted=True)
    build_qdrant(z, y, tmp_path / "q").close()
    header = json.loads((tmp_path / "q" / "holdfast.json").read_text())
    (tmp_path / "q" / "holdfast.json").write_text(json.dumps({**header, "size": 51}))
    with pytest.raises(CorruptFile, match="51 rows"):
        QdrantStore.load(tmp_path / "q", trusted=True)
    (tmp_path / "q" / "holdfast.json").write_text(json.dumps({**header, "width": "6"}))
    with pytest.raises(CorruptFile, match="width"):
        QdrantStore.load(tmp_path / "q", trusted=True)


@BUILDERS
def test_a_gate_leaves_hubs_out_and_ids_stay_those_of_the_gallery(build: Build, tmp_path: Path) -> None:
    rows = F.normalize(torch.randn(300, 32, generator=stream(0, "directions")), dim=1)
    gate = HubGate.fit(rows[:200], k=5, rate=0.02)
    new = rows[200:].clone()
    new[31] = 0  # nearer to every direction than most rows are
    assert not bool(gate.admits(new[31:32]))
    expected = (~gate.admits(new)).nonzero()[:, 0].tolist()
    store = build(new, torch.arange(100), tmp_path / "s", admit=gate)
    assert [int(i) for i in store.refused] == expected
    assert 31 in expected
    assert len(expected) < 15
    found = store.search(new[:10], 100 - len(expected))
    assert not set(expected) & set(found.flatten().tolist())
    kept = [i for i in range(10) if i not in expected]
    assert found[kept, 0].tolist() == kept
    with pytest.raises(DataError, match="refuses all"):
        build(new[31:32], None, admit=gate)


@BUILDERS
def test_vectors_of_a_folder_are_taken(build: Build, tmp_path: Path) -> None:
    z, y = vectors(20)
    written = write_vectors(tmp_path / "v", [(z[:9], y[:9]), (z[9:], y[9:])])
    for source in (written, tmp_path / "v"):
        assert build(source).search(z[:4], 1)[:, 0].tolist() == [0, 1, 2, 3]


@BUILDERS
def test_what_cannot_be_is_refused(build: Build) -> None:
    z, y = vectors(20)
    with pytest.raises(DataError, match="labels"):
        build(z, y[:5])
    with pytest.raises(InvalidArgument, match="embeddings"):
        build(z[0], None)
    with pytest.raises(InvalidArgument, match="distance"):
        build(z, y, distance=Mahalanobis(torch.eye(6)))
    bad = z.clone()
    bad[3, 2] = torch.nan
    with pytest.raises(DataError, match="finite"):
        build(bad, y)
    store = build(z, y)
    for k in (0, 21):
        with pytest.raises(InvalidArgument, match="1 to 20"):
            store.search(z, k)
    with pytest.raises(InvalidArgument, match=r"\(n, 6\)"):
        store.search(z[:, :3], 1)


@pytest.mark.parametrize(("build", "module"), [(build_faiss, "faiss"), (build_qdrant, "qdrant_client")])
def test_a_missing_package_is_named(build: Build, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install 'holdfast\["):
        build(vectors()[0])
