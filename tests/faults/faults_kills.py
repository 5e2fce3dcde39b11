"""Kills: at random moments, at every change of a file, and of real fresh processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from faults_job import (
    COMMANDS,
    Counter,
    Ended,
    Job,
    Tally,
    again,
    call,
    clock,
    differing,
    finish,
    fork,
    tree,
    wait,
)


def at_random_moments(job: Job, kills: int, draw: random.Random, most: int = 4) -> list[Tally]:
    """Kill each command at moments drawn over its undisturbed duration, up to ``most`` times in a row."""
    tallies = {name: Tally("SIGKILL at a random moment", name) for name in COMMANDS}
    names = list(COMMANDS)
    turn = 0
    while sum(t.struck for t in tallies.values()) < kills:
        name = names[turn % len(names)]
        turn += 1
        tally, place = tallies[name], job.fresh(job.before(name))
        where, struck = f"trial {turn}", 0
        for _ in range(draw.randint(1, most)):
            pid = fork(again(COMMANDS[name], place), place)
            moment = draw.uniform(0, job.seconds[name])
            ended = wait(pid, place, act=(moment, lambda pid=pid: _kill(pid)))
            tally.tried += 1
            where += f", {moment:.3f} s"
            if ended.code == -signal.SIGKILL:
                struck += 1
            elif ended.code == 0:
                break
            else:
                _refused(tally, ended, where, place)
        tally.struck += struck
        refused = tally.refused
        finish(job, name, place, tally, where)
        tally.went_on += struck if not tally.refused - refused else max(struck - 1, 0)
        job.drop(place)
    return [t for t in tallies.values() if t.tried]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _refused(tally: Tally, ended: Ended, where: str, place: Path) -> None:
    tally.refuse(ended, where)
    folder = place / "runs" / "a"
    if "exists and is no run folder" in ended.err and not (folder / "run.json").exists():
        shutil.rmtree(folder)


def at_changes(job: Job, names: Iterable[str], every: int = 1) -> list[Tally]:
    """Kill each command right before every ``every``-th change of a file that it makes."""
    tallies = []
    for name in names:
        tally = Tally("SIGKILL at a change of a file", name)
        for at in range(1, job.changes[name] + 1, every):
            place, counter = job.fresh(job.before(name)), Counter()
            ended = call(COMMANDS[name], place, counter.arm(at))
            tally.tried += 1
            if ended.code == -signal.SIGKILL:
                tally.struck += 1
            refused = tally.refused
            finish(job, name, place, tally, f"change {at}")
            tally.went_on += ended.code == -signal.SIGKILL and tally.refused == refused
            job.drop(place)
        tallies.append(tally)
    return tallies


def of_processes(job: Job, kills: int, draw: random.Random) -> list[Tally]:
    """Kill real processes of the installed command; each is one that also starts Python."""
    tallies: dict[str, Tally] = {}
    names = list(COMMANDS)
    program = str(Path(sys.executable).parent / "holdfast")
    for turn in range(kills):
        name = names[turn % len(names)]
        tally = tallies.setdefault(name, Tally("SIGKILL of a real process", name))
        place = job.fresh(job.before(name))
        words = COMMANDS[name]
        start = clock()
        with Path(f"{place}.err").open("wb") as err, Path(os.devnull).open("wb") as nowhere:
            process = subprocess.Popen([program, *words], cwd=place, stdout=nowhere, stderr=err)
            moment = draw.uniform(0.5, 1.0) * (6.0 + job.seconds[name])
            while process.poll() is None and clock() - start < moment:
                time.sleep(0.005)
            struck = process.poll() is None
            if struck:
                process.kill()
            process.wait()
        tally.tried += 1
        tally.struck += struck
        tally.went_on += struck
        _numbers_agree(job, name, place, tally, f"process {turn}, {moment:.1f} s")
        job.drop(place)
    return list(tallies.values())


def _numbers_agree(job: Job, name: str, place: Path, tally: Tally, where: str) -> None:
    """Finish in a child whose clock stands still; compare all but clocks that the killed process stored."""
    from holdfast.files import read_arrays

    ended = call(again(COMMANDS[name], place), place)
    if ended.code:
        tally.refuse(ended, where)
        tally.lost.append(f"{where}: never done")
        return
    told = []
    for file in differing(tree(place), job.trees[name]):
        mine, other = place / file, job.after[name] / file
        if not (mine.exists() and other.exists()):
            told.append(file)
        elif file.endswith(".npz"):
            a, b = read_arrays(mine), read_arrays(other)
            same = a.keys() == b.keys() and all(
                np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == "f") for k in a if k != "seconds"
            )
            told += [] if same else [file]
        elif file.endswith((".json", ".jsonl")):
            texts = mine.read_text(), other.read_text()
            a, b = (
                [_timeless(json.loads(line)) for line in text.splitlines()]
                if file.endswith("l")
                else _timeless(json.loads(text))
                for text in texts
            )
            told += [] if a == b else [file]
        elif file.endswith("checkpoint.safetensors"):
            from holdfast.training import Checkpoint

            one, two = Checkpoint.load(mine), Checkpoint.load(other)
            same = one.step == two.step and all((one.tensors[k] == two.tensors[k]).all() for k in two.tensors)
            told += [] if same else [file]
        elif not file.endswith((".html", ".md")):  # they show the seconds; of equal records they are equal
            told.append(file)
    if told:
        tally.lost.append(f"{where}: differs: {', '.join(told[:5])}")
    tally.leftovers += sum(1 for _ in place.rglob(".*.tmp"))


TIMES = {"time", "seconds", "created", "machine", "command", "train_seconds", "sha256", "training_seconds"}


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value
