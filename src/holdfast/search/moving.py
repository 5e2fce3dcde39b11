"""What searches share: groups that still move, the better of two points, and checks of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..types import Objective


class Left(NamedTuple):
    """Numbers of the rows and of the groups that stay, among those that moved until now."""

    rows: Tensor
    groups: Tensor


class Moving:
    """An objective of the groups that still move; the embeddings of the others are remembered.

    A group that cannot move any more keeps its value: groups do not depend on each other. Hinges make this
    common: triplets that are hard enough, queries that have arrived.

    An objective may offer ``groups(which)``, the objective of some of its groups, given as (k,) numbers: then
    nothing is computed for the others any more. Without it the objective is asked for all groups, with the
    embeddings that the resting ones had.
    """

    def __init__(self, objective: Objective, rows: int) -> None:
        self.objective = objective
        self.n = rows
        self.all = True
        self.rows: Any = slice(None)
        self.groups: Any = slice(None)
        self.z = self.value = torch.empty(0)
        self.part: Objective | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Take the embeddings of the moving rows, return the values of the moving groups."""
        if self.all:
            self.z = z.detach()
            return self.objective(z)
        if self.part is not None:
            return self.part(z)
        self.z = self.z.index_put((self.rows,), z.detach())
        return self.objective(self.z.index_put((self.rows,), z))[self.groups]

    def whole(self, value: Tensor, step: int) -> Tensor:
        """Return the values of all groups from those that still move."""
        check(value, self.n if self.all else len(self.rows), step)
        self.value = self.put_groups(self.value, value)
        return self.value

    def put_rows(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return all rows, those that still move replaced."""
        return part if self.all else whole.index_put((self.rows,), part)

    def put_groups(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return all groups, those that still move replaced."""
        return part if self.all else whole.index_put((self.groups,), part)

    def leaving(self, moves: Tensor) -> Left | None:
        """Return who stays if groups leave of which no row moves.

        Parameters
        ----------
        moves
            (k,) bool, one for each moving row.

        Returns
        -------
        Left or None
            ``None`` if all stay.
        """
        before = len(self.value) if self.all else len(self.groups)
        groups = moves.reshape(-1, before).any(0)
        if bool(groups.all()):
            return None
        kept = torch.nonzero(groups.repeat(len(moves) // before)).squeeze(1)
        return Left(kept, torch.nonzero(groups).squeeze(1))

    def leave(self, rows: Tensor, groups: Tensor) -> None:
        """Go on with some of the moving rows and groups, as :meth:`leaving` found them."""
        self.groups = groups if self.all else self.groups[groups]
        self.rows = rows if self.all else self.rows[rows]
        self.all = False
        some: Callable[[Tensor], Objective] | None = getattr(self.objective, "groups", None)
        self.part = None if some is None or not len(self.groups) else some(self.groups)

    def rest(self, moves: Tensor) -> None:
        """Let groups rest of which no row moves, (k,) bool, one for each moving row."""
        left = self.leaving(moves)
        if left is not None:
            self.leave(*left)


class Best:
    """The best point of every group; kept for those that move, put away for the others.

    Parameters
    ----------
    work
        Says who moves; :meth:`cut` comes before its :meth:`~Moving.leave`.
    x
        (n, *s) where the run begins.
    """

    def __init__(self, work: Moving, x: Tensor) -> None:
        self.work = work
        self.x = self.away_x = x
        self.value: Tensor | None = None
        self.away_value = torch.empty(0)

    def see(self, x: Tensor, value: Tensor) -> None:
        """Take the newest point of the moving rows if it is better, group by group."""
        self.x, self.value = merge(self.x, self.value, x, value)

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """Return the best points of all rows and the values of all groups, ``None`` before the first."""
        x = self.work.put_rows(self.away_x, self.x)
        return x, None if self.value is None else self.work.put_groups(self.away_value, self.value)

    def cut(self, rows: Tensor, groups: Tensor) -> None:
        """Put away the groups that leave."""
        x, value = self.whole()
        self.away_x, self.x = x, self.x[rows]
        if value is not None and self.value is not None:
            self.away_value, self.value = value, self.value[groups]


def peaks(grad: Tensor) -> Tensor:
    """Return the largest absolute value of every row, (n, *s) -> (n,): NaN or infinite where the row is."""
    flat = grad.reshape(len(grad), -1) if grad.numel() else grad.new_zeros(len(grad), 1)
    return flat.abs().amax(1)


def by_row(groups: Tensor, x: Tensor) -> Tensor:
    """Repeat (g,) values of groups for the rows of ``x``: (r*g, 1, ..., 1)."""
    return groups.repeat(len(x) // max(len(groups), 1)).reshape(-1, *[1] * (x.ndim - 1))


def merge(best_x: Tensor, best_value: Tensor | None, x: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Take, group by group, whichever value is larger."""
    if best_value is None:
        return x, value
    better = value > best_value  # (g,)
    return torch.where(by_row(better, x), x, best_x), torch.where(better, value, best_value)


def check(value: Tensor, rows: int, step: int) -> None:
    """Raise unless there is one finite value for each group."""
    if value.ndim != 1 or len(value) == 0 or rows % len(value):
        raise InvalidArgument(
            "objective", f"values (g,) whose number divides {rows} rows", tuple(value.shape)
        )
    if not bool(torch.isfinite(value).all()):
        raise InvalidArgument(
            "objective", "finite values from the encoder", f"NaN or infinity at step {step}"
        )
