"""Batches that are loaded in the background: the same ones, in order, bounded, and never left hanging."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from holdfast.data import DataSplit, ImageFolder, PairSampler
from holdfast.data.prefetch import Batch, Prefetch, prefetch_files
from holdfast.defenses import AdversarialTraining
from holdfast.encoders import SmallCNN
from holdfast.errors import CorruptFile, InvalidArgument, RunError
from holdfast.losses import MultiSimilarity
from holdfast.rng import stream
from holdfast.threat import LinfThreat
from holdfast.training import Run, train, trainer

NAME = "holdfast-prefetch"
LONG = 20.0
"""Seconds after which something that should have happened has not."""


def plan(steps: int = 6, rows: int = 3) -> Iterator[tuple[int, Tensor]]:
    for step in range(steps):
        yield step, torch.arange(rows) + step


def tenfold(step: int, rows: Tensor) -> Tensor:
    return rows * 10.0 + step


def soon(what: Callable[[], bool]) -> bool:
    """Wait until something is true, or for a long time."""
    end = time.monotonic() + LONG
    while not what() and time.monotonic() < end:
        time.sleep(0.002)
    return what()


def at_work() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


class Counted:
    """A loader that says which steps it has begun."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    def __call__(self, step: int, rows: Tensor) -> Tensor:
        self.begun.append(step)
        return tenfold(step, rows)


# --- The same batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead", "memory"), [(1, 2**20), (2, 2**20), (9, 2**20), (2, 1), (2, 13)])
def test_batches_come_as_without_a_thread(ahead: int, memory: int) -> None:
    with Prefetch(plan(), tenfold, torch.neg, image_bytes=4, ahead=ahead, memory=memory) as batches:
        found = list(batches)
    assert [batch.step for batch in found] == list(range(6))
    for (step, rows), batch in zip(plan(), found, strict=True):
        assert torch.equal(batch.rows, rows)
        assert torch.equal(batch.x, -tenfold(step, rows))
    assert not at_work()


def test_the_end_stays_the_end() -> None:
    with Prefetch(plan(1), tenfold, image_bytes=4) as batches:
        assert next(batches).step == 0
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(batches)
    with pytest.raises(StopIteration):
        next(batches)


# --- Ahead, but not farther than allowed -------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [1, 2, 4])
def test_the_next_batches_are_loaded_before_they_are_asked_for(ahead: int) -> None:
    load = Counted()
    with Prefetch(plan(), load, image_bytes=4, ahead=ahead) as batches:
        assert soon(lambda: len(load.begun) == ahead)
        for taken in (1, 2):
            next(batches)
            assert soon(lambda taken=taken: len(load.begun) == min(ahead + taken, 6))
            time.sleep(0.03)
            assert load.begun == list(range(min(ahead + taken, 6)))


@pytest.mark.parametrize(("memory", "ahead"), [(11, 0), (12, 1), (23, 1), (24, 2), (60, 5)])
def test_bytes_bound_what_is_ahead(memory: int, ahead: int) -> None:
    """A batch is 12 bytes; one that is beyond the bound by itself is loaded when it is asked for."""
    load = Counted()
    with Prefetch(plan(), load, image_bytes=4, ahead=5, memory=memory) as batches:
        assert soon(lambda: len(load.begun) == ahead)
        next(batches)
        assert soon(lambda: len(load.begun) == ahead + 1)
        time.sleep(0.03)
        assert load.begun == list(range(ahead + 1))


@pytest.mark.parametrize("bad", [{"image_bytes": 0}, {"ahead": 0}, {"memory": 0}])
def test_sizes_are_at_least_one(bad: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match=f"{next(iter(bad))}: need an integer >= 1, got 0"):
        Prefetch(plan(), tenfold, **{"image_bytes": 4, **bad})


# --- Errors and ends ---------------------------------------------------------------------------------------


def test_an_error_reaches_the_step_that_needs_the_batch() -> None:
    def load(step: int, rows: Tensor) -> Tensor:
        if step == 2:
            raise CorruptFile("photo.jpg", 7, "damaged")
        return tenfold(step, rows)

    with Prefetch(plan(), load, image_bytes=4, ahead=5) as batches:
        assert soon(lambda: not at_work())  # the thread met the error long before
        assert [next(batches).step for _ in range(2)] == [0, 1]
        for _ in range(2):
            with pytest.raises(CorruptFile, match=r"photo.jpg: cannot be read at byte 7: damaged"):
                next(batches)


def test_an_error_of_the_plan_and_one_that_is_no_exception_arrive_too() -> None:
    def broken() -> Iterator[tuple[int, Tensor]]:
        yield from plan(1)
        raise ValueError("no second epoch")

    def stop(step: int, rows: Tensor) -> Tensor:
        raise SystemExit("told to stop")

    with Prefetch(broken(), tenfold, image_bytes=4) as batches:
        next(batches)
        with pytest.raises(ValueError, match="no second epoch"):
            next(batches)
    asked = "reading images asked the program to end"  # or a training would end early with code 0
    with Prefetch(plan(), stop, image_bytes=4) as batches, pytest.raises(RunError, match=asked):
        next(batches)


@pytest.mark.parametrize("taken", [0, 1, 6])
def test_the_thread_ends_with_the_block(taken: int) -> None:
    def loop() -> None:
        with Prefetch(plan(), tenfold, image_bytes=4, ahead=1) as batches:
            assert len(at_work()) == 1
            for _ in range(taken):
                next(batches)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert not at_work()


