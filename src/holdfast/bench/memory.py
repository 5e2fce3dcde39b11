"""Peak memory: of this process since a moment, and of a variant in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int:
    """Return the bytes that this process holds now; its peak where the system does not tell."""
    return _status("VmRSS:") or peak()


def peak() -> int:
    """Return the most bytes that this process held, since :func:`forget` where the system can forget."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget() -> bool:
    """Begin a new peak at what is held now; return whether the system can (Linux)."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)


def peak_in_process(case: str, work: str, variant: str, size: str, threads: int) -> int | None:
    """Return the bytes that one variant holds at most, on top of its data, in a process of its own.

    Parameters
    ----------
    case, work, variant
        Names in :data:`holdfast.bench.cases.CASES`, of one of its works, and of one of its variants.
    size
        ``"tiny"``, ``"quick"`` or ``"full"``.
    threads
        CPU threads.

    Returns
    -------
    int or None
        None if the process failed, as where memory ran out.
    """
    code = "import sys; from holdfast.bench.memory import _child; _child(*sys.argv[1:])"
    command = [sys.executable, "-c", code, case, work, variant, size, str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return None
    return int(found["peak"]) if done.returncode == 0 else None


def _child(case: str, work: str, variant: str, size: str, threads: str) -> None:
    import torch

    from .cases import CASES

    torch.set_num_threads(int(threads))
    for job in CASES[case](size):  # type: ignore[arg-type]
        if job.name == work:
            call = job.variants()[variant]
            forget()
            before = resident()
            call()
            sys.stdout.write(json.dumps({"peak": max(0, peak() - before)}) + "\n")
            return
