"""What the checks ask of a search, and how they change it."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...search import frozen
from ...types import Gallery, RetrievalTask, Search, Threat
from .material import Unavailable


def takes_start(search: Search) -> bool:
    """Return whether a search can begin at a given point."""
    return "start" in inspect.signature(type(search).__call__).parameters


def shows_iterates(search: Search) -> bool:
    """Return whether each call of the objective is one iterate of the search."""
    return bool(getattr(getattr(search, "gradient", None), "exact", False))


def changed(search: Search, **fields: Any) -> Search:
    """Return a search with other fields; those that it does not have are left out."""
    plain = cast(Any, search)
    names = {f.name for f in dataclasses.fields(plain)} if is_dataclass(cast(object, search)) else set()
    chosen = {name: value for name, value in fields.items() if name in names}
    return cast(Search, replace(plain, **chosen)) if chosen else search


def shortened(search: Search, most: int) -> Search:
    """Return a search of one run with at most so many steps or queries."""
    length = {
        name: min(value, most)
        for name in ("steps", "queries")
        if isinstance(value := getattr(search, name, None), int)
    }
    return changed(search, restarts=1, **length)


def length_of(search: Search) -> int | None:
    """Return the number of steps or queries of a search, where it has one."""
    value = getattr(search, "steps", getattr(search, "queries", None))
    return value if isinstance(value, int) else None


def stretched(search: Search, factor: float) -> Search:
    """Return a search with another step length, where it has one."""
    alpha = getattr(search, "alpha", None)
    if alpha is None:
        return search
    if callable(alpha):
        return changed(search, alpha=lambda fraction: factor * alpha(fraction))
    return changed(search, alpha=factor * alpha)


def in_double(part: RetrievalTask) -> RetrievalTask:
    """Return queries and encoder in float64; an encoder that cannot be taken there stays as it is."""
    encoder = part.encoder
    if not isinstance(encoder, nn.Module):
        return part
    kept = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    state = {k: v.detach().double() if v.is_floating_point() else v for k, v in kept.items()}

    def forward(x: Tensor) -> Tensor:
        with frozen(encoder):
            return cast(Tensor, torch.func.functional_call(encoder, state, (x,)))

    x = part.x.double()
    try:
        with torch.no_grad():
            forward(x[:1])
    except RuntimeError:  # weights that are no part of the module: a function around a network
        return part
    g = part.gallery
    return replace(part, encoder=forward, x=x, z=part.z.double(), gallery=Gallery(g.z.double(), g.y, g.ids))


def with_radius(threat: Threat, eps: float) -> Threat:
    """Return the threat with another radius.

    Raises
    ------
    Unavailable
        If it has no single radius: a patch, a radius for every row.
    """
    plain = cast(Any, threat)
    if not is_dataclass(cast(object, threat)) or "eps" not in {f.name for f in dataclasses.fields(plain)}:
        raise Unavailable("the threat has no single radius")
    return cast(Threat, replace(plain, eps=eps))
