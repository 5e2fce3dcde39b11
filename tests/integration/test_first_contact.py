"""The first time, on a folder of ordinary photographs: look, train, evaluate, report; and the demo."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from holdfast import demonstration
from holdfast.demonstration import demonstrate
from holdfast.errors import DataError, RunError
from holdfast.runs import open_run

pytestmark = pytest.mark.integration
Call = Callable[..., Any]
GROUNDS = {"beach": (205, 185, 140), "brick": (150, 70, 50), "forest": (40, 95, 50), "night": (20, 25, 60)}


def photograph(ground: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """A texture with a few shapes on it, of any size."""
    width, height = (int(side) for side in rng.integers(60, 200, 2))
    raw = np.clip(np.array(ground) + rng.normal(0, 25, (height // 8 + 1, width // 8 + 1, 3)), 0, 255)
    image = Image.fromarray(raw.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for nth in range(4):
        x, y, r = rng.integers(0, width), rng.integers(0, height), rng.integers(4, 30)
        colour = tuple(int(c) for c in np.clip(np.array(ground[::-1]) + rng.normal(0, 40, 3), 0, 255))
        shape = draw.ellipse if nth % 2 else draw.rectangle
        shape((x - r, y - r // 2, x + r, y + r // 2), fill=colour)
    return image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four classes of eight, mixed sizes; one file cut off, one grey, one with transparency, one copy."""
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    for label, ground in GROUNDS.items():
        (root / label).mkdir(parents=True)
        for i in range(8):
            photograph(ground, rng).save(root / label / f"IMG_{i:03}.jpg", quality=88)
    cut = root / "beach" / "IMG_001.jpg"
    cut.write_bytes(cut.read_bytes()[:700])
    Image.open(root / "brick" / "IMG_002.jpg").convert("L").save(root / "brick" / "IMG_002.jpg")
    clear = Image.open(root / "forest" / "IMG_003.jpg").convert("RGBA")
    clear.putalpha(Image.radial_gradient("L").resize(clear.size))
    clear.save(root / "forest" / "clear.png")
    wrong = Image.open(root / "night" / "IMG_004.jpg")
    wrong.save(root / "night" / "IMG_900.png")
    wrong.save(root / "beach" / "IMG_901.png")
    return root


