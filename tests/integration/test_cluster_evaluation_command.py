"""Suites on clusters from the command line, of run folders and of encoders of one's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.data import Digits, PairSampler
from holdfast.encoders import Ensemble, SmallCNN
from holdfast.encoders import save as save_encoder
from holdfast.errors import DataError, InvalidArgument, UnknownName
from holdfast.evaluation import SUITES, cluster_worst_case, clusters, read_clusters, suites
from holdfast.recipes import recipe
from holdfast.results import record
from holdfast.results.record import Record
from holdfast.runs import evaluate_run, train_run
from holdfast.scorecard import ScoreCard, evaluate
from holdfast.search import PGD
from holdfast.threat import LinfThreat

pytestmark = pytest.mark.integration
Call = Callable[..., tuple[int, str, str]]
SEARCH = PGD(steps=2, alpha=0.05)
METRICS = {"flip", "accuracy", "majority", "recall@1", "map@r"}
SETS = {f"{m}{t}" for m in ("purity", "nmi", "ami", "ari") for t in ("", "-t")} | {"accuracy-t"}


def settings(protocol: Any = "closed") -> Any:
    return replace(
        recipe("plain"), data=Digits(train_images=1700, protocol=protocol), epochs=1, device="cpu",
        encoder=SmallCNN(width=4, embedding_dim=8), sampler=PairSampler(100), threat=LinfThreat(eps=0.1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(settings(), tmp_path_factory.mktemp("runs") / "first").path


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same suites with few black-box queries, a short worst case and few seeds of k-means."""
    quick = {
        "clustering": replace(SUITES["clustering"], entries=suites._on_clusters(queries=10)),
        "clustering-worst": replace(
            SUITES["clustering-worst"],
            entries=(
                replace(
                    SUITES["clustering-worst"].entries[0],
                    attack=cluster_worst_case(steps=2, restarts=1, queries=10),
                ),
            ),
        ),
    }
    for name, suite in quick.items():
        monkeypatch.setitem(SUITES, name, suite)  # type: ignore[arg-type]
    monkeypatch.setattr(clusters, "SEEDS", (0,))


def values(records: list[Record], attack: str, state: str = "attacked") -> dict[str, float]:
    return {r["metric"]: r["value"] for r in records if (r["attack"], r["state"]) == (attack, state)}


def timeless(records: list[Record]) -> list[Any]:
    return [{**r, "time": "", "seconds": 0.0, "run": ""} for r in records]


# --- run folders -------------------------------------------------------------------------------------------


def test_the_command_measures_checks_and_goes_on(holdfast: Call, folder: Path) -> None:
    """End to end: JSON, a table that can be read, read back, and resumed after a chunk was lost."""
    words = ("evaluate", folder, "--suite", "clustering", "--steps", 2, "--queries", 60)
    code, out, err = holdfast(*words, "--json")
    assert code == 0, err
    records = json.loads(out)
    assert {r["attack"] for r in records} == {
        "none",
        "UNION",
        *(e.label for e in SUITES["clustering"].entries),
    }
    assert set(values(records, "UNION")) == METRICS | SETS
    worst = values(records, "UNION")
    assert all(
        worst["flip"] >= values(records, e.label)["flip"]
        and worst["accuracy"] <= values(records, e.label)["accuracy"]
        for e in SUITES["clustering"].entries
    )
    assert {r["verdict"] for r in records} != {"UNCHECKED"}
    assert record.read(folder / "records.jsonl") == records
    (store,) = (folder / "evaluations").iterdir()
    kept = read_clusters(store)
    assert kept["centroids"].shape == (10, 8)
    assert len(kept["z"]) == 60
    assert sorted(kept["hungarian"]) == list(range(10))
    assert {f"{e.label}@{records[-1]['eps']:.6g}.npz" for e in SUITES["clustering"].entries} == {
        p.name for p in (folder / "exhibits").iterdir()
    }

    code, out, err = holdfast(*words)
    assert code == 0, err
    lines = out.splitlines()
    assert "frozen centroids" in out
    assert "clustered anew" in out
    assert max(len(line) for line in lines if "│" in line) <= 160
    assert len(lines) < 50
    assert len(record.read(folder / "records.jsonl")) == len(records)  # read back, not measured again

    (folder / "records.jsonl").unlink()
    next(store.glob("A4-*.npz")).unlink()
    code, out, err = holdfast(*words, "--json", "--check", "off")
    assert code == 0, err
    same = [{**r, "verdict": "", "failed": []} for r in timeless(json.loads(out))]
    assert same == [{**r, "verdict": "", "failed": []} for r in timeless(records)]


