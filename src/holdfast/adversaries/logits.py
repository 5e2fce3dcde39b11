"""Climb what the softmax over proxies says: its cross-entropy, or how far its probabilities move."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgument
from ..losses import LearnedProxies
from ..types import Adversary, BatchView, Context
from .moves import check_moves


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Return ``KL(softmax(reference) || softmax(logits))`` of every row, two (n, c) -> (n,), >= 0.

    Examples
    --------
    >>> import torch
    >>> from math import log
    >>> reference, logits = torch.tensor([[0.0, 0.0]]), torch.tensor([[log(3.0), 0.0]])
    >>> round(float(divergence(reference, logits)), 4), round(log(2 / 3**0.5), 4)
    (0.1438, 0.1438)
    """
    rows = F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="none", log_target=True)
    return rows.sum(1)


def proxies_of(ctx: Context) -> LearnedProxies:
    """Return the proxies that the run learns.

    Raises
    ------
    InvalidArgument
        If its loss has none.
    """
    learnt = ctx.learnable["loss"] if "loss" in ctx.learnable else None  # noqa: SIM401, a ModuleDict has no .get
    if not isinstance(learnt, LearnedProxies):
        raise InvalidArgument("loss", "a loss with proxies, such as ProxyAnchor", type(learnt).__name__)
    return learnt


@dataclass(frozen=True, kw_only=True)
class CrossEntropyClimb(Adversary[BatchView]):
    """Raise the cross-entropy of the softmax over the proxy logits ``alpha * cos(z, p)``, row by row.

    Attributes
    ----------
    moves
        ``"x"``, every row of the batch.

    References
    ----------
    Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018, equation 2.1.
    """

    moves: str = "x"

    def __post_init__(self) -> None:
        check_moves(self.moves, "x")

    def gain(self, z: BatchView, ctx: Context) -> Tensor:
        """Return the cross-entropy of every row, (n,), >= 0."""
        return F.cross_entropy(proxies_of(ctx).logits(z.now), z.y, reduction="none")


@dataclass(frozen=True, kw_only=True)
class DivergenceClimb(Adversary[BatchView]):
    """Move the softmax over the proxy logits away from what it is on the clean image; needs no labels.

    Attributes
    ----------
    moves
        ``"x"``, every row of the batch.

    Notes
    -----
    At the clean image the divergence is 0 and flat: use a search that does not begin there, such as
    :class:`~holdfast.defenses.NoisyStart`.

    References
    ----------
    Zhang et al., *Theoretically Principled Trade-off between Robustness and Accuracy*, ICML 2019, the inner
    maximisation of its multi-class objective, with proxy logits in place of a classifier's (our adaptation).
    """

    moves: str = "x"

    def __post_init__(self) -> None:
        check_moves(self.moves, "x")

    def gain(self, z: BatchView, ctx: Context) -> Tensor:
        """Return ``KL(softmax l(x) || softmax l(x'))`` of every row, (n,), >= 0."""
        proxies = proxies_of(ctx)
        return divergence(proxies.logits(z.clean), proxies.logits(z.now))
