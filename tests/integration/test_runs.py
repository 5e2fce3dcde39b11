"""Run folders: train, evaluate, open; recipes by name."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast import config, encoders
from holdfast.adversaries import Fixed, HardnessManipulation, MixedBoundary, Shift
from holdfast.cli.options import changed
from holdfast.config import from_plain, to_plain
from holdfast.data import DATASETS, Augment, Digits, MPerClass, Omniglot, PairSampler
from holdfast.defenses import AdversarialTraining
from holdfast.encoders import LinearEncoder, SmallCNN
from holdfast.errors import CorruptFile, DataError, InvalidArgument, RunError, UnknownName
from holdfast.evaluation import SUITES, Share, embed, evaluate_retrieval, retrieval_task
from holdfast.files import read_arrays, read_json, read_lines
from holdfast.functional.distance import Cosine
from holdfast.losses import ProxyAnchor, Triplet
from holdfast.miners import Semihard, Softhard
from holdfast.recipes import RECIPES, SETTINGS, recipe
from holdfast.recipes.clustering import CLUSTERING
from holdfast.report import write_report
from holdfast.results import record
from holdfast.results.record import Record
from holdfast.runs import allowed_types, default_search, open_run, train_run
from holdfast.runs import evaluate_run as evaluate_and_check
from holdfast.schedules import HalfCosine
from holdfast.search import NES, PGD
from holdfast.threat import L2Threat, LinfThreat
from holdfast.training import Adam, Run, train

pytestmark = pytest.mark.integration

evaluate_run = partial(evaluate_and_check, verdict="off")
N = 1797 - 1700  # test images
SEARCH = PGD(steps=2, alpha=0.05)


def small(**changes: Any) -> Run:
    """The plain recipe, with a small encoder, 1700 training images in 17 batches, and 97 test images."""
    run = replace(
        recipe("plain"), data=Digits(train_images=1700), encoder=SmallCNN(width=4, embedding_dim=8),
        sampler=PairSampler(100), epochs=1, threat=LinfThreat(eps=0.1), device="cpu",
    )  # fmt: skip
    return replace(run, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    return train_run(small(), folder, defaults=recipe("plain"), command="holdfast train plain").path


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    folder = tmp_path_factory.mktemp("evaluated") / "first"
    shutil.copytree(trained, folder)
    return folder, evaluate_run(folder, search=SEARCH)


def values(records: list[Record], attack: str, state: str) -> dict[str, float]:
    return {r["metric"]: r["value"] for r in records if (r["attack"], r["state"]) == (attack, state)}


# --- Training into a folder --------------------------------------------------------------------------------


def test_a_trained_folder_is_complete(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {"run.json", "log.jsonl", "checkpoint.safetensors", "encoder.safetensors"}
    meta = read_json(trained / "run.json")
    assert meta["schema"] == 1
    assert meta["name"] == "plain"
    assert meta["command"] == "holdfast train plain"
    assert from_plain(meta["defaults"], allowed_types()) == recipe("plain")
    assert meta["machine"]["torch"] == torch.__version__
    split = small().data.load()
    assert meta["data_fingerprint"] == {s: getattr(split, s).fingerprint() for s in ("train", "test")}
    assert len(read_lines(trained / "log.jsonl")) == 17 + 1
    opened = open_run(str(trained))
    assert opened.finished
    assert opened.encoder().spec == SmallCNN(width=4, embedding_dim=8)
    assert not opened.encoder().training


RUNS = {
    **{f"recipe {name}": make for name, make in RECIPES.items()},
    **{f"plain on {name}": lambda name=name: recipe("plain", name) for name in SETTINGS},
    "every kind of part": lambda: Run(
        name="own", data=Omniglot(root="/somewhere"), threat=L2Threat(eps=0.5, bounds=None), seed=7,
        encoder=LinearEncoder(4), sampler=MPerClass(3, 4), optimizer=Adam(lr=0.01), precision="bf16",
        augment=Augment(shift=1, flip=0.5),
        defense=AdversarialTraining(
            loss=Triplet(margin=0.3), miner=Semihard(), threat=L2Threat(eps=0.4),
            adversary=HardnessManipulation(destination=MixedBoundary(miner=Semihard(margin=0.5))),
            search=PGD(alpha=HalfCosine(start=0.1, stop=0.01), keep="best", gradient=NES(samples=3)),
        ),
    ),
    "another distance": lambda: small(distance=Cosine()),
    "fixed destination": lambda: small(defense=AdversarialTraining(
        loss=Triplet(), miner=Semihard(), adversary=HardnessManipulation(destination=Fixed(value=0.0)),
        search=PGD(), threat=LinfThreat(eps=0.1))),
    "proxies": lambda: small(defense=AdversarialTraining(
        loss=ProxyAnchor(alpha=16), adversary=Shift(), search=PGD(), threat=LinfThreat(eps=0.1))),
}  # fmt: skip


@pytest.mark.parametrize("name", list(RUNS))
def test_run_json_gives_back_an_equal_run(name: str, tmp_path: Path) -> None:
    run = RUNS[name]()
    plain = json.loads(json.dumps(to_plain(run), allow_nan=False))
    meta = {"schema": 1, "name": run.name, "run": plain}
    (tmp_path / "run.json").write_text(json.dumps(meta))
    opened = open_run(tmp_path)
    assert opened.run == run
    assert type(opened.run.defense) is type(run.defense)
    assert to_plain(opened.run) == to_plain(run)
    assert not opened.finished


# --- Opening -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        (None, RunError, "no run folder"),
        ("", CorruptFile, "not JSON"),
        ('{"schema": 1, "run": ', CorruptFile, "not JSON"),
        ("[1, 2]", RunError, "schema None, this version reads schema 1"),
        ('{"name": "of another program"}', RunError, "schema None"),
        ('{"schema": 2, "run": {}}', RunError, "schema 2, this version reads schema 1"),
        ('{"schema": 1}', RunError, "no Run"),
        ('{"schema": 1, "run": {"type": "PGD"}}', RunError, "no Run but PGD"),
        ('{"schema": 1, "run": {"type": "Popen", "args": "ls"}}', UnknownName, "Popen"),
        ('{"schema": 1, "run": {"type": "Run", "nmae": "x"}}', UnknownName, "did you mean name"),
        ('{"schema": 1, "run": {"type": "Run"}}', DataError, "Run: cannot be built"),
    ],
)
def test_foreign_folders_are_refused(
    text: str | None, error: type[Exception], reason: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(error, match=reason):
        open_run(tmp_path)
    with pytest.raises(error, match=reason):
        evaluate_run(tmp_path)


def test_paths_that_are_no_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(RunError, match="no run folder"):
            open_run(path)


def test_an_unfinished_run_refuses_evaluation(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(trained, folder)
    (folder / "encoder.safetensors").unlink()
    assert not open_run(folder).finished
    for call in (open_run(folder).encoder, lambda: evaluate_run(folder)):
        with pytest.raises(RunError, match="training is not finished; go on with --resume"):
            call()
    assert {path.name for path in folder.iterdir()} == {"run.json", "log.jsonl", "checkpoint.safetensors"}


# --- Evaluating --------------------------------------------------------------------------------------------


def test_an_evaluated_folder_is_complete(evaluated: tuple[Path, list[Record]]) -> None:
    folder, records = evaluated
    (fingerprint,) = {r["fingerprint"] for r in records}
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "log.jsonl", "checkpoint.safetensors", "encoder.safetensors",
        "records.jsonl", "evaluations", "exhibits", "maps",
    }  # fmt: skip
    labels = {entry.label for entry in SUITES["core"].entries}
    assert {path.name for path in (folder / "exhibits").iterdir()} == {f"{x}@0.1.npz" for x in labels}
    chunks = sorted(path.name for path in (folder / "evaluations" / fingerprint).iterdir())
    assert chunks == sorted([*(f"{x}-00000000-00000097.npz" for x in labels), "done.json", "settings.json"])
    settings = read_json(folder / "evaluations" / fingerprint / "settings.json")
    assert settings["threat"] == to_plain(small().threat)
    assert settings["search"] == to_plain(SEARCH)
    arrays = read_arrays(folder / "evaluations" / fingerprint / "ES-00000000-00000097.npz")
    assert arrays["x"].shape == (N, 1, 8, 8)
    shift = values(records, "ES", "attacked")["shift"]
    assert arrays["attacked.shift"].mean() == pytest.approx(shift)


def test_records_are_valid_and_say_where_they_come_from(evaluated: tuple[Path, list[Record]]) -> None:
    folder, records = evaluated
    assert record.read(folder / "records.jsonl") == records
    assert record.latest(records) == records
    for r in records:
        assert (r["run"], r["dataset"], r["protocol"]) == ("first", "digits", "closed")
        assert (r["encoder"], r["defense"], r["suite"]) == ("small-cnn", "plain", "core")
        assert (r["norm"], r["n"]) == ("linf", N)
        attacked = (0.1, 0.05, 2) if r["attack"] != "none" else (0.0, 0.0, 0)
        assert (r["eps"], r["alpha"], r["steps"]) == attacked
        assert r["ci"] is not None
        assert r["ci"][0] <= r["value"] <= r["ci"][1]
    assert set(values(records, "none", "clean")) == {
        "recall@1", "recall@2", "recall@4", "recall@8", "map", "map@r", "map@10", "nmi",
    }  # fmt: skip
    assert {r["attack"] for r in records} == {"none", *(e.label for e in SUITES["core"].entries)}
    for label in ("CA+", "CA-", "ES"):
        assert values(records, label, "clean").keys() == values(records, label, "attacked").keys()
    directions = {(r["attack"], r["metric"]): r["higher_is_robust"] for r in records}
    assert directions["CA+", "rank"]
    assert not directions["CA-", "rank"]
    assert directions["ES", "recall@1"]
    assert not directions["ES", "shift"]


def test_records_are_what_the_evaluation_functions_give(evaluated: tuple[Path, list[Record]]) -> None:
    folder, records = evaluated
    test, encoder = small().data.load().test, open_run(folder).encoder()
    found = evaluate_retrieval(retrieval_task(encoder, test.x, test.y))
    assert values(records, "none", "clean") == {name: e.value for name, e in found.items()}
    clean, attacked = (values(records, "ES", state) for state in ("clean", "attacked"))
    assert clean["recall@1"] == pytest.approx(found["recall@1"].value)
    assert clean["shift"] == pytest.approx(0, abs=1e-5)
    assert attacked["shift"] > 0.01
    assert attacked["recall@1"] < clean["recall@1"]


def test_evaluating_again_reads_back_and_appends_nothing(evaluated: tuple[Path, list[Record]]) -> None:
    folder, records = evaluated
    before = (folder / "records.jsonl").read_bytes()

    def never(*args: Any) -> None:
        raise AssertionError("attacked again")

    assert evaluate_run(folder, search=SEARCH, on_chunk=never) == records
    assert evaluate_run(open_run(folder), search=SEARCH, threat=small().threat, on_chunk=never) == records
    assert (folder / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"threat": LinfThreat(eps=0.2)},
        {"threat": L2Threat(eps=0.1)},
        {"search": PGD(steps=1, alpha=0.1)},
        {"seed": 1},
        {"suite": "benign"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_settings_append(
    changes: dict[str, Any], evaluated: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(evaluated[0], folder)
    before = (folder / "records.jsonl").read_bytes()
    new = evaluate_run(folder, **{"search": SEARCH, **changes})
    after = (folder / "records.jsonl").read_bytes()
    assert after.startswith(before)
    assert record.read(folder / "records.jsonl")[len(evaluated[1]) :] == new
    assert {r["fingerprint"] for r in new}.isdisjoint({r["fingerprint"] for r in evaluated[1]})
    assert len(list((folder / "evaluations").iterdir())) == 2
    eps = changes.get("threat", small().threat).eps
    assert {r["eps"] for r in new if r["attack"] != "none"} == (set() if "suite" in changes else {eps})


def test_other_weights_are_another_measurement(evaluated: tuple[Path, list[Record]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(evaluated[0], folder)
    encoders.save(small().encoder.build((1, 8, 8), seed=9), folder / "encoder.safetensors")
    new = evaluate_run(folder, search=SEARCH)
    assert values(new, "none", "clean") != values(evaluated[1], "none", "clean")
    assert {r["fingerprint"] for r in new}.isdisjoint({r["fingerprint"] for r in evaluated[1]})


def test_a_stopped_evaluation_goes_on(evaluated: tuple[Path, list[Record]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(evaluated[0], folder)
    (folder / "records.jsonl").unlink()
    (lost,) = (folder / "evaluations").glob("*/ES-*.npz")
    lost.unlink()
    stamps = {path: path.stat().st_mtime_ns for path in lost.parent.glob("*.npz")}
    again = evaluate_run(folder, search=SEARCH)
    timeless = [[{**r, "time": "", "seconds": 0.0, "run": ""} for r in rs] for rs in (again, evaluated[1])]
    assert timeless[0] == timeless[1]
    assert lost.exists()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_radius_of_zero_changes_nothing(evaluated: tuple[Path, list[Record]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(evaluated[0], folder)
    records = evaluate_run(folder, threat=LinfThreat(eps=0.0))
    for entry in SUITES["core"].entries:
        clean, attacked = (values(records, entry.label, state) for state in ("clean", "attacked"))
        assert attacked == pytest.approx(clean, abs=1e-5), entry.label
    assert values(records, "none", "clean") == values(evaluated[1], "none", "clean")
    assert {(r["eps"], r["alpha"]) for r in records if r["attack"] != "none"} == {(0.0, 0.0)}


def test_progress_is_told_and_unknown_suites_are_refused(
    evaluated: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(evaluated[0], folder)
    said: list[tuple[str, int, int]] = []
    evaluate_run(folder, search=PGD(steps=1), on_chunk=lambda *line: said.append(line))
    assert said == [(entry.label, done, N) for entry in SUITES["core"].entries for done in (0, N)]
    with pytest.raises(UnknownName, match="did you mean core"):
        evaluate_run(folder, suite="cor")
    with pytest.raises(InvalidArgument, match="device"):
        evaluate_run(folder, search=PGD(steps=3), device="abacus")


def test_evaluation_leaves_the_encoder_file_alone(
    evaluated: tuple[Path, list[Record]], trained: Path
) -> None:
    for name in ("encoder.safetensors", "run.json", "log.jsonl", "checkpoint.safetensors"):
        assert (evaluated[0] / name).read_bytes() == (trained / name).read_bytes()
    x = small().data.load().test.x
    assert torch.equal(embed(open_run(evaluated[0]).encoder(), x), embed(open_run(trained).encoder(), x))


def test_default_search_reaches_every_point_of_the_ball() -> None:
    assert default_search(0.2) == PGD(steps=40, alpha=0.02, keep="best")
    assert default_search(0.2, suite="ers-robrank").keep == "last"
    assert default_search(0.2, steps=8) == PGD(steps=8, alpha=0.1, keep="best")
    assert default_search(0.2, steps=8, alpha=0.01) == PGD(steps=8, alpha=0.01, keep="best")
    assert default_search(0.2, steps=0).steps == 0


# --- Recipes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("data", list(SETTINGS))
def test_every_recipe_makes_a_run_for_every_data_set_with_settings(name: str, data: str) -> None:
    run = recipe(name, data)
    assert isinstance(run, Run)
    assert run.name == name
    assert run.data == SETTINGS[data].data()
    threat = getattr(run.defense, "threat", None)
    assert getattr(threat, "part", threat) in (None, run.threat)  # a ramp ends at the run's radius
    assert recipe(name) == recipe(name, "digits")


PLAIN = {"plain", "noise", "lipschitz", "free-at", *(f"hm-{letter}-{letter}" for letter in "rmsdh")}
"""Recipes without a search."""


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in CLUSTERING])
def test_every_recipe_trains_two_steps(name: str) -> None:
    """With the real parts and a short search; the logs are finite and the weights move."""
    run = changed(recipe(name), {"steps": 2} if name not in PLAIN else {}, ["data.train_images=40"])
    run = replace(config.replace(run, "sampler.batch_pairs", 20), epochs=1)
    lines: list[dict[str, Any]] = []
    data = run.data.load()
    result = train(run, data, on_line=lines.append)
    assert result.steps == 2
    assert all(math.isfinite(v) for line in lines for v in line.values() if isinstance(v, float))
    start = run.encoder.build(data.train.shape, run.seed).state_dict()
    moved = result.encoder.state_dict()
    # The released ramp of CA-TRIDE starts at zero; its images rest in the first epoch, its weights do not.
    assert any(not torch.equal(start[k], moved[k]) for k in start)


def test_a_sampler_as_its_own_destination_is_plain_training() -> None:
    """HM[S, S] is softhard training bit for bit, by the same streams."""
    own = config.replace(recipe("hm-s-s"), "data.train_images", 60)
    plain = replace(
        config.replace(recipe("plain"), "data.train_images", 60),
        defense=AdversarialTraining(loss=Triplet(margin=0.2), miner=Softhard()),
    )
    weights = [train(replace(r, epochs=1), r.data.load()).encoder.state_dict() for r in (own, plain)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_names_with_a_data_set() -> None:
    run = recipe("cub-hm-ics")
    assert (run.name, run.data.name, run.epochs) == ("hm-ics", "cub", 75)
    assert run.optimizer == Adam(lr=1e-5, weight_decay=4e-4)
    assert run.threat.eps == 8 / 255
    assert recipe("sop-hm-ics").defense.extra[0].weight == 0.05
    assert recipe("cars-ca-tride").defense.adversary.parts[0].sharpness == 9.5
    assert recipe("fashion-act").data.name == "fashion-mnist"
    assert recipe("fashion-small-act").data.train_per_class == 200
    with pytest.raises(InvalidArgument, match="cub"):
        recipe("cub-hm-ics", "sop")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("hm-isc",), "recipe: need a known name .did you mean hm-ics"),
        (("PLAIN",), "did you mean plain"),
        (("zzz",), "known: acap, act, .*plain"),
        (("",), "recipe"),
        (("plain", "digit"), "data set: need a known name .did you mean digits"),
        (("plain", "mnits"), "did you mean mnist"),
    ],
)
def test_unknown_names_list_near_matches(arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UnknownName, match=reason):
        recipe(*arguments)


def test_root_goes_to_the_data_that_has_one() -> None:
    assert recipe("act", "mnist", root="/data").data.root == "/data"  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgument, match="digits needs no files"):
        recipe("act", "digits", root="/data")


OWN = """
from dataclasses import replace
from holdfast.recipes import plain

