"""How ARML trains: one value that holds every setting, and what the two modes set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import torch

from ..errors import InvalidArgument
from ..schedules import Constant, HalfCosine, Schedule
from .objectives import FLOOR, LOSSES
from .triplets import RULES

FULL_BATCH = 8192
"""Up to this many rows the improved mode trains on all anchors at once, beyond it on batches of half."""
BATCH_RATE = 1e-2
"""Its rate where batches are used: there are fewer passes."""
LEAST_STEPS = 300
"""Steps of the improved mode where batches are used."""
SEARCHES = 4
"""Searches for candidates where batches are used: there they cost more than the steps."""
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


def _among(name: str, value: Any, allowed: Any) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidArgument(name, f"one of {', '.join(sorted(allowed))}", value)


def _integer(name: str, value: Any) -> None:
    if type(value) is bool or not isinstance(value, Integral) or int(value) < 1:
        raise InvalidArgument(name, "an integer >= 1", value)


def _number(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, Real) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All settings of one training; see :class:`~holdfast.linear.ARML` for their meaning.

    ``floor`` is the least squared denominator, and ``unit_data`` says whether it is meant relative to data of
    root mean square length 1.
    """

    loss: str = "neg"
    calibration: float = 0.5
    triplets: str = "sampled"
    n_candidates: int = 10
    refresh: int = 10
    epochs: int = 200
    lr: float = 3e-3
    schedule: str = "cosine"
    batch_size: int | None = None
    normalize_scale: bool = True
    validation_fraction: float = 0.0
    patience: int | None = None
    restarts: int = 1
    tol: float = 0.0
    floor: float = FLOOR
    unit_data: bool = True

    def __post_init__(self) -> None:
        _among("loss", self.loss, LOSSES)
        _among("triplets", self.triplets, RULES)
        _among("schedule", self.schedule, ("constant", "cosine"))
        for name in ("n_candidates", "refresh", "epochs", "restarts"):
            _integer(name, getattr(self, name))
        for name in ("batch_size", "patience"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name))
        for name in ("lr", "calibration"):
            value = getattr(self, name)
            if not _number(value) or value <= 0:
                raise InvalidArgument(name, "a finite number > 0", value)
        if not _number(self.tol) or self.tol < 0:
            raise InvalidArgument("tol", "a finite number >= 0", self.tol)
        if not _number(self.validation_fraction) or not 0 <= self.validation_fraction < 1:
            raise InvalidArgument("validation_fraction", "a number in [0, 1)", self.validation_fraction)
        if self.patience is not None and self.validation_fraction == 0:
            raise InvalidArgument(
                "patience",
                "validation_fraction > 0 beside it, so that there is a radius to watch",
                self.patience,
            )

    @property
    def rate(self) -> Schedule:
        """The learning rate over the fraction of the steps that are done."""
        return Constant(value=self.lr) if self.schedule == "constant" else HalfCosine(start=self.lr, stop=0)


MODES: Mapping[str, Plan] = {
    "default": Plan(),
    "published": Plan(
        refresh=1, epochs=1000, lr=1e-3, schedule="constant", normalize_scale=False, floor=1e-6,
        unit_data=False,
    ),
}  # fmt: skip
"""What stands for every setting that is left None."""


def plan(mode: str, rows: int, given: Mapping[str, Any]) -> Plan:
    """Return the plan of a mode for ``rows`` training rows, with the settings that are not None put in."""
    _among("mode", mode, MODES)
    base = {field.name: getattr(MODES[mode], field.name) for field in fields(Plan)}
    chosen = {name: value for name, value in given.items() if value is not None}
    if mode == "default" and rows > FULL_BATCH and "batch_size" not in chosen:
        chosen["batch_size"] = FULL_BATCH // 2
    if mode == "default" and "epochs" not in chosen and isinstance(chosen.get("batch_size"), Integral):
        steps = math.ceil(rows / max(1, chosen["batch_size"]))
        chosen["epochs"] = min(base["epochs"], math.ceil(LEAST_STEPS / steps))
        chosen.setdefault("refresh", math.ceil(chosen["epochs"] / SEARCHES))
        chosen.setdefault("lr", BATCH_RATE)
    return Plan(**{**base, **chosen})


def device(name: Any) -> torch.device:
    """Return the device of a name; ``"auto"`` is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgument("device", "'auto', 'cpu' or 'cuda'", name) from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InvalidArgument("device", "a device that is here (no CUDA was found)", name)
    return found


def dtype(name: Any) -> torch.dtype:
    """Return the floating type of a name."""
    if name in DTYPES.values():
        return torch.float32 if name is torch.float32 else torch.float64
    _among("dtype", name, DTYPES)
    return DTYPES[name]
