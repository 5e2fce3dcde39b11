"""How many processes train, who starts them, and what is said when one dies."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ..errors import HoldfastError, InvalidArgument, RunError
from .fabric import joined
from .group import Alone, PeerLost
from .trainer import CHECKPOINT

LAUNCHER = "HOLDFAST_LAUNCHER"
"""Tells a process that :func:`launch` started it, and holds the launcher's process number."""
GRACE = 5
"""Seconds that processes have to end after SIGTERM."""

Started = Literal["alone", "here", "torchrun", "slurm"]


class Plan(NamedTuple):
    """How a run is spread: processes on each node, nodes, and who starts the processes.

    ``"alone"``: nobody has to. ``"here"``: :func:`launch` does, on this machine. ``"torchrun"`` and
    ``"slurm"``: they have, and this is one of the processes.
    """

    devices: int
    nodes: int
    started: Started

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes


def plan_processes(
    devices: int | None, nodes: int | None, device: str = "auto", env: Mapping[str, str] | None = None
) -> Plan:
    """Find out from flags and environment how a run is spread.

    Parameters
    ----------
    devices, nodes
        As asked for; ``None`` takes what torchrun or SLURM says, and 1 without them.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    env
        Environment variables; those of this process by default.

    Raises
    ------
    InvalidArgument
        If a number is < 1 or not the one of torchrun or SLURM, if there are fewer CUDA devices, if one CUDA
        device is named for several processes, or if several nodes are asked for without torchrun or SLURM.
    """
    env = os.environ if env is None else env
    for name, value in (("devices", devices), ("nodes", nodes)):
        if value is not None and value < 1:
            raise InvalidArgument(name, "an integer >= 1", value)
    found = _torchrun(env) or _slurm(env)
    if found is not None:
        for name, asked, there in (
            ("devices", devices, found.devices),
            ("nodes", nodes, found.nodes),
        ):
            if asked is not None and asked != there:
                raise InvalidArgument(
                    name, f"{there}, the number that {found.started} started, or none", asked
                )
        plan = found
    else:
        plan = Plan(devices or 1, nodes or 1, "alone" if (devices or 1) == 1 else "here")
    if plan.nodes > 1 and found is None:
        command = (
            f"torchrun --nnodes {plan.nodes} --nproc-per-node {plan.devices} --rdzv-backend c10d "
            f"--rdzv-id NAME --rdzv-endpoint FIRST_HOST:29400 -m holdfast train ..."
        )
        raise InvalidArgument("nodes", f"torchrun or srun for several; on every node: {command}", plan.nodes)
    if plan.world > 1:
        _check_devices(plan.devices, device)
    return plan


