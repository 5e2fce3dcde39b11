"""A fitted index in a file: arrays as .npz without pickle, parameters as JSON beside them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFile, DataError, InvalidArgument
from ..files import loads, read_arrays, write_arrays
from ..functional.ranking import chunks
from ..types import ClusterNames
from .backends import CHUNK

Array = NDArray[Any]
SCHEMA = 1
LARGEST = sys.float_info.max


def fingerprint(z: Array) -> str:
    """Return the SHA-256 of the shape and the float32 values of embeddings (n, e)."""
    digest = hashlib.sha256(repr(tuple(z.shape)).encode())
    for rows in chunks(len(z), CHUNK):
        digest.update(np.ascontiguousarray(z[rows], dtype="<f4").tobytes())
    return digest.hexdigest()


def write_index(
    path: str | Path, parameters: Mapping[str, Any], facts: Mapping[str, Any], arrays: Mapping[str, Array]
) -> None:
    """Write parameters and facts (plain data) and arrays; the file appears whole or not at all.

    Raises
    ------
    InvalidArgument
        If a parameter is no plain data.
    """
    for name, value in parameters.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(name, "plain data, to be saved", value) from error
    header = {"schema": SCHEMA, "estimator": "ClusterIndex", "parameters": parameters, "facts": facts}
    write_arrays(path, {"header": np.array(json.dumps(header, allow_nan=False)), **arrays})


def read_index(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Array]]:
    """Return what :func:`write_index` wrote, after a look at its form.

    Raises
    ------
    FileNotFoundError, CorruptFile, DataError
        As for :meth:`ClusterIndex.load`.
    """
    arrays = read_arrays(path)
    if "header" not in arrays:
        raise DataError(f"{path}: no header; only files of ClusterIndex.save() can be loaded")
    try:
        header = loads(str(arrays.pop("header")))
    except (ValueError, SystemError) as error:  # SystemError: numbers that are no characters
        raise CorruptFile(path, None, f"header is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("estimator") != "ClusterIndex":
        raise DataError(f"{path}: holds no ClusterIndex")
    if header.get("schema") != SCHEMA:
        raise DataError(f"{path}: written with schema {header.get('schema')!r}, this version reads {SCHEMA}")
    parameters, facts = header.get("parameters"), header.get("facts")
    if not isinstance(parameters, dict) or not isinstance(facts, dict):
        raise CorruptFile(path, None, "header without parameters or facts")
    inertia = facts.get("inertia")
    if isinstance(inertia, bool) or not isinstance(inertia, int | float) or abs(inertia) > LARGEST:
        raise CorruptFile(path, None, "header without a number as inertia")
    return parameters, facts, arrays


def check_arrays(arrays: Mapping[str, Array]) -> None:
    """Refuse arrays that do not fit each other; a missing one is a KeyError, all else a ValueError."""
    centers, labels = arrays["cluster_centers"], arrays["labels"]
    if centers.ndim != 2 or not centers.size or centers.dtype not in (np.float32, np.float64):
        raise ValueError(f"cluster_centers {centers.shape} of {centers.dtype}")
    if not np.isfinite(centers).all():
        raise ValueError("cluster_centers that are not finite")
    inside = not labels.size or 0 <= labels.min() <= labels.max() < len(centers)
    if labels.ndim != 1 or labels.dtype != np.int64 or not inside:
        raise ValueError(f"labels that are no numbers below {len(centers)}")
    curve = arrays.get("silhouettes", np.zeros((0, 2)))
    if (
        curve.ndim != 2
        or curve.shape[1] != 2
        or curve.dtype.kind not in "iuf"
        or not np.isfinite(curve).all()
    ):
        raise ValueError(f"silhouettes {curve.shape} of {curve.dtype}")
    named = [name for name in ClusterNames._fields if name in arrays]
    if named and len(named) < len(ClusterNames._fields):
        raise ValueError(f"{named[0]} alone, need all of {', '.join(ClusterNames._fields)}")
    for name in named:
        if arrays[name].shape != (len(centers),) or arrays[name].dtype != np.int64:
            raise ValueError(f"{name} other than {len(centers)} labels")
    words = arrays.get("feature_names_in", np.full(centers.shape[1], ""))
    if words.shape != centers.shape[1:] or words.dtype.kind != "U":
        raise ValueError(f"feature_names_in other than {centers.shape[1]} names")
    try:
        words.tolist()
    except SystemError as error:  # numbers that are no characters
        raise ValueError("feature_names_in that are no text") from error
