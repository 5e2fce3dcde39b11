"""What every loss requires of its input."""

from __future__ import annotations

from typing import Any, Literal, cast

from torch import Tensor

from ..errors import InvalidArgument
from ..types import Roles


def reads_of(loss: Any) -> Literal["triplets", "batch"]:
    """Return what a loss reads, or raise InvalidArgument if it does not say so."""
    reads = getattr(loss, "reads", None)
    if reads not in ("triplets", "batch"):
        raise InvalidArgument("loss", "a loss whose attribute reads is 'triplets' or 'batch'", loss)
    return cast(Literal["triplets", "batch"], reads)


def check_roles(z: Roles) -> None:
    """Raise InvalidArgument unless the three roles are (t, e) of one shape."""
    shapes = [tuple(role.shape) for role in z]
    if len(shapes[0]) != 2 or shapes.count(shapes[0]) != 3:
        raise InvalidArgument("z", "anchor, positive and negative of one shape (t, e)", shapes)


def check_batch(z: Tensor, y: Tensor) -> None:
    """Raise InvalidArgument unless z is (n, e) and y is (n,)."""
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise InvalidArgument("z, y", "shapes (n, e) and (n,)", (tuple(z.shape), tuple(y.shape)))