def mine():
    return replace(plain(), name="mine", epochs=3)

def nothing():
    return None

def needs(something):
    return plain()

def strict():
    raise ValueError("not today")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / "ownpackage"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "recipes.py").write_text(OWN)
    (package / "broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("ownpackage")]:
        monkeypatch.delitem(sys.modules, name)
    return "ownpackage.recipes"


def test_an_own_recipe_is_imported_and_called(own: str) -> None:
    run = recipe(f"{own}:mine")
    assert (run.name, run.epochs, run.data) == ("mine", 3, Digits())
    assert recipe(f"{own}:mine", "mnist", root="/d").data == DATASETS["mnist"](root="/d")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ownpackage.recipes:absent", "absent"),
        ("ownpackage.recipes:nothing", "returns a holdfast.training.Run, got 'NoneType'"),
        ("ownpackage.recipes:needs", "without arguments"),
        ("ownpackage.recipes:strict", "not today"),
        ("ownpackage.recipes:number", "recipe: need package.module:function"),
        ("ownpackage.recipes:", "recipe: need package.module:function"),
        ("ownpackage.broken:mine", "a_module_that_is_not_there"),
        ("ownpackage.absent:mine", "ownpackage.absent"),
        (":mine", "recipe: need package.module:function"),
        (".recipes:mine", "recipe: need package.module:function"),
        ("holdfast.recipes:RECIPES", "recipe: need package.module:function"),
    ],
)
def test_bad_own_recipes_are_refused(own: str, name: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        recipe(name)


def test_an_own_recipe_is_stored_and_opened_without_its_module(own: str, tmp_path: Path) -> None:
    run = replace(small(), name=recipe(f"{own}:mine").name)
    folder = train_run(run, tmp_path / "run").path
    del sys.modules[own]
    assert open_run(folder).run == run
    assert own not in sys.modules


def test_an_evaluation_is_checked_and_the_verdict_stands_in_every_record(
    evaluated: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    folder = tmp_path / "checked"
    shutil.copytree(evaluated[0], folder)
    best = replace(SEARCH, keep="best")
    plain = evaluate_run(folder, search=best)
    before = {p: p.stat().st_mtime_ns for p in (folder / "evaluations").rglob("*.npz")}
    records = evaluate_and_check(folder, search=best)
    (word,) = {r["verdict"] for r in records}
    (fingerprint,) = {r["fingerprint"] for r in records}
    verdict = read_json(folder / "evaluations" / fingerprint / "verdict.json")
    assert word == verdict["verdict"] == "OVERESTIMATED"  # two steps are too few, and the checks say so
    assert all(r["failed"] == verdict["failed"] != [] for r in records)
    assert {p: p.stat().st_mtime_ns for p in (folder / "evaluations").rglob("*.npz")} == before
    known = [{**r, "verdict": "", "failed": []} for r in plain]
    assert [{**r, "verdict": "", "failed": [], "time": ""} for r in records] == [
        {**r, "time": "", "seconds": now["seconds"]} for r, now in zip(known, records, strict=True)
    ]
    assert evaluate_and_check(folder, search=best) == records  # read back
    assert evaluate_run(folder, search=best) == records  # more than was asked for
    page = write_report([folder], folder / "report.html").read_text()
    assert "Overestimated" in page
    assert "R9" in page


def test_a_twin_is_handed_to_the_checks(evaluated: tuple[Path, list[Record]], tmp_path: Path) -> None:
    folder = tmp_path / "twin"
    shutil.copytree(evaluated[0], folder)
    records = evaluate_and_check(folder, twin=open_run(folder).encoder(), search=SEARCH)
    fingerprint = records[0]["fingerprint"]
    verdict = read_json(folder / "evaluations" / fingerprint / "verdict.json")
    (found,) = [f for f in verdict["findings"] if f["id"] == "R21"]
    assert found["status"] != "skipped"


def test_samples_and_shares_of_a_run(evaluated: tuple[Path, list[Record]], tmp_path: Path) -> None:
    folder = tmp_path / "shares"
    shutil.copytree(evaluated[0], folder, ignore=shutil.ignore_patterns("evaluations", "records.jsonl"))
    assert {r["n"] for r in evaluate_run(folder, search=SEARCH, queries=20)} == {20}
    for index in range(2):
        assert evaluate_run(folder, search=SEARCH, share=Share(index=index, count=2)) == []
    records = evaluate_run(folder, search=SEARCH)
    assert {(r["attack"], r["metric"], r["value"]) for r in records} == {
        (r["attack"], r["metric"], r["value"]) for r in evaluated[1]
    }
