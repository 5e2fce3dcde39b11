"""Galleries behind FAISS: search, hashes, files, attacks against an index, check R29."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from holdfast import evaluate
from holdfast.attacks import RankMargin, hits, run
from holdfast.attacks.indexed import AgainstIndex, index_hits
from holdfast.cli.main import app
from holdfast.encoders import SmallCNN
from holdfast.errors import CorruptFile, DataError, InvalidArgument, MissingExtra, RunError, UnknownName
from holdfast.evaluation.indexes import KINDS, GalleryIndex, IndexSettings, deployed
from holdfast.evaluation.vectors import fingerprint, write_vectors
from holdfast.evaluation.verdict import CHECKS, Examination
from holdfast.functional.distance import Cosine, Euclidean, Mahalanobis, SquaredEuclidean
from holdfast.results.record import read
from holdfast.rng import stream
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.types import Gallery, RetrievalTask

pytest.importorskip("faiss")
SEARCH, THREAT = PGD(steps=8, alpha=0.04, keep="best"), LinfThreat(eps=0.2)
NARROW = IndexSettings(kind="ivf", nlist=8, nprobe=1)


def rows(n: int, e: int = 6, name: str = "rows") -> Tensor:
    return torch.randn(n, e, generator=stream(0, name))


def points(n: int = 60, inside: bool = False) -> RetrievalTask:
    """Points of the unit square are their own embeddings; classes are the squares of a chess board."""
    gallery = torch.rand(200, 2, generator=stream(0, "gallery")).double()
    z = gallery[:n] if inside else torch.rand(n, 2, generator=stream(0, "queries")).double()
    board = lambda p: (p * 4).long().sum(1) % 2  # noqa: E731
    return RetrievalTask(
        encoder=nn.Identity(), x=z, y=board(z), z=z,
        gallery=Gallery(gallery, board(gallery), torch.arange(200)),
        self_index=torch.arange(n) if inside else torch.full((n,), -1), index=torch.arange(n),
        distance=Euclidean(),
    )  # fmt: skip


# --- the index ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_hand_numbers(kind: Any) -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    index = GalleryIndex.build(z, kind)
    assert index.search(torch.tensor([[0.9, 0.0], [0.0, 2.0]]), 3).tolist() == [[1, 0, 2], [2, 0, 1]]
    assert index.search(torch.empty(0, 2), 2).shape == (0, 2)
    assert (index.size, index.width, index.parameters["kind"]) == (3, 2, kind)


@pytest.mark.parametrize("distance", [None, Euclidean(), SquaredEuclidean(), Cosine()])
def test_flat_ranks_as_the_distance(distance: Any) -> None:
    gallery, z = rows(300) * torch.linspace(0.1, 3, 300)[:, None], rows(20, name="queries").double()
    found = GalleryIndex.build(gallery, "flat", distance).search(z, 5)
    d = (distance or Euclidean()).matrix(z, gallery.double())
    assert torch.equal(found, d.topk(5, largest=False).indices)


def test_distances_that_it_cannot_rank_by_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="distance: need Euclidean, SquaredEuclidean or Cosine"):
        GalleryIndex.build(rows(10), "flat", Mahalanobis(torch.eye(6)))


@pytest.mark.parametrize("settings", [NARROW, IndexSettings(kind="hnsw", links=4)])
def test_the_same_embeddings_make_the_same_index(settings: IndexSettings) -> None:
    gallery, z = rows(2000, 8), rows(100, 8, "queries")
    first, second = (GalleryIndex.build(gallery, settings) for _ in range(2))
    found = first.search(z, 10)
    assert torch.equal(found, second.search(z, 10))
    exact = torch.cdist(z, gallery).topk(10, largest=False).indices
    assert not torch.equal(found, exact)  # approximate: else there is nothing to see here
    share = (found[:, :, None] == exact[:, None, :]).any(2).float().mean()
    assert share > 0.2


def test_more_cells_read_find_more() -> None:
    gallery, z = rows(2000, 8), rows(100, 8, "queries")
    first = torch.cdist(z, gallery).argmin(1)
    right = [
        (GalleryIndex.build(gallery, replace(NARROW, nprobe=n)).search(z, 1)[:, 0] == first).float().mean()
        for n in (1, 3, 8)
    ]
    assert right[0] < right[1] < right[2] == 1


def test_fewer_rows_than_asked_for_are_marked() -> None:
    index = GalleryIndex.build(rows(40), IndexSettings(kind="ivf", nlist=10, nprobe=1))
    found = index.search(rows(5, name="queries"), 40)
    assert (found[:, -1] == -1).all()
    assert (found[:, 0] >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind: Any, tmp_path: Path) -> None:
    gallery, z = rows(300), rows(20, name="queries")
    index = GalleryIndex.build(gallery, kind, Cosine())
    index.save(tmp_path / "i")
    again = GalleryIndex.load(tmp_path / "i", fingerprint(gallery), trusted=True)
    assert torch.equal(index.search(z, 4), again.search(z, 4))
    assert (again.parameters, again.cosine, again.embeddings) == (index.parameters, True, index.embeddings)
    assert not list((tmp_path / "i").glob("*.tmp"))


def test_other_embeddings_are_detected_by_their_hash(tmp_path: Path) -> None:
    gallery, other = rows(50), rows(50, name="other")
    index = GalleryIndex.build(gallery, "flat")
    index.save(tmp_path)
    with pytest.raises(RunError) as error:
        GalleryIndex.load(tmp_path, fingerprint(other), trusted=True)
    assert fingerprint(other) in str(error.value)
    assert fingerprint(gallery) in str(error.value)
    with pytest.raises(InvalidArgument) as refused:
        deployed(index, other)
    assert fingerprint(other) in str(refused.value)
    assert fingerprint(gallery) in str(refused.value)
    assert deployed(index, gallery) is index
    with pytest.raises(InvalidArgument, match="ranks by the distance"):
        deployed(index, gallery, Cosine())


def test_an_index_is_built_once_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = rows(400)
    first = deployed("ivf", gallery, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(GalleryIndex, "build", None)
        again = deployed("ivf", gallery, folder=tmp_path)
    assert torch.equal(first.search(gallery, 3), again.search(gallery, 3))
    deployed(NARROW, gallery, folder=tmp_path)
    deployed("ivf", -gallery, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_broken_files(tmp_path: Path) -> None:
    index = GalleryIndex.build(rows(50), "flat")
    with pytest.raises(RunError, match="no index here"):
        GalleryIndex.load(tmp_path, trusted=True)
    index.save(tmp_path)
    (file,) = tmp_path.glob("*.faiss")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFile, match="not an index of FAISS"):
        GalleryIndex.load(tmp_path, trusted=True)
    header = json.loads((tmp_path / "index.json").read_text())
    file.write_bytes(whole)
    (tmp_path / "index.json").write_text(json.dumps({**header, "size": 49}))
    with pytest.raises(CorruptFile, match="need 49 rows of 6, found 50 of 6"):
        GalleryIndex.load(tmp_path, trusted=True)
    (tmp_path / "index.json").write_text(json.dumps({**header, "embeddings": 3}))
    with pytest.raises(CorruptFile, match="need embeddings, a str"):
        GalleryIndex.load(tmp_path, trusted=True)
    (tmp_path / "index.json").write_text(json.dumps(header))
    file.unlink()
    with pytest.raises(RunError, match="is missing"):
        GalleryIndex.load(tmp_path, trusted=True)


def test_an_index_of_a_stranger_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GalleryIndex.build(rows(20), "flat").save(tmp_path)
    monkeypatch.setattr("faiss.read_index", None)
    for said in ({}, {"trusted": False}, {"trusted": 1}):
        with pytest.raises(InvalidArgument, match="trusted: need True, for a folder of your own: FAISS"):
            GalleryIndex.load(tmp_path, **said)  # type: ignore[arg-type]


def test_damage_is_told_before_faiss_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GalleryIndex.build(rows(20), "flat").save(tmp_path)
    (file,) = tmp_path.glob("*.faiss")
    header = json.loads((tmp_path / "index.json").read_text())
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit of a number: FAISS would not notice
    with monkeypatch.context() as patch:
        patch.setattr("faiss.read_index", None)
        with pytest.raises(CorruptFile, match=f"need {header['sha256']}"):
            GalleryIndex.load(tmp_path, trusted=True)
    file.write_bytes(b"something else")
    header["sha256"] = hashlib.sha256(b"something else").hexdigest()
    (tmp_path / "index.json").write_text(json.dumps(header))
    with pytest.raises(CorruptFile, match=r"not an index of FAISS [(]"):
        GalleryIndex.load(tmp_path, trusted=True)


@pytest.mark.parametrize(
    "change", [{"size": True}, {"width": 6.0}, {"cosine": 1}, {"file": "../i.faiss"}, {"file": "flat-\0"},
               {"sha256": 3}, {"parameters": []}],
)  # fmt: skip
def test_a_description_holds_what_it_says(change: dict[str, Any], tmp_path: Path) -> None:
    GalleryIndex.build(rows(1), "flat").save(tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    assert header["size"] == 1
    (tmp_path / "index.json").write_text(json.dumps({**header, **change}))
    with pytest.raises(CorruptFile, match=f"index.json.*need {next(iter(change))}"):
        GalleryIndex.load(tmp_path, trusted=True)


def test_the_index_of_a_run_is_read_again_or_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gallery = rows(30)
    deployed("flat", gallery, folder=tmp_path)
    ((place, file),) = [(p.parent, p) for p in tmp_path.glob("*/*.faiss")]
    header, whole = (place / "index.json").read_text(), file.read_bytes()
    other = json.dumps({**json.loads(header), "parameters": {"kind": "ivf"}})
    old = json.dumps({k: v for k, v in json.loads(header).items() if k != "sha256"})
    for text, data in ((header, whole[:-9]), (other, whole), (old, whole), ("{", whole), (header, None)):
        (place / "index.json").write_text(text)
        file.unlink()
        if data is not None:
            file.write_bytes(data)
        caplog.clear()
        found = deployed("flat", gallery, folder=tmp_path)
        assert "built anew" in caplog.text
        assert found.search(gallery, 1)[:, 0].tolist() == list(range(30))
        assert file.read_bytes() == whole
        with monkeypatch.context() as patch:
            patch.setattr(GalleryIndex, "build", None)
            deployed("flat", gallery, folder=tmp_path)


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    index = GalleryIndex.build(rows(10), "flat")
    for z, k in ((rows(2, 5), 1), (rows(6)[0], 1), (rows(2), 0), (rows(2), 11)):
        with pytest.raises(InvalidArgument, match="need"):
            index.search(z, k)
    with pytest.raises(DataError, match="finite"):
        GalleryIndex.build(rows(10).log(), "flat")
    with pytest.raises(InvalidArgument, match="embeddings"):
        GalleryIndex.build(torch.empty(0, 3), "flat")
    with pytest.raises(InvalidArgument, match="nlist: need at most 10 cells"):
        GalleryIndex.build(rows(10), IndexSettings(kind="ivf", nlist=11))
    with pytest.raises(UnknownName, match="index"):
        IndexSettings(kind="annoy")  # type: ignore[arg-type]
    for wrong in ({"nprobe": 0}, {"nlist": 0}, {"links": 1}, {"seed": -1}, {"threads": 0}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            IndexSettings(**wrong)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match=r"holdfast\[faiss\]"):
        GalleryIndex.build(rows(10), "flat")


# --- what it answers, and attacks against it -------------------------------------------------------------


def test_the_answer_of_an_index_by_hand() -> None:
    made = points(4, inside=True)
    y = made.gallery.y
    own, other = (int(torch.nonzero(y == c)[-1]) for c in (made.y[0], 1 - made.y[0]))

    def index(z: Tensor, k: int) -> Tensor:
        assert k == 2
        return torch.tensor([[0, own], [own, 0], [0, other], [0, -1]])

    first = replace(made, y=made.y[:1].expand(4), self_index=torch.zeros(4, dtype=torch.int64))
    assert index_hits(index, made.z, first).tolist() == [1, 1, 0, 0]
    with pytest.raises(InvalidArgument, match="index"):
        index_hits(lambda z, k: torch.full((len(z), k), 200), made.z, made)
    with pytest.raises(InvalidArgument, match="index"):
        index_hits(lambda z, k: torch.zeros(len(z), k + 1), made.z, made)


@pytest.mark.parametrize("inside", [False, True])
def test_an_exact_index_is_the_exact_attack(inside: bool) -> None:
    """With a flat index and the whole gallery the attack is RANK: gains, success and images."""
    made = points(inside=inside)
    index = GalleryIndex.build(made.gallery.z, "flat")
    aimed = AgainstIndex(index=index.search, k=200)
    target = aimed.target(made)
    assert torch.allclose(aimed.gain(made.z, target, made), RankMargin().gain(made.z, None, made), atol=1e-5)
    exact, deployed_ = (run(made, a, SEARCH, THREAT, label="R") for a in (RankMargin(), aimed))
    assert torch.equal(exact.attacked["recall@1"], deployed_.attacked["recall@1"])
    assert torch.equal(deployed_.attacked["recall@1"], deployed_.attacked["recall@1:index"])
    assert torch.equal(deployed_.clean["recall@1:index"], exact.clean["recall@1"])
    assert 0 < float(exact.attacked["recall@1"].mean()) < float(exact.clean["recall@1"].mean())
    assert float((exact.x - deployed_.x).abs().max()) < 1e-5


@pytest.mark.parametrize("k", [2, 12])
def test_the_gain_has_the_sign_of_the_index_answer(k: int) -> None:
    made = points(200)
    made = replace(made, self_index=torch.full((200,), -1))
    index = GalleryIndex.build(made.gallery.z, NARROW)
    aimed = AgainstIndex(index=index.search, k=k)
    z = made.z.clone().requires_grad_(True)
    gain = aimed.gain(z, aimed.target(made), made)
    right = index_hits(index.search, made.z, made) > 0
    assert torch.equal(gain < 0, right)
    assert not torch.equal(right, hits(made.z, made) > 0)
    (grad,) = torch.autograd.grad(gain.sum(), z)
    assert (grad.norm(dim=1) > 0).all()  # something to climb, whatever the index left out


def test_an_attack_on_the_index_breaks_the_index_more_often() -> None:
    made = points(200)
    made = replace(made, self_index=torch.full((200,), -1))
    index = GalleryIndex.build(made.gallery.z, NARROW)
    near = LinfThreat(eps=0.03)
    aimed, exact = (
        run(made, a, PGD(steps=20, alpha=0.006, keep="best"), near)
        for a in (AgainstIndex(index=index.search, k=16), RankMargin())
    )
    by_index = aimed.attacked["recall@1:index"].mean()
    assert by_index < index_hits(index.search, exact.z, made).mean()
    assert by_index < aimed.clean["recall@1:index"].mean()


def test_bad_settings_of_the_attack() -> None:
    with pytest.raises(InvalidArgument, match="k: need an integer >= 2"):
        AgainstIndex(index=lambda z, k: z, k=1)


# --- check R29 and evaluations ---------------------------------------------------------------------------


def test_r29_with_real_indexes() -> None:
    """Beside the border of a cell a query finds its class by exact search, and not in the one cell read."""
    z = torch.stack([torch.linspace(0, 1, 400), torch.zeros(400)], 1)
    index = GalleryIndex.build(z, IndexSettings(kind="ivf", nlist=2, nprobe=1))
    side = index.search(z, 1)[:, 0] >= 0
    assert side.all()
    cell = torch.stack([index.search(z[i : i + 1], 400)[0].max() for i in range(400)])  # tells cells apart
    border = int(torch.nonzero(cell[1:] != cell[:-1])[0]) + 1  # the first row of the second cell
    y = torch.ones(400, dtype=torch.int64)
    y[border] = 0  # the nearest rows of the own class stand just behind the border
    y[border + 1] = 0
    n = 40
    x = (z[border] - torch.tensor([2e-3, 0.0])).repeat(n, 1)[:, None, :, None]
    x = x - torch.rand(n, 1, 2, 1, generator=stream(0, "x")) * torch.tensor([2e-4, 0.0])[None, None, :, None]

    class Pixels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    made = RetrievalTask(
        encoder=Pixels(), x=x, y=torch.zeros(n, dtype=torch.int64), z=x.flatten(1),
        gallery=Gallery(torch.cat([z[: border - 2], z[border:]]),
                        torch.cat([y[: border - 2], y[border:]]), torch.arange(398)),
        self_index=torch.full((n,), -1), index=torch.arange(n), distance=Euclidean(),
    )  # fmt: skip
    tiny = LinfThreat(eps=1e-5)

    def r29(kind: Any) -> Any:
        made_index = GalleryIndex.build(made.gallery.z, kind)
        e = Examination(task=made, search=SEARCH, threat=tiny, index=made_index.search)
        return CHECKS["R29"].run(e)

    exact = r29("flat")
    assert (exact.status, exact.value) == ("pass", 0.0)
    approximate = r29(IndexSettings(kind="ivf", nlist=2, nprobe=1))
    assert approximate.status == "fail"
    assert approximate.value > 0.5
    assert r29(IndexSettings(kind="ivf", nlist=2, nprobe=2)).status == "pass"


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor, nn.Module]:
    y = torch.arange(48) % 4
    x = torch.rand(48, 1, 8, 8, generator=stream(0, "images"))
    x = (x + torch.rand(4, 1, 8, 8, generator=stream(0, "classes"))[y]) / 2
    return x, y, SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=0)


def test_an_evaluation_with_an_index_in_the_loop(images: Any, tmp_path: Path) -> None:
    x, y, encoder = images
    how: dict[str, Any] = {"suite": "core", "eps": 0.02, "search": SEARCH, "seed": 1, "out": tmp_path}
    card = evaluate(encoder, x, y, **how, index="flat")
    assert card.value("recall@1:index") == card.value("recall@1")
    for attack in ("ES", "INDEX"):
        assert card.value("recall@1:index", attack) == card.value("recall@1", attack)
    assert card.value("recall@1", "INDEX") < card.value("recall@1")
    assert card.verdict is not None
    assert {f.id: f.status for f in card.verdict.findings}["R29"] == "pass"
    (folder,) = (tmp_path / "indexes").iterdir()
    assert (folder / "index.json").is_file()
    metrics = {(r["attack"], r["state"], r["metric"]) for r in read(tmp_path / "records.jsonl")}
    assert {("none", "clean", "recall@1:index"), ("ES", "attacked", "recall@1:index")} <= metrics
    again = evaluate(encoder, x, y, **how, index="flat")
    assert not again.results  # read back
    plain = evaluate(encoder, x, y, **{**how, "verdict": "off"})
    assert plain.results
    assert "INDEX" not in {r["attack"] for r in plain.records}
    assert plain.value("shift", "ES") == pytest.approx(card.value("shift", "ES"))


def test_an_index_of_other_embeddings_is_refused(images: Any) -> None:
    x, y, encoder = images
    index = GalleryIndex.build(rows(48, 8), "flat")
    with pytest.raises(InvalidArgument, match=f"(?s)index: need an index of the gallery.*{index.embeddings}"):
        evaluate(encoder, x, y, suite="core", index=index, verdict="off")
    with pytest.raises(InvalidArgument, match="index"):
        evaluate(encoder, x, suite="unlabelled", index="flat", verdict="off")
    with pytest.raises(UnknownName, match="index"):
        evaluate(encoder, x, y, suite="core", index="nothing", verdict="off")  # type: ignore[arg-type]


def test_a_gallery_of_vectors_on_disk(images: Any, tmp_path: Path) -> None:
    """A mapped folder, a bare file with labels beside and the tensor give the same records."""
    x, y, encoder = images
    with torch.no_grad():
        z = encoder.eval()(x)
    write_vectors(tmp_path / "folder", [(z[:20], y[:20]), (z[20:], y[20:])])
    np.save(tmp_path / "z.npy", z.numpy())
    np.save(tmp_path / "y.npy", y.numpy())
    how: dict[str, Any] = {"suite": "core", "eps": 0.02, "search": SEARCH, "verdict": "off", "index": "flat"}
    queries = (x[:16] + 0.01 * torch.rand(16, 1, 8, 8, generator=stream(0, "q"))).clamp(0, 1)
    cards = [
        evaluate(encoder, queries, y[:16], **how, gallery=gallery, gallery_labels=labels)
        for gallery, labels in (
            (z, y), (tmp_path / "folder", None), (tmp_path / "z.npy", tmp_path / "y.npy"),
            (str(tmp_path / "z.npy"), y),
        )
    ]  # fmt: skip
    values = [[(r["attack"], r["metric"], r["value"]) for r in card.records] for card in cards]
    assert values[0] == values[1] == values[2] == values[3]
    with pytest.raises(DataError, match="gallery labels"):
        evaluate(encoder, queries, y[:16], **how, gallery=tmp_path / "z.npy")
    with pytest.raises(InvalidArgument, match="gallery_labels"):
        evaluate(encoder, queries, y[:16], **how, gallery=tmp_path / "folder", gallery_labels=y)
    with pytest.raises(DataError, match="whole numbers"):
        evaluate(
            encoder, queries, y[:16], **how, gallery=tmp_path / "z.npy", gallery_labels=tmp_path / "z.npy"
        )
    (tmp_path / "torn.npy").write_bytes((tmp_path / "y.npy").read_bytes()[:40])
    with pytest.raises(CorruptFile, match="torn"):
        evaluate(
            encoder, queries, y[:16], **how, gallery=tmp_path / "z.npy", gallery_labels=tmp_path / "torn.npy"
        )


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``holdfast evaluate --gallery --memory --index`` hands on what it was given."""
    seen: dict[str, Any] = {}

    def keep(*what: Any, **settings: Any) -> Any:
        seen.update(settings)
        raise InvalidArgument("x", "nothing", None)

    monkeypatch.setattr("holdfast.cli.evaluate.evaluate", keep)
    monkeypatch.setattr("holdfast.cli.evaluate._made", lambda name: None)
    words = ["evaluate", "a:b", "--images", str(tmp_path), "--gallery", "g.npy", "--gallery-labels", "y.npy"]
    CliRunner().invoke(app, [*words, "--memory", "4G", "--index", "ivf", "--out", str(tmp_path / "o")])
    told = {name: str(seen[name]) for name in ("gallery", "gallery_labels", "memory", "index")}
    assert told == {"gallery": "g.npy", "gallery_labels": "y.npy", "memory": "4G", "index": "ivf"}
