"""Settings are frozen dataclasses; this module turns them into plain data, back, and changes them by path.

Reading goes through an allow-list of types: plain data can name a type but never make one run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from .errors import DataError, HoldfastError, InvalidArgument, UnknownName

SCALARS = (bool, int, float, str, type(None))
DEEPEST = 50
"""Levels of plain data that are read; what :func:`to_plain` writes has fewer than 10."""
V = TypeVar("V")
Allowed = Mapping[str, type]


def allow(*classes: type) -> dict[str, type]:
    """Make an allow-list of dataclasses, keyed by class name; two classes of one name are a bug."""
    table: dict[str, type] = {}
    for cls in classes:
        if table.setdefault(cls.__name__, cls) is not cls:
            raise InvalidArgument("classes", "unique class names", cls.__name__)
    return table


def to_plain(value: Any) -> Any:
    """Return JSON-ready data: dataclasses become ``{"type": name, field: value}``, tuples lists.

    Examples
    --------
    >>> from holdfast.threat import LinfThreat
    >>> to_plain(LinfThreat(eps=0.1))
    {'type': 'LinfThreat', 'eps': 0.1, 'bounds': [0.0, 1.0]}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    raise InvalidArgument("value", "numbers, text, tuples and frozen dataclasses", type(value).__name__)


def from_plain(data: Any, allowed: Allowed) -> Any:
    """Rebuild a value from :func:`to_plain`'s data; only types in ``allowed`` are made.

    Raises
    ------
    UnknownName
        For a type or field that is not allowed.
    DataError
        If an allowed type refuses the fields, a field holds what its annotation does not admit, a number is
        not finite, or the data are nested more than :data:`DEEPEST` times.
    """
    return _built(data, allowed, DEEPEST)


def _built(data: Any, allowed: Allowed, left: int) -> Any:
    if left < 0:
        raise DataError(f"settings: nested more than {DEEPEST} times")
    if isinstance(data, list):
        return tuple(_built(item, allowed, left - 1) for item in data)
    if isinstance(data, float) and not math.isfinite(data):
        raise DataError(f"settings: need finite numbers, got {data}")
    if not isinstance(data, dict):
        return data
    if "type" not in data:
        return {key: _built(item, allowed, left - 1) for key, item in data.items()}
    name = data["type"]
    if not isinstance(name, str) or name not in allowed:
        raise UnknownName("type", str(name), allowed)
    cls = allowed[name]
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    fields = {}
    for key, item in data.items():
        if key != "type":
            if key not in known:
                raise UnknownName(f"field of {name}", key, known)
            fields[key] = _built(item, allowed, left - 1)
            hint = _hints(cls).get(key, Any)
            if not _admits(fields[key], hint):
                told = _wanted(_kinds(hint), allowed)
                raise DataError(f"{name}: field {key!r} needs {told}, got {_short(fields[key])}")
    try:
        return cls(**fields)
    except HoldfastError:
        raise
    except REFUSED as error:
        raise DataError(f"{name}: cannot be built from {sorted(fields)}: {error}") from error


