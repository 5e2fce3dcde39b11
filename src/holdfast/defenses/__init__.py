"""How training is hardened: a defense yields losses, the trainer steps on them."""

from .free import FreeTraining
from .mixture import Mixture
from .noise import NoiseTraining
from .processes import Processes
from .training import AdversarialTraining

__all__ = ["AdversarialTraining", "FreeTraining", "Mixture", "NoiseTraining", "Processes"]
