from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast import __version__
from holdfast.errors import CorruptFile, InvalidArgument, RunError
from holdfast.results import SCHEMA, Record, append, latest, make, read


def record(**fields: Any) -> Record:
    return make(**{"run": "plain", "metric": "recall@1", "value": 0.5, "n": 10, "ci": [0.4, 0.6]} | fields)


def test_make_fills_schema_version_and_time_in_utc() -> None:
    made = record()
    assert made["schema"] == SCHEMA
    assert made["version"] == __version__
    assert datetime.fromisoformat(made["time"]).utcoffset() == timedelta(0)
    assert set(made) == set(Record.__annotations__)


def test_make_takes_numpy_and_torch_scalars_and_gives_plain_data() -> None:
    made = record(value=torch.tensor(0.25), n=np.int64(7), ci=np.array([0.0, 1.0]), seed=torch.tensor(3))
    assert json.loads(json.dumps(made)) == made
    assert (made["value"], made["n"], made["ci"], made["seed"]) == (0.25, 7, [0.0, 1.0], 3)


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({"value": float("nan")}, "value"),
        ({"value": float("inf"), "metric": "shift"}, "value"),
        ({"value": 93.0}, "value"),  # a percentage where a fraction belongs
        ({"value": 50.0, "metric": "rank"}, "value"),
        ({"n": 0}, "n"),
        ({"eps": -0.1}, "eps"),
        ({"seconds": float("nan")}, "seconds"),
        ({"state": "dirty"}, "state"),
        ({"ci": [0.6, 0.4]}, "ci"),
        ({"ci": [0.6]}, "ci"),
        ({"ci": [0.1, float("nan")]}, "ci"),
        ({"run": 3}, "run"),
    ],
)
def test_make_refuses_what_cannot_be_a_measurement(fields: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument}: need"):
        record(**fields)


def test_values_that_are_no_shares_may_exceed_one() -> None:
    assert record(metric="shift", value=1.7, ci=None)["value"] == 1.7
    assert record(metric="ers", value=71.0, ci=None)["ci"] is None


def test_append_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "records.jsonl"
    append(path, [record(), record(metric="map")])
    first = path.read_bytes()
    append(path, [record(metric="nmi", run="ünï <script> \"'")])
    assert path.read_bytes().startswith(first)
    assert [r["metric"] for r in read(path)] == ["recall@1", "map", "nmi"]
    assert read(path)[2]["run"] == "ünï <script> \"'"


def test_a_torn_last_line_is_skipped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, [record()])
    with path.open("ab") as handle:
        handle.write(path.read_bytes()[:40])
    assert len(read(path)) == 1
    append(path, [record(metric="map")])
    assert [r["metric"] for r in read(path)] == ["recall@1", "map"]


def test_read_names_found_and_expected_schema(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record()) + "\n" + json.dumps({**record(), "schema": 2}) + "\n")
    with pytest.raises(RunError, match=r"record 2 has schema 2, expected 1"):
        read(path)


@pytest.mark.parametrize("key", sorted(set(Record.__annotations__) - {"verdict", "failed", "precision"}))
def test_read_names_a_missing_field(tmp_path: Path, key: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({k: v for k, v in record().items() if k != key}) + "\n")
    with pytest.raises(CorruptFile, match=f"record 1 lacks {key}$"):
        read(path)


@pytest.mark.parametrize(
    ("key", "value"), [("value", "0.5"), ("value", None), ("n", True), ("run", 3), ("ci", [0]), ("n", 0)]
)
def test_read_names_a_field_that_cannot_be(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({**record(), key: value}) + "\n")
    with pytest.raises(CorruptFile, match=f"record 1, {key}: need"):
        read(path)


def test_read_keeps_fields_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({**record(), "note": "kept"}) + "\n")
    assert dict(read(path)[0])["note"] == "kept"


def test_a_missing_file_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such file"):
        read(tmp_path / "records.jsonl")


@pytest.mark.parametrize(
    "key", ["run", "suite", "attack", "metric", "eps", "seed", "state", "norm", "alpha", "steps"]
)
def test_latest_keeps_the_last_of_each_key(key: str) -> None:
    other: Any = {"eps": 0.3, "alpha": 0.1, "steps": 8, "seed": 4, "state": "attacked", "metric": "map"}.get(
        key, "other"
    )
    records = [record(value=0.1), record(value=0.2, **{key: other}), record(value=0.3)]
    assert [r["value"] for r in latest(records)] == [0.3, 0.2]
    assert [r["value"] for r in latest([record(value=0.1, seconds=1), record(value=0.2)])] == [0.2]


def test_records_of_earlier_versions_were_not_checked(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    old = {k: v for k, v in record().items() if k not in ("verdict", "failed")}
    path.write_text(json.dumps(old) + "\n")
    assert [(r["verdict"], r["failed"]) for r in read(path)] == [("UNCHECKED", [])]


def test_a_sample_does_not_replace_all_queries() -> None:
    whole, part = record(n=360, value=0.5), record(n=20, value=0.6)
    assert latest([whole, part]) == [whole]
    assert latest([part, whole]) == [whole]
    again = record(n=360, value=0.7)
    assert latest([whole, part, again]) == [again]


@pytest.mark.parametrize("field", ["dataset", "protocol"])
def test_other_data_are_another_measurement(field: str) -> None:
    both = [record(), record(**{field: "zero-shot"})]
    assert latest(both) == both
