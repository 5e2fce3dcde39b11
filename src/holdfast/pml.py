"""The package pytorch-metric-learning (extra ``pml``): its classes by name, and options as plain data."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from torch import nn

from .errors import InvalidArgument, MissingExtra, UnknownName

Option = bool | int | float | str | None
Options = tuple[tuple[str, Option], ...]
"""A constructor's arguments as (name, value) pairs, so that settings stay plain data."""

PARTS = {"loss": ("losses", "BaseMetricLossFunction"), "miner": ("miners", "BaseMiner")}
"""Module of the package, and the base of its classes."""


def named(kind: Literal["loss", "miner"], name: str) -> type[nn.Module]:
    """Return a class of the package; its bases and wrappers do not count.

    Raises
    ------
    MissingExtra
        If the package is not installed.
    UnknownName
        If it has no such class; lists near matches.
    """
    part, base_name = PARTS[kind]
    try:
        module: Any = importlib.import_module(f"pytorch_metric_learning.{part}")
    except ImportError as error:
        raise MissingExtra("pytorch-metric-learning", "pml", f"a {kind} of that package") from error
    base = getattr(module, base_name)
    known: dict[str, type[nn.Module]] = {
        own: cls
        for own, cls in vars(module).items()
        if isinstance(cls, type) and issubclass(cls, base) and cls is not base
    }
    if name not in known:
        raise UnknownName(f"{kind} of pytorch-metric-learning", name, known)
    return known[name]


def check_options(options: Any) -> None:
    """Refuse options that are no :data:`Options`, or name something twice.

    Raises
    ------
    InvalidArgument
        Names the pair that does not fit.
    """
    need = "(name, value) pairs, each name once, values numbers, text, booleans or None"
    if not isinstance(options, tuple):
        raise InvalidArgument("options", need, options)
    for pair in options:
        is_named = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
        if not is_named or not isinstance(pair[1], Option):
            raise InvalidArgument("options", need, pair)
    if len(dict(options)) < len(options):
        raise InvalidArgument("options", need, options)
