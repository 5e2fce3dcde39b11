"""Carry one attack through a task: target, search, measure, in batches of queries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.memory import give_back
from ..functional.ranking import chunks
from ..rng import RowStreams
from ..search import Precision, frozen, in_precision
from ..types import Attack, RetrievalTask, Search, Threat
from .slices import within


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an attack did to every query.

    Attributes
    ----------
    x
        (n, c, h, w) attacked images, inside the threat.
    z
        (n, e) their embeddings.
    clean, attacked
        Per-query measures (n,) before and after, with the same targets.
    """

    x: Tensor
    z: Tensor
    clean: dict[str, Tensor]
    attacked: dict[str, Tensor]


def run(
    task: RetrievalTask,
    attack: Attack[RetrievalTask, Any],
    search: Search,
    threat: Threat,
    *,
    seed: int = 0,
    label: str = "attack",
    batch_size: int = 128,
    precision: Precision = "fp32",
    memory: int | None = None,
) -> Outcome:
    """Attack every query of a task.

    Parameters
    ----------
    task
        Queries and clean gallery.
    attack, search, threat
        What is wanted, how it is sought, what is allowed.
    seed, label
        Name the random streams, together with each query's own number: targets and random starts do not
        depend on ``batch_size`` or on the other queries.
    batch_size
        Queries at a time.
    precision
        Of the search; targets and measures are always computed by the encoder as it is.
    memory
        Bytes for targets, distances to the gallery and their gradients, on top of embeddings, images and what
        the encoder needs. Where a batch does not fit they are computed for a few queries after the other
        (:class:`~holdfast.attacks.slices.Sliced`), which changes results by rounding at most; ``None`` is no
        limit.

    Raises
    ------
    InvalidArgument
        If there is no query, or ``memory`` does not suffice for one; names what would.
    """
    if len(task) == 0:
        raise InvalidArgument("task", "at least one query", 0)
    if memory is not None:
        give_back()
    parts = []
    attack, batch_size = within(attack, task, memory, batch_size, label)
    searched = in_precision(task.encoder, precision)
    for rows in chunks(len(task), batch_size):
        part = task.rows(rows)
        target = attack.target(part, RowStreams(seed, label, "target", index=part.index))

        seen = part
        if searched is not task.encoder:  # a shift starts from its place in that precision
            with frozen(searched), torch.no_grad():
                seen = replace(part, z=searched(part.x))

        def objective(z: Tensor, seen: RetrievalTask = seen, target: Any = target) -> Tensor:
            return attack.gain(z, target, seen)

        streams = RowStreams(seed, label, "search", index=part.index)
        placed = getattr(threat, "for_rows", None)  # a patch has a place for every query
        limit = threat if placed is None else placed(part.index, seed, part.x.shape)
        x = search(searched, part.x, objective, limit, streams)
        with frozen(task.encoder), torch.no_grad():
            z = task.encoder(x)
            parts.append(
                Outcome(
                    x=x,
                    z=z,
                    clean=attack.measure(part.z, target, part),
                    attacked=attack.measure(z, target, part),
                )
            )
    return join(parts)


def join(parts: list[Outcome]) -> Outcome:
    """Put the outcomes of consecutive queries together."""
    return Outcome(
        x=torch.cat([p.x for p in parts]),
        z=torch.cat([p.z for p in parts]),
        clean={k: torch.cat([p.clean[k] for p in parts]) for k in parts[0].clean},
        attacked={k: torch.cat([p.attacked[k] for p in parts]) for k in parts[0].attacked},
    )
