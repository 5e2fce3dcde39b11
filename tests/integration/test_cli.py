"""The command line: results, exit codes, one-line errors, nothing half-written."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from holdfast.training import Checkpoint

pytestmark = pytest.mark.integration
TINY = ("--epochs", "1", "--set", "data.train_images=120", "--batch", "60")


Call = Callable[..., Any]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("defenses", "hm-ics"),
        ("attacks", "CA+"),
        ("suites", "core"),
        ("losses", "proxy-anchor"),
        ("miners", "softhard"),
        ("datasets", "omniglot"),
        ("encoders", "c2f2"),
        ("recipes", "plain"),
    ],
)
def test_list(holdfast: Call, kind: str, name: str) -> None:
    said = holdfast("list", kind, "--json")
    rows = {row["name"]: row for row in json.loads(said.out)}
    assert said.code == 0
    assert name in rows
    assert all(row["what"] for row in rows.values())
    assert name in holdfast("list", kind).out


def test_doctor(holdfast: Call) -> None:
    found = json.loads(holdfast("doctor", "--json").out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["data sets"]["digits"] == "embedded"
    assert "bf16" in found["machine"]
    assert "torch" in holdfast("doctor").out


def test_train_evaluate_report(holdfast: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert holdfast("train", "hm-ics", *TINY, "--steps", "2", "--seed", "3", "--out", run).code == 0
    stored = json.loads((run / "run.json").read_text())["run"]
    assert stored["seed"] == 3
    # The step length follows the number of steps, so that the reach of the recipe stays: 8 x 0.05 = 2 x 0.2.
    assert stored["defense"]["search"]["alpha"] == pytest.approx(0.2)
    said = holdfast("evaluate", run, "--suite", "core", "--steps", "2", "--json")
    records = json.loads(said.out)
    assert {r["attack"] for r in records} == {"none", "CA+", "CA-", "ES"}
    assert {r["eps"] for r in records if r["attack"] != "none"} == {0.2}
    assert holdfast("report", run, "--out", tmp_path / "r.html").code == 0
    assert "<title>" in (tmp_path / "r.html").read_text()
    again = holdfast("train", "hm-ics", *TINY, "--steps", "2", "--seed", "3", "--out", run)
    assert again.code == 2
    assert "--resume" in again.err


FACTORY = """
import torch
from torch import nn

def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), Unit())

class Unit(nn.Module):
    def forward(self, z):
        return nn.functional.normalize(z, dim=1)

def broken():
    raise ValueError("no weights here")

def silent():
    net = encoder()
    return lambda x: net(x).detach()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of one's own and eighteen images of three classes."""
    monkeypatch.chdir(tmp_path)
    name = f"factory_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    pixels = torch.rand(18, 8, 8, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    for i, picture in enumerate(pixels):
        place = tmp_path / "images" / "abc"[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i}.png")
    return Path(name)


def test_an_encoder_of_ones_own(holdfast: Call, mine: Path) -> None:
    own = ("evaluate", f"{mine}:encoder", "--images", "images", "--size", "8", "--steps", "2", "--out", "out")
    said = holdfast(*own, "--suite", "core", "--json")
    records = json.loads(said.out)
    assert said.code == 0
    assert {r["attack"] for r in records} == {"none", "CA+", "CA-", "ES"}
    assert {r["eps"] for r in records if r["attack"] != "none"} == {8 / 255}
    assert {r["verdict"] for r in records} <= {"OVERESTIMATED", "UNDERPOWERED", "INVALID", "VACUOUS"}
    assert [json.loads(line) for line in Path("out/records.jsonl").read_text().splitlines()] == records
    shown = holdfast(*own, "--suite", "core")
    assert "verdict on " in shown.out
    assert "18 queries" in shown.out
    assert holdfast("report", "out", "--out", "r.html").code == 0
    assert holdfast(*own, "--check", "off", "--budget", "1s", "--queries", "12", "--json").code == 0


