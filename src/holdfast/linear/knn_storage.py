"""Prepared references in a safetensors file, without pickle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..certify.references import References
from ..errors import CorruptFile, DataError, InvalidArgument
from ..files import replacing
from .base import SCHEMA, _header

TENSORS = ("points", "images", "labels", "matrix", "centre", "basis", "factor")


def to_device(references: References, device: torch.device, box: tuple[float, float] | None) -> References:
    """Return references on a device, with a box."""
    values = {name: getattr(references, name) for name in TENSORS}
    moved: dict[str, Any] = {
        name: None if value is None else value.to(device) for name, value in values.items()
    }
    return replace(references, **moved, box=box)


def write_references(
    path: str | Path, references: References, classes: NDArray[Any], header: dict[str, Any]
) -> None:
    """Write references, the labels of their codes and a header of plain data; the file appears whole.

    Raises
    ------
    InvalidArgument
        If the labels are neither numbers nor text.
    """
    labels = classes.tolist()
    if not all(isinstance(label, bool | int | float | str) for label in labels):
        raise InvalidArgument("classes_", "numbers or text, to be saved", labels)
    values = {name: getattr(references, name) for name in TENSORS}
    # images of the Euclidean metric are the points themselves, which safetensors stores only once if copied
    tensors = {name: v.detach().cpu().clone().contiguous() for name, v in values.items() if v is not None}
    if references.matrix is None:
        del tensors["images"]
    header = {**header, "schema": SCHEMA, "classes": labels, "dtype": classes.dtype.str}
    text = json.dumps(header, default=lambda number: number.item())
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"holdfast": text})


def read_references(path: str | Path, estimator: str) -> tuple[References, NDArray[Any], dict[str, Any]]:
    """Read what :func:`write_references` wrote for an estimator: references without a box, labels, header.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CorruptFile
        If the file is no safetensors file, is damaged, or its parts do not fit each other.
    DataError
        If it holds something else or was written by another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a classifier written by save()")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("holdfast")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptFile(path, None, f"not safetensors: {error}") from error
    header = _header(path, text)
    if header.get("estimator") != estimator:
        raise DataError(f"{path}: holds {header.get('estimator')!r}, need a {estimator}")
    try:
        tensors.setdefault("images", tensors["points"])
        fields: dict[str, Any] = {name: tensors.get(name) for name in TENSORS}
        references = References(**fields, box=None)
        classes = np.array(header["classes"], dtype=np.dtype(header["dtype"]))
        _check(references, len(classes))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise CorruptFile(path, None, f"header and tensors do not fit: {error!r}") from error
    return references, classes, header


def _check(r: References, classes: int) -> None:
    """Refuse tensors that do not fit each other."""
    n, width, d = len(r.points), r.points.shape[1], len(r.centre)
    shapes = {"points": (n, width), "images": (n, width), "labels": (n,), "centre": (d,)}
    if r.matrix is None:
        if r.factor is not None or r.basis is not None or width != d:
            raise ValueError("parts of a metric without the metric")
    else:
        rank = 0 if r.factor is None else len(r.factor)
        shapes.update(matrix=(d, d), factor=(rank, width))
        if r.basis is not None or width != d:
            shapes["basis"] = (d, width)
    for name, shape in shapes.items():
        value = getattr(r, name)
        wanted = torch.int64 if name == "labels" else torch.float64
        if value is None or value.shape != shape or value.dtype != wanted:
            raise ValueError(f"need {name} {shape} of {wanted}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds numbers that are not finite")
    if not n or int(r.labels.min()) < 0 or int(r.labels.max()) >= classes:
        raise ValueError("labels that stand not in classes")
