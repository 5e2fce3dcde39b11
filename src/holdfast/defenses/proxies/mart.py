"""MART: boosted cross-entropy, and a divergence that weighs misclassified rows more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ...adversaries.logits import divergence
from ...errors import InvalidArgument
from ...losses import LearnedProxies, ProxyAnchor
from ...losses.checks import check_batch
from ...types import BatchView, PairwiseDistance
from .terms import ProxyTerm


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return ``-log p_y - log(1 - max_{k != y} p_k)`` of every row, (n, c) and (n,) -> (n,), c >= 2.

    The second term is a difference of log-sums, so that it stays finite where the wrong class has all of the
    probability; the released code adds 1e-4 inside the logarithm instead.

    Examples
    --------
    >>> import torch
    >>> round(float(boosted_cross_entropy(torch.zeros(1, 4), torch.tensor([0]))), 4)  # log 4 + log 4/3
    1.674
    """
    own = F.one_hot(y, logits.shape[1]).bool()
    rival = logits.masked_fill(own, -math.inf).argmax(1, keepdim=True)  # (n, 1)
    rest = logits.scatter(1, rival, -math.inf).logsumexp(1)  # all but the strongest wrong class
    return F.cross_entropy(logits, y, reduction="none") + logits.logsumexp(1) - rest


@dataclass(frozen=True, kw_only=True)
class BoostedCrossEntropy:
    """Boosted cross-entropy of the softmax over proxies.

    Attributes
    ----------
    alpha
        Factor > 0 on the cosines, as in :class:`~holdfast.losses.ProxyAnchor`.

    References
    ----------
    Wang et al., *Improving Adversarial Robustness Requires Revisiting Misclassified Examples*, ICLR 2020, the
    loss BCE of MART, with the logits ``alpha * cos(z, p)`` in place of a classifier's (our adaptation).
    """

    alpha: float = 32.0
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise InvalidArgument("alpha", "a finite number > 0", self.alpha)

    def setup(self, embedding_dim: int, n_classes: int) -> nn.Module:
        """Return the loss with its learnable proxies, which start as those of ``ProxyAnchor``.

        Parameters
        ----------
        embedding_dim
            Width e of the embeddings, >= 1.
        n_classes
            Number c of classes, >= 2; labels must then be 0 to c - 1.
        """
        if n_classes < 2:
            raise InvalidArgument("n_classes", "an integer >= 2, as a wrong class is needed", n_classes)
        return _Boosted(ProxyAnchor(alpha=self.alpha), embedding_dim, n_classes)

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Raise InvalidArgument: without :meth:`setup` there are no proxies."""
        need = "proxies: call setup(embedding_dim, n_classes) and use its result"
        raise InvalidArgument("loss", need, self)


class _Boosted(LearnedProxies):
    """Boosted cross-entropy with its proxies as a parameter."""

    def forward(
        self, z: Tensor, y: Tensor, distance: PairwiseDistance, weights: Tensor | None = None
    ) -> Tensor:
        """Return one value for each row, (n,), >= 0, times its weight; labels must be in 0 to c - 1."""
        check_batch(z, y)
        if bool(((y < 0) | (y >= len(self.proxies))).any()):
            got = f"labels from {int(y.min())} to {int(y.max())}"
            raise InvalidArgument("y", f"labels 0 to {len(self.proxies) - 1}", got)
        rows = boosted_cross_entropy(self.logits(z), y)
        return rows if weights is None else rows * weights


@dataclass(frozen=True, kw_only=True)
class MisclassifiedDivergence(ProxyTerm):
    """``KL(softmax l(x) || softmax l(x')) * (1 - p_y(x))``: rows that the clean image loses weigh more.

    Attributes
    ----------
    weight
        lambda, 5 in the paper.

    Notes
    -----
    Gradients flow through ``p_y(x)`` as well, as in the released code.

    References
    ----------
    Wang et al., *Improving Adversarial Robustness Requires Revisiting Misclassified Examples*, ICLR 2020, the
    second term of MART's objective, with proxy logits in place of a classifier's (our adaptation).
    """

    weight: float = 5.0

    def value(self, z: BatchView, proxies: LearnedProxies, distance: PairwiseDistance) -> Tensor:
        """Return (n,), >= 0."""
        clean = proxies.logits(z.clean)
        own = clean.softmax(1).gather(1, z.y[:, None])[:, 0]
        return divergence(clean, proxies.logits(z.now)) * (1 - own)
