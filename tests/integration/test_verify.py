"""``holdfast verify``: what is as it was holds to the bit, and what was changed is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast import verify
from holdfast.data import Digits, PairSampler
from holdfast.encoders import MLP
from holdfast.errors import InvalidArgument, RunError
from holdfast.evaluation import Share
from holdfast.evaluation.audit import made_by
from holdfast.files import read_arrays, read_json, read_lines, write_arrays, write_json, write_text
from holdfast.recipes import recipe
from holdfast.run_certificates import certify_run
from holdfast.runs import evaluate_run, train_run
from holdfast.search import PGD
from holdfast.threat import LinfThreat

pytestmark = pytest.mark.integration
SEARCH = PGD(steps=2, alpha=0.03)


def small(seed: int = 0) -> Any:
    """The plain recipe with a small encoder and 77 test images."""
    return replace(
        recipe("plain"), data=Digits(train_images=1720), encoder=MLP(hidden=(16,), embedding_dim=8),
        sampler=PairSampler(200), epochs=1, threat=LinfThreat(eps=0.1), device="cpu", seed=seed,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two evaluations and a certification."""
    folder = tmp_path_factory.mktemp("verify") / "run"
    train_run(small(), folder)
    evaluate_run(folder, suite="ers", search=SEARCH, verdict="off", seed=3, queries=40)
    evaluate_run(folder, search=SEARCH, verdict="off")
    certify_run(folder, by="smoothing", samples=(20, 200), queries=6, report=False, radii=(0.01, 0.05))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy without the longer suite."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(evaluation(folder, "ers"))
    kept = [r for r in read_lines(folder / "records.jsonl") if r["suite"] != "ers"]
    write_text(folder / "records.jsonl", "".join(json.dumps(r) + "\n" for r in kept))
    return folder