def test_the_worst_case_and_shards(folder: Path) -> None:
    common: dict[str, Any] = {"suite": "clustering-worst", "search": SEARCH, "verdict": "off", "queries": 40}
    records = evaluate_run(folder, **common)
    found = values(records, "WORST")
    assert set(found) == METRICS | SETS
    clean = values(records, "none", "clean")
    assert found["accuracy"] < clean["accuracy"]
    assert {r["attack"] for r in records} == {"none", "WORST"}


def test_clusters_and_inference_are_settings(folder: Path) -> None:
    """Each way is another evaluation; prototypes are class means, of which every class has one."""
    common: dict[str, Any] = {"suite": "clustering-worst", "search": SEARCH, "verdict": "off", "queries": 20}
    ways: list[dict[str, Any]] = [{"clusters": 6}, {"inference": "spherical"}, {"inference": "prototype"}]
    prints, sizes = set(), []
    for way in ways:
        records = evaluate_run(folder, **common, **way)
        (fingerprint,) = {r["fingerprint"] for r in records}
        prints.add(fingerprint)
        sizes.append(len(read_clusters(folder / "evaluations" / fingerprint)["centroids"]))
    assert len(prints) == 3
    assert sizes == [6, 10, 10]


def test_zero_shot_clusters_are_those_of_the_test_images(tmp_path: Path) -> None:
    run = train_run(settings("zero-shot"), tmp_path / "zero").path
    records = evaluate_run(run, suite="clustering-worst", search=SEARCH, verdict="off", queries=30)
    (store,) = (run / "evaluations").iterdir()
    kept = read_clusters(store)
    assert kept["centroids"].shape == (5, 8)
    assert set(kept["hungarian"]) == {5, 6, 7, 8, 9}
    told = json.loads((store / "settings.json").read_text())
    assert (told["references"], told["inference"], told["clusters"]) == ("queries", "kmeans", None)
    assert values(records, "none", "clean")["recall@1"] < 1  # a query does not find itself


def test_poisoned_references(holdfast: Call, folder: Path) -> None:
    words = ("evaluate", folder, "--suite", "poisoning", "--poison", 0.05, "--queries", 30, "--steps", 2)
    code, out, err = holdfast(*words, "--json")
    assert code == 0, err
    records = json.loads(out)
    assert {r["attack"] for r in records} == {"none", "G1", "G1-noise"}
    for attack in ("G1", "G1-noise"):
        assert set(values(records, attack)) == set(values(records, attack, "clean")) == {"flip", "accuracy"}
    assert {r["verdict"] for r in records} == {"UNCHECKED"}
    code, out, _ = holdfast(*words)
    assert code == 0
    assert "G1-noise" in out
    assert "fitted again on changed references" in out
    assert len(record.read(folder / "records.jsonl")) == len(records)


def test_members_and_a_twin_attack_by_transfer(tmp_path: Path, trained: Path) -> None:
    part = SmallCNN(width=2, embedding_dim=4)
    folder = tmp_path / "joint"
    shutil.copytree(trained, folder)
    save_encoder(Ensemble(members=(part, part)).build((1, 8, 8), 0), folder / "encoder.safetensors")
    common: dict[str, Any] = {"suite": "clustering", "search": PGD(steps=1), "verdict": "off", "queries": 20}
    alone = evaluate_run(folder, **common)
    flips = {m for m in values(alone, "A8") if m.startswith("flip")}
    assert flips == {"flip", "flip from member 1", "flip from member 2"}
    found = values(alone, "A8")
    assert found["flip"] >= max(found["flip from member 1"], found["flip from member 2"])
    twin = part.build((1, 8, 8), seed=4)
    with_twin = evaluate_run(folder, **common, twin=twin, surrogates={"older": part.build((1, 8, 8), seed=5)})
    assert {"flip from twin", "flip from older"} <= set(values(with_twin, "A8"))
    assert {r["fingerprint"] for r in alone}.isdisjoint({r["fingerprint"] for r in with_twin})


