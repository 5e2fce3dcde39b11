"""Class labels of references, and the means of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import InvalidArgument

Array = NDArray[Any]


def class_labels(y: ArrayLike | Tensor | None, n: int) -> Tensor | None:
    """Return labels (n,) int64, negative where unknown; None where none is known."""
    if y is None:
        return None
    array = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if array.shape != (n,):
        raise InvalidArgument("y", f"a label for each of {n} rows", array.shape)
    if array.dtype.kind not in "biuf" or not (array == np.floor(array)).all():
        got = f"Unknown label type: {array.dtype}"
        raise InvalidArgument("y", "integer class labels, negative where unknown", got)
    labels = torch.from_numpy(array.astype(np.int64))
    return labels if bool((labels >= 0).any()) else None


def prototypes(z: Array, labels: Tensor | None) -> tuple[Array, Tensor]:
    """Return the mean of every class (K, e), summed in float64, and the classes (K,) in rising order."""
    if labels is None:
        need = "labels: inference by prototypes requires y to be passed, but the target y is None"
        raise InvalidArgument("y", need, None)
    classes = torch.unique(labels[labels >= 0])
    y = labels.numpy()
    means = [z[y == label].mean(0, dtype=np.float64) for label in classes.numpy()]
    return np.stack(means).astype(z.dtype), classes
