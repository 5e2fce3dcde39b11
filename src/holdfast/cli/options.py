"""Flags that stand for settings: one table from flag to path, and how text becomes a changed run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .. import config
from ..encoders import ENCODERS
from ..errors import InvalidArgument, UnknownName
from ..runs import allowed_types
from ..training import Run

ALIASES: Mapping[str, str] = {
    "epochs": "epochs",
    "batch": "sampler.batch_pairs",
    "seed": "seed",
    "device": "device",
    "precision": "precision",
}
"""Flags of ``holdfast train`` that are just another name of a setting; ``--set`` reaches every other one."""


def changed(run: Run, flags: Mapping[str, Any], sets: Sequence[str]) -> Run:
    """Return the run with flags and then ``--set path=value`` applied.

    ``--eps`` and ``--steps`` change the step length of the training search as well, so that the reach
    ``steps * alpha / eps`` stays that of the recipe; ``--set defense.search.alpha=...`` overrules it.
    """
    allowed = allowed_types()
    if flags.get("encoder") is not None:
        name = flags["encoder"]
        if name not in ENCODERS:
            raise UnknownName("encoder", name, ENCODERS)
        run = replace(run, encoder=_build(name))
    if flags.get("eps") is not None:
        run = _with_eps(run, config.number(flags["eps"]))
    if flags.get("steps") is not None:
        run = _with_steps(run, flags["steps"])
    for flag, path in ALIASES.items():
        if flags.get(flag) is not None:
            run = config.replace(run, path, flags[flag], allowed)
    for item in sets:
        path, equals, value = item.partition("=")
        if not equals:
            raise InvalidArgument("--set", "path=value", item)
        run = config.replace(run, path.strip(), value, allowed)
    return run


def _build(name: str) -> Any:
    try:
        return ENCODERS[name]()
    except TypeError:
        raise InvalidArgument("encoder", "one that can be built without further settings", name) from None


def _with_eps(run: Run, eps: float) -> Run:
    old = run.threat.eps
    run = config.replace(run, "threat.eps", eps)
    defense: Any = run.defense
    if getattr(defense, "threat", None) is not None:
        run = config.replace(run, "defense.threat.eps", eps)
    if isinstance(_alpha(run), float) and old > 0:
        run = config.replace(run, "defense.search.alpha", _alpha(run) * eps / old)
    return run


def _with_steps(run: Run, steps: int) -> Run:
    search: Any = getattr(run.defense, "search", None)
    if search is None:
        raise InvalidArgument("steps", f"a recipe with an adversary; {run.name} has none", steps)
    old = search.steps
    run = config.replace(run, "defense.search.steps", steps)
    if isinstance(_alpha(run), float) and steps > 0:
        run = config.replace(run, "defense.search.alpha", _alpha(run) * old / steps)
    return run


def _alpha(run: Run) -> Any:
    return getattr(getattr(run.defense, "search", None), "alpha", None)


def use_threads(threads: int | None) -> None:
    """Set the number of CPU threads, if one was asked for."""
    if threads is not None:
        if threads < 1:
            raise InvalidArgument("threads", "an integer >= 1", threads)
        torch.set_num_threads(threads)
