"""Terms of the training loss that read clean and attacked images through the proxies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from ...adversaries.logits import divergence
from ...errors import InvalidArgument
from ...losses import LearnedProxies
from ...types import BatchView, PairwiseDistance


@dataclass(frozen=True, kw_only=True)
class ProxyTerm:
    """``weight * value`` added to the loss by :class:`~holdfast.defenses.ProxyTraining`.

    With the softmax over proxies, ``l_k(x) = alpha * cos(z(x), p_k)`` are the logits of an embedding.

    Attributes
    ----------
    weight
        Finite, >= 0.
    """

    weight: float = 1.0
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"
    clean_roles: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise InvalidArgument("weight", "a finite number >= 0", self.weight)

    def value(self, z: BatchView, proxies: LearnedProxies, distance: PairwiseDistance) -> Tensor:
        """Return one value for each row, (n,)."""
        raise NotImplementedError

    def __call__(self, z: BatchView, distance: PairwiseDistance) -> Tensor:
        """Raise InvalidArgument: without :class:`~holdfast.defenses.ProxyTraining` there are no proxies."""
        raise InvalidArgument("extra", "ProxyTraining, because the term reads proxies", self)


@dataclass(frozen=True, kw_only=True)
class Divergence(ProxyTerm):
    """``KL(softmax l(x) || softmax l(x'))``, the term of TRADES; gradients flow through both sides.

    Attributes
    ----------
    weight
        beta = 1 / lambda of the paper, 6 in its experiments.

    References
    ----------
    Zhang et al., *Theoretically Principled Trade-off between Robustness and Accuracy*, ICML 2019, the
    multi-class objective, with proxy logits in place of a classifier's (our adaptation).
    """

    weight: float = 6.0

    def value(self, z: BatchView, proxies: LearnedProxies, distance: PairwiseDistance) -> Tensor:
        """Return (n,), >= 0."""
        return divergence(proxies.logits(z.clean), proxies.logits(z.now))


@dataclass(frozen=True, kw_only=True)
class LogitPairing(ProxyTerm):
    """``||l(x) - l(x')||^2``, summed over the proxies: adversarial logit pairing.

    Attributes
    ----------
    weight
        lambda. The logits hold the factor alpha of the loss, so that the term grows with alpha^2: the paper's
        0.5 drew the embeddings of digits together in a short trial, 0.1 did not.

    References
    ----------
    Kannan, Kurakin and Goodfellow, *Adversarial Logit Pairing*, arXiv:1803.06373, with proxy
    logits in place of a classifier's (our adaptation).
    """

    weight: float = 0.1

    def value(self, z: BatchView, proxies: LearnedProxies, distance: PairwiseDistance) -> Tensor:
        """Return (n,), >= 0."""
        return (proxies.logits(z.clean) - proxies.logits(z.now)).square().sum(1)


@dataclass(frozen=True, kw_only=True)
class CleanLoss(ProxyTerm):
    """The training loss of the clean images, beside that of the attacked ones."""

    def value(self, z: BatchView, proxies: LearnedProxies, distance: PairwiseDistance) -> Tensor:
        """Return (n,)."""
        rows: Tensor = proxies(z.clean, z.y, distance)
        return rows


@dataclass(frozen=True, kw_only=True)
class CleanCrossEntropy(ProxyTerm):
    """The cross-entropy of the softmax over proxies on clean images.

    Notes
    -----
    The proxy-anchor loss leaves room for one proxy to be the nearest to all rows at a low price, and a
    divergence has its minimum there: the softmax is then the same for every image. Cross-entropy, the clean
    term of TRADES for classifiers, excludes it.
    """

    def value(self, z: BatchView, proxies: LearnedProxies, distance: PairwiseDistance) -> Tensor:
        """Return (n,), >= 0."""
        return F.cross_entropy(proxies.logits(z.clean), z.y, reduction="none")
