"""Losses, unreduced: one value for each triplet or each row; the caller takes the mean.

A loss says by ``reads`` what it is called with: ``"triplets"`` means ``loss(z: Roles, distance) -> (t,)`` and
``"batch"`` means ``loss(z, y, distance) -> (n,)``. Losses with learnable parts offer
``setup(embedding_dim, n_classes)``, which returns a module with the same call.
"""

from collections.abc import Mapping

from ..types import BatchLoss, TripletLoss
from .bisector import BisectorMargin
from .consistency import Consistency
from .contrastive import Contrastive
from .half_batch import HalfBatch
from .intra_class_structure import IntraClassStructure
from .lifted import LiftedStructure
from .margin import LearnedMargin, Margin
from .multi_similarity import MultiSimilarity
from .npair import NPair
from .pml import PML, FromPML, LearnedPML
from .proxy_anchor import LearnedProxies, ProxyAnchor
from .quadruplet import Quadruplet
from .snr import SignalToNoise
from .triplet import Triplet

LOSSES: Mapping[str, TripletLoss | BatchLoss] = {
    "triplet": Triplet(),
    "contrastive": Contrastive(),
    "margin": Margin(),
    "multi-similarity": MultiSimilarity(),
    "proxy-anchor": ProxyAnchor(),
    "lifted": LiftedStructure(),
    "n-pair": NPair(),
    "snr": SignalToNoise(),
    "quadruplet": Quadruplet(),
}
"""Every loss with its default fields, by public name."""

__all__ = [
    "LOSSES",
    "PML",
    "BisectorMargin",
    "Consistency",
    "Contrastive",
    "FromPML",
    "HalfBatch",
    "IntraClassStructure",
    "LearnedMargin",
    "LearnedPML",
    "LearnedProxies",
    "LiftedStructure",
    "Margin",
    "MultiSimilarity",
    "NPair",
    "ProxyAnchor",
    "Quadruplet",
    "SignalToNoise",
    "Triplet",
]
