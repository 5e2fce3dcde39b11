"""Recipes that stand in a file of one's own: ``recipe.py`` or ``recipe.py:function``."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import HoldfastError, InvalidArgument
from ..training import Run

SUFFIX = ".py"
FUNCTION = "run"
"""What a recipe file calls its recipe unless told otherwise."""


def is_file_name(name: str) -> bool:
    """Whether a recipe's name is that of a file.

    Examples
    --------
    >>> is_file_name("photos/recipe.py"), is_file_name("recipe.py:small"), is_file_name("package.module:run")
    (True, True, False)
    """
    return _parts(name)[0].endswith(SUFFIX)


def load(name: str) -> Run:
    """Run a recipe file and return what its function returns.

    Parameters
    ----------
    name
        ``FILE.py``, whose function ``run`` is called without arguments, or ``FILE.py:function``. The file is
        run as any Python module: open only what you would start yourself.

    Raises
    ------
    InvalidArgument
        If there is no such file or function, the file or the function fails (names the line), or what comes
        back is no :class:`~holdfast.training.Run`.
    """
    path, function = _parts(name)
    file = Path(path)
    if not file.is_file():
        raise InvalidArgument("recipe", "a file that is there", path)
    made: Any = None
    try:
        module = _module(file)
        recipe = getattr(module, function, None)
        if callable(recipe):
            made = recipe()
    except HoldfastError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise InvalidArgument("recipe", f"a file that runs ({_told(error, file)})", name) from error
    if not callable(recipe):
        known = [k for k, v in vars(module).items() if callable(v) and v.__module__ == module.__name__]
        need = f"a function {function}() in {path} (there are: {', '.join(known) or 'none'})"
        raise InvalidArgument("recipe", need, name)
    if not isinstance(made, Run):
        need = f"a function that returns a holdfast.training.Run, as {function}() in {path} does not"
        raise InvalidArgument("recipe", need, type(made).__name__)
    return made


def _parts(name: str) -> tuple[str, str]:
    """Return file and function; a drive letter's colon is none of ours."""
    head, colon, tail = name.rpartition(":")
    return (head, tail) if colon and head.endswith(SUFFIX) else (name, FUNCTION)


def _module(file: Path) -> ModuleType:
    called = f"holdfast_recipe_{file.stem}"
    spec = importlib.util.spec_from_file_location(called, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[called] = module  # dataclasses that the file defines look themselves up there
    spec.loader.exec_module(module)
    return module


def _told(error: Exception, file: Path) -> str:
    """Return the last line of the file that an error passed through, and the error."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    where = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
    line = f"line {where[-1]}: " if where else ""
    return f"{line}{type(error).__name__}: {error}"
