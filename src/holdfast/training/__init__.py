"""Steps, epochs, checkpoints: the only place that owns an optimiser."""

from .checkpoint import Checkpoint
from .engine import Adam, Engine, pick_device
from .guard import CollapseGuard
from .run import Run
from .trainer import TrainResult, preflight, train

__all__ = [
    "Adam",
    "Checkpoint",
    "CollapseGuard",
    "Engine",
    "Run",
    "TrainResult",
    "pick_device",
    "preflight",
    "train",
]
