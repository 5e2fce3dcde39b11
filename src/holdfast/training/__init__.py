"""Steps, epochs, checkpoints: the only place that owns an optimiser."""

from .checkpoint import Checkpoint
from .engine import Adam, Engine, pick_device
from .group import Alone
from .guard import CollapseGuard
from .run import Run, with_radius
from .spread import spread_over
from .trainer import TrainResult, preflight, train

__all__ = [
    "Adam",
    "Alone",
    "Checkpoint",
    "CollapseGuard",
    "Engine",
    "Run",
    "TrainResult",
    "pick_device",
    "preflight",
    "spread_over",
    "train",
    "with_radius",
]
