"""Members that are wrong in different ways: the term of ADP, on proxies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ....errors import InvalidArgument
from ..view import EnsembleView
from .pairs import nothing


@dataclass(frozen=True, kw_only=True)
class LogDet:
    """Volume that the members' predictions span beside the true class, as in ADP.

    Member m's prediction is the softmax of its proxy logits on its own attacked example. A (M, K - 1) holds
    these without the true class, each divided by its Euclidean length. The term is the mean over rows of

        -log det(A A^T + eta I) - entropy * H,

    with H the entropy in nats of the members' mean prediction, in [0, log K]. The first part lies between
    ``-M log(1 + eta)``, where the rows of A are orthogonal, and ``-log(M + eta) - (M - 1) log(eta)``, where
    they are the same; more than K - 1 members cannot all be orthogonal.

    Attributes
    ----------
    eta
        Added to the diagonal, > 0. Two members at a small angle have a gradient by the angle of at most
        about ``1 / sqrt(2 eta)``, 22 for the default.
    entropy
        Weight of the entropy, >= 0.

    Raises
    ------
    InvalidArgument
        If ``eta`` or ``entropy`` is outside, or (when called) there are fewer than two classes.

    Notes
    -----
    Pang et al., *Improving Adversarial Robustness via Promoting Ensemble Diversity*, ICML 2019,
    arXiv:1901.08846 (ADP). Theirs is for classifiers on clean images; the softmax of proxy logits and the
    attacked examples are our adaptation. Their code weighs entropy by 2.0 and log-determinant by 0.5: that is
    this term times 0.5 with the default ``entropy``. Its ``eta`` is 1e-6.

    Tramèr et al. (arXiv:2002.08347) broke ADP: diversity of predictions does not make an ensemble robust by
    itself. Here it is one option beside adversarial training and a baseline. The warnings of the other terms
    hold too: orthogonal directions do not bound transfer (TRS), and smoothing raises it (LOTOS).
    The determinant is worked out in float64 whatever the embeddings are.
    """

    eta: float = 1e-3
    entropy: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.eta < math.inf:
            raise InvalidArgument("eta", "a finite number > 0", self.eta)
        if not 0 <= self.entropy < math.inf:
            raise InvalidArgument("entropy", "a finite number >= 0", self.entropy)

    def __call__(self, view: EnsembleView) -> Tensor:
        """Return the term, a scalar."""
        if view.classes < 2:
            raise InvalidArgument("proxies", "at least two classes", view.classes)
        if len(view) == 1:
            return nothing(view)
        parts = zip(view.proxies, view.z_attacked, strict=True)
        logits = torch.stack([proxies.logits(z) for proxies, z in parts], 1)  # (n, M, K)
        own = torch.arange(view.classes, device=view.y.device) == view.y[:, None]  # (n, K)
        wrong = logits.masked_fill(own[:, None], -math.inf).softmax(2).double()  # the scale does not matter
        wrong = wrong / torch.linalg.vector_norm(wrong, dim=2, keepdim=True)
        gram = wrong @ wrong.mT + self.eta * torch.eye(len(view), dtype=wrong.dtype, device=wrong.device)
        value: Tensor = -torch.linalg.slogdet(gram)[1].mean().to(logits.dtype)
        if not self.entropy:
            return value
        log_mean = logits.log_softmax(2).logsumexp(1) - math.log(len(view))  # (n, K)
        return value + self.entropy * (log_mean.exp() * log_mean).sum(1).mean()
