"""Train as several processes would: every part of a batch mines, draws and remembers for itself."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..functional.parts import Part, deal
from ..rng import stream
from ..types import Context, Defense, Step


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Split each batch into parts that mine, attack and remember apart, and step on their mean loss.

    What distributed training does with one part on each process. The published 224-pixel runs used two
    processes of 56 pairs: ``Processes(defense=..., count=2)`` with 112 pairs in a batch trains the same
    weights, to rounding, on one process, on two, and on any number that divides ``count``.

    Attributes
    ----------
    defense
        One that yields the same number of losses for every part.
    count
        Parts of a batch; pairs are dealt in order, and every part needs at least two.

    Raises
    ------
    InvalidArgument
        If ``count`` < 1, or in :meth:`setup` if there are several parts and the defense keeps a state by
        place in the batch, as free training does.

    Notes
    -----
    Each part draws from a stream of its own, named by the step's stream and the number of the part. The
    gradual adversary's previous loss is kept for each part alone, as each process knows only its own. The
    mean of the parts is exact for losses that are means over triplets when all parts are of one size.

    Buffers, such as the running statistics of batch normalisation: all parts begin a step with the same ones,
    and afterwards these are the mean of what the parts made of them; counters advance as for one part.
    Distributed training with PyTorch alone keeps those of the first process; the mean, ours, is of the same
    expectation and less noisy.
    """

    defense: Defense
    count: int = 2

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidArgument("count", "an integer >= 1", self.count)

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return the learnable parts of the defense; all processes share them."""
        learnable = self.defense.setup(encoder, y)
        lasting = [m for m in learnable.modules() if type(m).get_extra_state is not nn.Module.get_extra_state]
        if lasting and self.count > 1:
            kept = " and ".join(sorted({type(m).__name__ for m in lasting}))
            need = f"one without a state by place in the batch ({kept}), for several processes"
            raise InvalidArgument("defense", need, type(self.defense).__name__)
        return learnable

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the mean of the parts' losses, as often as the parts yield."""
        yield from self.losses_of(ctx, deal(len(ctx.x), self.count))

    def losses_of(self, ctx: Context, parts: Sequence[Part]) -> Iterator[Step]:
        """Yield the mean losses of some consecutive parts, whose rows are all that ``ctx`` holds.

        Parameters
        ----------
        ctx
            ``x``, ``y`` and ``index`` of the rows of these parts; memory and stream of the whole batch.
        parts
            Out of ``deal(rows of the whole batch, count)``.
        """
        first = parts[0].rows.start
        seed = None
        if self.count > 1 and ctx.generator is not None:
            seed = int(torch.randint(2**62, (1,), generator=ctx.generator))
        running = []
        for number, place in parts:
            rows = slice(place.start - first, place.stop - first)
            memory: MutableMapping[str, float] = _Memory(ctx.signal, memory_of(number))
            draws = ctx.generator if seed is None else stream(seed, "part", number)
            alone = replace(
                ctx, x=ctx.x[rows], y=ctx.y[rows], index=ctx.index[rows], signal=memory, generator=draws
            )
            running.append(self.defense.losses(alone))
        buffers = _buffers(ctx.bare, ctx.learnable) if len(parts) > 1 else []
        while True:
            steps = _next_of_each(running, buffers)
            if not steps:
                return
            total = steps[0].loss
            for step in steps[1:]:
                total = total + step.loss
            yield Step(total / len(steps), mean_of([step.logs for step in steps]))


def _next_of_each(running: Sequence[Iterator[Step]], buffers: Sequence[Tensor]) -> list[Step]:
    """Let every part go on to its next loss from the same buffers, and leave the mean of theirs.

    Of integers, which count batches, those of the last part are left.
    """
    before = [buffer.clone() for buffer in buffers]
    moved = [torch.zeros_like(buffer) for buffer in buffers]
    steps = []
    for part in running:
        # .data: backward of a training batch-norm checks running statistics that it does not read
        for buffer, old in zip(buffers, before, strict=True):
            buffer.data.copy_(old)
        steps.append(next(part, None))
        for change, buffer, old in zip(moved, buffers, before, strict=True):
            change += buffer - old
    for buffer, old, change in zip(buffers, before, moved, strict=True):
        if buffer.is_floating_point():
            buffer.data.copy_(old + change / len(running))
    found = [step for step in steps if step is not None]
    if found and len(found) < len(steps):
        raise InvalidArgument("defense", "one that yields the same number of losses for every part", "others")
    return found


def _buffers(*modules: nn.Module) -> list[Tensor]:
    """Return the buffers of modules that numbers can be subtracted from, each once."""
    found = {id(b): b for module in modules for b in module.buffers() if b.dtype != torch.bool}
    return list(found.values())


def mean_of(logs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every number over the parts that report it."""
    names = dict.fromkeys(name for line in logs for name in line)
    each = {name: [line[name] for line in logs if name in line] for name in names}
    return {name: sum(values) / len(values) for name, values in each.items()}


def memory_of(number: int) -> str:
    """Return how the memory of a part is called in that of the run."""
    return f"part{number}."


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
