"""Full disks, read-only folders, damaged files and a prefetch thread that fails."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults_job import (
    COMMANDS,
    FOLDER,
    Counter,
    Ended,
    Job,
    Tally,
    again,
    call,
    differing,
    finish,
    fork,
    pictures,
    tree,
    wait,
)

_LIBC = ctypes.CDLL(None, use_errno=True)
_REMOUNT, _READ_ONLY, _NEW_MOUNTS, _DETACH = 32, 1, 0x00020000, 2
_PRIVATE_ALL = (1 << 18) | (1 << 14)


def own_mounts() -> bool:
    """Give this process mounts of its own, which end with it; False where that is not allowed."""
    if not hasattr(_LIBC, "unshare") or _LIBC.unshare(_NEW_MOUNTS):
        return False
    return not _LIBC.mount(b"none", b"/", None, _PRIVATE_ALL, None)


def _mount(place: Path, options: str, flags: int = 0) -> bool:
    return not _LIBC.mount(b"tmpfs", str(place).encode(), b"tmpfs", flags, options.encode())


@contextmanager
def _disk(job: Job, source: Path) -> Any:
    """A small file system of its own with a copy of a folder."""
    job.number += 1
    place = job.work / f"disk-{job.number}"
    place.mkdir()
    if not _mount(place, "size=512m"):
        raise OSError("tmpfs could not be mounted")
    try:
        shutil.copytree(source, place, dirs_exist_ok=True)
        yield place
    finally:
        _LIBC.umount2(str(place).encode(), _DETACH)
        place.rmdir()


def _go_on(job: Job, name: str, place: Path, tally: Tally, where: str, ended: Ended) -> None:
    """Count how a command ended, and go on where nothing stands in its way any more."""
    tally.tried += 1
    if ended.code:
        tally.struck += 1
        tally.refuse(ended, where)
    finish(job, name, place, tally, where)
    tally.went_on += ended.code != 0


def full_disk(job: Job, each: int, draw: random.Random) -> list[Tally]:
    """Leave each command a random part of the room that it needs, then all of it."""
    tallies = []
    for name in COMMANDS:
        tally = Tally("disk full (tmpfs)", name)
        need = _size(job.after[name]) - _size(job.before(name))
        for turn in range(each):
            with _disk(job, job.before(name)) as place:
                used = os.statvfs(place)
                taken = (used.f_blocks - used.f_bfree) * used.f_frsize
                room = draw.randrange(4096, max(need, 8192)) // 4096 * 4096
                _mount(place, f"size={taken + room}", _REMOUNT)
                ended = call(COMMANDS[name], place)
                _mount(place, "size=512m", _REMOUNT)
                _go_on(job, name, place, tally, f"{turn}: {room} bytes of {need}", ended)
        tallies.append(tally)
    return tallies


def _size(folder: Path) -> int:
    return sum(-(-p.stat().st_size // 4096) * 4096 if p.is_file() else 4096 for p in folder.rglob("*"))


def read_only(job: Job, each: int, draw: random.Random) -> list[Tally]:
    """Make the file system of each command read-only at a random moment, then writable again."""
    tallies = []
    for name in COMMANDS:
        tally = Tally("read-only midway (remounted)", name)
        for turn in range(each):
            with _disk(job, job.before(name)) as place:
                moment = draw.uniform(0, job.seconds[name])

                def close(place: Path = place) -> None:
                    for _ in range(2000):  # refused while a file is open for writing
                        if _mount(place, "", _REMOUNT | _READ_ONLY):
                            return
                        time.sleep(0.0002)

                # standard error is written outside of the mount: ``place`` + ".err"
                ended = wait(fork(COMMANDS[name], place), place, act=(moment, close))
                _mount(place, "", _REMOUNT)
                _go_on(job, name, place, tally, f"{turn}: after {moment:.2f} s", ended)
        tallies.append(tally)
    return tallies


def failing_changes(job: Job, names: Iterable[str], every: int, error: int) -> list[Tally]:
    """From every ``every``-th change of a file on, let all changes fail with an error of the system."""
    tallies = []
    for name in names:
        tally = Tally(f"all changes of files fail from one on ({os.strerror(error)})", name)
        for at in range(1, job.changes[name] + 1, every):
            place = job.fresh(job.before(name))
            ended = call(COMMANDS[name], place, Counter().arm(at, error))
            _go_on(job, name, place, tally, f"change {at}", ended)
            job.drop(place)
        tallies.append(tally)
    return tallies


def damaged(job: Job, each: int, draw: random.Random) -> list[Tally]:
    """Cut files short and flip their bytes; whatever reads them next refuses or comes to the same result."""
    half_trained = _stopped(job, "train", "runs/a/checkpoint.safetensors", 0.5)
    half_attacked = _stopped(job, "evaluate", "runs/a/evaluations/*/*.npz", 0.5)
    half_certified = _stopped(job, "certify", "runs/a/certificates/*.part.npz", 0.6)
    cases: list[tuple[str, Path, str, str]] = [
        ("checkpoint of a stopped run", half_trained, "train", "runs/a/checkpoint.safetensors"),
        ("run.json of a stopped run", half_trained, "train", "runs/a/run.json"),
        ("finished chunk of a stopped suite", half_attacked, "evaluate", "runs/a/evaluations/*/*.npz"),
        ("kept part of a stopped certificate", half_certified, "certify", "runs/a/certificates/*.part.npz"),
        ("stored certificate", job.after["certify"], "certify", "runs/a/certificates/*[0-9a-f].npz"),
        ("weights of a finished run", job.after["evaluate"], "evaluate", "runs/a/encoder.safetensors"),
        ("entry of a leaderboard", job.after["leaderboard"], "board", "board/*.json"),
    ]
    tallies = []
    for title, source, name, pattern in cases:
        for kind in ("cut short", "with flipped bytes"):
            tally = Tally(f"{title}, {kind}", name)
            for turn in range(each):
                place = job.fresh(source)
                file = draw.choice(sorted(place.glob(pattern)))
                whole = file.read_bytes()
                where = f"{turn}: {file.name}, " + _damage(file, kind, draw)
                _judge(job, name, place, tally, where, file, whole)
                job.drop(place)
            tallies.append(tally)
    tallies.append(_torn_records(job, each, draw, "evaluate"))
    tallies.append(_torn_records(job, each, draw, "shards together"))
    tallies.append(_torn_records(job, each, draw, "certify"))
    tallies.append(_torn_records(job, each, draw, "report"))
    for place in (half_trained, half_attacked, half_certified):
        job.drop(place)
    return tallies


def _stopped(job: Job, name: str, pattern: str, share: float) -> Path:
    """Return a folder of a command killed at about a share of its changes, with such a file in it."""
    for at in range(int(share * job.changes[name]), job.changes[name]):
        place = job.fresh(job.before(name))
        call(COMMANDS[name], place, Counter().arm(at))
        if list(place.glob(pattern)):
            return place
        job.drop(place)
    raise RuntimeError(f"{name}: no {pattern} when stopped")


def _damage(file: Path, kind: str, draw: random.Random) -> str:
    data = bytearray(file.read_bytes())
    if kind == "cut short":
        length = draw.randrange(len(data))
        file.write_bytes(data[:length])
        return f"{length} of {len(data)} bytes"
    places = [draw.randrange(len(data)) for _ in range(draw.choice((1, 1, 3, 10)))]
    for at in places:
        data[at] ^= draw.randrange(1, 256)
    file.write_bytes(data)
    return f"bytes {places} changed"


def _judge(job: Job, name: str, place: Path, tally: Tally, where: str, file: Path, whole: bytes) -> None:
    """Run the next command over a damaged file: it refuses clearly, or its result is the undisturbed one."""
    board = ["leaderboard", "board", "--html", "board.html"]
    words = board if name == "board" else again(COMMANDS[name], place)
    expected = job.trees["leaderboard" if name == "board" else name]
    ended = call(words, place)
    tally.tried += 1
    tally.struck += 1
    if ended.code:
        tally.refuse(ended, where)
        if file.name == "checkpoint.safetensors" and tally.refused % 5 == 1:  # as the hint says
            file.unlink(missing_ok=True)
            finish(job, name, place, tally, f"{where}, removed")
        return
    differs = [n for n in differing(tree(place), expected) if place / n != file or name == "train"]
    if differs and file.read_bytes() != whole:
        tally.lost.append(f"{where}: not noticed; differs: {', '.join(differs[:4])}")
    else:
        tally.went_on += 1


def _torn_records(job: Job, each: int, draw: random.Random, name: str) -> Tally:
    """Cut the last line of the records, and give the command again."""
    tally = Tally("last line of records.jsonl torn", name)
    for turn in range(each):
        place = job.fresh(job.after[name] if name != "report" else job.before(name))
        file = place / "runs" / "a" / "records.jsonl"
        data = file.read_bytes()
        start = data.rstrip(b"\n").rfind(b"\n") + 1
        length = draw.randrange(start + 1, len(data) - 1)
        file.write_bytes(data[:length])
        ended = call(COMMANDS[name], place)
        tally.tried += 1
        tally.struck += 1
        where = f"{turn}: {length} of {len(data)} bytes"
        if ended.code:
            tally.refuse(ended, where)
        elif name == "report" and "records.jsonl" in ended.err:
            tally.refused += 1  # written from what is whole, and said so
        elif differing(tree(place), job.trees[name]):
            tally.lost.append(
                f"{where}: not noticed; {', '.join(differing(tree(place), job.trees[name])[:3])}"
            )
        else:
            tally.went_on += 1
        job.drop(place)
    return tally


BUG = "RuntimeError (a bug, told by its traceback)"


def prefetch(job: Job, each: int, draw: random.Random) -> list[Tally]:
    """Let the thread that decodes images fail while training; then train on without the fault."""
    from holdfast.data.lazy import LazyImages
    from holdfast.data.prefetch import Prefetch

    plain = job.work / "pictures-alone"
    pictures(plain / "pictures")
    source = job.fresh(plain)
    ended = call(FOLDER, plain)
    if ended.code:
        raise RuntimeError(f"training on a folder ends with {ended.code}: {ended.err}")
    expected = tree(plain)
    tallies = []

    def raising(error: BaseException, at: int) -> Callable[[], None]:
        def first() -> None:
            real, calls = LazyImages.augmented, [0]

            def augmented(self: Any, *arguments: Any) -> Any:
                calls[0] += 1
                if calls[0] == at:
                    raise error
                return real(self, *arguments)

            LazyImages.augmented = augmented  # type: ignore[method-assign]

        return first

    def dying(at: int) -> Callable[[], None]:
        def first() -> None:
            real = Prefetch._put

            def put(self: Any, size: int, item: Any) -> None:
                if getattr(item, "step", at) >= at:
                    raise SystemExit  # ends the thread; nobody is told
                real(self, size, item)

            Prefetch._put = put  # type: ignore[method-assign]

        return first

    faults: dict[str, Callable[[int], Callable[[], None]]] = {
        "OSError": lambda at: raising(OSError(5, os.strerror(5), "pictures/class 0/0.png"), at),
        "MemoryError": lambda at: raising(MemoryError(), at),
        BUG: lambda at: raising(RuntimeError("decoder"), at),
        "SystemExit": lambda at: raising(SystemExit(0), at),
        "thread gone without a word": dying,
    }
    for title, make in faults.items():
        tally = Tally(f"prefetch worker: {title}", "train (folder)")
        for turn in range(each):
            place = job.fresh(source)
            at = draw.randint(1, 5)
            ended = call(FOLDER, place, make(at), limit=8.0)
            tally.tried += 1
            tally.struck += 1
            where = f"{turn}: batch {at}"
            if ended.code == 0:
                if not (place / "runs/f/encoder.safetensors").exists():
                    tally.unclear.append(f"{where}: code 0, but not trained")
            elif title == BUG and ended.code == 1 and "RuntimeError: decoder" in ended.err:
                tally.refused += 1
            else:
                tally.refuse(ended, where)
            ended = call(again(FOLDER, place), place)
            found = differing(tree(place), expected)
            if ended.code or found:
                tally.lost.append(f"{where}: {ended.err.strip()[-200:]} differs: {', '.join(found[:4])}")
            else:
                tally.went_on += 1
            job.drop(place)
        tallies.append(tally)
    return tallies
