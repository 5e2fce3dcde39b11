"""Flags that stand for settings: one table from flag to path, and how text becomes a changed run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch

from .. import config
from ..encoders import ENCODERS
from ..errors import DataError, InvalidArgument, UnknownName, near
from ..runs import allowed_types
from ..search import PGD
from ..training import Run, with_radius

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
        run = with_radius(run, radius(flags["eps"], run.threat.norm))
    if flags.get("steps") is not None:
        run = _with_steps(run, flags["steps"])
    for flag, path in ALIASES.items():
        if flags.get(flag) is not None:
            run = config.replace(run, path, flags[flag], allowed)
    for item in sets:
        path, equals, value = item.partition("=")
        if not equals:
            raise InvalidArgument("--set", "path=value", item, hint="such as --set defense.search.steps=16")
        try:
            run = config.replace(run, path.strip(), value, allowed)
        except UnknownName as error:
            if paths := _near_paths(run, path.strip()):
                error.hint = (
                    f"did you mean {' or '.join(paths)}? (holdfast train {run.name} --show lists all)"
                )
            raise
    return run


def _near_paths(run: Run, path: str) -> list[str]:
    """Return the settings that are written nearly like a path, or end as it does."""
    known = list(config.flatten(config.to_plain(run)))
    ends = [k for k in known if k.rpartition(".")[2] == path.rpartition(".")[2]]
    return list(dict.fromkeys([*near(path, known), *ends]))[:3]


def radius(text: str, norm: str = "linf") -> float:
    """Read a radius; refuse one of grey levels, for pixels run from 0 to 1.

    Raises
    ------
    InvalidArgument
        If it is no number, or in the norm l-inf above 1, where every image is within reach of every other.
    """
    value = config.number(text)
    if norm == "linf" and value > 1:
        levels = f"{text.strip()}/255" if "/" not in text and value <= 255 else "8/255"
        raise InvalidArgument(
            "eps",
            "a radius from 0 to 1, because pixels run from 0 to 1",
            text,
            hint=f"did you mean {levels}?",
        )
    return value


@contextmanager
def found_by(data: Any) -> Iterator[None]:
    """Add to an error about missing files how to come by them."""
    try:
        yield
    except DataError as error:
        files = getattr(data, "files", ())
        if error.hint is None and files and "root" in {f.name for f in fields(data)}:
            error.hint = (
                f"put {', '.join(files)} into a folder and name it with --data-dir; `holdfast doctor` tells "
                "which data sets it finds, and digits needs no files"
            )
        raise


def _build(name: str) -> Any:
    try:
        return ENCODERS[name]()
    except TypeError:
        raise InvalidArgument("encoder", "one that can be built without further settings", name) from None


def _with_steps(run: Run, steps: int) -> Run:
    found: list[PGD] = []

    def change(part: Any) -> Any:
        if not isinstance(part, PGD):
            return part
        found.append(part)
        longer = (
            part.alpha * part.steps / steps if isinstance(part.alpha, float) and steps > 0 else part.alpha
        )
        return replace(part, steps=steps, alpha=longer)

    defense = config.everywhere(run.defense, change)
    if not found:
        raise InvalidArgument("steps", f"a recipe with a search; {run.name} has none", steps)
    return replace(run, defense=defense)


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Read a time: ``90s``, ``10m``, ``1.5h``; a bare number means seconds."""
    body, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
    try:
        value = float(body) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InvalidArgument("budget", "a time > 0 such as 90s, 10m or 2h", text)
    return value


def use_threads(threads: int | None) -> None:
    """Set the number of CPU threads, if one was asked for."""
    if threads is not None:
        if threads < 1:
            raise InvalidArgument("threads", "an integer >= 1", threads)
        torch.set_num_threads(threads)
