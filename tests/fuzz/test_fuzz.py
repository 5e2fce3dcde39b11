"""A share of the fuzzing in every test run: a minute of mutations, and hypothesis on every parser."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptFile, DataError

HERE = Path(__file__).resolve().parent
NAMES = (
    "idx", "zip", "npz", "npy", "libsvm", "csv", "manifest", "encoder", "checkpoint", "weights", "records",
    "run-json", "set", "entry", "estimator", "index", "exhibit", "map", "values", "clusters", "certify-json",
    "gallery-index", "image",
)  # fmt: skip
SECONDS = 2.5
"""For each parser: about a minute in all."""


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
    run.loop(counts, runs=20_000, seconds=SECONDS, seed=7)
    assert counts.executions > len(targets.TARGETS[name].seeds())
    assert not counts.crashes, next(iter(counts.crashes.values()))["traceback"]
    if name != "checkpoint":  # some seed is read, so that mutations start from what is sound
        assert counts.refused < counts.executions


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_seed_with_a_piece_exchanged_is_read_or_refused(
    name: str, data: st.DataObject, targets: ModuleType, tmp_path: Path
) -> None:
    target = targets.TARGETS[name]
    seed = data.draw(st.sampled_from(list(target.seeds())), "seed")
    at, cut = data.draw(st.integers(0, len(seed)), "at"), data.draw(st.integers(0, 16), "cut")
    piece = data.draw(st.binary(max_size=16) | st.sampled_from((b"", *target.words)), "piece")
    with contextlib.suppress(*targets.ALLOWED):
        target.parse(seed[:at] + piece + seed[at + cut :], tmp_path)


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
