"""``holdfast.evaluate``: any encoder, any images, in three lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import holdfast
from holdfast.data import Digits
from holdfast.encoders import SmallCNN
from holdfast.errors import DataError, InvalidArgument, UnknownName
from holdfast.evaluation import SUITES, Suite
from holdfast.evaluation.verdict import CHECKS
from holdfast.results import record
from holdfast.rng import stream
from holdfast.scorecard import BLACK_BOX, ScoreCard, evaluate
from holdfast.search import PGD, Square

pytestmark = pytest.mark.integration
QUICK = PGD(steps=2, alpha=0.05)
ES = Suite(name="only-es", entries=tuple(e for e in SUITES["core"].entries if e.label == "ES"))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = Digits().load().test
    return test.x[:60], test.y[:60]


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=3)


def small(encoder: Any, x: Any, y: Any = None, **settings: Any) -> ScoreCard:
    return evaluate(
        encoder, x, y, **{"eps": 0.1, "search": QUICK, "verdict": "off", "device": "cpu", **settings}
    )


def test_three_lines_give_a_score_with_intervals(encoder: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    card = small(encoder, *digits)
    assert 0 <= card.value("ers", "all") <= 100
    assert card.queries == card.asked == 60
    for r in card.records:
        assert r["ci"] is not None
        assert r["ci"][0] <= r["value"] <= r["ci"][1]
        assert r["verdict"] == "UNCHECKED"
    assert card.value("recall@1", "ES") <= card.value("recall@1")
    assert {"ers", "resistance"} <= {r["metric"] for r in card.records}
    assert "verdict: not checked" in str(card)
    with pytest.raises(UnknownName, match="recall@3"):
        card.value("recall@3")


def test_arrays_and_functions_do_as_well(encoder: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    card = small(encoder, x, y, suite=ES)
    other = small(lambda v: encoder(v), x.numpy(), y.tolist(), suite=ES)
    assert other.value("shift", "ES") == pytest.approx(card.value("shift", "ES"), abs=1e-5)


def test_an_encoder_without_gradient_is_attacked_by_queries(
    encoder: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.scorecard.BLACK_BOX", Square(queries=20))

    def numpy_only(x: Tensor) -> np.ndarray:
        with torch.no_grad():
            return encoder(x).numpy()

    card = small(numpy_only, *digits, suite=ES, search=None)
    assert "no gradient" in card.notes[0]
    assert card.value("recall@1", "ES") <= card.value("recall@1", "ES", "clean")
    assert {r["steps"] for r in card.records if r["attack"] == "ES"} == {20}
    assert BLACK_BOX.queries >= 1000


def test_without_labels_what_needs_none_is_measured(
    encoder: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    card = small(encoder, digits[0])
    assert {r["attack"] for r in card.records} == {"CA+", "CA-", "QA+", "QA-", "TMA", "ES", "GTT", "FIRST"}
    assert not any(r["metric"].startswith("recall") for r in card.records)
    assert card.value("retain@1", "FIRST", "clean") == 1.0
    with pytest.raises(InvalidArgument, match="unlabelled"):
        small(encoder, digits[0], suite="ers")


def test_queries_and_gallery_may_be_apart(encoder: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    images = small(encoder, x[:20], y[:20], suite=ES, gallery=x[20:], gallery_labels=y[20:])
    vectors = small(
        encoder, x[:20], y[:20], suite=ES, gallery=encoder(x[20:]).detach(), gallery_labels=y[20:]
    )
    assert images.value("recall@1") == vectors.value("recall@1")
    assert images.value("recall@1", "ES") == vectors.value("recall@1", "ES")

    class Index:
        ntotal = 40

        def reconstruct_n(self, first: int, many: int) -> np.ndarray:
            return encoder(x[20:]).detach().numpy()[first : first + many]

    index = small(encoder, x[:20], y[:20], suite=ES, gallery=Index(), gallery_labels=y[20:].numpy())
    assert index.value("recall@1", "ES") == images.value("recall@1", "ES")

    whole = small(encoder, x, y, suite=ES)
    same = small(encoder, x, y, suite=ES, gallery=x, gallery_labels=y, self_index=torch.arange(60))
    assert same.value("recall@1") == whole.value("recall@1")
    with_self = small(encoder, x, y, suite=ES, gallery=x, gallery_labels=y)  # finds its own picture
    assert with_self.value("recall@1") == 1.0


def test_a_sample_and_a_budget_say_what_they_cover(encoder: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    card = small(encoder, *digits, suite=ES, queries=25)
    assert (card.queries, card.asked) == (25, 60)
    assert card.value("recall@1", "ES") == small(encoder, *digits, suite=ES, queries=25).value(
        "recall@1", "ES"
    )
    short = small(encoder, *digits, suite=ES, budget=1e-9, chunk=16)
    assert short.queries == 16
    assert "16 of 60 queries" in short.notes[0]


def test_a_folder_keeps_the_card(encoder: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    calls = []

    def counted(v: Tensor) -> Tensor:
        calls.append(len(v))
        z: Tensor = encoder(v)
        return z

    first = small(counted, *digits, suite="core", out=tmp_path, name="mine")
    many = len(calls)
    again = small(counted, *digits, suite="core", out=tmp_path, name="mine")
    assert len(calls) - many <= 2  # embedded and asked for a gradient, not attacked
    assert list(again.records) == list(first.records)
    assert record.read(tmp_path / "records.jsonl") == list(first.records)
    names = ["CA+@0.1.npz", "CA-@0.1.npz", "ES@0.1.npz"]
    assert sorted(p.name for p in (tmp_path / "exhibits").iterdir()) == names
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == [*names, "clean.npz"]
    page = holdfast.write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "Not checked" in page


def test_the_steps_of_an_evaluation_are_told(
    encoder: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    said: list[tuple[str, int, int]] = []
    small(
        encoder, *digits, suite="core", verdict="quick", repair_seconds=0.1, out=tmp_path,
        on_step=lambda *at: said.append(at),
    )  # fmt: skip
    order = ["reading images", "embedding", "clean queries", "checks", "repairs"]
    assert list(dict.fromkeys(words for words, *_ in said)) == [*order, "scores and intervals", "examples"]
    checks = [(done, total) for words, done, total in said if words == "checks"]
    assert checks == [(i, len(CHECKS)) for i in range(len(CHECKS) + 1)]


def test_shards_are_put_together(encoder: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    for i in range(2):
        part = small(encoder, *digits, suite="core", out=tmp_path, chunk=16, shard=(i, 2))
        assert part.records == []
    together = small(encoder, *digits, suite="core", out=tmp_path, chunk=16)
    alone = small(encoder, *digits, suite="core")
    for metric, attack in (("rank", "CA+"), ("rank", "CA-"), ("shift", "ES")):
        assert together.value(metric, attack) == pytest.approx(alone.value(metric, attack), abs=1e-5)


def test_a_folder_of_images(tmp_path: Path) -> None:
    pixels = torch.rand(24, 12, 12, 3, generator=stream(0, "folder")).mul(255).byte().numpy()
    for side in ("queries", "gallery"):
        for i in range(24):
            place = tmp_path / side / "abc"[i % 3] if side == "queries" else tmp_path / side / "bcd"[i % 3]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(place / f"{i}.png")
    net = SmallCNN(width=4, embedding_dim=8).build((3, 8, 8), seed=0)
    card = small(net, tmp_path / "queries", suite=ES, size=8)
    assert card.records[0]["dataset"] == "queries"
    assert card.queries == 24
    apart = small(net, tmp_path / "queries", suite=ES, size=8, gallery=tmp_path / "gallery")
    # the picture of class b among the queries stands in class c of the gallery: labels go by name
    assert apart.value("recall@1") < 0.7
    flat = small(net, tmp_path / "queries" / "a", size=8)
    assert not any(r["metric"].startswith("recall") for r in flat.records)
    with pytest.raises(DataError, match="no such folder"):
        small(net, tmp_path / "nowhere", size=8)
    with pytest.raises(InvalidArgument, match="labels"):
        small(net, tmp_path / "queries", [0] * 24, size=8)


class Faulty(nn.Module):
    """An encoder with one fault."""

    def __init__(self, fault: Any) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: Tensor) -> Any:
        return self.fault(x.flatten(1)[:, :8] + 0.1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda z: z * torch.nan, "finite"),
        (lambda z: z[:-1], "embeddings"),
        (lambda z: z.sum(), "embedding"),
        (lambda z: "text", "encoder"),
        (lambda z: z @ z, "callable for images"),
        (lambda z: 3 * z, "length 1"),
    ],
)
def test_encoders_that_cannot_be_measured_are_refused(
    fault: Any, message: str, digits: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        small(Faulty(fault), *digits)


def test_what_can_be_mended_is_mended(digits: tuple[Tensor, Tensor]) -> None:
    card = small(Faulty(lambda z: 3 * z), *digits, normalize=True)
    assert 0 <= card.value("ers", "all") <= 100


def test_a_training_module_is_measured_in_evaluation_mode(digits: tuple[Tensor, Tensor]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 8)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = small(net, *digits, suite=ES, normalize=True)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert first.value("shift", "ES") == small(net, *digits, suite=ES, normalize=True).value("shift", "ES")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(5, 8, 8), torch.tensor([0, 0, 1, 1, 2]), "4 dimensions"),
        (torch.full((4, 1, 8, 8), 2.0), torch.tensor([0, 0, 1, 1]), "lie in"),
        (torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1]), "one label for each"),
        (torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 0, 0]), "2 classes"),
        (torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]), "gallery: need more than 4"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    encoder: nn.Module, images: Tensor, labels: Tensor, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        small(encoder, images, labels)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"norm": "l3"}, UnknownName, "norm"),
        ({"suite": "all"}, UnknownName, "suite"),
        ({"queries": 0}, InvalidArgument, "queries"),
        ({"verdict": "some"}, InvalidArgument, "level"),
        ({"shard": (0, 2)}, InvalidArgument, "out"),
        ({"shard": (2, 2), "out": "nowhere"}, InvalidArgument, "share"),
        ({"gallery": torch.zeros(9, 3), "gallery_labels": torch.zeros(9)}, InvalidArgument, "gallery"),
        ({"gallery": torch.zeros(9, 8)}, DataError, "gallery labels"),
        ({"self_index": torch.arange(60)}, InvalidArgument, "gallery"),
    ],
)
def test_bad_settings(
    encoder: nn.Module, digits: tuple[Tensor, Tensor], settings: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        small(encoder, *digits, **settings)


def test_labels_that_are_no_numbers(encoder: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InvalidArgument, match="labels"):
        small(encoder, digits[0], ["cat"] * 60)
