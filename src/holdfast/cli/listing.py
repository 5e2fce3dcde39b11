"""``holdfast list``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from ..adversaries import ADVERSARIES
from ..attacks import ATTACKS, CLUSTER_ATTACKS
from ..config import flatten, to_plain
from ..data import DATASETS
from ..encoders import ENCODERS
from ..errors import UnknownName
from ..evaluation import SUITES
from ..functional.distance import DISTANCES
from ..losses import LOSSES
from ..miners import MINERS
from ..recipes import RECIPES, recipe
from .output import print_json, print_table

TABLES: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "defenses": lambda: {name: recipe(name).defense for name in RECIPES},
    "attacks": lambda: {**ATTACKS, **CLUSTER_ATTACKS},
    "suites": lambda: SUITES,
    "losses": lambda: LOSSES,
    "miners": lambda: MINERS,
    "datasets": lambda: DATASETS,
    "encoders": lambda: ENCODERS,
    "recipes": lambda: RECIPES,
    "adversaries": lambda: ADVERSARIES,
    "distances": lambda: DISTANCES,
}


def list_command(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(TABLES)}.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List what is there, with what it does and its settings."""
    if kind not in TABLES:
        raise UnknownName("kind", kind, TABLES)
    rows = [{"name": name, **_about(item)} for name, item in TABLES[kind]().items()]
    if kind == "defenses":  # all are values of one class; what they do stands with their recipes
        rows = [{**row, "what": _first_line(RECIPES[row["name"]])} for row in rows]
    if as_json:
        print_json(rows)
        return
    table = Table(title=kind, title_justify="left")
    for column in ("name", "what", "settings"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row["name"], row["what"], "  ".join(f"{k}={_short(v)}" for k, v in row["settings"].items())
        )
    print_table(table)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _first_line(item: Any) -> str:
    return (inspect.getdoc(item) or "").split("\n")[0].replace("``", "")


def _about(item: Any) -> dict[str, Any]:
    """Return the first line of the docstring, the type, and the settings or their defaults."""
    documented = item if isinstance(item, type) or inspect.isfunction(item) else type(item)
    what = _first_line(documented)
    settings: dict[str, Any] = {}
    if isinstance(item, type):
        settings = {f.name: _default(f) for f in dataclasses.fields(item)}
    elif dataclasses.is_dataclass(item):
        settings = flatten(to_plain(item))
    return {"what": what, "type": documented.__name__, "settings": settings}


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return to_plain(f.default)
    return to_plain(f.default_factory()) if f.default_factory is not dataclasses.MISSING else "required"
