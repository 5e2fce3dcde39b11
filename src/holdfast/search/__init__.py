"""How the allowed set is explored: one loop for gradients, and a random search that needs none."""

from .apgd import APGD
from .average import Averaged
from .count import Counted
from .gradient import NES, SPSA, Autograd
from .modes import frozen
from .pgd import PGD
from .precision import LowPrecision, Precision, in_precision
from .rays import RayS
from .square import Square
from .transfer import Transfer

__all__ = [
    "APGD",
    "NES",
    "PGD",
    "SPSA",
    "Autograd",
    "Averaged",
    "Counted",
    "LowPrecision",
    "Precision",
    "RayS",
    "Square",
    "Transfer",
    "frozen",
    "in_precision",
]
