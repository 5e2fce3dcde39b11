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
from . import files
from .clustering import CLUSTERING
from .deep import METHODS, act, est, hm, hm_ics, holdfast, plain
from .ensembles import ENSEMBLES
from .settings import SETTINGS

RECIPES: Mapping[str, Callable[[str], Run]] = {**METHODS, **CLUSTERING, **ENSEMBLES}
"""Recipes by name: functions from the name of a setting to a run."""


def recipe(name: str, data: str | None = None, root: str | None = None) -> Run:
    """Return a run by the name of its recipe.

    Parameters
    ----------
    name
        A name of :data:`RECIPES`; a setting and such a name (``cub-hm-ics``, ``fashion-small-act``); or
        ``package.module:function`` for a recipe of your own (it is imported and called without arguments);
        or the file it stands in: ``recipe.py``, whose function ``run`` is called, or ``recipe.py:function``.
    data
        A name of ``SETTINGS``: a data set with the constants for it; digits by default. For a recipe of your
        own a name of ``DATASETS``, which replaces its data and nothing else.
    root
        Folder of the data set's files.

    Raises
    ------
    UnknownName
        For an unknown recipe or data set; lists near matches.
    InvalidArgument
        If an own recipe cannot be read or imported, does not return a :class:`~holdfast.training.Run`, or
        ``data`` contradicts the setting in the name.
    """
    if ":" in name or name.endswith(files.SUFFIX):
        run = files.load(name) if files.is_file_name(name) else _own(name)
        if data is not None:
            if data not in DATASETS:
                raise UnknownName("data set", data, DATASETS)
            run = replace(run, data=DATASETS[data]())
    else:
        method, chosen = _split(name)
        if data is not None and chosen is not None and data != chosen:
            raise InvalidArgument("data", f"{chosen!r} or nothing, as the recipe {name} is for it", data)
        run = RECIPES[method](data or chosen or "digits")
    if root is None:
        return run
    if not hasattr(run.data, "root"):
        raise InvalidArgument("data-dir", f"nothing, because {run.data.name} needs no files", root)
    return replace_path(run, "data.root", root)


def _split(name: str) -> tuple[str, str | None]:
    """Return the method of a recipe's name, and the setting if it starts with one."""
    if name in RECIPES:
        return name, None
    for chosen in sorted(SETTINGS, key=len, reverse=True):
        prefix = "fashion" if chosen == "fashion-mnist" else chosen
        method = name.removeprefix(f"{prefix}-")
        if method != name and method in RECIPES:
            return method, chosen
    raise UnknownName("recipe", name, RECIPES)


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


__all__ = ["RECIPES", "SETTINGS", "act", "est", "hm", "hm_ics", "holdfast", "plain", "recipe"]
