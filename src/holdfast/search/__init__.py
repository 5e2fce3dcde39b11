"""How the allowed set is explored: one loop for gradients, and a random search that needs none."""

from .apgd import APGD
from .average import Averaged
from .compiled import Compiled
from .count import Counted
from .float32 import full_float32
from .gradient import NES, SPSA, Autograd, uses_gradients
from .graphs import Graphed
from .modes import frozen
from .pgd import PGD
from .precision import Chosen, LowPrecision, Precision, choose_precision, in_precision, speeds
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
    "Chosen",
    "Compiled",
    "Counted",
    "Graphed",
    "LowPrecision",
    "Precision",
    "RayS",
    "Square",
    "Transfer",
    "choose_precision",
    "frozen",
    "full_float32",
    "in_precision",
    "speeds",
    "uses_gradients",
]
