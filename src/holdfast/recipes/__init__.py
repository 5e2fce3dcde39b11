"""Complete training runs as functions; change one by ``config.replace``, not by flags."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..config import replace as replace_path
from ..data import DATASETS
from ..errors import InvalidArgument, UnknownName
from ..training import Run
from .deep import act, est, hm, hm_ics, plain

RECIPES: Mapping[str, Callable[..., Run]] = {
    "plain": plain,
    "est": est,
    "act": act,
    "hm": hm,
    "hm-ics": hm_ics,
}


def recipe(name: str, data: str | None = None, root: str | None = None) -> Run:
    """Return a run by the name of its recipe.

    Parameters
    ----------
    name
        A name of :data:`RECIPES`, or ``package.module:function`` for a recipe of your own (it is imported and
        called without arguments).
    data
        A name of ``DATASETS``; the recipe's own data if ``None``.
    root
        Folder of the data set's files.

    Raises
    ------
    UnknownName
        For an unknown recipe or data set; lists near matches.
    InvalidArgument
        If an own recipe cannot be imported or does not return a :class:`~holdfast.training.Run`.
    """
    if data is not None and data not in DATASETS:
        raise UnknownName("data set", data, DATASETS)
    if ":" in name:
        run = _own(name)
        if data is not None:
            run = replace(run, data=DATASETS[data]())
    elif name in RECIPES:
        run = RECIPES[name](data or "digits")
    else:
        raise UnknownName("recipe", name, RECIPES)
    if root is None:
        return run
    if not hasattr(run.data, "root"):
        raise InvalidArgument("data-dir", f"nothing, because {run.data.name} needs no files", root)
    return replace_path(run, "data.root", root)


def _own(name: str) -> Run:
    module, _, function = name.partition(":")
    try:
        made: Any = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InvalidArgument(
            "recipe",
            f"package.module:function that can be imported and called without arguments ({error})",
            name,
        ) from error
    if not isinstance(made, Run):
        raise InvalidArgument(
            "recipe", "a function that returns a holdfast.training.Run", type(made).__name__
        )
    return made


__all__ = ["RECIPES", "act", "est", "hm", "hm_ics", "plain", "recipe"]
