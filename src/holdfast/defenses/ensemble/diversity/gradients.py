"""Members whose input gradients point elsewhere: the terms of TRS and of GAL, on proxy-anchor losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import InvalidArgument
from ....functional.distance import norms
from ....losses import LearnedProxies
from ....search import PGD, frozen
from ....threat import LinfThreat
from ....types import Search, Threat
from ..view import EnsembleView
from .pairs import directions, nothing, pair_cosines


def single_losses(z: Tensor, y: Tensor, proxies: LearnedProxies) -> Tensor:
    """Return the proxy-anchor loss (n,) of every row as a batch of its own.

    In a larger batch the rows of a class share one logarithm, so that the gradient of a row would depend on
    its neighbours; here it depends on nothing but the row.
    """
    logits, shift = proxies.logits(z), proxies.alpha * proxies.margin
    own = F.one_hot(y, logits.shape[1]).bool()
    pull = F.softplus(shift - logits[own])
    push = F.softplus(shift + logits).masked_fill(own, 0).sum(1) / logits.shape[1]
    return pull + push


def input_gradients(view: EnsembleView, x: Tensor) -> list[Tensor]:
    """Return M tensors (n, d), differentiable: gradients of :func:`single_losses` by the flat images.

    Members answer in evaluation mode, so that batch statistics neither mix rows nor change.
    """
    found = []
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_(True)
        for m, proxies in enumerate(view.proxies):
            member = view.member(m)
            with frozen(member):
                loss = single_losses(member(x), view.y, proxies)
            (gradient,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
            found.append(gradient.flatten(1))
    return found


@dataclass(frozen=True, kw_only=True)
class GradientDiversity:
    """Orthogonal and small input gradients, as in TRS, >= 0.

    With ``g_m`` the gradient of member m's proxy-anchor loss by the clean image, the term is the mean over
    pairs and rows of ``|cos(g_m, g_n)|``, in [0, 1], plus ``smoothness`` times the mean over members and rows
    of the Euclidean norm of the gradient at a nearby point where these norms are large.

    Attributes
    ----------
    smoothness
        Weight of the gradient norms, >= 0; 0 leaves them out and makes no search.
    search, threat
        How and how far around the clean image that point is looked for; one point for all members, where the
        sum of their norms is largest.

    Raises
    ------
    InvalidArgument
        If the weight is negative or not finite, or search or threat are none.

    Notes
    -----
    Yang et al., *TRS: Transferability Reduced Ensemble via Promoting Gradient Diversity and Model
    Smoothness*, NeurIPS 2021, arXiv:2104.00671. Theirs is a method for classifiers; what is here is our
    adaptation and not theirs: the proxy-anchor loss of single rows in place of cross-entropy, the mean and
    not the sum over members, and norms as they are where the public code squares them. Weight, steps, step
    length (a third of the radius) and random start are those of that code, the radius is the first of its
    ramp from 0.1 to 0.2 on MNIST; for images in colour give a smaller one. That code weighs the term by 2.

    Two warnings. TRS proves that orthogonal gradients alone do *not* bound transfer between members: without
    smoothness (``smoothness=0`` and no adversarial training) the term promises nothing. And a smaller
    Lipschitz constant raises transfer between members (LOTOS, ICLR 2025): a large weight may make members
    alike. Log the transfer matrix and the gradient norms, both.

    A call costs M forward passes and M backward passes that are differentiated again, the search as many for
    each step, and the norms as many once more. With piecewise-linear networks the second derivative misses
    the kinks, as it does in TRS.
    """

    smoothness: float = 2.0
    search: Search = field(default_factory=lambda: PGD(steps=6, alpha=0.1 / 3, random_start=True))
    threat: Threat = field(default_factory=lambda: LinfThreat(eps=0.1))

    def __post_init__(self) -> None:
        if not 0 <= self.smoothness < math.inf:
            raise InvalidArgument("smoothness", "a finite number >= 0", self.smoothness)
        if not callable(self.search):
            raise InvalidArgument("search", "a search, such as PGD", self.search)
        if not hasattr(self.threat, "project"):
            raise InvalidArgument("threat", "a threat, such as LinfThreat", self.threat)

    def __call__(self, view: EnsembleView) -> Tensor:
        """Return the term, a scalar >= 0."""
        if len(view) == 1:
            return nothing(view)
        gradients = [directions(g) for g in input_gradients(view, view.x)]
        alike = pair_cosines(gradients).abs().mean()
        if not self.smoothness:
            return alike

        def steepness(x: Tensor) -> Tensor:
            """Return the gradient norms at (n, ...) images, (n, M)."""
            return torch.stack([norms(g) for g in input_gradients(view, x)], 1)

        steep = self.search(steepness, view.x, lambda z: z.sum(1), self.threat, view.generator)
        return alike + self.smoothness * steepness(steep).mean()


@dataclass(frozen=True, kw_only=True)
class GradientAlignment:
    """Input gradients that do not point the same way, as in GAL: mean of log sum over m < n of exp(cos).

    With ``g_m`` the gradient of member m's proxy-anchor loss by the clean image, the term is the mean over
    rows of ``log sum_{m<n} exp(cos(g_m, g_n))``. With p = M(M-1)/2 pairs it lies in [log p - 1, log p + 1];
    for two members it is the mean cosine. Unlike :class:`GradientDiversity` it prefers opposite gradients to
    orthogonal ones.

    Notes
    -----
    Kariyappa and Qureshi, *Improving Adversarial Robustness of Ensembles with Diversity Training*,
    arXiv:1901.09981; weight 0.5 there. Theirs is for classifiers; the proxy-anchor loss of single rows is our
    adaptation. A row without gradient in a member has cosine 0 there. The term is smooth, but a direction
    says nothing about length, and the warnings of :class:`GradientDiversity` hold without its remedy:
    orthogonal gradients alone do not bound transfer (TRS), and smoothing raises it (LOTOS).
    """

    def __call__(self, view: EnsembleView) -> Tensor:
        """Return the term, a scalar."""
        if len(view) == 1:
            return nothing(view)
        gradients = [directions(g) for g in input_gradients(view, view.x)]
        return pair_cosines(gradients).logsumexp(0).mean()
