"""Proxy-anchor loss: one learnable proxy for each class, compared with all rows of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..types import PairwiseDistance
from .checks import check_batch
from .reduce import log_one_plus_sum_exp


def proxy_anchor_loss(
    z: Tensor, y: Tensor, proxies: Tensor, alpha: float, margin: float, weights: Tensor | None = None
) -> Tensor:
    """Return the proxy-anchor loss (n,) for given proxies (c, e); see :class:`ProxyAnchor`.

    ``weights`` (n,), >= 0, multiply the exponentials of the rows: a row of weight 0 is as if it were absent.
    """
    check_batch(z, y)
    n, classes = len(z), len(proxies)
    if bool(((y < 0) | (y >= classes)).any()):
        got = f"labels from {int(y.min())} to {int(y.max())}"
        raise InvalidArgument("y", f"labels 0 to {classes - 1}, one for each of the {classes} proxies", got)
    s = cosines(z, proxies)
    own = y[:, None] == torch.arange(classes, device=y.device)  # (n, c)
    other, more = ~own, s.new_zeros(n, 1)
    if weights is not None:
        there = (weights > 0)[:, None]
        own, other, more = own & there, other & there, weights.to(s).clamp_min(0).log()[:, None]
    pull = log_one_plus_sum_exp(-alpha * (s - margin) + more, own, dim=0)  # (c,)
    push = log_one_plus_sum_exp(alpha * (s + margin) + more, other, dim=0)  # (c,)
    rows = own.sum(0)  # (c,)
    pull_share = own / rows.clamp_min(1)  # (n, c): a proxy's term, shared by the rows in it
    push_share = other / other.sum(0).clamp_min(1)
    present = (rows > 0).sum().clamp_min(1)
    return n * (pull_share.to(s) @ pull / present + push_share.to(s) @ push / classes)


def cosines(z: Tensor, proxies: Tensor) -> Tensor:
    """Return the cosine of every row (n, e) and proxy (c, e), (n, c); not in low precision under autocast.

    bfloat16 has steps of 1/256 near 1, which ``alpha`` would multiply.
    """
    with torch.autocast(z.device.type, enabled=False):
        return F.normalize(z, dim=-1) @ F.normalize(proxies.to(z.dtype), dim=-1).T


@dataclass(frozen=True, kw_only=True)
class ProxyAnchor:
    """Proxy-anchor loss.

    With s(x, p) the cosine similarity of a row and a proxy, the published value is the mean over the
    classes in the batch of ``log(1 + sum exp(-alpha (s(x, p) - margin)))`` over the rows x of the class,
    plus the mean over all classes of ``log(1 + sum exp(alpha (s(x, p) + margin)))`` over the rows x of
    other classes.

    Attributes
    ----------
    alpha
        Sharpness, > 0.
    margin
        >= 0, in units of cosine similarity.

    Notes
    -----
    Kim et al. (CVPR 2020), Eq. 4; proxies start as their code's do (Kaiming normal, fan-out).
    The terms belong to proxies, not to rows: each term is shared equally by the rows in its sum, times n,
    so that the plain mean over the n rows is the published value. The loss lives on cosine similarities
    whatever the distance of the run, which is not used. Their code gives proxies a larger learning rate
    than the network; here they join the optimiser that the caller chooses.

    Examples
    --------
    >>> from holdfast.functional.distance import Cosine
    >>> _ = torch.manual_seed(0)
    >>> loss = ProxyAnchor().setup(embedding_dim=4, n_classes=3)
    >>> tuple(loss(torch.eye(4), torch.tensor([0, 0, 2, 2]), Cosine()).shape), tuple(loss.proxies.shape)
    ((4,), (3, 4))
    """

    alpha: float = 32.0
    margin: float = 0.1
    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise InvalidArgument("alpha", "a finite number > 0", self.alpha)
        if not 0 <= self.margin < math.inf:
            raise InvalidArgument("margin", "a finite number >= 0", self.margin)

    def setup(self, embedding_dim: int, n_classes: int) -> nn.Module:
        """Return the loss with its learnable proxies, drawn from torch's global generator.

        Parameters
        ----------
        embedding_dim
            Width e of the embeddings, >= 1.
        n_classes
            Number c of classes, >= 1; labels must then be 0 to c - 1.
        """
        return LearnedProxies(self, embedding_dim, n_classes)

    def __call__(self, z: Tensor, y: Tensor, distance: PairwiseDistance) -> Tensor:
        """Raise InvalidArgument: without :meth:`setup` there are no proxies."""
        raise InvalidArgument(
            "loss", "proxies: call setup(embedding_dim, n_classes) and use its result", self
        )


class LearnedProxies(nn.Module):
    """The proxy-anchor loss with its ``proxies`` (c, e) as a parameter."""

    reads: ClassVar[Literal["triplets", "batch"]] = "batch"

    def __init__(self, loss: ProxyAnchor, embedding_dim: int, n_classes: int) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise InvalidArgument("embedding_dim", "an integer >= 1", embedding_dim)
        if n_classes < 1:
            raise InvalidArgument("n_classes", "an integer >= 1", n_classes)
        self.alpha, self.margin = loss.alpha, loss.margin
        self.proxies = nn.Parameter(torch.empty(n_classes, embedding_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(
        self, z: Tensor, y: Tensor, distance: PairwiseDistance, weights: Tensor | None = None
    ) -> Tensor:
        """Return one value for each row, (n,), >= 0; labels must be in 0 to c - 1."""
        return proxy_anchor_loss(z, y, self.proxies, self.alpha, self.margin, weights)

    def logits(self, z: Tensor) -> Tensor:
        """Return ``alpha * cos(z, p)``, (n, c): what a softmax turns into class probabilities."""
        return self.alpha * cosines(z, self.proxies)
