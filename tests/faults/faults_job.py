"""A small complete job, its undisturbed result, and commands that can be killed.

One process imports Holdfast once and forks a child for each command, so that a kill costs a second. In it the
clock that measures stands still, so that whole folders can be compared; what is stored every few seconds is
stored at once, so that there is more to break.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import mmap
import os
import shutil
import signal
import struct
import sys
import time
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image

torch.set_num_threads(1)
clock = time.monotonic


def _split(text: str) -> list[str]:
    return text.split()


SMALL = "--data digits --set data.train_images=600 --epochs 1 --steps 1 --batch 64 --threads 1"
PART = "evaluate runs/a --suite core --eps 0.1 --steps 2 --queries 20 --check off --threads 1"
COMMANDS: dict[str, list[str]] = {
    "train": _split(f"train hm-ics {SMALL} --checkpoint-seconds 0 --out runs/a"),
    "evaluate": _split("evaluate runs/a --suite core --steps 2 --queries 24 --threads 1"),
    "shard 0/2": _split(f"{PART} --shard 0/2"),
    "shard 1/2": _split(f"{PART} --shard 1/2"),
    "shards together": _split(PART),
    "certify": _split("certify runs/a --samples 100 --queries 8 --no-report --threads 1"),
    "report": _split("report runs/a --out report.html --static"),
    "leaderboard": _split("leaderboard board --add runs/a --html board.html"),
    "export": _split("export runs/a --out model --threads 1"),
}
FOLDER = _split(
    "train act --data folder --data-dir pictures --set data.crop=12 --set data.resize=16 "
    "--set encoder.width=4 --encoder small-cnn --epochs 2 --steps 1 --batch 4 --threads 1 "
    "--checkpoint-seconds 0 --out runs/f"
)
LATE = {
    "report": ("matplotlib.pyplot",),
    "leaderboard": (),
    "export": ("onnx", "onnxscript", "onnxruntime", "torch._dynamo"),
}
"""What commands import late, so that their children need not."""


def prepare() -> None:
    """Import everything, hold the measuring clock, and store at every chance."""
    for name in ("holdfast.cli.main", "scipy.stats", *(m for c in COMMANDS for m in LATE.get(c, ()))):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from holdfast.evaluation import query_certificates
    from holdfast.results import record
    from holdfast.training import log

    fixed = record.datetime.datetime(2026, 1, 1, tzinfo=record.datetime.UTC)
    held: Any = types.SimpleNamespace(now=lambda zone: fixed)
    record.datetime = types.SimpleNamespace(datetime=held, UTC=record.datetime.UTC)  # type: ignore[attr-defined]
    time.perf_counter = lambda: 0.0
    time.strftime = lambda form, at=None: "2026-01-01T00:00:00Z"  # type: ignore[misc, assignment]
    query_certificates.KEEP_EVERY = -1.0
    log.FLUSH_SECONDS = 0.0


@dataclass
class Ended:
    """What became of a command: exit code (negative: the signal), what it printed to standard error."""

    code: int
    err: str
    seconds: float

    @property
    def clear(self) -> bool:
        """Whether it refused as promised: code 2, one line and perhaps a hint, no traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("holdfast: error: ")]
        return self.code == 2 and len(lines) == 1 and "Traceback" not in self.err


