"""``certify.json`` as it is written, and nothing else: a file that was edited is refused, not guessed at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CorruptFile, RunError
from ..files import read_json

SCHEMA = 1
LARGEST = 1e30
"""Most that a number may be [D]; beyond it drawings overflow."""

_MAYBE = (float, None)
_SHARE = {"value": float, "low": float, "high": float, "spread": ([float], None)}
_MEDIAN = {"value": _MAYBE, "low": _MAYBE, "high": _MAYBE, "spread": ([_MAYBE], None)}
_ROW = {
    "method": str, "k": int, "n": int, "seeds": [int], "clean_error": _SHARE, "median": _MEDIAN,
    "certified_error": [_SHARE], "exact": _MAYBE, "certificate": str, "train_seconds": float,
    "seconds": float, "files": [str], "of?": int, "by?": str, "alpha?": _MAYBE, "fingerprint?": str,
    "noise?": (
        {"sigma": float, "samples": [int], "alpha": float, "seed": int, "bound": str}, None,
    ),
    "attacked?": ({"tried": int, "broken": int, "allowed": int}, None),
}  # fmt: skip
_RECORDED = {
    "method": str, "k": int, "clean_error": float, "median": float, "certificate": str, "provenance": str,
    "certified_error": [{"radius": float, "value": float}],
}  # fmt: skip
_COMPARISON = {
    "method": str, "baseline": str, "k": int, "radius": float, "difference": float, "low": float,
    "high": float, "p_value": float, "n": int, "discordant": [int],
}  # fmt: skip
_FORM = {
    "rows": [_ROW], "radii": [float], "failed": dict, "recorded": [_RECORDED], "comparisons": [_COMPARISON],
    "run": dict, "data_fingerprint?": dict, "machine?": dict, "kind?": str, "command?": str,
}  # fmt: skip
"""What each field holds: a type, one of several, a list of one form, or an object; ``?``: may be missing."""
_WORDS: Mapping[Any, str] = {
    str: "text", int: "a whole number", float: f"a number up to {LARGEST:g}", dict: "an object",
    None: "null",
}  # fmt: skip


def read_certify(path: Path) -> dict[str, Any]:
    """Read ``certify.json``.

    Raises
    ------
    RunError
        If it was written by another schema.
    CorruptFile
        If it cannot be read, lacks a part, or a field holds something else than what is written there.
    """
    meta = read_json(path)
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else None
        raise RunError(f"{path}: schema {repr(found)[:40]}, need {SCHEMA}")
    lacking = [key for key in _FORM if not key.endswith("?") and key not in meta]
    if lacking:
        raise CorruptFile(path, None, f"lacks {', '.join(lacking)}")
    wrong = _wrong(meta, _FORM, "") or _unfit(meta)
    if wrong:
        raise CorruptFile(path, None, wrong)
    return meta


def _wrong(value: Any, form: Any, at: str) -> str:
    """Return the first place where a value has another form, and what it needs; empty where it fits."""
    if isinstance(form, tuple):
        each = [_wrong(value, one, at) for one in form]
        return "" if "" in each else each[0]
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{at}: need a list"
        found = (_wrong(item, form[0], f"{at}[{i}]") for i, item in enumerate(value))
        return next(filter(None, found), "")
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{at}: need an object"
        for key, inner in form.items():
            name = key.removesuffix("?")
            here = f"{at}.{name}".removeprefix(".")
            if name not in value:
                if name == key:
                    return f"{here} is missing"
            elif told := _wrong(value[name], inner, here):
                return told
        return ""
    if form is float:
        fits = type(value) in (int, float) and abs(value) <= LARGEST
    elif form is int:
        fits = type(value) is int and 0 <= value <= 2**53
    else:
        fits = value is None if form is None else isinstance(value, form)
    return "" if fits else f"{at}: need {_WORDS[form]}"


def _unfit(meta: Mapping[str, Any]) -> str:
    """Return what of a file whose fields have the right form do not fit each other."""
    radii = meta["radii"]
    for i, row in enumerate(meta["rows"]):
        spans = [cell["spread"] for cell in (row["clean_error"], row["median"], *row["certified_error"])]
        if len(row["certified_error"]) != len(radii):
            return f"rows[{i}].certified_error: need {len(radii)} shares, one for each radius"
        if not (row["seeds"] and row["files"] and row["k"] and row["n"]):
            return f"rows[{i}]: need seeds, files, a k and queries"
        if any(span is not None and len(span) != 2 for span in spans):
            return f"rows[{i}]: need the least and the largest as spread"
        if not all(file.isprintable() for file in row["files"]):
            return f"rows[{i}].files: need names"
        if row.get("noise") and len(row["noise"]["samples"]) != 2:
            return f"rows[{i}].noise.samples: need two numbers"
    if any(len(c["discordant"]) != 2 for c in meta["comparisons"]):
        return "comparisons: need two discordant counts"
    if not all(isinstance(reason, str) for reason in meta["failed"].values()):
        return "failed: need reasons as text"
    if not isinstance(meta["run"].get("norm", ""), str):
        return "run.norm: need text"
    return ""
