"""Measure cases, and put what was found into plain data."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .._version import __version__
from ..errors import InvalidArgument, UnknownName
from ..runs import machine
from . import recorded
from .cases import CASES
from .harness import Spread, Timing, interleaved, ratio, spread
from .job import LIMIT, OURS, Job, Size
from .memory import peak_in_process
from .peers import versions

SCHEMA = 1
ROUNDS = {"tiny": 1, "quick": 5, "full": 9}
LEAST = {"tiny": 0.0, "quick": 4.0, "full": 60.0}
"""Seconds that the measured calls of a job take at least, in further rounds."""
Row = dict[str, Any]


def place() -> dict[str, Any]:
    """Return what times depend on besides the code."""
    return {**machine(), "model": _model()}


def _model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
            )
    except OSError:
        return platform.processor()


def bench(
    only: Sequence[str] = (),
    size: Size = "full",
    *,
    rounds: int | None = None,
    memory: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    on_row: Callable[[Row], None] | None = None,
) -> dict[str, Any]:
    """Measure cases against their limits, peers and recorded figures.

    Parameters
    ----------
    only
        Names of :data:`~holdfast.bench.cases.CASES`; empty takes all.
    size
        ``"quick"`` takes minutes on 2 cores, ``"full"`` measures the sizes of published tables.
    rounds
        Of each variant; by default 5, and 9 in full, and up to four times as many of short works.
    memory
        Whether peak memory is measured, in further processes.
    clock
        Seconds. ``time.process_time`` on one thread leaves out what else the machine does.
    on_row
        Called with every row as it is found.

    Returns
    -------
    dict
        Plain data: ``schema``, ``date``, ``version``, ``size``, ``clock``, ``machine``, ``versions``,
        ``yardsticks`` and ``rows``. Every row has ``ratio``: how many times longer the other took than we
        did, in pairs of one round. Above 1 we are faster; against a bare limit it is the share of the limit
        that is reached.

    Raises
    ------
    UnknownName
        For an unknown case.
    InvalidArgument
        For fewer than one round.
    """
    for name in only:
        if name not in CASES:
            raise UnknownName("case", name, CASES)
    if size not in ROUNDS:
        raise InvalidArgument("size", "'tiny', 'quick' or 'full'", size)
    least = LEAST[size] if rounds is None else 0.0
    rounds = ROUNDS[size] if rounds is None else rounds
    if rounds < 1:
        raise InvalidArgument("rounds", "an integer >= 1", rounds)
    start, rows, here = time.monotonic(), list[Row](), dict[str, float]()
    for case, jobs in CASES.items():
        if only and case not in only:
            continue
        for job in jobs(size):
            for row in _rows(case, job, size, (rounds, least), memory, clock, here):
                rows.append(row)
                if on_row is not None:
                    on_row(row)
    return {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": __version__,
        "size": size,
        "clock": "cpu" if clock is time.process_time else "wall",
        "seconds": round(time.monotonic() - start, 1),
        "machine": place(),
        "versions": versions(),
        "recorded_on": recorded.recorded()["machine"],
        "yardsticks": here,
        "rows": rows,
    }


def _rows(
    case: str,
    job: Job,
    size: Size,
    rounds: tuple[int, float],
    memory: bool,
    clock: Callable[[], float],
    here: dict[str, float],
) -> Iterator[Row]:
    """Yield a row for each thing that a job is compared with; ``here`` gathers yardsticks.

    ``rounds`` are their number, and the seconds that they take at least.
    """
    variants = job.variants()
    settle = torch.cuda.synchronize if torch.cuda.is_available() else None
    times = interleaved(variants, rounds[0], least=rounds[1], clock=clock, settle=settle)
    peaks: dict[str, int | None] = {}
    if memory and job.memory and size != "tiny":
        for name in variants:
            peaks[name] = peak_in_process(case, job.name, name, size, torch.get_num_threads())
    ours = times[OURS]
    base = {
        "case": case, "work": job.name, "unit": job.unit, "units": job.units,
        "ours": ours.spread._asdict(), "peak_bytes": peaks.get(OURS), "note": job.note,
    }  # fmt: skip
    for name, timing in times.items():
        if name != OURS:
            kind = "limit" if name == LIMIT else "peer"
            yield {
                **base, "kind": kind, "against": name, "what": job.limit_is if kind == "limit" else "",
                "theirs": timing.spread._asdict(), "ratio": ratio(timing, ours)._asdict(),
                "their_peak_bytes": peaks.get(name),
            }  # fmt: skip
    for name, why in job.absent().items():
        yield {**base, "kind": "peer", "against": name, "what": why, "theirs": None, "ratio": None}
    for name in job.references:
        figure = recorded.recorded()["figures"][name]
        yardstick = figure["yardstick"]
        if yardstick is not None and yardstick not in here:
            here[yardstick] = recorded.measure(yardstick, small=size == "tiny", clock=clock)
        share = against_recorded(ours, job.units, recorded.expected(figure, here))
        yield {
            **base, "kind": "recorded", "against": name, "theirs": None, "ratio": share._asdict(),
            "what": f"{figure['what']}; {figure['source']}", "scaled": yardstick is not None,
        }  # fmt: skip


def against_recorded(ours: Timing, units: float, theirs: Spread) -> Spread:
    """Return our rate over a recorded one, which is a range: the widest range of the ratio.

    Parameters
    ----------
    ours
        Seconds.
    units
        Work of one call.
    theirs
        Units per second, on this machine.
    """
    rates = spread([units / max(s, 1e-12) for s in ours.seconds])
    middle = units / max(ours.spread.median, 1e-12) / theirs.median
    return Spread(middle, rates.low / theirs.high, rates.high / theirs.low, rates.rounds)
