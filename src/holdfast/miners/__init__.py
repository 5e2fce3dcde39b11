"""Miners: choose triplets from a batch of pairs, where row 2i is an anchor and row 2i + 1 its partner."""

from collections.abc import Mapping

from ..types import Miner
from .distance_weighted import DistanceWeighted
from .gradual import GradualSemihard
from .hardest import Hardest
from .pml import FromPMLMiner, PMLMiner
from .random import Random
from .semihard import Semihard
from .softhard import Softhard

MINERS: Mapping[str, Miner] = {
    "random": Random(),
    "semihard": Semihard(),
    "softhard": Softhard(),
    "hard": Hardest(),
    "distance": DistanceWeighted(),
    "gradual": GradualSemihard(),
}
"""Every miner with its default fields, by public name."""

__all__ = [
    "MINERS",
    "DistanceWeighted",
    "FromPMLMiner",
    "GradualSemihard",
    "Hardest",
    "PMLMiner",
    "Random",
    "Semihard",
    "Softhard",
]
