"""Work queues over processes and machines: joblib with its own processes, Dask or Ray."""

from __future__ import annotations

import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from .errors import HoldfastError, InvalidArgument, MissingExtra, RunError, UnknownName, told
from .evaluation import Share
from .evaluation.embed_parts import ToEmbed, embed_to
from .evaluation.shares import forget

T = TypeVar("T")
BACKENDS = ("loky", "dask", "ray")
"""Engines: processes of this machine (joblib's own), ``dask.distributed``, ``ray``."""
SHARES_EACH = 4
"""Shares of a suite for each process: the last to finish is late by no more than one of them."""
GO_ON = "what is finished is kept: run the same again, and it goes on from there"


def processes(jobs: int) -> int:
    """Return how many processes ``jobs`` means: itself, or for -1 all cores.

    Raises
    ------
    InvalidArgument
        For 0 and numbers below -1.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or not (jobs >= 1 or jobs == -1):
        raise InvalidArgument("jobs", "an integer >= 1, or -1 for all cores", jobs)
    return jobs if jobs > 0 else max(1, len(os.sched_getaffinity(0)) if _LINUX else os.cpu_count() or 1)


_LINUX = hasattr(os, "sched_getaffinity")


def check(jobs: int, backend: str = "loky", scheduler: str | None = None) -> int:
    """Refuse what :func:`run_queue` would refuse, before anything is computed; return the processes.

    Raises
    ------
    InvalidArgument, UnknownName, MissingExtra
        See :func:`run_queue`.
    """
    if backend not in BACKENDS:
        raise UnknownName("backend", backend, BACKENDS)
    if scheduler is not None and backend == "loky":
        raise InvalidArgument("scheduler", "the backend dask or ray, which have one", scheduler)
    try:
        if backend == "dask":
            import dask.distributed  # noqa: F401
        elif backend == "ray":
            import ray  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        package, extra = ("dask[distributed]", "distributed") if backend == "dask" else ("ray", "ray")
        raise MissingExtra(package, extra, f"a queue by {backend}") from error
    return processes(jobs)


class _Failed(NamedTuple):
    """What a task that raised an error sends back instead of a result; text, for not every error travels."""

    text: str


def _one(function: Callable[..., T], threads: int, place: int, *arguments: Any) -> tuple[int, T | _Failed]:
    """Do one task in a worker."""
    with _ALONE:
        torch.set_num_threads(threads)
        try:
            return place, function(*arguments)
        except HoldfastError as error:
            return place, _Failed(str(error))
        except Exception as error:  # noqa: BLE001  (told to whoever waits, and the other tasks go on)
            return place, _Failed(f"{type(error).__name__}: {error}")


_ALONE = threading.Lock()
"""A worker of Dask may have several threads; torch's settings and the working folder are the process's."""


def run_queue(
    function: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    /,
    *,
    jobs: int,
    backend: str = "loky",
    threads: int = 1,
    scheduler: str | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> list[T]:
    """Call a function once for each task, by processes that take the next task as soon as they are free.

    Parameters
    ----------
    function
        Of a module that workers can import: it is sent by its name. (A function of a script or a lambda is
        sent by value, by cloudpickle.)
    tasks
        Positional arguments of each call. What is large travels best as a path; NumPy arrays above 1 MB are
        shared with processes of the same machine as memory maps, tensors are copied for every task.
    jobs
        Processes, -1 for all cores. 1 works through the tasks in this process. Where ``scheduler`` names a
        cluster, all its workers are used, however many.
    backend
        ``"loky"``: processes of this machine. ``"dask"``, ``"ray"``: these engines, here or on a cluster.
    threads
        Of torch in every worker. Results are those of one process with as many threads, to the bit.
    scheduler
        Address of a cluster: ``tcp://host:8786`` of Dask, ``ray://host:10001`` or ``auto`` of Ray. Without
        one the engine starts workers on this machine and stops them afterwards.
    on_done
        Called with tasks done and tasks in all. Ray tells the end alone.

    Returns
    -------
    list
        Results in the order of the tasks.

    Raises
    ------
    InvalidArgument, UnknownName
        For ``jobs`` or ``threads`` below 1, another backend, a scheduler where there is none.
    MissingExtra
        If the engine is not installed.
    RunError
        If tasks fail: says which, with the first one's message; all others are done nevertheless. If a
        worker dies (killed, out of memory) or the cluster cannot be reached; Dask gives the task of a dead
        worker to another one, and gives up after three.

    Notes
    -----
    With ``"dask"`` and no scheduler a script must begin its work under ``if __name__ == "__main__":``, for
    its workers import the script. Workers of a cluster need the same versions, and files at the same paths.

    Examples
    --------
    >>> run_queue(pow, [(2, 3), (3, 2)], jobs=1)
    [8, 9]
    """
    count = check(jobs, backend, scheduler)
    if threads < 1:
        raise InvalidArgument("threads", "an integer >= 1", threads)
    calls = [(function, threads, place, *task) for place, task in enumerate(tasks)]
    found: dict[int, T | _Failed] = {}
    if (count == 1 and scheduler is None) or len(tasks) < 2:
        before = torch.get_num_threads()
        try:
            for call in calls:
                place, result = _one(*call)
                found[place] = result
                _tell(on_done, len(found), len(tasks))
        finally:
            torch.set_num_threads(before)
            forget()
    else:
        try:
            for place, result in _spread(calls, min(count, len(tasks)), backend, threads, scheduler):
                found[place] = result
                _tell(on_done, len(found), len(tasks))
        except Exception as error:
            what = f"{type(error).__name__}: {told(error)}"
            raise RunError(f"a worker of the queue ({backend}) was lost ({what}); {GO_ON}") from error
    failed = {place: result for place, result in sorted(found.items()) if isinstance(result, _Failed)}
    if failed:
        place, (text,) = next(iter(failed.items()))
        several = f"{len(failed)} of {len(tasks)} tasks failed, first " if len(failed) > 1 else ""
        raise RunError(f"{several}task {place + 1} of {len(tasks)}: {text} ({GO_ON})")
    return [found[place] for place in range(len(tasks))]  # type: ignore[misc]  # no _Failed is left


def _tell(on_done: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if on_done is not None:
        on_done(done, total)


def _spread(
    calls: Sequence[tuple[Any, ...]], jobs: int, backend: str, threads: int, scheduler: str | None
) -> Iterator[tuple[int, Any]]:
    """Yield results as they come."""
    from joblib import Parallel, delayed, parallel_config  # type: ignore[import-untyped]

    with ExitStack() as stack:
        settings: dict[str, Any] = {"backend": backend, "n_jobs": jobs}
        if backend == "loky":
            settings["inner_max_num_threads"] = threads
        elif backend == "dask":
            stack.enter_context(_dask(jobs, scheduler))
            settings |= {"backend": DASK, "n_jobs": -1}  # as many as the cluster has
        else:
            stack.enter_context(_ray(jobs, scheduler))
        stack.enter_context(parallel_config(**settings))
        at_once = "list" if backend == "ray" else "generator_unordered"
        yield from Parallel(batch_size=1, return_as=at_once)(delayed(_one)(*call) for call in calls)


DASK = "holdfast-dask"
"""Joblib's name of its Dask backend with :func:`_register_dask`'s correction."""


class _Lost(NamedTuple):
    """What comes instead of a result where Dask itself gives a task up."""

    error: BaseException


def _register_dask() -> None:
    """Tell joblib of Dask, and let it hear of tasks that Dask gives up.

    Joblib 1.6 waits for ever for a task whose workers die again and again: the error reaches the task's
    future, and nobody is called.
    """
    from joblib import register_parallel_backend
    from joblib._dask import DaskDistributedBackend  # type: ignore[import-untyped]

    class Backend(DaskDistributedBackend):  # type: ignore[misc]  # joblib is not typed
        def submit(self, func: Any, callback: Any = None) -> Any:
            future = super().submit(func, callback)

            def done(future: Any) -> None:
                error = future.exception()
                if error is not None and callback is not None:
                    callback(_Lost(error))

            future.add_done_callback(done)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, _Lost):
                raise out.error
            return super().retrieve_result_callback(out)

    register_parallel_backend(DASK, Backend)


@contextmanager
def _dask(jobs: int, scheduler: str | None) -> Iterator[None]:
    from dask import distributed

    _register_dask()
    client: Any = distributed.Client  # not typed
    if scheduler is not None:
        with client(scheduler, timeout="30s"):
            yield
        return
    local: Any = distributed.LocalCluster
    quiet = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
    with local(n_workers=jobs, threads_per_worker=1, **quiet) as cluster, client(cluster):
        yield


@contextmanager
def _ray(jobs: int, scheduler: str | None) -> Iterator[None]:
    import ray
    from ray.util.joblib import register_ray  # type: ignore[import-not-found]

    register_ray()
    ours = not ray.is_initialized()
    if ours:
        local: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False}
        ray.init(log_to_driver=False, **({"address": scheduler} if scheduler else local))
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def shares(jobs: int, budget: object = None) -> int:
    """Return into how many shares a suite is cut: several for each process, so that all finish together.

    Under a time budget every process gets one, for each of them spends the whole budget.
    """
    return jobs if budget is not None else SHARES_EACH * jobs


def evaluate_in_parallel(
    evaluate: Callable[..., T],
    *arguments: Any,
    jobs: int,
    backend: str = "loky",
    scheduler: str | None = None,
    threads: int = 1,
    on_done: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> T:
    """Evaluate by several processes: each computes shares of the queries, and this one puts them together.

    Parameters
    ----------
    evaluate
        :func:`holdfast.runs.evaluate_run` or :func:`holdfast.evaluate`: what can compute a share.
    *arguments, **settings
        Its own. A run folder is sent as its path. An encoder in memory is sent by cloudpickle with every
        share; images best as the path of a folder or as a NumPy array, which the processes of one machine
        share. ``on_chunk`` is left to the last step.
    jobs, backend, scheduler, threads
        As for :func:`run_queue`.
    on_done
        Called with shares done and shares in all.

    Returns
    -------
    object
        What ``evaluate`` returns.

    Raises
    ------
    InvalidArgument
        For a share asked for here, or an encoder without the folder ``out`` that all processes share.
    RunError
        See :func:`run_queue`; finished chunks of queries are kept in the folder.

    Notes
    -----
    Chunks are those of one process: with one torch thread in both, the files of finished chunks agree to the
    bit. A share sets itself up anew: it reads the images and embeds the gallery once more.

    Examples
    --------
    ::

        from holdfast.queues import evaluate_in_parallel
        from holdfast.runs import evaluate_run

        records = evaluate_in_parallel(evaluate_run, "runs/hm", suite="ers", jobs=8)
    """
    count = check(jobs, backend, scheduler)
    names = inspect.signature(evaluate).parameters
    name = "shard" if "shard" in names else "share"
    if name not in names or settings.get(name) is not None:
        need = "evaluate_run or evaluate, and no share of its own"
        raise InvalidArgument("evaluate", need, settings.get(name, evaluate))
    if name == "shard" and settings.get("out") is None:
        raise InvalidArgument("out", "the folder that all processes share", None)
    total = shares(count, settings.get("budget"))
    quiet = {key: value for key, value in settings.items() if key != "on_chunk"}
    tasks = [(evaluate, name, i, total, arguments, quiet) for i in range(total)]
    if count > 1 or scheduler is not None:
        run_queue(
            _share, tasks, jobs=jobs, backend=backend, threads=threads, scheduler=scheduler, on_done=on_done
        )
    return evaluate(*arguments, **settings)


def _share(
    evaluate: Callable[..., Any], name: str, i: int, total: int, arguments: tuple[Any, ...], settings: Any
) -> None:
    """Compute one share into the folder; nothing is sent back."""
    share = (i, total) if name == "shard" else Share(index=i, count=total)
    evaluate(*arguments, **{name: share}, **settings)


def without(command: Sequence[str], *options: str) -> list[str]:
    """Return a command line without some options, and without the words that follow them.

    ``--json`` is taken for a flag, which has none.

    Examples
    --------
    >>> without(["evaluate", "run", "--jobs", "2", "--json", "--eps=0.1"], "--jobs", "--json")
    ['evaluate', 'run', '--eps=0.1']
    """
    left: list[str] = []
    words = iter(command)
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in options:
            left.append(word)
        elif not equals and name != "--json":
            next(words, None)
    return left


@contextmanager
def quietly_in(folder: str) -> Iterator[None]:
    """Work in another folder, and show nothing.

    Raises
    ------
    RunError
        If there is no such folder on this machine.
    """
    if not os.path.isdir(folder):
        raise RunError(f"{folder}: there is no such folder where the worker runs")
    before = os.getcwd()
    os.chdir(folder)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        os.chdir(before)


def embed_in_parallel(
    make: Callable[..., ToEmbed],
    *arguments: Any,
    out: str | Path,
    key: str,
    batch_size: int = 256,
    jobs: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
    threads: int = 1,
    on_done: Callable[[int, int], None] | None = None,
) -> Path:
    """Embed images into a folder of vectors, by several processes.

    See :func:`holdfast.evaluation.embed_parts.embed_to` for the first five, :func:`run_queue` for all others.
    Vectors are equal to the bit to those of one process with as many threads.
    """
    check(jobs, backend, scheduler)
    spread = partial(run_queue, jobs=jobs, backend=backend, threads=threads, scheduler=scheduler)
    return embed_to(out, make, arguments, key=key, batch_size=batch_size, spread=spread, on_done=on_done)
