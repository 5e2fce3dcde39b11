"""Train as several processes would: every part of a batch mines and remembers for itself."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..errors import DataError, InvalidArgument
from ..types import Context, Defense, Step


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Split each batch into parts that mine, attack and remember apart, and step on their mean loss.

    What distributed training does with one part on each process. The published 224-pixel runs used two
    processes of 56 pairs: ``Processes(defense=..., count=2)`` with 112 pairs in a batch gives the same
    optimiser steps on one device.

    Attributes
    ----------
    defense
        One that yields the same number of losses for every part.
    count
        Parts of a batch; pairs are dealt in order, and every part needs at least two.

    Notes
    -----
    The gradual adversary's previous loss is kept for each part alone, as each process knows only its own. The
    mean of the parts is exact for losses that are means over triplets when all parts are of one size.
    """

    defense: Defense
    count: int = 2

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidArgument("count", "an integer >= 1", self.count)

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return the learnable parts of the defense; all processes share them."""
        return self.defense.setup(encoder, y)

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the mean of the parts' losses, as often as the parts yield."""
        pairs = len(ctx.x) // 2
        if pairs < 2 * self.count:
            raise DataError(f"batch: need at least two pairs for each of {self.count} parts, got {pairs}")
        parts = []
        for i in range(self.count):
            rows = slice(2 * (pairs * i // self.count), 2 * (pairs * (i + 1) // self.count))
            memory: MutableMapping[str, float] = _Memory(ctx.signal, f"part{i}.")
            parts.append(
                self.defense.losses(
                    replace(ctx, x=ctx.x[rows], y=ctx.y[rows], index=ctx.index[rows], signal=memory)
                )
            )
        for steps in zip(*parts, strict=True):
            logs = {key: sum(s.logs[key] for s in steps) / self.count for key in steps[0].logs}
            total = steps[0].loss
            for step in steps[1:]:
                total = total + step.loss
            yield Step(total / self.count, logs)


class _Memory(MutableMapping[str, float]):
    """A part's own view of the memory that the checkpoint stores; what all share (``ease``) shows through."""

    def __init__(self, whole: MutableMapping[str, float], prefix: str) -> None:
        self.whole, self.prefix = whole, prefix

    def __getitem__(self, key: str) -> float:
        if key == "ease":
            return self.whole[key]
        return self.whole[self.prefix + key]

    def __setitem__(self, key: str, value: float) -> None:
        self.whole[self.prefix + key] = value

    def __delitem__(self, key: str) -> None:
        del self.whole[self.prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (k.removeprefix(self.prefix) for k in self.whole if k.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
