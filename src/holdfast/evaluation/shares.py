"""Work in parts: how a piece of work is handed to processes, and what a process keeps between two parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

from ..functional.ranking import chunks

T = TypeVar("T")
_KEPT: dict[str, Any] = {}


class Spread(Protocol):
    """Call a function once for each task; ``partial(holdfast.queues.run_queue, jobs=4)`` is one.

    ``on_done`` is called with tasks done and tasks in all, in the process that handed them out.
    """

    def __call__(
        self,
        function: Callable[..., T],
        tasks: Sequence[tuple[Any, ...]],
        /,
        *,
        on_done: Callable[[int, int], None] | None = None,
    ) -> list[T]:
        """Return the results in the order of the tasks."""
        ...


def here(
    function: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    /,
    *,
    on_done: Callable[[int, int], None] | None = None,
) -> list[T]:
    """Do the tasks one after the other in this process.

    Examples
    --------
    >>> here(pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    results = []
    for task in tasks:
        results.append(function(*task))
        if on_done is not None:
            on_done(len(results), len(tasks))
    return results


def kept(key: str, make: Callable[[], T]) -> T:
    """Return what this process made under this key before, or make it; only the last one is kept.

    For what is the same in many tasks and dear to set up: an encoder with its embedded gallery, fitted
    references. The key has to name everything that decides it.

    Examples
    --------
    >>> kept("a", lambda: [1]) is kept("a", lambda: [2])
    True
    """
    found = _KEPT.get(key, _KEPT)
    if found is _KEPT:
        _KEPT.clear()
        found = _KEPT[key] = make()
    return cast(T, found)


def forget() -> None:
    """Drop what :func:`kept` holds in this process."""
    _KEPT.clear()


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    """Return [first, last) of consecutive blocks of ``size`` rows, the last one shorter.

    Examples
    --------
    >>> blocks(5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(rows.start, rows.stop) for rows in chunks(n, size)]
