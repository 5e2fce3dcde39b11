"""Faults survived, counted: ``python tests/faults/run.py --kills 200 --seed 0 --out FILE.json``.

Kills training, suites, certificates, report, leaderboard and export; fills their disk; makes it read-only;
damages what they left. After each fault the command is given again: it must go on, or refuse with exit code 2
and one line, and in the end every file must be that of the undisturbed job.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faults_job
import faults_kills
import faults_media
from faults_job import COMMANDS, Job, Tally, clock

KINDS = "kills,changes,processes,full,readonly,errors,damage,prefetch"
HEAD = ("fault", "command", "tried", "struck", "went on", "refused", "unclear", "lost")


def main() -> int:
    """Break everything and count; 1 if a result was lost or a refusal unclear."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="at random moments")
    parser.add_argument("--processes", type=int, default=10, help="kills of real processes")
    parser.add_argument("--each", type=int, default=10, help="trials of every other fault")
    parser.add_argument(
        "--every", type=int, default=1, help="of the changes of files, each so-manieth is one to die at"
    )
    parser.add_argument(
        "--only", default="", help="kinds: kills,changes,processes,full,readonly,errors,damage,prefetch"
    )
    parser.add_argument("--commands", default="", help="with commas between; the last ends the job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args()
    begun, started = clock(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    mounts = faults_media.own_mounts()
    base = "/dev/shm" if Path("/dev/shm").is_dir() and os.access("/dev/shm", os.W_OK) else None
    work = Path(tempfile.mkdtemp(prefix="holdfast-faults-", dir=base))
    tallies: list[Tally] = []
    try:
        if asked.commands:
            last = max(list(COMMANDS).index(name) for name in asked.commands.split(","))
            for name in list(COMMANDS)[last + 1 :]:
                del COMMANDS[name]
        faults_job.prepare()
        job = Job(work)
        job.make()
        names = asked.commands.split(",") if asked.commands else list(COMMANDS)
        wanted = set(asked.only.split(",")) if asked.only else None

        def kind(name: str, make: Callable[[random.Random], list[Tally]]) -> None:
            if wanted is None or name in wanted:
                before = clock()
                tallies.extend(make(random.Random(f"{asked.seed} {name}")))
                say(f"{name}: {clock() - before:.0f} s")

        kind("kills", lambda d: faults_kills.at_random_moments(job, asked.kills, d))
        kind("changes", lambda d: faults_kills.at_changes(job, names, asked.every))
        kind("processes", lambda d: faults_kills.of_processes(job, asked.processes, d))
        if mounts:
            kind("full", lambda d: faults_media.full_disk(job, asked.each, d))
            kind("readonly", lambda d: faults_media.read_only(job, asked.each, d))
        for error in (errno.ENOSPC, errno.EROFS):
            kind("errors", lambda d, e=error: faults_media.failing_changes(job, names, 4 * asked.every, e))
        kind("damage", lambda d: faults_media.damaged(job, 2 * asked.each, d))
        kind("prefetch", lambda d: faults_media.prefetch(job, max(asked.each // 3, 1), d))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    show(tallies)
    killed = [t for t in tallies if t.fault.startswith("SIGKILL")]
    total = {
        "faults": sum(t.struck for t in tallies),
        "kills": sum(t.struck for t in killed),
        "kills at random moments": sum(t.struck for t in killed if "random" in t.fault),
        "went_on": sum(t.went_on for t in tallies),
        "refused": sum(t.refused for t in tallies),
        "unclear": sum(len(t.unclear) for t in tallies),
        "lost": sum(len(t.lost) for t in tallies),
        "lost_after_kills": sum(len(t.lost) for t in killed),
        "temporary files left": sum(t.leftovers for t in tallies),
    }
    say(json.dumps(total))
    if asked.out is not None:
        about = {
            "schema": 1, "kind": "faults", "command": " ".join(["python", *sys.argv]), "started": started,
            "seconds": round(clock() - begun), "seed": asked.seed, "mounts": mounts,
            "machine": {"python": platform.python_version(), "system": platform.platform(),
                        "cores": os.cpu_count()},
            "undisturbed": {n: {"seconds": round(job.seconds[n], 2), "changes": job.changes[n]}
                            for n in COMMANDS},
            "total": total, "faults": [t.plain() for t in tallies],
        }  # fmt: skip
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(about, indent=1) + "\n")
    return int(total["unclear"] + total["lost"] > 0)


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show(tallies: list[Tally]) -> None:
    """Print a table, and below it everything that is wrong."""
    rows = [HEAD] + [
        (
            t.fault,
            t.command,
            *map(str, (t.tried, t.struck, t.went_on, t.refused, len(t.unclear), len(t.lost))),
        )
        for t in tallies
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    for row in rows:
        say(
            "  ".join(
                c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
        )
    for t in tallies:
        for word, found in (("UNCLEAR", t.unclear), ("LOST", t.lost)):
            for line in found[:3]:
                say(f"{word}: {t.fault}, {t.command}: {line}")


if __name__ == "__main__":
    sys.exit(main())