class Counter:
    """Changes of files that a child begins; the n-th may kill it or fail."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        """How many there were."""
        return int(struct.unpack("q", self.shared[:8])[0])

    def arm(self, at: int = 0, error: int | None = None) -> Callable[[], None]:
        """Return what a child does first: count, and at change ``at`` die, or from it on fail."""
        root = ""
        changes = {"os.rename", "os.mkdir", "os.chmod", "os.truncate"}
        if error is None:  # a full disk lets files be removed
            changes.add("os.remove")

        def change() -> None:
            count = self.value + 1
            self.shared[:8] = struct.pack("q", count)
            if at and count == at and error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            if at and count >= at and error is not None:
                raise OSError(error, os.strerror(error))

        def hook(event: str, arguments: Sequence[Any]) -> None:
            if event == "open":
                path, mode, flags = arguments
                writes = bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else False
                if not writes and not (isinstance(mode, str) and set(mode) & set("wax+")):
                    return
            elif event not in changes:
                return
            else:
                path = arguments[0]
            if isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(root):
                change()

        def start() -> None:
            nonlocal root
            self.shared[:8] = struct.pack("q", 0)
            root = os.getcwd()
            sync = os.fsync

            def fsync(handle: Any) -> None:
                change()
                sync(handle)

            os.fsync = fsync  # type: ignore[assignment]
            sys.addaudithook(hook)

        return start


def fork(words: Sequence[str], place: Path, first: Callable[[], None] | None = None) -> int:
    """Start a command in a child; its standard error goes to ``place`` + ".err"."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.chdir(place)
        for number, name in ((1, ".out"), (2, ".err")):
            opened = os.open(f"{place}{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(opened, number)
        sys.argv = ["holdfast", *words]
        from holdfast.cli.main import main

        if first is not None:
            first()
        main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
    except BaseException:  # noqa: BLE001, told as a fault
        traceback.print_exc()
        code = 1
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return 0


def wait(
    pid: int, place: Path, limit: float = 120.0, act: tuple[float, Callable[[], Any]] | None = None
) -> Ended:
    """Wait for a child; ``act`` is a moment in seconds and what to do then. After ``limit`` it is killed."""
    start = clock()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        spent = clock() - start
        if done:
            code = os.waitstatus_to_exitcode(status)
            return Ended(code, Path(f"{place}.err").read_text(errors="replace"), spent)
        if act is not None and spent >= act[0]:
            act[1]()
            act = None
        if spent > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Ended(-99, f"hung: killed after {limit:g} s", spent)
        time.sleep(0.001)


def call(
    words: Sequence[str], place: Path, first: Callable[[], None] | None = None, limit: float = 120.0
) -> Ended:
    """Run a command in a child to its end."""
    return wait(fork(words, place, first), place, limit)


def tree(place: Path) -> dict[str, str]:
    """Return a hash of every file; of records the last of each measurement, whatever stood before."""
    from holdfast.files import read_lines
    from holdfast.results import latest

    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if not path.is_file() or (path.name.startswith(".") and path.name.endswith(".tmp")):
            continue
        data = path.read_bytes()
        if path.name == "records.jsonl":
            kept: Any = latest(read_lines(path))  # type: ignore[arg-type]
            data = repr(sorted(repr(sorted(r.items())) for r in kept)).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def differing(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """Return the names whose files are not the same."""
    return sorted(name for name in {**a, **b} if a.get(name) != b.get(name))


def leftovers(place: Path) -> int:
    """Return the number of temporary files that killed commands left."""
    return sum(1 for _ in place.rglob(".*.tmp"))


@dataclass
class Job:
    """The undisturbed job: a copy of the folder after each command, its seconds and its file changes."""

    work: Path
    after: dict[str, Path] = field(default_factory=dict)
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    number: int = 0

    def before(self, name: str) -> Path:
        """Return the folder that a command begins with."""
        names = list(COMMANDS)
        at = names.index(name)
        return self.after[names[at - 1]] if at else self.after["nothing"]

    def make(self) -> None:
        """Run every command undisturbed, twice: the second time all must come out the same."""
        nothing = self.work / "after-nothing"
        nothing.mkdir(parents=True)
        self.after["nothing"] = nothing
        place = self.fresh(nothing)
        for name, words in COMMANDS.items():
            counter = Counter()
            ended = call(words, place, counter.arm())
            if ended.code:
                raise RuntimeError(f"{name} alone ends with {ended.code}: {ended.err}")
            self.changes[name], self.seconds[name] = counter.value, ended.seconds
            self.after[name] = self.work / f"after-{name.replace(' ', '-').replace('/', '-')}"
            shutil.copytree(place, self.after[name])
            self.trees[name] = tree(place)
        self.drop(place)

    def fresh(self, source: Path) -> Path:
        """Return a new copy of a folder to break."""
        self.number += 1
        place = self.work / f"trial-{self.number}"
        shutil.copytree(source, place)
        return place

    def drop(self, place: Path) -> None:
        """Forget a trial."""
        shutil.rmtree(place, ignore_errors=True)
        for name in (".err", ".out"):
            Path(f"{place}{name}").unlink(missing_ok=True)


def again(words: list[str], place: Path) -> list[str]:
    """Return the command as a user gives it after a stop: training with --resume once its folder is there."""
    out = words[words.index("--out") + 1] if words[0] == "train" else ""
    return [*words, "--resume"] if out and (place / out / "run.json").exists() else list(words)


@dataclass
class Tally:
    """What happened under one fault to one command."""

    fault: str
    command: str
    tried: int = 0
    struck: int = 0
    went_on: int = 0
    refused: int = 0
    unclear: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    leftovers: int = 0
    words: list[str] = field(default_factory=list)

    def refuse(self, ended: Ended, where: str) -> None:
        """Count a refusal, or note that it was not clear."""
        if ended.clear:
            self.refused += 1
            line = next(t for t in ended.err.splitlines() if t.startswith("holdfast: error: "))
            short = line.removeprefix("holdfast: error: ").split("(")[0][:110]
            if len(self.words) < 3 and short not in self.words:
                self.words.append(short)
        else:
            self.unclear.append(f"{where}: code {ended.code}: {ended.err.strip()[-300:]}")

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return dict(vars(self))


def finish(job: Job, name: str, place: Path, tally: Tally, where: str) -> None:
    """Go on as a user would until the command is done, and compare with the undisturbed result."""
    for _ in range(3):
        ended = call(again(COMMANDS[name], place), place)
        if ended.code == 0:
            break
        tally.refuse(ended, where)
        folder = place / "runs" / "a"
        if ended.clear and "exists and is no run folder" in ended.err and not (folder / "run.json").exists():
            shutil.rmtree(folder)  # nothing was stored yet; what the message asks for, at the same place
    else:
        tally.lost.append(f"{where}: never done: {ended.err.strip()[-200:]}")
        return
    found = differing(tree(place), job.trees[name])
    if found:
        tally.lost.append(f"{where}: differs: {', '.join(found[:5])}")
    tally.leftovers += leftovers(place)


def pictures(folder: Path) -> None:
    """Write four classes of six small images."""
    rng = np.random.default_rng(0)
    for label, colour in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)]):
        (folder / f"class {label}").mkdir(parents=True)
        for i in range(6):
            raw = np.clip(np.array(colour) + rng.normal(0, 40, (16, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(raw).save(folder / f"class {label}" / f"{i}.png")
