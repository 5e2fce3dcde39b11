"""What several processes train: the run whose batches are dealt into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..defenses import Processes
from ..errors import DataError, InvalidArgument
from ..functional.parts import deal
from .run import Run


def spread_over(run: Run, world: int, there: Run | None = None) -> Run:
    """Return the run that ``world`` processes train: its defense deals every batch into parts.

    Parameters
    ----------
    run
        Of one process.
    world
        Number of processes.
    there
        The run that is gone on with, which keeps its number of parts.

    Raises
    ------
    InvalidArgument
        If the defense has a number of parts already that ``world`` does not divide.
    """
    defense = run.defense
    if not isinstance(defense, Processes):
        before = None if there is None else there.defense
        count = before.count if isinstance(before, Processes) else world
        if count == 1:
            return run
        defense = Processes(defense=defense, count=count)
    if defense.count % world:
        fits = [n for n in range(1, defense.count + 1) if defense.count % n == 0]
        raise InvalidArgument(
            "devices * nodes", f"one of {fits}, as the run has {defense.count} parts", world
        )
    return replace(run, defense=defense)


def check_parts(run: Run, sizes: Sequence[int]) -> None:
    """Refuse batches, of ``sizes`` rows, that are too small for the parts of a run.

    Raises
    ------
    DataError
        With the smallest batch, and what would be large enough.
    """
    if not isinstance(run.defense, Processes):
        return
    smallest = min(sizes)
    try:
        deal(smallest, run.defense.count)
    except DataError as error:
        last = " (the last of an epoch)" if smallest < max(sizes) else ""
        raise DataError(
            f"{error}{last}; choose another --batch, so that none of an epoch has less than "
            f"{2 * run.defense.count} pairs"
        ) from None
