"""Time variants of one piece of work in turn, and compare them round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import InvalidArgument

Work = Callable[[], Any]
MOST = 4
"""Short works get at most so many times the rounds."""


class Spread(NamedTuple):
    """Several measurements of one quantity.

    Attributes
    ----------
    median
        The middle one.
    low, high
        The smallest and the largest.
    rounds
        How many there are.
    """

    median: float
    low: float
    high: float
    rounds: int

    def apart(self, other: Spread) -> bool:
        """Return whether the two ranges have no value in common."""
        return self.low > other.high or self.high < other.low

    def times(self, factor: float) -> Spread:
        """Return the spread in another unit; ``factor`` > 0."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.rounds)


def spread(values: Sequence[float]) -> Spread:
    """Summarise measurements.

    Examples
    --------
    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, low=1.0, high=3.0, rounds=3)
    """
    if not values:
        raise InvalidArgument("values", "at least one measurement", values)
    return Spread(statistics.median(values), min(values), max(values), len(values))


class Timing(NamedTuple):
    """Seconds of each round, in the order in which they were measured."""

    seconds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """Median, smallest and largest."""
        return spread(self.seconds)


def interleaved(
    works: Mapping[str, Work],
    rounds: int = 5,
    *,
    warm_up: int = 1,
    least: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    settle: Work | None = None,
) -> dict[str, Timing]:
    """Run every variant once in each round, so that all see the same machine.

    Parameters
    ----------
    works
        What is timed, by name.
    rounds
        Measured calls of each, >= 1.
    warm_up
        Calls of each before, which are not measured.
    least
        Seconds that all measured calls together take at least: short works get more rounds, up to
        :data:`MOST` times as many.
    clock
        Seconds.
    settle
        Called before the clock is read, such as ``torch.cuda.synchronize``.

    Returns
    -------
    dict
        A :class:`Timing` for each name. Every other round runs backwards, and pairs of rounds begin one
        variant later, so that no variant always follows the same other and each has every place.

    Examples
    --------
    >>> times = iter([0.0, 2.0, 2.0, 3.0, 3.0, 5.0, 5.0, 9.0])
    >>> found = interleaved({"a": int, "b": int}, 2, warm_up=0, clock=lambda: next(times))
    >>> found["a"].seconds, found["b"].seconds
    ((2.0, 4.0), (1.0, 2.0))
    """
    if rounds < 1:
        raise InvalidArgument("rounds", "an integer >= 1", rounds)
    if warm_up < 0:
        raise InvalidArgument("warm_up", "an integer >= 0", warm_up)
    for _ in range(warm_up):
        for work in works.values():
            work()
    names = list(works)
    found: dict[str, list[float]] = {name: [] for name in names}

    def now() -> float:
        if settle is not None:
            settle()
        return clock()

    spent = 0.0
    for i in range(MOST * rounds):
        if i >= rounds and spent >= least:
            break
        first = i // 2 % max(len(names), 1)
        order = names[first:] + names[:first]
        for name in reversed(order) if i % 2 else order:
            start = now()
            works[name]()
            found[name].append(now() - start)
            spent += found[name][-1]
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def ratio(above: Timing, below: Timing) -> Spread:
    """Return how many times longer one variant took, from the pairs of each round.

    Parameters
    ----------
    above, below
        From one call of :func:`interleaved`.

    Examples
    --------
    >>> ratio(Timing((2.0, 6.0, 4.0)), Timing((1.0, 2.0, 4.0)))
    Spread(median=2.0, low=1.0, high=3.0, rounds=3)
    """
    if len(above.seconds) != len(below.seconds):
        got = (len(above.seconds), len(below.seconds))
        raise InvalidArgument("above, below", "timings of the same rounds", got)
    pairs = zip(above.seconds, below.seconds, strict=True)
    return spread([a / max(b, 1e-12) for a, b in pairs])