def test_an_encoder_without_gradient_is_said_to_be_one(holdfast: Call, mine: Path) -> None:
    said = holdfast(
        "evaluate", f"{mine}:silent", "--images", "images", "--size", "8", "--suite", "core", "--check", "off"
    )
    assert said.code == 0
    assert "no gradient" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", "images"), "length"),
        ((), "images"),
        (("--images", "nowhere"), "no such folder"),
        (("--images", "images", "--budget", "soon"), "budget"),
        (("--images", "images", "--shard", "2/2"), "share"),
        (("--images", "images", "--shard", "half"), "shard"),
        (("--images", "images", "--check", "some"), "check"),
        (("--images", "images", "--jobs", "0"), "jobs"),
        (("--images", "images"), "no weights here"),
    ],
)
def test_own_encoders_that_cannot_be_evaluated(
    holdfast: Call, mine: Path, words: tuple[str, ...], message: str
) -> None:
    factory = {"length": "missing", "no weights here": "broken"}.get(message, "silent")
    said = holdfast("evaluate", f"{mine}:{factory}", "--size", "8", *words)
    assert said.code == 2
    assert (message if factory != "missing" else "can be imported") in said.err
    assert said.err.count("\n") in (1, 2)  # the error, and a hint where there is one


def test_jobs_share_the_queries(mine: Path) -> None:
    own = [
        "evaluate",
        f"{mine}:encoder",
        "--images",
        "images",
        "--size",
        "8",
        "--steps",
        "2",
        "--check",
        "off",
    ]
    call = [sys.executable, "-m", "holdfast", *own, "--suite", "core", "--json"]
    alone = subprocess.run([*call, "--out", "one"], capture_output=True, text=True, check=True)
    both = subprocess.run([*call, "--out", "two", "--jobs", "2"], capture_output=True, text=True, check=True)
    a, b = json.loads(alone.stdout), json.loads(both.stdout)
    assert [(r["attack"], r["metric"], r["value"]) for r in a] == [
        (r["attack"], r["metric"], pytest.approx(r["value"], abs=1e-5)) for r in b
    ]


def test_a_guarded_run_tells_what_the_guard_did(holdfast: Call, tmp_path: Path) -> None:
    guard = '{"type": "CollapseGuard", "max_cosine": -1.0, "every": 1, "grace": 1}'
    said = holdfast("train", "plain", *TINY, "--set", f"guard={guard}", "--out", tmp_path / "run")
    assert said.code == 0
    assert "collapsed at step 0" in said.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["run"]["guard"]["max_cosine"] == -1.0


def test_eps_reaches_threat_and_step(holdfast: Call) -> None:
    said = holdfast("train", "hm", "--eps", "0.1", "--show", "--json")
    run = json.loads(said.out)
    assert run["threat"]["eps"] == run["defense"]["threat"]["eps"] == 0.1
    assert run["defense"]["search"]["alpha"] == pytest.approx(0.025)
    said = holdfast("train", "hm", "--eps", "0.1", "--set", "defense.search.alpha=1/255", "--show", "--json")
    assert json.loads(said.out)["defense"]["search"]["alpha"] == pytest.approx(1 / 255)


