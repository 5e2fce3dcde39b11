"""Run the fuzz targets and write what was counted to a dated JSON file.

``python tests/fuzz/run.py --runs 1000000 --seconds 0 --out benchmarks/results/DATE-fuzz.json``

Each target runs in a process of its own: under atheris (coverage-guided, ``pip install atheris``) where that
is installed, else in a loop that mutates seeds and keeps what led to an error not seen before. An input on
which a parser raises something else than its own errors, or takes more than 5 seconds, is a crash; it is kept
in ``--crashes`` and counted once for each place in the code.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import logging
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
HANG = 5.0
"""Seconds that one input may take."""
MOST = 4096
"""Bytes of an input, at most."""


class Hang(BaseException):
    """An input took too long; no parser catches it."""


class Counts:
    """What came of one target: executions, places of errors, crashes; written to a file now and then."""

    def __init__(self, name: str, target: Any, allowed: tuple[type[BaseException], ...], work: Path) -> None:
        self.name, self.target, self.allowed, self.work = name, target, allowed, work
        self.executions = self.refused = 0
        self.errors: Counter[str] = Counter()
        self.crashes: dict[str, dict[str, Any]] = {}
        self.slowest = 0.0
        self.begun = time.monotonic()

    def once(self, data: bytes) -> bool:
        """Parse one input; whether it led somewhere new."""
        self.executions += 1
        begun, new = time.monotonic(), False
        try:
            self.target.parse(data, self.work)
        except self.allowed as error:
            self.refused += 1
            place = _place(error)
            new = place not in self.errors
            self.errors[place] += 1
        except (Exception, Hang) as error:  # noqa: BLE001 this is what we look for
            place = _place(error)
            new = place not in self.crashes
            if new:
                text = "".join(traceback.format_exception(error))[-3000:]
                self.crashes[place] = {"place": place, "input": data.hex(), "times": 0, "traceback": text}
            self.crashes[place]["times"] += 1
        self.slowest = max(self.slowest, time.monotonic() - begun)
        return new

    def plain(self) -> dict[str, Any]:
        """Return the counts."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "executions": self.executions, "refused": self.refused, "distinct_errors": len(self.errors),
            "crashes": sorted(self.crashes.values(), key=lambda c: -c["times"]),
            "slowest_seconds": round(self.slowest, 4), "peak_mib": round(peak),
            "seconds": round(time.monotonic() - self.begun, 1),
        }  # fmt: skip


def _place(error: BaseException) -> str:
    """Return the kind of an error and the innermost line of our code that it came through."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "/holdfast/" in f.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "elsewhere"
    return f"{type(error).__name__} {where}"


def mutated(rng: random.Random, data: bytes, words: Sequence[bytes], others: Sequence[bytes]) -> bytes:
    """Return data with one to eight changes: bits, bytes, numbers, cuts, copies, words, other inputs."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 4, 8))):
        at = rng.randrange(len(out) + 1)
        size = rng.choice((1, 2, 4, 8, 32, 200))
        kind = rng.randrange(9)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            out[at : at + size] = b""
        elif kind == 3:
            out[at:at] = rng.randbytes(size)
        elif kind == 4:
            out[at:at] = out[at : at + size] * rng.choice((1, 2, 30))
        elif kind == 5 and words:
            out[at : at + rng.choice((0, size))] = rng.choice(words)
        elif kind == 6:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at : at + size] = other[start : start + size]
        elif kind == 7:
            number = re.search(rb"-?[0-9]+(\.[0-9]+)?", bytes(out[at:]))
            if number:
                values = (b"0", b"-1", b"1e400", b"9" * 5000, b"2147483648", b"null", b"1.5", b'"a"', b"[]")
                out[at + number.start() : at + number.end()] = rng.choice(values)
        elif len(out) >= 4:
            at = min(at, len(out) - 4)
            value = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
            out[at : at + 4] = value.to_bytes(4, rng.choice(("little", "big")))
    return bytes(out[:16384])


def loop(counts: Counts, runs: int, seconds: float, seed: int = 0) -> Counts:
    """Mutate seeds, and inputs that led to a new error, until so many runs or seconds are over."""
    rng, corpus = random.Random(seed), list(counts.target.seeds())
    over = time.monotonic() + seconds if seconds else float("inf")
    for data in corpus:
        counts.once(data)
    while counts.executions < runs and time.monotonic() < over:
        data = mutated(rng, rng.choice(corpus), counts.target.words, corpus)
        with _alarm():
            new = counts.once(data)
        if new and len(corpus) < 2000:
            corpus.append(data)
    return counts


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def _one(name: str, runs: int, seconds: float, work: Path, stats: Path) -> None:
    """Run one target in this process; atheris never comes back."""
    try:
        import atheris
    except ImportError:
        atheris = None
    with atheris.instrument_imports(include=["holdfast"]) if atheris else contextlib.nullcontext():
        import targets
    _quiet()
    target = targets.TARGETS[name]
    counts = Counts(name, target, targets.ALLOWED, work)

    def write() -> None:
        temporary = stats.with_suffix(".tmp")
        temporary.write_text(json.dumps(counts.plain()))
        os.replace(temporary, stats)

    if atheris is None:
        loop(counts, runs, seconds)
        write()
        return
    corpus, found = work / "corpus", work / "found"
    corpus.mkdir()
    found.mkdir()
    for place, data in enumerate(target.seeds()):
        (corpus / f"seed-{place}").write_bytes(data)
    words = work / "words"
    words.write_text("".join('"' + "".join(f"\\x{b:02x}" for b in w) + '"\n' for w in target.words))
    written = time.monotonic()

    def step(data: bytes) -> None:
        nonlocal written
        counts.once(data)
        # the last write is that of the last execution, as libFuzzer leaves without a word
        if counts.executions >= runs or time.monotonic() - written > 0.5:
            written = time.monotonic()
            write()

    options = [
        f"-runs={runs}", f"-max_len={MOST}", f"-timeout={HANG:.0f}", "-rss_limit_mb=4096", "-seed=1",
        f"-artifact_prefix={found}/", "-print_final_stats=1", "-verbosity=1", "-len_control=20",
    ]  # fmt: skip
    if seconds:
        options.append(f"-max_total_time={seconds:.0f}")
    if target.words:
        options.append(f"-dict={words}")
    atheris.Setup([sys.argv[0], *options, str(corpus)], step, enable_python_coverage=True)
    atheris.Fuzz()


