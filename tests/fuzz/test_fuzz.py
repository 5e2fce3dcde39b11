"""A small share of the fuzzing in every test run: seeds, and a few hundred mutations of each parser."""

from __future__ import annotations

import importlib.util
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from holdfast.errors import CorruptFile, DataError

HERE = Path(__file__).resolve().parent
NAMES = (
    "idx", "zip", "npz", "npy", "libsvm", "csv", "manifest", "encoder", "checkpoint", "weights", "records",
    "run-json", "set", "entry", "estimator", "index", "exhibit", "map", "values", "clusters", "certify-json",
    "gallery-index", "image",
)  # fmt: skip
SECONDS = 0.2


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def run() -> ModuleType:
    return module("run")


@pytest.fixture(scope="module")
def targets() -> ModuleType:
    return module("targets")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_every_target_is_run(targets: ModuleType) -> None:
    assert set(targets.TARGETS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_our_own_errors_comes_of_it(
    name: str, run: ModuleType, targets: ModuleType, tmp_path: Path
) -> None:
    counts = run.Counts(name, targets.TARGETS[name], targets.ALLOWED, tmp_path)
    run.loop(counts, runs=300, seconds=SECONDS, seed=7)
    assert counts.executions > len(targets.TARGETS[name].seeds())
    assert not counts.crashes, next(iter(counts.crashes.values()))["traceback"]
    if name != "checkpoint":  # some seed is read, so that mutations start from what is sound
        assert counts.refused < counts.executions


def test_the_loop_finds_a_crash_and_tells_errors_apart(run: ModuleType, tmp_path: Path) -> None:
    def parse(data: bytes, _folder: Path) -> None:
        if b"7" in data:
            raise KeyError("crash")
        if len(data) > 9:
            raise CorruptFile("a", None, "long")
        if not data:
            raise DataError("empty")

    target: Any = SimpleNamespace(parse=parse, seeds=lambda: [b"12345"], words=(b"7",))
    counts = run.loop(run.Counts("t", target, (DataError,), tmp_path), runs=2000, seconds=0)
    assert counts.executions == 2000
    assert list(counts.crashes) == ["KeyError elsewhere"]
    (crash,) = counts.plain()["crashes"]
    assert b"7" in bytes.fromhex(crash["input"])
    assert 0 < counts.refused < 2000


def test_mutations_are_the_same_for_a_seed(run: ModuleType) -> None:
    def some(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [run.mutated(rng, b"abc 12", (b"word",), [b"other"]) for _ in range(50)]

    assert some(1) == some(1) != some(2)
