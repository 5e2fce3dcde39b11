"""How the allowed set is explored: one loop, any source of gradients."""

from .gradient import NES, SPSA, Autograd
from .modes import frozen
from .pgd import PGD

__all__ = ["NES", "PGD", "SPSA", "Autograd", "frozen"]
