"""Prepared references as arrays that a file can hold, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from ..certify.references import References

Array = NDArray[Any]
TENSORS = ("points", "images", "labels", "matrix", "centre", "basis", "factor")


def as_arrays(references: References) -> dict[str, Array]:
    """Return the parts of references by their names and ``_``; Euclidean images are the points again."""
    values = {name: getattr(references, name) for name in TENSORS}
    if references.matrix is None:
        del values["images"]
    return {f"{name}_": value.cpu().numpy() for name, value in values.items() if value is not None}


def as_references(
    arrays: Mapping[str, Array], classes: int, device: torch.device, box: tuple[float, float] | None
) -> References:
    """Return references from the arrays of :func:`as_arrays`.

    Raises
    ------
    KeyError, TypeError, ValueError
        If they do not fit each other, or labels are not codes of so many classes.
    """
    tensors = {name: torch.from_numpy(arrays[f"{name}_"]) for name in TENSORS if f"{name}_" in arrays}
    tensors.setdefault("images", tensors["points"])
    fields: dict[str, Any] = {name: tensors[name].to(device) if name in tensors else None for name in TENSORS}
    references = References(**fields, box=box)
    _check(references, classes)
    return references


def _check(r: References, classes: int) -> None:
    if r.points.ndim != 2 or r.centre.ndim != 1:
        raise ValueError("need points (N, r) and a centre (D,)")
    (n, width), d = r.points.shape, len(r.centre)
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
