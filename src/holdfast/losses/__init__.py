"""Losses, unreduced: one value for each triplet or each row; the caller takes the mean.

A loss says by ``reads`` what it is called with: ``"triplets"`` means ``loss(z: Roles, distance) -> (t,)`` and
``"batch"`` means ``loss(z, y, distance) -> (n,)``. Losses with learnable parts offer
``setup(embedding_dim, n_classes)``, which returns a module with the same call.
"""

from collections.abc import Mapping

from ..types import BatchLoss, TripletLoss
from .contrastive import Contrastive
from .intra_class_structure import IntraClassStructure
from .margin import LearnedMargin, Margin
from .multi_similarity import MultiSimilarity
from .proxy_anchor import LearnedProxies, ProxyAnchor
from .triplet import Triplet

LOSSES: Mapping[str, TripletLoss | BatchLoss] = {
    "triplet": Triplet(),
    "contrastive": Contrastive(),
    "margin": Margin(),
    "multi-similarity": MultiSimilarity(),
    "proxy-anchor": ProxyAnchor(),
}
"""Every loss with its default fields, by public name."""

__all__ = [
    "LOSSES",
    "Contrastive",
    "IntraClassStructure",
    "LearnedMargin",
    "LearnedProxies",
    "Margin",
    "MultiSimilarity",
    "ProxyAnchor",
    "Triplet",
]
