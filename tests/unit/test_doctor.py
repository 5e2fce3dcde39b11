"""What is missing for what one wants to do, and what mends it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from holdfast.cli import needs
from holdfast.cli.doctor import look_for
from holdfast.cli.needs import NEEDS, Need, examine, mend_broken, why_broken
from holdfast.errors import UnknownName

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ;]", text)[0].lower() for text in requirements}


def module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


@pytest.fixture
def broken_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision for another PyTorch, and a timm that builds on it."""
    module(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    module(tmp_path, "timm", "import torchvision")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_every_extra_can_be_asked_for() -> None:
    extras = {name: names(asked) for name, asked in PROJECT["optional-dependencies"].items() if name != "dev"}
    known = {need.extra: set(need.packages) for need in NEEDS.values() if need.extra}
    assert set(extras) <= set(known)
    core = names(PROJECT["dependencies"])
    assert core <= set(NEEDS["train"].packages)
    small = {"bench": {"metric-learn"}}  # competitors that are skipped where they are absent
    for name, packages in extras.items():
        whole = packages - {"holdfast"}  # by whose extras an extra takes others in
        assert whole - small.get(name, set()) <= known[name], name


def test_what_is_there_is_ready() -> None:
    found = examine(["train", "test"])
    assert found["train"].ready
    assert found["train"].told == "ready"
    assert found["train"].command is None


def test_what_is_not_there_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"flights": Need("flying", {"wings": "wings_that_nobody_has", "numpy": "numpy"}, "air")}
    monkeypatch.setattr(needs, "NEEDS", wanted)
    found = examine(["flights"])["flights"]
    assert found.missing == ("wings",)
    assert found.command == "pip install 'holdfast[air]'"
    assert found.told == "needs: pip install 'holdfast[air]'"


def test_what_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.9.3")
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: ["NumPy>=1.26", "pytest>=1.9; extra == 'x'"]
    )
    monkeypatch.setattr(needs, "NEEDS", {"a": Need("a", {"numpy": "numpy", "pytest": "pytest"}, "b")})
    found = examine(["a"])["a"]
    assert found.missing == ("numpy 1.9.3 (need 1.26)",)
    assert found.command == "pip install -U 'holdfast[b]'"


@pytest.mark.usefixtures("broken_build")
def test_what_is_there_and_broken_is_told_with_the_reason() -> None:
    found = examine(["timm"])["timm"]
    assert not found.ready
    reason = "RuntimeError: operator torchvision::nms does not exist"
    assert found.broken == {"timm": reason, "torchvision": reason}
    assert found.command is not None
    assert "torchvision --index-url https://download.pytorch.org/whl/" in found.command
    assert reason in found.told


def test_an_import_that_hangs_or_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, "slow_package", "import time\ntime.sleep(60)")
    module(tmp_path, "dying_package", "import os\nos._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert why_broken("dying_package") == "exit code 7"
    assert why_broken("json") == ""
    monkeypatch.setattr(needs, "TRIAL_SECONDS", 0.5)
    assert why_broken("slow_package") == "importing it took more than 0 s"


def test_commands_name_the_index_of_this_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    assert mend_broken(["timm", "torchvision"]).endswith(
        "torchvision --index-url https://download.pytorch.org/whl/cpu"
    )
    monkeypatch.setattr("torch.version.cuda", "12.6")
    assert needs.wheels().endswith("/cu126")
    assert mend_broken(["transformers"]) == "pip install --force-reinstall --no-deps transformers"


def test_a_gpu_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert examine(["gpu"])["gpu"].ready
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    assert "download.pytorch.org/whl/cu" in str(examine(["gpu"])["gpu"].command)
    monkeypatch.setattr("torch.version.cuda", "12.6")
    assert "nvidia-smi" in str(examine(["gpu"])["gpu"].command)


def test_too_little_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "resources", lambda: {"disk_free": 3 << 20, "memory_free": None})
    found = examine(["train"])["train"]
    assert found.missing == ("disk: 3M free, need about 1G",)
    assert found.command == "make room"


def test_data_sets_can_be_asked_for(tmp_path: Path) -> None:
    assert look_for("digits").ready
    found = look_for("cub")
    assert "images.txt" in found.missing[0]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    assert look_for("folder", str(tmp_path)).ready
    with pytest.raises(UnknownName, match="onnx"):
        look_for("onx")
