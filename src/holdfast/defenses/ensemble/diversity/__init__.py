"""Terms that ask the members of an ensemble to be weak to different things."""

from .gradients import GradientAlignment, GradientDiversity
from .logdet import LogDet
from .residual import ResidualDiversity

__all__ = ["GradientAlignment", "GradientDiversity", "LogDet", "ResidualDiversity"]
