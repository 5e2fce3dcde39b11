"""The plain values of an examination: how much it may spend, what is handed in, what an attack did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...attacks import hits
from ...errors import HoldfastError
from ...types import Attack, Encoder, RetrievalTask

Level = Literal["quick", "full"]
ENOUGH_PASSES = 20
SQUARE = "square"
"""Name under which a black-box attack stands among the successes."""


class Effort(NamedTuple):
    """How much a level may spend.

    Attributes
    ----------
    queries, few
        Of the common sample, and of the checks that cost most for each query.
    points
        Random points around a query in the landscape check.
    noises
        Random noises for each query.
    calls
        Queries to the encoder of a black-box attack.
    """

    queries: int
    few: int
    points: int
    noises: int
    calls: int


EFFORT: Mapping[Level, Effort] = {
    "quick": Effort(queries=200, few=32, points=100, noises=1000, calls=1000),
    "full": Effort(queries=1000, few=100, points=100, noises=10_000, calls=5000),
}


class Unavailable(HoldfastError):
    """A check cannot run; the message says why, or what to hand in."""


class Claim(NamedTuple):
    """A claimed difference between two ways of training.

    Attributes
    ----------
    ours, theirs
        The score for every training seed.
    p_value
        Of the paired comparison; computed from the seeds where it is not given.
    draws
        Candidate draws behind each score.
    """

    ours: Sequence[float]
    theirs: Sequence[float]
    p_value: float | None = None
    draws: int = 5


class Attacked(NamedTuple):
    """What an attack did to queries.

    Attributes
    ----------
    x, z
        (n, *s) and (n, e).
    gain
        (n,) what was climbed.
    success
        (n,) bool: the query is not right any more, or has left its cluster.
    trace
        (n, calls) the gain at every iterate, or ``None`` where it was not watched.
    ever
        (n,) bool: any iterate succeeded; ``None`` likewise.
    """

    x: Tensor
    z: Tensor
    gain: Tensor
    success: Tensor
    trace: Tensor | None = None
    ever: Tensor | None = None


class MeanEmbedding(nn.Module):
    """Decide by the mean embedding of several passes of a random encoder."""

    def __init__(self, encoder: Encoder, passes: int = ENOUGH_PASSES) -> None:
        super().__init__()
        self.encoder = encoder
        self.passes = passes

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, c, h, w) images."""
        total = self.encoder(x)
        for _ in range(self.passes - 1):
            total = total + self.encoder(x)
        return total / self.passes


class Watched:
    """An objective that remembers what every iterate did."""

    def __init__(
        self, attack: Attack[RetrievalTask, Any], target: Any, part: RetrievalTask, watch: bool
    ) -> None:
        self.attack, self.target, self.part, self.watch = attack, target, part, watch
        self.values: list[Tensor] = []
        self.ever: Tensor | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Return the gain (n,) of embeddings (n, e)."""
        value = self.attack.gain(z, self.target, self.part)
        if self.watch and len(z) == len(self.part):
            self.values.append(value.detach())
            with torch.no_grad():
                now = hits(z.detach(), self.part) == 0
            self.ever = now if self.ever is None else self.ever | now
        return value

    @property
    def trace(self) -> Tensor | None:
        """(n, calls) the gain at every call, where it was watched."""
        return torch.stack(self.values, 1) if self.values else None


def join(parts: list[Attacked]) -> Attacked:
    """Put batches together; a batch that ended early stays at its last value."""
    traces = [part.trace for part in parts]
    trace = None
    if all(t is not None for t in traces):
        longest = max(t.shape[1] for t in traces if t is not None)
        trace = torch.cat(
            [torch.cat([t, t[:, -1:].expand(-1, longest - t.shape[1])], 1) for t in traces if t is not None]
        )
    evers = [part.ever for part in parts if part.ever is not None]
    return Attacked(
        x=torch.cat([part.x for part in parts]),
        z=torch.cat([part.z for part in parts]),
        gain=torch.cat([part.gain for part in parts]),
        success=torch.cat([part.success for part in parts]),
        trace=trace,
        ever=torch.cat(evers) if len(evers) == len(parts) else None,
    )