def test_quickstart_is_whole_and_reuses(
    holdfast: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (("epochs", 1), ("data.train_images", 150))
    module = importlib.import_module("holdfast.quickstart")  # the package exports the function of that name
    out = tmp_path / "quick"
    done = module.quickstart(out, changes=short)
    assert {r["run"] for r in done.records} == {"plain", "hm-ics"}
    assert done.reused == ()
    lines = (out / "records.jsonl").read_text().splitlines()
    assert len(lines) == len(done.records)
    assert "hm-ics" in (out / "report.html").read_text()
    again = module.quickstart(out, changes=short)
    assert again.reused == ("plain", "hm-ics")
    assert (out / "records.jsonl").read_text().splitlines() == lines
    assert [r["value"] for r in again.records] == [r["value"] for r in done.records]
    # The command itself refuses a folder of other settings, before it computes anything.
    said = holdfast("quickstart", "--out", out)
    assert said.code == 2
    assert "--fresh" in said.err


BAD = [
    (("train", "hm-isc"), "hm-ics"),
    (("train", "plain", "--data", "digitz"), "digits"),
    (("train", "plain", "--encoder", "c2f"), "c2f2"),
    (("train", "hm", "--eps", "-0.1"), ">= 0"),
    (("train", "hm", "--eps", "8/0"), "8/255"),
    (("train", "hm", "--eps", "nan"), "finite"),
    (("train", "hm", "--set", "defense.serch.steps=3"), "search"),
    (("train", "hm", "--set", "epochs"), "path=value"),
    (("train", "hm", "--set", "epochs=many"), "integer"),
    (("train", "hm", "--epochs", "0"), ">= 1"),
    (("train", "plain", "--steps", "3"), "no"),
    (("train", "plain", "--device", "tpu9"), "cpu"),
    (("train", "plain", "--precision", "fp8"), "bf16"),
    (("train", "plain", "--seed", "-1"), ">= 0"),
    (("train", "no.such.module:run"), "import"),
    (("train", "json:dumps"), "recipe"),
    (("train", "plain", "--data", "fashion-mnist"), "--data-dir"),
    (("train", "plain", "--data-dir", "somewhere"), "no files"),
    (("train", "plain", "--threads", "0"), ">= 1"),
    (("train", "plain", "--resume"), "no run"),
    (("evaluate", "nowhere"), "run.json"),
    (("report", "nowhere"), "nowhere"),
    (("list", "attack"), "attacks"),
]


@pytest.mark.parametrize(("args", "hint"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_exit_2(
    holdfast: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = holdfast(*args)
    assert said.code == 2
    assert said.err.startswith("holdfast: error: ")
    assert said.err.count("\n") in (1, 2)  # the error, and a hint where there is one
    assert hint in said.err
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_errors_are_json_too(holdfast: Call) -> None:
    said = holdfast("list", "attack", "--json")
    assert said.code == 2
    assert json.loads(said.out)["error"]["type"] == "UnknownName"


def idx(path: Path, shape: tuple[int, ...], payload: bytes) -> None:
    head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    path.write_bytes(gzip.compress(head + payload))


def mnist_folder(folder: Path, images: int, present: int, labels: bytes) -> None:
    for part, n in (("train", images), ("t10k", images)):
        idx(folder / f"{part}-images-idx3-ubyte.gz", (n, 8, 8), bytes(present * 64))
        idx(folder / f"{part}-labels-idx1-ubyte.gz", (n,), labels)


@pytest.mark.parametrize(
    ("present", "labels", "hint"),
    [
        (6, bytes([0, 0, 0, 1, 1, 1, 1, 1]), "byte"),  # truncated images
        (8, bytes([0, 0, 0, 0, 0, 0, 0, 0]), "classes"),  # one class
        (8, bytes([0, 0, 0, 1, 1, 1]), "byte"),  # fewer labels than promised
        (8, bytes([0, 0, 0, 0, 0, 0, 0, 1]), "single image"),  # a class of one under pairs
    ],
    ids=["truncated", "single class", "short labels", "lonely class"],
)
def test_bad_files(holdfast: Call, tmp_path: Path, present: int, labels: bytes, hint: str) -> None:
    mnist_folder(tmp_path, 8, present, labels)
    out = tmp_path / "run"
    said = holdfast(
        "train", "plain", "--data", "mnist", "--data-dir", tmp_path, "--out", out, "--encoder", "small-cnn",
        "--set", "sampler.self_pairs=false",
    )  # fmt: skip
    assert said.code == 2
    assert hint in said.err
    assert not out.exists()


def test_bad_zip(holdfast: Call, tmp_path: Path) -> None:
    (tmp_path / "images_background_small1.zip").write_bytes(b"PK\x03\x04 not a zip")
    with zipfile.ZipFile(tmp_path / "images_background_small2.zip", "w") as archive:
        archive.writestr("images_background_small2/Sanskrit/character01/1.png", b"no png")
    said = holdfast("train", "plain", "--data", "omniglot", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert said.code == 2
    assert "small" in said.err
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_schema(
    holdfast: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    args = ("train", "plain", *TINY, "--out", run)
    assert holdfast(*args).code == 0
    (run / "encoder.safetensors").unlink()
    checkpoint = Checkpoint.load(run / "checkpoint.safetensors")
    monkeypatch.setattr("holdfast.training.checkpoint.SCHEMA", 99)
    checkpoint.save(run / "checkpoint.safetensors")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["holdfast"])
    said = holdfast(*args, "--resume")
    assert said.code == 2
    assert "schema 99" in said.err


def test_module_and_script_agree() -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = subprocess.run(
        [sys.executable, "-m", "holdfast", "--version"], capture_output=True, text=True, env=env, check=True
    )
    from holdfast import __version__

    assert said.stdout.strip() == __version__