REFUSED = (
    TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError, AssertionError,
)  # fmt: skip
"""What a part may raise that is given values of other kinds than it was written for."""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _admits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that an annotation names; where that cannot be told, it is.

    A protocol admits what has its methods. Whole numbers stand for others, and tuples for every sequence.
    """
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_admits(value, item) for item in items)
    if origin is Literal:
        return any(value == item and type(value) is type(item) for item in items)
    if hint is type(None) or hint is None:
        return value is None
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = items[:1] * len(value) if items[1:] == (...,) else items
        return len(wanted) == len(value) and all(map(_admits, value, wanted))
    kind = origin or hint
    if not isinstance(kind, type) or kind is object:
        return True
    if getattr(kind, "_is_protocol", False) and kind.__module__.partition(".")[0] == "holdfast":
        return all(hasattr(value, name) for name in _members(kind))
    if kind is list or kind is Sequence:
        return isinstance(value, tuple)
    return isinstance(value, kind) if dataclasses.is_dataclass(kind) else True


@functools.cache
def _members(protocol: type) -> frozenset[str]:
    """Return the names of the methods and attributes that a protocol asks for."""
    own = [
        cls for cls in protocol.__mro__ if getattr(cls, "_is_protocol", False) and cls is not typing.Protocol
    ]
    names = {name for cls in own for name in (*vars(cls), *vars(cls).get("__annotations__", {}))}
    return frozenset(n for n in names if not n.startswith("_") or n == "__call__")


def flatten(data: Any, path: str = "") -> dict[str, Any]:
    """Return ``{path: scalar}`` of plain data, for tables and differences; a type stands at its own path.

    Examples
    --------
    >>> flatten({"type": "Run", "seed": 0, "search": {"type": "PGD", "steps": 8}})
    {'seed': 0, 'search': 'PGD', 'search.steps': 8}
    """
    flat: dict[str, Any] = {}
    if isinstance(data, dict):
        if path and "type" in data:
            flat[path] = data["type"]
        for key, item in data.items():
            if key != "type":
                flat |= flatten(item, f"{path}.{key}" if path else key)
    elif isinstance(data, list) and any(isinstance(item, dict | list) for item in data):
        for place, item in enumerate(data):
            flat |= flatten(item, f"{path}.{place}")
    else:
        flat[path] = data
    return flat


def describe(value: Any) -> str:
    """Return one ``path = value`` line for every setting."""
    return "\n".join(f"{path} = {item}" for path, item in flatten(to_plain(value)).items())


def number(text: str) -> float:
    """Read a number; fractions are welcome, because radii are quoted as 8/255.

    Examples
    --------
    >>> number("8/255") == 8 / 255, number("0.1")
    (True, 0.1)
    """
    try:
        above, slash, below = text.partition("/")
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ArithmeticError):
        raise InvalidArgument("number", "a number such as 0.1 or 8/255", text) from None
    if not math.isfinite(value):
        raise InvalidArgument("number", "a finite number", text)
    return value


def everywhere(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply a change to every part of a nested frozen value, the innermost first."""
    if isinstance(value, tuple):
        return tuple(everywhere(item, change) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    new = {name: everywhere(part, change) for name, part in parts.items()}
    changed = {name: part for name, part in new.items() if part is not parts[name]}
    return change(dataclasses.replace(value, **changed) if changed else value)


def replace(value: V, path: str, new: Any, allowed: Allowed | None = None) -> V:
    """Return a copy with the field at ``path`` changed.

    Parameters
    ----------
    value
        A frozen dataclass.
    path
        Field names and tuple positions joined by dots: ``defense.extra.0.weight``.
    new
        The new value. Text is read according to the field's annotation: ``8/255`` for a float, ``none``,
        a type's name or a JSON object for a part.
    allowed
        Types that text may name.

    Raises
    ------
    UnknownName
        If the path does not exist; lists near matches.
    InvalidArgument
        If the text does not fit the field, or the value refuses it.
    """
    return typing.cast(V, _replace(value, path.split("."), path, new, allowed or {}, Any))


def _replace(value: Any, names: list[str], path: str, new: Any, allowed: Allowed, hint: Any) -> Any:
    """Walk down ``names``; ``hint`` annotates ``value``, which tells what a tuple holds."""
    if not names:
        return _read(new, hint, path, allowed) if isinstance(new, str) else new
    head, rest = names[0], names[1:]
    if isinstance(value, tuple):
        if not (head.isdecimal() and len(head) <= _DIGITS and int(head) < len(value)):
            raise InvalidArgument(path, f"a position below {len(value)} at {_short(head)}", head)
        place = int(head)
        item = _replace(value[place], rest, path, new, allowed, _item_hint(hint, place))
        return (*value[:place], item, *value[place + 1 :])
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise InvalidArgument(path, f"a path that ends before {head!r}", type(value).__name__)
    known = [f.name for f in dataclasses.fields(value) if f.init]
    if head not in known:
        raise UnknownName(f"{path} (field of {type(value).__name__})", head, known)
    item = _replace(getattr(value, head), rest, path, new, allowed, _hints(type(value)).get(head, Any))
    try:
        return dataclasses.replace(value, **{head: item})
    except HoldfastError:
        raise
    except REFUSED as error:
        raise InvalidArgument(path, f"a value that {type(value).__name__} accepts ({error})", new) from error


_DIGITS = 18
"""Most digits of a whole number: what fits into 64 bits."""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _item_hint(hint: Any, place: int) -> Any:
    """Return the annotation of one place of a tuple."""
    for kind in _kinds(hint):
        if typing.get_origin(kind) is tuple:
            items = typing.get_args(kind)
            return items[0] if items[1:] == (...,) else items[place] if place < len(items) else Any
    return Any


def _read(text: str, hint: Any, path: str, allowed: Allowed) -> Any:
    """Read text for a field; unions are tried in the order none, number, part, text."""
    kinds = _kinds(hint)
    stripped = text.strip()
    if type(None) in kinds and stripped.lower() in ("none", "null", ""):
        return None
    for kind in kinds:
        if kind is bool and stripped.lower() in ("true", "false"):
            return stripped.lower() == "true"
        if kind is int and re.fullmatch(rf"[+-]?[0-9]{{1,{_DIGITS}}}", stripped):
            return int(stripped)
        if kind is float:
            try:
                return number(stripped)
            except InvalidArgument:
                continue
        if typing.get_origin(kind) is Literal and stripped in typing.get_args(kind):
            return stripped
    if not all(kind in SCALARS or typing.get_origin(kind) is Literal for kind in kinds):
        if stripped in allowed:
            return _fitting(_build(stripped, {}, path, allowed), kinds, path, allowed)
        if stripped[:1] in ("{", "["):
            return _fitting(_parse(stripped, path, allowed), kinds, path, allowed)
    if str in kinds or hint is Any:
        return text
    raise InvalidArgument(path, _wanted(kinds, allowed), text)


def _build(name: str, fields: dict[str, Any], path: str, allowed: Allowed) -> Any:
    try:
        return allowed[name](**fields)
    except HoldfastError:
        raise
    except REFUSED as error:
        raise InvalidArgument(path, f"a JSON object with the fields of {name} ({error})", name) from None


def _parse(text: str, path: str, allowed: Allowed) -> Any:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also thousands of digits
        raise InvalidArgument(path, f"JSON ({getattr(error, 'msg', error)})", text) from None
    try:
        return from_plain(data, allowed)
    except (DataError, UnknownName) as error:
        raise InvalidArgument(path, f"JSON that can be built ({error})", text) from error


def _fitting(part: Any, kinds: tuple[Any, ...], path: str, allowed: Allowed) -> Any:
    """Return the part if the annotation admits it."""
    if not any(_admits(part, kind) for kind in kinds):
        raise InvalidArgument(path, _wanted(kinds, allowed), part)
    return part


def _wanted(kinds: tuple[Any, ...], allowed: Allowed) -> str:
    words = {
        int: "an integer",
        float: "a number such as 0.1 or 8/255",
        bool: "true or false",
        type(None): "none",
    }
    parts = [
        words.get(kind)
        or (
            " or ".join(map(repr, typing.get_args(kind)))
            if typing.get_origin(kind) is Literal
            else f"a {getattr(kind, '__name__', kind)}"
        )
        for kind in kinds
    ]
    return " or ".join(parts)
