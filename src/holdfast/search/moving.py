"""What searches share: groups that still move, the better of two points, and checks of values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..types import Objective


class Moving:
    """An objective of the groups that still move; the embeddings of the others are remembered.

    A group that cannot move any more keeps its value: groups do not depend on each other. Hinges make this
    common: triplets that are hard enough, queries that have arrived.
    """

    def __init__(self, objective: Objective, rows: int) -> None:
        self.objective = objective
        self.n = rows
        self.all = True
        self.rows: Any = slice(None)
        self.groups: Any = slice(None)
        self.z = self.value = torch.empty(0)

    def __call__(self, z: Tensor) -> Tensor:
        """Take the embeddings of the moving rows, return the values of the moving groups."""
        if self.all:
            self.z = z.detach()
            return self.objective(z)
        self.z = self.z.index_put((self.rows,), z.detach())
        return self.objective(self.z.index_put((self.rows,), z))[self.groups]

    def whole(self, value: Tensor, step: int) -> Tensor:
        """Return the values of all groups from those that still move."""
        check(value, self.n if self.all else len(self.rows), step)
        self.value = value if self.all else self.value.index_put((self.groups,), value)
        return self.value

    def rest(self, moves: Tensor) -> tuple[Tensor, Tensor] | None:
        """Let groups rest of which no row moves.

        Parameters
        ----------
        moves
            (k,) bool, one for each moving row.

        Returns
        -------
        tuple of Tensor or None
            Which of the moving rows and of the moving groups stay, as numbers; ``None`` if all do.
        """
        before = len(self.value) if self.all else len(self.groups)
        groups = moves.reshape(-1, before).any(0)
        if bool(groups.all()):
            return None
        kept = torch.nonzero(groups.repeat(len(moves) // before)).squeeze(1)
        left = torch.nonzero(groups).squeeze(1)
        self.groups = left if self.all else self.groups[left]
        self.rows = kept if self.all else self.rows[kept]
        self.all = False
        return kept, left


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
