"""Fitted estimators in files: arrays as safetensors, and the rest as JSON in their header."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..encoders.weights import check_header
from ..errors import CorruptFile, DataError, HoldfastError, InvalidArgument
from ..files import replacing

Array = NDArray[Any]
SCHEMA = 1


def write_estimator(
    path: str | Path, name: str, parameters: Mapping[str, Any], learned: Mapping[str, Any]
) -> None:
    """Write an estimator's parameters and learned attributes; the file appears whole or not at all.

    Raises
    ------
    InvalidArgument
        If one of them is neither an array of numbers or text nor plain data.
    """
    tensors: dict[str, Array] = {}
    header = {
        "schema": SCHEMA,
        "estimator": name,
        "parameters": _plain("parameter", parameters, tensors),
        "learned": _plain("learned", learned, tensors),
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"holdfast": json.dumps(header, allow_nan=False)})


def read_parts(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read header and tensors; see :meth:`~holdfast.linear.MahalanobisMixin.load` for the errors."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected an estimator written by save()")
    check_header(path)
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("holdfast")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError) as error:  # TypeError: a dtype NumPy lacks
        raise CorruptFile(path, None, f"not safetensors of NumPy's kinds: {error}") from error
    return read_header(path, text), tensors


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn what Python says about parts that do not fit each other into a CorruptFile."""
    try:
        yield
    except HoldfastError as error:  # a CorruptFile is a ValueError too
        if isinstance(error, CorruptFile):
            raise
        raise CorruptFile(path, None, f"header and tensors do not fit: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CorruptFile(path, None, f"header and tensors do not fit: {error!r}") from error


def read_header(path: Path, text: str | None) -> dict[str, Any]:
    """Return the header of a file from its text, after a look at its schema."""
    if text is None:
        raise DataError(
            f"{path}: safetensors without a 'holdfast' header; only files of save() can be loaded"
        )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also thousands of digits
        raise CorruptFile(path, None, f"header is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        schema = header.get("schema") if isinstance(header, dict) else header
        raise DataError(f"{path}: written with estimator schema {schema!r}, this version reads {SCHEMA}")
    return header


def _plain(kind: str, values: Mapping[str, Any], tensors: dict[str, Array]) -> dict[str, Any]:
    """Return values as JSON data; arrays of numbers go to ``tensors``, and ``{"array": key}`` stays."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            tensors[f"{kind}.{name}"] = np.ascontiguousarray(value)
            out[name] = {"array": f"{kind}.{name}"}
            continue
        item = {"texts": value.tolist()} if isinstance(value, np.ndarray) else _number(value)
        item = {"plain": value} if isinstance(value, dict) else item
        try:
            json.dumps(item, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(name, "an array of numbers or plain data, to be saved", value) from error
        out[name] = item
    return out


def _number(value: Any) -> Any:
    """Numbers of NumPy as Python's, types of torch as their names."""
    if isinstance(value, np.generic):
        return value.item()
    text = str(value)
    return text.removeprefix("torch.") if text in ("torch.float32", "torch.float64") else value


def whole(kind: str, values: Mapping[str, Any], tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Put arrays back in their places; learned names that ``fit`` could not have set are a KeyError."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if kind == "learned" and (not name.endswith("_") or name.startswith("_")):
            raise KeyError(name)
        if isinstance(value, dict):
            ((form, content),) = value.items()
            if form == "plain":
                out[name] = content
            else:
                out[name] = tensors[content] if form == "array" else np.array(content, dtype=object)
        else:
            out[name] = value
    return out