def test_the_block_ends_after_the_batch_that_is_being_loaded() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(step: int, rows: Tensor) -> Tensor:
        begun.set()
        assert go_on.wait(LONG)
        return rows

    with Prefetch(plan(), slow, image_bytes=4):
        assert begun.wait(LONG)
        threading.Timer(0.05, go_on.set).start()
    assert not at_work()


def test_an_interpreter_ends_though_nobody_closed() -> None:
    code = """
        import torch
        from holdfast.data.prefetch import Prefetch
        plan = ((i, torch.arange(2)) for i in range(9))
        next(Prefetch(plan, lambda step, rows: rows, image_bytes=8).__enter__())
        raise RuntimeError("training failed")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "training failed" in done.stderr


# --- Files, and training on them ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of ten coloured images."""
    root = tmp_path_factory.mktemp("images")
    draws = torch.Generator().manual_seed(0)
    for label in range(4):
        (root / f"class{label}").mkdir()
        for i in range(10):
            pixels = torch.randint(0, 256, (20, 20, 3), dtype=torch.uint8, generator=draws) // 2
            pixels[:, :, label % 3] += 40 * (label + 1) // 2
            Image.fromarray(pixels.numpy()).save(root / f"class{label}" / f"{i}.png")
    return root


def small(root: Path, **changes: Any) -> Run:
    """Plain training on 20 files: two epochs of five batches."""
    run = Run(
        name="files", data=ImageFolder(str(root), resize=18, crop=16), threat=LinfThreat(eps=0.1),
        defense=AdversarialTraining(loss=MultiSimilarity()), sampler=PairSampler(4), epochs=2, device="cpu",
        encoder=SmallCNN(width=4, embedding_dim=8),
    )  # fmt: skip
    return replace(run, **changes)


def unchanged(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_files_come_as_augmented_gives_them(folder: Path) -> None:
    images = small(folder).data.load().train.x
    draws = {step: 100 + step for step in range(3)}
    with prefetch_files(images, plan(3, rows=5), lambda step: stream(draws[step])) as batches:  # type: ignore[arg-type]
        for batch in batches:
            wanted = images.augmented(batch.rows, stream(draws[batch.step]))  # type: ignore[union-attr]
            assert torch.equal(batch.x, wanted)
            assert batch.x.shape == (5, 3, 16, 16)


def test_bytes_become_the_images(folder: Path) -> None:
    images: Any = small(folder).data.load().train.x
    raw = images.augmented_bytes(torch.arange(5), stream(3))
    assert raw.dtype == torch.uint8
    assert raw.shape == (5, 16, 16, 3)
    assert torch.equal(images.from_bytes(raw), images.augmented(torch.arange(5), stream(3)))
    assert torch.equal(images.from_bytes(raw)[0, 2, 3, 4], raw[0, 3, 4, 2] / torch.tensor(255.0))


def test_cuda_gets_bytes_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the device: pinned in the background, made images where they are asked for."""
    done: list[tuple[str, bool]] = []

    def note(what: str, raw: Tensor) -> Tensor:
        done.append((what, threading.current_thread() is threading.main_thread()))
        return raw

    monkeypatch.setattr(Tensor, "pin_memory", lambda raw: note("pinned", raw))
    images: Any = SimpleNamespace(
        crop=2, device=torch.device("cuda"), from_bytes=lambda raw: note("images", raw).float(),
        augmented_bytes=lambda rows, draws: torch.full((len(rows), 2, 2, 3), 7, dtype=torch.uint8),
    )  # fmt: skip
    with prefetch_files(images, plan(1), stream) as batches:
        assert next(batches).x.dtype == torch.float32
    assert done == [("pinned", False), ("images", True)]


def test_training_is_what_it_is_without_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small(folder)
    split = run.data.load()
    ahead = train(run, split).encoder.state_dict()
    assert not at_work()
    seen: list[int] = []

    def at_once(images: Any, plan: Any, draws: Any, ahead: int) -> Any:
        assert ahead == 2

        def each() -> Iterator[Batch]:
            for step, rows in plan:
                seen.append(step)
                yield Batch(step, rows, images.augmented(rows, draws(step)))

        return nullcontext(each())

    monkeypatch.setattr(trainer, "prefetch_files", at_once)
    assert unchanged(ahead, train(run, split).encoder.state_dict())
    assert seen == list(range(10))


@pytest.mark.parametrize("step", [0, 4, 7])
def test_a_stopped_run_on_files_ends_the_same(step: int, folder: Path, tmp_path: Path) -> None:
    run = small(folder)
    split = run.data.load()

    def stop(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, split, folder=tmp_path, checkpoint_seconds=0, on_line=stop)
    assert not at_work()
    done = train(run, split, folder=tmp_path, resume=True)
    assert unchanged(done.encoder.state_dict(), train(run, split).encoder.state_dict())


def damaged(root: Path, split: DataSplit) -> str:
    images: Any = split.train.x
    path = root / images.names[3]
    path.write_bytes(path.read_bytes()[:60])
    return path.name


def test_a_corrupt_file_stops_training_where_it_is_needed(folder: Path, tmp_path: Path) -> None:
    for source in folder.rglob("*.png"):
        copy = tmp_path / source.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(source.read_bytes())
    run = small(tmp_path)
    split = run.data.load()
    name = damaged(tmp_path, split)
    order = run.sampler.epoch(torch.unique(split.train.y, return_inverse=True)[1], stream(0, "sampler", 0))
    needed = next(step for step, rows in enumerate(order) if 3 in rows.tolist())
    lines: list[dict[str, Any]] = []
    with pytest.raises(CorruptFile, match=name):
        train(run, split, on_line=lines.append)
    assert [line["step"] for line in lines] == list(range(needed))
    assert not at_work()
