"""``holdfast list``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from . import complete
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


SUITE_WORDS: Mapping[str, str] = {
    "benign": "Clean retrieval metrics alone.",
    "core": "Ranks of candidates raised and lowered, and embeddings shifted: the three usual attacks.",
    "ers": "The ten items of the empirical robustness score (Zhou et al., TPAMI 2024), faults mended.",
    "ers-robrank": "The same score with the faults of the published code, to compare with its tables.",
    "worst-case": "Queries that no attack of a diverse set breaks: Recall@1.",
    "worst-case@4": "Queries that no attack of a diverse set breaks: Recall@4.",
    "minimum-norm": "The smallest change for each query, and the curve over the radius.",
    "unlabelled": "What can be measured without labels.",
    "clustering": "Queries among clusters: attacks A1 to A7, A8 by transfer, and their union (ours).",
    "clustering-worst": "Queries among clusters: the staged worst case alone (ours).",
    "poisoning": "Clusters that are fitted on references of which some are changed (ours).",
}
"""What each suite measures."""
LONG = 12
"""Settings that a table shows, at most; ``--json`` gives all."""


def list_command(
    kind: Annotated[
        str,
        typer.Argument(help=f"One of {', '.join(TABLES)}.", autocompletion=complete.among(TABLES)),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List what is there, with what it does and its settings."""
    if kind not in TABLES:
        raise UnknownName("kind", kind, TABLES)
    rows = [{"name": name, **_about(item)} for name, item in TABLES[kind]().items()]
    if kind == "defenses":  # all are values of one class; what they do stands with their recipes
        rows = [{**row, "what": _first_line(RECIPES[row["name"]])} for row in rows]
    if kind == "suites":
        rows = [
            {**row, "what": SUITE_WORDS.get(row["name"], row["what"]), "attacks": _labels(row["name"])}
            for row in rows
        ]
    if as_json:
        print_json(rows)
        return
    third = "attacks" if kind == "suites" else "settings"
    columns = ("name", "what") if not any(row[third] for row in rows) else ("name", "what", third)
    table = Table(title=kind, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["what"], *(_in_short(row[third]) for _ in columns[2:]))
    print_table(table)


def _in_short(found: Mapping[str, Any] | Sequence[str]) -> str:
    """Return settings, the first of many, or the names of attacks."""
    if not isinstance(found, Mapping):
        return "  ".join(found)
    shown = [f"{k}={f'{v:.4g}' if isinstance(v, float) else v}" for k, v in found.items()]
    more = [f"… {len(shown) - LONG} more (--json)"] if len(shown) > LONG else []
    return "  ".join([*shown[:LONG], *more])


def _labels(suite: str) -> list[str]:
    return [entry.label for entry in SUITES[suite].entries]


def _first_line(item: Any) -> str:
    return (inspect.getdoc(item) or "").split("\n")[0].replace("``", "")


def _about(item: Any) -> dict[str, Any]:
    """Return the first line of the docstring, the type, and the settings or their defaults."""
    callable_ = isinstance(item, type | partial) or inspect.isfunction(item)
    documented = item if callable_ else type(item)
    what = _first_line(documented)
    settings: dict[str, Any] = {}
    if isinstance(item, type):
        settings = {f.name: _default(f) for f in dataclasses.fields(item)}
    elif dataclasses.is_dataclass(item):
        settings = flatten(to_plain(item))
    return {"what": what, "type": getattr(documented, "__name__", "recipe"), "settings": settings}


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return to_plain(f.default)
    return to_plain(f.default_factory()) if f.default_factory is not dataclasses.MISSING else "required"
