"""One change for all queries: made on some of them, measured on the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..functional.projection import box
from ..functional.ranking import chunks
from ..rng import RowStreams, stream
from ..schedules import Schedule, at
from ..search import PGD, frozen
from ..threat import L2Threat, LinfThreat
from ..types import Attack, Encoder, RetrievalTask


@dataclass(frozen=True, kw_only=True)
class Universal:
    """One change, and what it does to queries that it was not made from.

    Attributes
    ----------
    delta
        (c, h, w), inside the ball; every image plus ``delta`` is clipped to the box.
    rows
        (k,) int64 rows of the task that were held out.
    clean, attacked
        Their per-query measures (k,) before and after, with the same targets.
    """

    delta: Tensor
    rows: Tensor
    clean: dict[str, Tensor]
    attacked: dict[str, Tensor]


def universal(
    task: RetrievalTask,
    attack: Attack[RetrievalTask, Any],
    threat: LinfThreat | L2Threat,
    *,
    train: Tensor,
    epochs: int = 10,
    batch_size: int = 128,
    alpha: float | Schedule = 1 / 255,
    cap: float | None = None,
    seed: int = 0,
    label: str = "universal",
) -> Universal:
    """Make one change that breaks as many queries as possible, and measure it on other queries.

    Each batch of queries takes one step: the change climbs the mean gain of the batch.

    Parameters
    ----------
    task
        Queries and clean gallery.
    attack
        What is climbed and measured.
    threat
        The ball that holds the change, and the box that holds the changed images.
    train
        Rows of the task that the change is made from, as (k,) distinct numbers or an (n,) mask; all others
        are measured.
    epochs
        Passes over these rows, >= 0.
    batch_size
        Queries in a step, and at a time in the measurement. A setting of the method: it changes ``delta``.
    alpha
        Step length in input units, or a schedule over the share of all steps done.
    cap
        The gain of a query counts up to this value, so that broken queries ask for no more; ``None`` counts
        all of it.
    seed, label
        Name the random streams: the order of the batches, and together with each query's own number its
        target.

    Raises
    ------
    InvalidArgument
        If the threat is no ball, or ``train`` leaves no query on one of the two sides.

    References
    ----------
    Moosavi-Dezfooli et al., *Universal Adversarial Perturbations*, CVPR 2017. The steps on batches and the
    clipped loss (``cap``) are those of Shafahi et al., *Universal Adversarial Training*, AAAI 2020.
    """
    if not isinstance(threat, LinfThreat | L2Threat):
        raise InvalidArgument("threat", "an l-inf or l2 ball", threat)
    for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1)):
        if value < least:
            raise InvalidArgument(name, f"an integer >= {least}", value)
    made_from, held_out = _split(train, len(task))

    def targets(part: RetrievalTask) -> Any:
        return attack.target(part, RowStreams(seed, label, "target", index=part.index))

    ball = replace(threat, bounds=None)
    delta = torch.zeros_like(task.rows(made_from[:1]).x)  # (1, c, h, w)
    batches = list(chunks(len(made_from), batch_size))
    for epoch in range(epochs):
        order = made_from[torch.randperm(len(made_from), generator=stream(seed, label, "order", epoch))]
        for number, rows in enumerate(batches):
            part = task.rows(order[rows])
            target = targets(part)

            def mean_gain(z: Tensor, part: RetrievalTask = part, target: Any = target) -> Tensor:
                gain = attack.gain(z, target, part)
                return (gain if cap is None else gain.clamp(max=cap)).mean(0, keepdim=True)

            length = at(alpha, (epoch + number / len(batches)) / epochs)
            shared = _Shared(task.encoder, part.x, threat.bounds)
            delta = PGD(steps=1, alpha=length)(shared, torch.zeros_like(delta), mean_gain, ball, start=delta)
    parts = []
    for rows in chunks(len(held_out), batch_size):
        part = task.rows(held_out[rows])
        target = targets(part)
        with frozen(task.encoder), torch.no_grad():
            z = task.encoder(box(part.x + delta, threat.bounds))
            parts.append((attack.measure(part.z, target, part), attack.measure(z, target, part)))
    clean, attacked = ({k: torch.cat([p[i][k] for p in parts]) for k in parts[0][i]} for i in (0, 1))
    return Universal(delta=delta[0], rows=held_out, clean=clean, attacked=attacked)


class _Shared(nn.Module):
    """The encoder of a batch as a function of the one change: (1, *s) -> (b, e)."""

    def __init__(self, encoder: Encoder, x: Tensor, bounds: tuple[float, float] | None) -> None:
        super().__init__()
        self.encoder, self.x, self.bounds = encoder, x, bounds

    def forward(self, delta: Tensor) -> Tensor:
        z: Tensor = self.encoder(box(self.x + delta, self.bounds))
        return z


def _split(train: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the rows named by ``train`` and all others, ascending."""
    train = train.cpu()
    inside = torch.zeros(n, dtype=torch.bool)
    if train.dtype == torch.bool and train.shape == (n,):
        inside = train
    elif train.dtype == torch.int64 and train.ndim == 1 and bool(((train >= 0) & (train < n)).all()):
        inside[train] = True
    else:
        raise InvalidArgument("train", f"row numbers in [0, {n}) or a mask ({n},)", tuple(train.shape))
    if not 0 < int(inside.sum()) < n:
        raise InvalidArgument("train", f"some of the {n} queries, but not all", int(inside.sum()))
    return torch.nonzero(inside).squeeze(1), torch.nonzero(~inside).squeeze(1)