def test_from_a_folder_of_photographs_to_a_report(
    holdfast: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = holdfast("init", "photos")
    assert said.code == 0
    for words in ("34 of 35 pictures", "beach/IMG_001.jpg", "1 grey", "1 transparent", "in several classes"):
        assert words in said.out
    assert "holdfast train recipe.py --out runs/mine" in said.out
    small = ("--set", "encoder.width=8", "--set", "data.crop=24", "--set", "data.resize=24")
    quick = ("--epochs", "1", *small)
    trained = holdfast("train", "recipe.py", "--out", "runs/mine", "--steps", "2", *quick)
    assert trained.code == 0
    (warned,) = [line for line in trained.err.splitlines() if line.startswith("holdfast: warning: ")]
    assert "beach/IMG_001.jpg" in warned
    run = open_run(tmp_path / "runs" / "mine").run
    assert (run.name, run.epochs, run.threat.eps) == ("hm-ics", 1, 8 / 255)
    assert holdfast("train", "recipe.py:plain", "--out", "runs/plain", *quick).code == 0
    for name in ("plain", "mine"):
        assert (
            holdfast("evaluate", f"runs/{name}", "--steps", "2", "--check", "off", "--queries", "6").code == 0
        )
    report = holdfast("report", "runs/plain", "runs/mine", "--out", "report.html", "--static")
    assert report.code == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "hm-ics" in text
    assert "ES" in text


def test_init_as_data_and_its_refusals(
    holdfast: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = json.loads(holdfast("init", photos, "--json").out)
    assert found["recipe"] == "recipe.py"
    assert found["found"]["images"] == 34
    assert found["found"]["contradictory"] == [
        ["beach/IMG_901.png", "night/IMG_004.jpg", "night/IMG_900.png"]
    ]
    assert list(found["found"]["broken"]) == ["beach/IMG_001.jpg"]
    assert found["choice"]["leave_out"] == found["found"]["contradictory"][0]
    assert {f["kind"] for f in found["found"]["findings"]} >= {"label error", "broken"}
    text = (tmp_path / "recipe.py").read_text()
    again = holdfast("init", photos)
    assert again.code == 2
    assert "--force" in again.err
    (tmp_path / "recipe.py").write_text("mine")
    assert holdfast("init", photos, "--force").code == 0
    assert (tmp_path / "recipe.py").read_text() == text
    assert holdfast("init", photos, "--out", "recipe.txt").code == 2
    flat = holdfast("init", photos / "brick", "--out", "flat.py")
    assert flat.code == 2
    assert "8 of 8 pictures" in flat.out
    assert "class" in flat.err
    assert not (tmp_path / "flat.py").exists()


def test_plan_takes_a_recipe_file(holdfast: Call, photos: Path, tmp_path: Path) -> None:
    for label in ("beach", "night"):
        for path in (photos / label).glob("IMG_*"):
            path.unlink()
        (photos / label).rmdir()
    out = tmp_path / "recipe.py"
    assert holdfast("init", photos, "--out", out).code == 0
    planned = holdfast(
        "plan", out, "--calibration", "0.1s", "--suite", "benign", "--set", "encoder.width=4", "--json"
    )
    assert planned.code == 0
    assert json.loads(planned.out)["recipe"] == "hm-ics"


TINY = (("epochs", 1), ("encoder.width", 4), ("defense.loss.margin", 0.25))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what the checks find too weak as it is."""
    module = importlib.import_module("holdfast.quickstart")  # the package exports the function of that name
    monkeypatch.setattr(module, "REPAIR_SECONDS", 0.01)


def test_the_demonstration_copies_trains_and_reuses(photos: Path, tmp_path: Path, holdfast: Call) -> None:
    out = tmp_path / "demo"
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    looked: list[int] = []
    done = demonstrate(photos, out, side=12, changes=TINY, on_file=lambda n, of: looked.append(of))
    assert set(looked) == {35}
    assert {path: path.stat().st_mtime_ns for path in photos.rglob("*")} == before
    assert (done.images, done.total, done.classes) == (31, 35, 4)
    assert any("beach/IMG_001.jpg" in note for note in done.notes)
    assert {r["run"] for r in done.runs.records} == {"plain", "hm-ics"}
    assert {round(r["eps"], 6) for r in done.runs.records if r["attack"] == "ES"} == {round(8 / 255, 6)}
    with Image.open(out / "pictures" / "forest" / "clear.png.png") as copy:
        assert (copy.mode, copy.size) == ("RGB", (12, 12))
        assert min(copy.getpixel((0, 0))) < 250  # type: ignore[arg-type]
        assert min(copy.getpixel((6, 6))) > 225  # type: ignore[arg-type]  # clear in the middle: white
    assert "hm-ics" in done.runs.report.read_text(encoding="utf-8")
    looked.clear()
    again = demonstrate(photos, out, side=12, changes=TINY, on_file=lambda n, of: looked.append(of))
    assert looked == []
    assert again.runs.reused == ("plain", "hm-ics")
    assert [r["value"] for r in again.runs.records] == [r["value"] for r in done.runs.records]
    with pytest.raises(RunError, match="other pictures or settings"):
        demonstrate(photos, out, side=16)
    photograph((9, 9, 9), np.random.default_rng(1)).save(photos / "night" / "new.jpg")
    said = holdfast("demo", "--data", photos, "--out", out)
    assert said.code == 2
    assert "--fresh" in said.err
    assert holdfast("demo", "--data", photos, "--out", photos / "out").code == 2


def test_a_stopped_demonstration_goes_on(photos: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(name: str, line: dict[str, Any]) -> None:
        if name == "hm-ics":
            raise Stopped

    with pytest.raises(Stopped):
        demonstrate(photos, tmp_path / "demo", side=12, changes=TINY, on_line=stop)
    looked: list[int] = []
    more = {"on_file": lambda n, of: looked.append(of), "on_line": stop}
    with pytest.raises(Stopped):
        demonstrate(photos, tmp_path / "demo", side=12, changes=TINY, **more)
    assert looked == []
    assert open_run(tmp_path / "demo" / "plain").finished


def test_the_demonstration_takes_a_part_of_many(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no such folder"):
        demonstrate(tmp_path / "absent", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
    monkeypatch.setattr(demonstration, "quickstart", lambda *_, **__: None)
    done = demonstrate(photos, tmp_path / "demo", images=16)
    assert (done.images, done.total, done.classes) == (15, 35, 2)  # one of these is broken
    assert len(list((tmp_path / "demo" / "pictures").rglob("*.png"))) == 15


def test_a_class_of_ones_own_is_refused_before_anything_is_written(
    tmp_path: Path, holdfast: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass, replace\n"
        "from holdfast import recipe\n"
        "from holdfast.losses import Triplet\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Steeper(Triplet):\n    steep: float = 2.0\n\n\n"
        "def run():\n    r = recipe('plain')\n"
        "    return replace(r, defense=replace(r.defense, loss=Steeper()))\n",
        encoding="utf-8",
    )
    said = holdfast("train", "mine.py", "--out", "runs/mine")
    assert said.code == 2
    assert "'Steeper' is no type of the library" in said.err
    assert "holdfast.train(run, split)" in said.err
    assert not (tmp_path / "runs").exists()