def _torchrun(env: Mapping[str, str]) -> Plan | None:
    if "TORCHELASTIC_RUN_ID" not in env or "WORLD_SIZE" not in env:
        return None
    world, local = int(env["WORLD_SIZE"]), int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"]))
    if world % local:
        raise InvalidArgument("nproc-per-node", "the same number on every node", f"{local} of {world}")
    return Plan(local, world // local, "torchrun")


def _slurm(env: Mapping[str, str]) -> Plan | None:
    tasks = int(env.get("SLURM_NTASKS", "1"))
    if tasks == 1 or "SLURM_PROCID" not in env or env.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    nodes = int(env.get("SLURM_NNODES", "1"))
    if "SLURM_NTASKS_PER_NODE" not in env or tasks % nodes:
        raise InvalidArgument("--ntasks-per-node", "set for srun, the same on every node", f"{tasks} tasks")
    return Plan(tasks // nodes, nodes, "slurm")


def _check_devices(devices: int, device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidArgument("device", "auto, cpu or cuda for several processes", device)
    there = torch.cuda.device_count() if device == "cuda" or torch.cuda.is_available() else 0
    if (device == "cuda" or (device == "auto" and there)) and devices > there:
        need = f"at most {there}, the CUDA devices of this machine (or --device cpu)"
        raise InvalidArgument("devices", need, devices)


def launch(words: Sequence[str], devices: int, folder: Path) -> None:
    """Run ``holdfast WORDS`` in several processes of this machine, and wait until all are done.

    torchelastic, which also is inside torchrun, starts and watches them: when one ends with an error or by
    a signal, the others are ended too. They meet at a free port.

    Parameters
    ----------
    words
        What stands behind ``holdfast`` on the command line.
    devices
        Number of processes.
    folder
        The run folder, for messages.

    Raises
    ------
    RunError
        If a process ended badly: names it, how it ended, and how to go on.
    KeyboardInterrupt
        At Ctrl-C, when all have ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE))
    for name in list(logging.root.manager.loggerDict):  # each of its loggers has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "holdfast", *words)
    except ChildFailedError as error:
        raise RunError(f"{_first_fault(error.failures, devices)}; {how_to_go_on(folder, words)}") from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise RunError(f"stopped by {error.sigval.name}; {how_to_go_on(folder, words)}") from None
    finally:
        del os.environ[LAUNCHER]


def _first_fault(failures: Mapping[int, Any], world: int) -> str:
    """Say which process ended first and how: a signal goes before an error, and both before a lost peer."""

    def order(item: tuple[int, Any]) -> tuple[int, int, int]:
        rank, failure = item
        lost = _message(failure).startswith(PeerLost.__name__)
        ended = failure.exitcode == -signal.SIGTERM  # by the launcher, because another one had failed
        return (2 if lost else 1 if ended else 0, failure.timestamp, rank)

    rank, failure = min(failures.items(), key=order)
    if failure.exitcode < 0:
        return f"process {rank} of {world} was ended by signal {signal.Signals(-failure.exitcode).name}"
    message = _message(failure)
    if message.startswith("process "):  # already names it
        return message
    return f"process {rank} of {world} stopped: {message or f'exit code {failure.exitcode}'}"


def _message(failure: Any) -> str:
    message = failure.error_file_data.get("message", "")
    return str(message.get("message", "") if isinstance(message, dict) else message)


def how_to_go_on(folder: Path, words: Sequence[str]) -> str:
    """Say which checkpoint there is, and the command that goes on from it."""
    path = folder / CHECKPOINT
    kept = f"the last checkpoint is {path}" if path.exists() else "there is no checkpoint yet"
    more = [] if "--resume" in words or not (folder / "run.json").exists() else ["--resume"]
    return f"{kept}; go on with: holdfast {shlex.join([*words, *more])}"


def launched() -> bool:
    """Whether :func:`launch` started this process."""
    return LAUNCHER in os.environ


@contextlib.contextmanager
def processes(plan: Plan, device: str) -> Iterator[Alone]:
    """Join the processes of a plan."""
    if plan.world == 1:
        yield Alone()
        return
    with joined(plan.devices, plan.nodes, device) as group:
        yield group


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """In a process that :func:`launch` started: leave errors to it, and end when it ends.

    Anywhere else the block runs as it is.
    """
    parent = os.environ.get(LAUNCHER)
    if parent is None:
        yield
        return
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    try:
        yield
    except Exception as error:
        _write_error(error)
        if isinstance(error, PeerLost):
            time.sleep(1)  # the launcher is to see first who went away
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # the launcher says so


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(2)


def _write_error(error: Exception) -> None:
    """Tell the launcher, in torchelastic's form."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    kind = type(error).__name__
    known = isinstance(error, HoldfastError | OSError) and not isinstance(error, PeerLost)
    message = str(error) if known else f"{kind}: {error}"
    told = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
    if path is not None:
        Path(path).write_text(json.dumps({"message": told}), encoding="utf-8")
    if not isinstance(error, HoldfastError | OSError):
        logging.getLogger(__name__).error("unexpected error", exc_info=error)