def evaluation(folder: Path, suite: str = "core") -> Path:
    stores = (folder / "evaluations").glob("*/settings.json")
    return next(path.parent for path in stores if read_json(path)["suite"] == suite)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None], wanted: Callable[[Any], bool]) -> None:
    """Change the first record that is wanted."""
    lines = read_lines(folder / "records.jsonl")
    change(next(line for line in lines if wanted(line)))
    write_text(folder / "records.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def broken(folder: Path, **settings: Any) -> list[str]:
    found = verify.verify_run(folder, **{"records": 0, **settings})
    assert found.holds != bool(found.broken)
    return [c.what for c in found.broken]


def test_a_run_as_it_was_left_holds_to_the_bit(finished: Path, holdfast: Any) -> None:
    found = verify.verify_run(finished, records=200)
    assert found.holds
    assert found.differences == ()
    assert all(c.exact for c in found.checks)
    made = [c for c in found.checks if c.queries]
    assert [c.queries for c in made] == [16] * (9 + 3) + [verify.SAMPLED]
    assert found.queries == 16 * 12 + 4
    records = {json.dumps(line) for line in read_lines(finished / "records.jsonl")}
    assert len(found.checks) > len(records)

    said = holdfast("verify", finished, "--records", 2, "--json")
    assert said.code == 0
    plain = json.loads(said.out)
    assert plain["holds"] is True
    assert {"what", "holds", "exact", "detail", "queries"} == set(plain["checks"][0])
    said = holdfast("verify", finished, "--records", 2, "--seed", 5)
    assert "holds; " in said.out
    assert "0 broken" in said.out


def test_nothing_is_written(folder: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    before = state()
    verify.verify_run(folder, records=3)
    assert state() == before


@pytest.mark.parametrize("attack", ["none", "ES", "all"])
def test_a_changed_value_is_noticed(
    finished: Path, folder: Path, tmp_path: Path, attack: str, holdfast: Any
) -> None:
    if attack == "all":  # a score
        folder = tmp_path / "whole"
        shutil.copytree(finished, folder)

    def change(line: dict[str, Any]) -> None:
        line["value"] += 1e-9 if line["value"] <= 0.5 else -1e-9
        line["ci"] = [min(line["ci"][0], line["value"]), max(line["ci"][1], line["value"])]

    rewrite(folder, change, lambda r: r["attack"] == attack and 0 < r["value"] < 99)
    assert len(broken(folder)) == 1
    said = holdfast("verify", folder, "--records", 0)
    assert said.code == 1
    assert "BROKEN" in said.out


def test_another_name_or_interval_is_noticed(folder: Path) -> None:
    rewrite(folder, lambda r: r.update(eps=r["eps"] * 2), lambda r: r["attack"] == "CA+")
    assert len(broken(folder)) == 1
    rewrite(folder, lambda r: r.update(ci=[0.0, 1.0]), lambda r: r["attack"] == "CA-")
    assert len(broken(folder)) == 2


def test_a_changed_certified_share_and_radius_are_noticed(folder: Path) -> None:
    rewrite(folder, lambda r: r.update(ci=[0.0, 1.0]), lambda r: r["metric"] == "certified@0.01")
    assert len(broken(folder)) == 1

    (path,) = (folder / "certificates").glob("smoothing*.npz")
    arrays = read_arrays(path)
    every = np.ones_like(arrays["correct"])
    write_arrays(path, {**arrays, "correct": every, "radius": arrays["radius"] + 1e-12})
    assert any("certified again" in what for what in broken(folder, records=300))


@pytest.mark.parametrize("array", ["z", "x", "attacked.shift"])
def test_changed_per_query_values_do_not_come_out_again(folder: Path, array: str) -> None:
    (path,) = evaluation(folder).glob("ES-*.npz")
    arrays = read_arrays(path)
    changed = arrays[array].copy()
    changed.flat[0] = np.nextafter(changed.flat[0], np.float32(2))
    write_arrays(path, {**arrays, array: changed})
    assert [what for what in broken(folder, records=300, queries=77) if "ES attacked again" in what]


def test_a_stored_image_outside_the_threat_is_noticed(folder: Path) -> None:
    (path,) = evaluation(folder).glob("ES-*.npz")
    arrays = read_arrays(path)
    x = arrays["x"].copy()
    x[5] = 1 - x[5]
    write_arrays(path, {**arrays, "x": x})
    found = verify.verify_run(folder, records=300, queries=1)
    assert any("outside the threat" in c.detail for c in found.broken)


def test_another_encoder_and_other_settings_are_noticed(folder: Path, tmp_path: Path) -> None:
    train_run(small(seed=1), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "encoder.safetensors", folder / "encoder.safetensors")
    assert len([what for what in broken(folder) if what.endswith(": weights")]) == 2

    store = evaluation(folder)
    write_json(store / "settings.json", {**read_json(store / "settings.json"), "weights": "0"})
    assert f"core {store.name}: weights" in broken(folder)


def test_changed_settings_are_noticed(folder: Path) -> None:
    store = evaluation(folder)
    write_json(store / "settings.json", {**read_json(store / "settings.json"), "seed": 4})
    assert f"core {store.name}: settings" in broken(folder)


def test_other_images_are_noticed(folder: Path) -> None:
    meta = read_json(folder / "run.json")
    meta["run"]["data"]["train_images"] = 1719  # one image more in the test set
    write_json(folder / "run.json", meta)
    assert {"train images", "test images"} <= set(broken(folder))


def test_elsewhere_values_may_differ_a_little(folder: Path) -> None:
    (path,) = evaluation(folder).glob("ES-*.npz")
    arrays = read_arrays(path)
    elsewhere = {**arrays, "made_by": np.array("holdfast 0.1, torch 2.0, arm64, threads 8")}
    moved = {**elsewhere, "z": arrays["z"] + np.float32(1e-6)}
    write_arrays(path, moved)
    found = verify.verify_run(folder, records=300)
    assert found.holds
    assert any("arm64" in words for words in found.differences)
    assert not all(c.exact for c in found.checks)

    far = arrays["attacked.shift"] + np.float32(0.01)
    write_arrays(path, {**elsewhere, "attacked.shift": far})
    assert any("ES attacked again" in what for what in broken(folder, records=300))


def test_a_part_under_a_budget_holds_too(folder: Path) -> None:
    share = Share(seconds=1e-9)
    evaluate_run(folder, suite="core", search=PGD(steps=1, alpha=0.05), verdict="off", share=share)
    assert broken(folder, records=300) == []


def test_what_cannot_be_looked_at_is_told(folder: Path) -> None:
    shutil.rmtree(evaluation(folder))
    found = verify.verify_run(folder, records=0)
    assert found.holds
    assert sum(c.holds is None for c in found.checks) > 10
    shutil.rmtree(folder / "certificates")
    assert not verify.verify_run(folder, records=0).holds  # the certificate is gone
    with pytest.raises(InvalidArgument, match="records"):
        verify.verify_run(folder, records=-1)
    (folder / "records.jsonl").unlink()
    with pytest.raises(RunError, match="no such file"):
        verify.verify_run(folder)


def test_chunks_tell_what_made_them(finished: Path) -> None:
    (path,) = evaluation(finished).glob("ES-*.npz")
    assert str(read_arrays(path)["made_by"]) == made_by(torch.device("cpu"))