def _started(name: str, runs: int, seconds: float, kept: Path | None) -> dict[str, Any]:
    """Run one target in a process of its own and return its counts."""
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    work = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=base))
    stats = work / "stats.json"
    words = ["--one", name, "--runs", str(runs), "--seconds", str(seconds), "--work", str(work)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, __file__, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            errors="replace", env=environment, cwd=work, check=False,
        )  # fmt: skip
        counts: dict[str, Any] = json.loads(stats.read_text()) if stats.is_file() else {"crashes": []}
        told = done.stderr
        total = re.findall(r"stat::number_of_executed_units:\s*(\d+)", told)
        edges = re.findall(r"cov: (\d+)", told)
        counts["engine"] = "atheris" if "libFuzzer" in told or edges else "loop"
        counts["executions_reported"] = int(total[-1]) if total else None
        counts["edges"] = int(edges[-1]) if edges else None
        counts["corpus"] = len(list((work / "corpus").glob("*"))) if (work / "corpus").is_dir() else None
        if done.returncode != 0:  # a time-out, memory, or a signal: libFuzzer keeps the input
            inputs = [p.read_bytes().hex() for p in sorted((work / "found").glob("*"))]
            last = [line for line in told.splitlines() if "ERROR" in line or "SUMMARY" in line][-2:]
            ended = {"place": f"process ended with {done.returncode}", "inputs": inputs, "times": 1}
            counts["crashes"].append({**ended, "traceback": "\n".join(last or told.splitlines()[-5:])})
        if kept is not None and counts["crashes"]:
            kept.mkdir(parents=True, exist_ok=True)
            (kept / f"{name}.json").write_text(json.dumps(counts["crashes"], indent=1))
        return counts
    finally:
        shutil.rmtree(work, ignore_errors=True)


def table(paths: Sequence[Path]) -> str:
    """Return the counts of several files, added up, as a table in Markdown."""
    rows: dict[str, list[int]] = {}
    for path in paths:
        for name, counts in json.loads(path.read_text())["targets"].items():
            row = rows.setdefault(name, [0, 0, 0, 0, 0])
            row[0] += counts.get("executions", 0)
            row[1] = max(row[1], counts.get("distinct_errors", 0))
            row[2] = max(row[2], counts.get("edges") or 0)
            row[3] += len(counts["crashes"])
            row[4] += round(counts.get("seconds", 0))
    head = "| parser | executions | kinds of refusal | edges | crashes | seconds |\n|---|---|---|---|---|---|"
    cells = [
        f"| {name} | " + " | ".join(f"{n:,}".replace(",", " ") for n in row) + " |"
        for name, row in rows.items()
    ]
    return "\n".join([head, *cells])


def main() -> int:
    """Parse the words and run; 1 if anything crashed."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--runs", type=int, default=1_000_000, help="executions of each target, at most")
    words.add_argument("--seconds", type=float, default=0.0, help="of each target, at most; 0 sets no limit")
    words.add_argument("--out", type=Path, help="JSON file of the counts")
    words.add_argument("--only", nargs="*", help="names of targets")
    words.add_argument("--crashes", type=Path, help="folder for inputs that crashed")
    words.add_argument("--table", type=Path, nargs="+", help="print the counts of these files as a table")
    words.add_argument("--one", help=argparse.SUPPRESS)
    words.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = words.parse_args()
    if asked.one:
        _one(asked.one, asked.runs, asked.seconds, asked.work, asked.work / "stats.json")
        return 0
    if asked.table:
        sys.stdout.write(table(asked.table) + "\n")
        return 0
    sys.path.insert(0, str(HERE))
    import targets

    names = asked.only or list(targets.TARGETS)
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "tests/fuzz/run.py", *sys.argv[1:]]),
        "machine": {
            "python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count(),
        },
        "targets": {},
    }  # fmt: skip
    for name in names:
        counts = result["targets"][name] = _started(name, asked.runs, asked.seconds, asked.crashes)
        edges = "-" if counts.get("edges") is None else counts["edges"]
        sys.stdout.write(
            f"{name:12} {counts.get('executions', 0):>9} executions  {counts.get('seconds', 0):>8} s  "
            f"{counts.get('distinct_errors', 0):>4} errors  {edges:>6} edges  "
            f"{len(counts['crashes'])} crashes\n"
        )
        sys.stdout.flush()
        if asked.out:  # after every target, so that a stopped run leaves what it counted
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any(counts["crashes"] for counts in result["targets"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
