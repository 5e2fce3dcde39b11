"""A share of ``make faults``, and what damaged checkpoints and torn lines come to."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from holdfast.errors import CorruptFile, RunError
from holdfast.files import append_lines, read_lines, replacing, unfinished
from holdfast.training import Checkpoint

HERE = Path(__file__).parent


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_share_of_the_faults(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    words = ["--kills", "3", "--every", "80", "--only", "kills,changes", "--seed", "7"]
    words += ["--commands", "train"]
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), *words, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert out.exists(), done.stderr
    found = json.loads(out.read_text())
    assert done.returncode == 0, done.stdout
    assert found["total"]["lost"] == found["total"]["unclear"] == 0
    assert found["total"]["kills at random moments"] >= 3
    assert found["total"]["kills"] >= 4


def checkpoint(step: int = 3) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    tensors = {"modules.w": torch.randn(6, 5, generator=generator), "optimizer.0.step": torch.tensor(3.0)}
    healthy = {"modules.w": torch.zeros(6, 5, dtype=torch.bfloat16)}
    return Checkpoint(tensors, step, {"ease": 0.1}, "settings", 1.5, healthy)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return (
        (a.step, a.signal, a.settings, a.seconds) == (b.step, b.signal, b.settings, b.seconds)
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
        and all(torch.equal(a.healthy[k], b.healthy[k]) for k in a.healthy)
    )


def test_every_cut_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint().save(path)
    data = path.read_bytes()
    assert same(Checkpoint.load(path), checkpoint())
    for length in range(0, len(data), 5):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptFile) as caught:
            Checkpoint.load(path)
        assert caught.value.hint is not None
        assert "--resume trains from the start" in caught.value.hint


def test_every_changed_byte_of_a_checkpoint_is_refused_or_harmless(tmp_path: Path) -> None:
    path, draw = tmp_path / "checkpoint.safetensors", random.Random(0)
    checkpoint().save(path)
    data, refused = path.read_bytes(), 0
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= draw.randrange(1, 256)
        path.write_bytes(bytes(changed))
        try:
            loaded = Checkpoint.load(path)
        except (CorruptFile, RunError):
            refused += 1
        else:  # white space around the header
            assert same(loaded, checkpoint())
    assert refused > 0.95 * len(data)


def test_a_checkpoint_of_before_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    meta = {"schema": 1, "step": 2, "signal": {}, "settings": "s", "seconds": 1.0}
    save_file({"modules.w": torch.ones(2)}, path, metadata={"holdfast": json.dumps(meta)})
    assert Checkpoint.load(path).step == 2


@pytest.mark.parametrize("name", ["step", "signal", "settings", "seconds"])
def test_a_checkpoint_without_its_position_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    meta = {"schema": 1, "step": 2, "signal": {}, "settings": "s", "seconds": 1.0}
    del meta[name]
    save_file({"modules.w": torch.ones(2)}, path, metadata={"holdfast": json.dumps(meta)})
    with pytest.raises(CorruptFile, match=name):
        Checkpoint.load(path)


def test_a_checkpoint_of_now_needs_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    meta = {"schema": 2, "step": 2, "signal": {}, "settings": "s", "seconds": 1.0}
    save_file({"modules.w": torch.ones(2)}, path, metadata={"holdfast": json.dumps(meta)})
    with pytest.raises(CorruptFile, match="hash"):
        Checkpoint.load(path)


def test_a_torn_line_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "records.jsonl"
    append_lines(path, [{"a": 1}, {"b": 2}])
    path.write_bytes(path.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        assert read_lines(path) == [{"a": 1}]
    assert "records.jsonl: line 2 is torn" in caplog.text


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        assert unfinished(one)
        assert not unfinished(path)
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # the outer block ends last
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_told_in_words_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(OSError, match="No space left") as caught, replacing(path):
        raise ValueError("I/O error: No space left on device (os error 28)")  # as safetensors says it
    assert caught.value.errno == 28
    assert caught.value.filename == str(path)
    with pytest.raises(ValueError, match="other"), replacing(path):
        raise ValueError("other")
