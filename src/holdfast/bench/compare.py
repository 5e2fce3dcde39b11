"""Two results of one benchmark: which ratios changed by more than they spread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..files import read_json
from .harness import Spread
from .run import SCHEMA


class Change(NamedTuple):
    """A ratio before and now; ``beyond`` tells whether the two ranges have no value in common."""

    case: str
    work: str
    against: str
    before: Spread
    now: Spread
    beyond: bool


def read_result(path: str | Path) -> dict[str, Any]:
    """Read what ``holdfast bench`` wrote.

    Raises
    ------
    DataError
        If it is something else.
    """
    found = read_json(path)
    if (
        not isinstance(found, dict)
        or found.get("schema") != SCHEMA
        or not isinstance(found.get("rows"), list)
    ):
        raise DataError(f"{path}: no result of holdfast bench of schema {SCHEMA}")
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the ratios that stand in both results, in the order of the second.

    Ratios are compared, not times, so that results of two machines can stand side by side; two ranges
    without a common value are a change.
    """
    known = {_key(row): row for row in before["rows"] if row.get("ratio")}
    found = []
    for row in now["rows"]:
        if row.get("ratio") and _key(row) in known:
            old, new = Spread(**known[_key(row)]["ratio"]), Spread(**row["ratio"])
            found.append(Change(*_key(row), old, new, new.apart(old)))
    return found


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["case"], row["work"], row["against"]