# --- encoders of one's own ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = Digits().load().test
    return test.x[:50], test.y[:50]


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return SmallCNN(width=4, embedding_dim=8).build((1, 8, 8), seed=3)


def small(encoder: Any, x: Any, y: Any = None, **more: Any) -> ScoreCard:
    common = {"suite": "clustering", "eps": 0.1, "search": SEARCH, "verdict": "off", "device": "cpu"}
    return evaluate(encoder, x, y, **{**common, **more})


def test_any_encoder_has_clusters(encoder: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    card = small(encoder, *digits)
    assert card.value("accuracy", "UNION") <= card.value("accuracy", "A1") <= 1
    assert card.value("flip", "UNION") >= card.value("flip", "A6")
    assert card.value("purity-t") >= card.value("purity", "UNION")
    assert "UNION flip" in str(card)


def test_clusters_may_be_those_of_a_gallery(
    encoder: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    x, y = digits
    with torch.no_grad():
        z = encoder(x[20:])
    by: list[ScoreCard] = [
        small(
            encoder, x[:20], y[:20], suite="clustering-worst", gallery=gallery, gallery_labels=y[20:],
            clusters=5, out=tmp_path / str(i), surrogates={"other": SmallCNN(width=2).build((1, 8, 8), 0)},
        )
        for i, gallery in enumerate((x[20:], z))
    ]  # fmt: skip
    assert by[0].value("accuracy") == by[1].value("accuracy")
    assert "No attack by transfer" in by[1].notes[0]
    assert not by[0].notes
    again = small(
        encoder, x[:20], y[:20], suite="clustering-worst", gallery=z, gallery_labels=y[20:], clusters=5,
        out=tmp_path / "1", surrogates={"other": SmallCNN(width=2).build((1, 8, 8), 0)},
    )  # fmt: skip
    assert list(again.records) == list(by[1].records)
    assert not again.results


def test_without_labels_only_flips_are_measured(encoder: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    card = small(encoder, digits[0], suite="clustering-worst", clusters=4, verdict="quick")
    assert {r["metric"] for r in card.records} == {"flip"}
    assert card.verdict is not None
    labelled = small(encoder, *digits, suite="clustering-worst", clusters=4)
    assert labelled.value("flip", "WORST") == card.value("flip", "WORST")


def test_an_encoder_without_gradient_is_attacked_by_queries(
    encoder: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast.search import Square

    monkeypatch.setattr("holdfast.scorecard.BLACK_BOX", Square(queries=5))
    card = small(lambda v: encoder(v).detach(), digits[0][:20], digits[1][:20], search=None)
    assert "no gradient" in card.notes[0]
    assert card.value("flip", "UNION") >= card.value("flip", "A1")


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--clusters", "2000"), "1700"),
        (("--clusters", "1"), "clusters: need an integer >= 2"),
        (("--clusters", "many"), "clusters: need an integer >= 2, or auto"),
        (("--inference", "kmean"), "did you mean kmeans"),
        (("--inference", "prototype", "--clusters", "3"), "10, the number of classes"),
        (("--suite", "core", "--clusters", "3"), "a suite on clusters"),
        (("--suite", "poisoning", "--poison", "2"), "poison: need a share in [0, 1]"),
        (("--suite", "clusterin"), "did you mean clustering"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_bad_input_is_one_line_and_code_2(
    words: tuple[str, ...], said: str, holdfast: Call, trained: Path
) -> None:
    suite = () if "--suite" in words else ("--suite", "clustering")
    code, out, err = holdfast("evaluate", trained, *suite, *words)
    assert code == 2
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) in (1, 2)
    assert not (trained / "records.jsonl").exists()


def test_bad_input_to_the_library(encoder: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    with pytest.raises(DataError, match="classes"):
        small(encoder, x, torch.zeros(50, dtype=torch.int64))
    with pytest.raises(InvalidArgument, match="labels"):
        small(encoder, x, inference="prototype")
    with pytest.raises(InvalidArgument, match="n_clusters"):
        small(encoder, x)
    with pytest.raises(InvalidArgument, match="50"):
        small(encoder, x, y, clusters=51)
    with pytest.raises(UnknownName, match="inference"):
        small(encoder, x, y, inference="means")
    with pytest.raises(InvalidArgument, match="self_index"):
        small(encoder, x, y, gallery=x, gallery_labels=y, self_index=torch.arange(50))
