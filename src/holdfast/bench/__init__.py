"""Speed and memory: measured in turn against bare limits, other libraries and recorded figures; predicted."""

from .cases import CASES
from .compare import Change, changes, read_result
from .harness import Spread, Timing, interleaved, ratio, spread
from .job import Job, Size
from .plot import plot
from .run import bench, place

__all__ = [
    "CASES",
    "Change",
    "Job",
    "Size",
    "Spread",
    "Timing",
    "bench",
    "changes",
    "interleaved",
    "place",
    "plot",
    "ratio",
    "read_result",
    "spread",
]
