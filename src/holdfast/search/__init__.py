"""How the allowed set is explored: one loop, any source of gradients."""

from .gradient import NES, SPSA, Autograd
from .modes import frozen
from .pgd import PGD
from .precision import LowPrecision, Precision, in_precision

__all__ = ["NES", "PGD", "SPSA", "Autograd", "LowPrecision", "Precision", "frozen", "in_precision"]
