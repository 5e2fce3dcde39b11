"""Attacks in slices of queries: what they need at once fits an amount of memory.

Gains are row-wise, so values, gradients with respect to embeddings and measures of a batch can be computed
for a few queries after the other. The encoder sees whole batches, in one backward pass for each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.memory import enough
from ..functional.ranking import chunks
from ..rng import Randomness, RowStreams
from ..types import Attack, ClusterTask, RetrievalTask

PLAIN, CHOSEN, LISTS = 8, 3, 24
"""Numbers that an attack holds at once for each query and gallery row; so many more for each row that it has
chosen (w, m); and where whole lists of images are scored besides. Measured on a gallery of 100,000 rows, the
attacks of the table take 1 to 5.2, and up to 18 where they chose 6 rows."""


class Cost(NamedTuple):
    """Bytes for each query: of the target, which is kept during the search, and of everything else.

    ``apart`` tells whether the queries of a batch can be taken apart.
    """

    kept: int
    working: int
    apart: bool = True


def coupled(attack: Any) -> bool:
    """Return whether the gain of a query depends on other queries of its batch.

    Such an attack says so by an attribute ``by_row`` that is ``False``; it is never cut into slices. None of
    this library's does.
    """
    return not getattr(attack, "by_row", True)


def columns(task: RetrievalTask) -> int:
    """Return the gallery rows that an attack on a task compares every query with."""
    images = task.images if isinstance(task, ClusterTask) else None
    return max(len(task.gallery.z), 0 if images is None else len(images.gallery.z))


def cost(attack: Any, task: RetrievalTask) -> Cost:
    """Estimate what an attack needs for each query, from the target of the first one.

    An attack whose target cannot be looked into (it has a method ``run`` of its own) counts as one that
    chooses one row and keeps the distances to it.
    """
    size = columns(task) * task.gallery.z.element_size()
    plain = LISTS if isinstance(task, ClusterTask) and task.images is not None else PLAIN
    if hasattr(attack, "run"):
        return Cost(size, (plain + CHOSEN) * size)
    first = task.rows(slice(0, 1))
    target = attack.target(first, RowStreams(0, "size", index=first.index))
    parts = _tensors(target)
    chosen = sum(t.shape[1] for t in parts if t.ndim == 2 and not t.is_floating_point())
    return Cost(
        sum(t.numel() * t.element_size() for t in parts),
        (plain + CHOSEN * chosen) * size,
        not coupled(attack) and all(len(t) == 1 for t in parts),
    )


def within(
    attack: Attack[RetrievalTask, Any], task: RetrievalTask, memory: int | None, batch_size: int, name: str
) -> tuple[Attack[RetrievalTask, Any], int]:
    """Return an attack that keeps to an amount of memory, and how many queries it takes at a time.

    Parameters
    ----------
    attack, task
        What is attacked and how.
    memory
        Bytes for targets, distances and their gradients, on top of embeddings and of what the encoder needs;
        ``None`` is no limit.
    batch_size
        Queries at a time where memory does not ask for fewer.
    name
        Of the attack, for the message.

    Returns
    -------
    tuple
        The attack itself where the batch fits, or a :class:`Sliced` one; and the queries of a batch: fewer
        than asked for only where their targets alone would take more than half of the memory.

    Raises
    ------
    InvalidArgument
        If one query does not fit, or an attack that cannot be cut does not; names what would be enough.
    """
    batch_size = min(batch_size, len(task))
    if memory is None:
        return attack, batch_size
    kept, working, apart = cost(attack, task)
    if (kept + working) * batch_size <= memory:
        return attack, batch_size
    if not apart:
        least = (kept + working) * batch_size
        enough(memory, least, f"{name} on {batch_size} queries, which it cannot take apart")
    enough(memory, kept + working, f"{name} on one query against {columns(task)} rows")
    batch = max(1, min(batch_size, memory // 2 // max(kept, 1)))
    return Sliced(attack=attack, rows=max(1, (memory - batch * kept) // working)), batch


def queries_in(memory: int | None, task: RetrievalTask, most: int) -> int:
    """Return how many queries are compared with the gallery at once: at most ``most``, at least one."""
    if memory is None:
        return most
    return max(1, min(most, memory // (PLAIN * columns(task) * task.gallery.z.element_size())))


@dataclass(frozen=True, kw_only=True)
class Sliced:
    """An attack that is carried out for a few queries after the other.

    Attributes
    ----------
    attack
        Any whose gain, target and measures are row-wise.
    rows
        Queries at a time, >= 1.

    Notes
    -----
    Targets, gains and measures are those of ``attack`` up to rounding: a matrix product over other rows may
    round the last bit in another way. All three are computed in the same slices, so what is an exact tie
    within a batch stays one. Where a gain has a kink at the clean embedding (a candidate in its own list),
    rounding decides which one-sided gradient the first step takes, as the size of the batch does. Second
    derivatives of the gain are not offered.
    """

    attack: Any
    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InvalidArgument("rows", "an integer >= 1", self.rows)
        if coupled(self.attack):
            raise InvalidArgument("attack", "an attack whose gain is row-wise", self.attack)

    @property
    def differentiable(self) -> bool:
        """Whether a search by gradient can climb the gain."""
        return bool(getattr(self.attack, "differentiable", True))

    def target(self, task: RetrievalTask, generator: Randomness = None) -> Any:
        """Choose targets, slice by slice where every query has a random stream of its own."""
        if len(task) <= self.rows or not isinstance(generator, RowStreams):
            return self.attack.target(task, generator)
        found = [
            self.attack.target(task.rows(rows), generator.rows(torch.arange(rows.start, rows.stop)))
            for rows in chunks(len(task), self.rows)
        ]
        return _joined(found)

    def gain(self, z: Tensor, target: Any, task: RetrievalTask) -> Tensor:
        """Return the gain of the attack (n,); its gradient is computed at once and handed on later."""
        if len(task) <= self.rows or len(z) != len(task):
            gain: Tensor = self.attack.gain(z, target, task)
            return gain
        follow = torch.is_grad_enabled() and z.requires_grad
        found = [self._slice(z, target, task, rows, follow) for rows in chunks(len(task), self.rows)]
        value = torch.cat([v for v, _ in found])
        grads = [g for _, g in found]
        if all(g is None for g in grads):
            return value
        whole = torch.cat(
            [torch.zeros_like(z[rows]) if g is None else g
             for g, rows in zip(grads, chunks(len(task), self.rows), strict=True)]
        )  # fmt: skip
        handed: Tensor = _Handed.apply(z, value, whole)  # type: ignore[no-untyped-call]
        return handed

    def _slice(
        self, z: Tensor, target: Any, task: RetrievalTask, rows: slice, follow: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return values of some queries and, where autograd can follow them, their gradient."""
        part = z[rows].detach()
        part.requires_grad_(follow)
        with torch.set_grad_enabled(follow):
            value: Tensor = self.attack.gain(part, _some(target, rows), task.rows(rows))
        if value.shape != (len(part),):
            raise InvalidArgument("attack", f"one gain for each of {len(part)} queries", tuple(value.shape))
        grad = None
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value.sum(), part, allow_unused=True)
        return value.detach(), grad

    def measure(self, z: Tensor, target: Any, task: RetrievalTask) -> dict[str, Tensor]:
        """Return the measures of the attack, each (n,)."""
        found: list[dict[str, Tensor]] = [
            self.attack.measure(z[rows], _some(target, rows), task.rows(rows))
            for rows in chunks(len(task), self.rows)
        ]
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}


class _Handed(torch.autograd.Function):
    """Values (n,) whose gradient (n, e) with respect to the embeddings is known already."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return outer[:, None] * grad, None, None


def _tensors(target: Any) -> list[Tensor]:
    """Return the tensors of a target: of a tensor, ``None`` or a tuple of such."""
    if isinstance(target, tuple):
        return [t for part in target for t in _tensors(part)]
    return [target] if isinstance(target, Tensor) else []


def _some(target: Any, rows: slice) -> Any:
    """Return the target of some queries."""
    if isinstance(target, tuple):
        parts = [_some(part, rows) for part in target]
        return type(target)(*parts) if hasattr(target, "_fields") else tuple(parts)
    if target is None or isinstance(target, Tensor):
        return target if target is None else target[rows]
    raise InvalidArgument("attack", "targets of tensors, whose rows are queries", type(target).__name__)


def _joined(parts: list[Any]) -> Any:
    """Put the targets of consecutive queries together."""
    first = parts[0]
    if isinstance(first, tuple):
        fields = [_joined(list(field)) for field in zip(*parts, strict=True)]
        return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)
    if isinstance(first, Tensor):
        return torch.cat(parts)
    _some(first, slice(0))  # refuses what is neither
    return None
