"""How training is hardened: a defense yields losses, the trainer steps on them."""

from .training import AdversarialTraining

__all__ = ["AdversarialTraining"]
