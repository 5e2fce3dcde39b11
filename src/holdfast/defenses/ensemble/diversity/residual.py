"""Members whose attacks raise and lower different classes: the default diversity term."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ....errors import InvalidArgument
from ..view import EnsembleView
from .pairs import directions, nothing, pair_cosines


@dataclass(frozen=True, kw_only=True)
class ResidualDiversity:
    """How alike the members are in what their own attacks do to them, in [0, 1].

    Each member's attack changes the cosine of a row to the K proxies by ``a_m = P_m (z_m(x_m') - z_m(x))``,
    with embeddings and proxies P_m of length 1. With ``b_m`` that profile divided by its length the term is

        2 / (M (M - 1)) sum over m < n of the mean over rows of max(0, <b_m, b_n>)^2.

    0 where no two members are pushed towards the same classes, 1 where all are pushed alike. Opposite
    profiles cost nothing.

    Attributes
    ----------
    smallest
        A row whose attack changes no cosine of a member by more than this counts 0 and has no gradient in
        that member, in cosine, >= 0. Such changes are rounding, and have no direction.

    Notes
    -----
    Our own design, not a formula of Ke's paper (arXiv:2501.01025), of which only the abstract could be read:
    "each model different robustness features" is read as "each model vulnerable in a different direction".
    Profiles are compared among classes and never by raw coordinates of embeddings: extractors satisfy a term
    on raw coordinates by rotating their spaces (Amada et al., SafeAI 2021). A rotation of one member's space
    together with its proxies leaves this term as it is, and members may have different widths.

    It costs no pass beyond those of the training step. It is a first-order quantity, so the warning of Yang
    et al. (arXiv:2104.00671) holds for it as well: orthogonal directions alone do not bound transfer between
    members, smoothness is needed, and here adversarial training has to supply it. Smoothness has a price:
    a smaller Lipschitz constant raises transfer between members (LOTOS, ICLR 2025). So watch the transfer
    matrix and the gradient norms, not this number alone.
    """

    smallest: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 <= self.smallest < math.inf:
            raise InvalidArgument("smallest", "a finite number >= 0", self.smallest)

    def __call__(self, view: EnsembleView) -> Tensor:
        """Return the term, a scalar in [0, 1]."""
        if len(view) == 1:
            return nothing(view)
        profiles = []
        for part, clean, moved in zip(view.proxies, view.z, view.z_attacked, strict=True):
            proxies = F.normalize(part.proxies.to(clean.dtype), dim=-1)  # (K, e_m)
            change = F.normalize(moved, dim=-1) - F.normalize(clean, dim=-1)  # (n, e_m)
            profiles.append(directions(change @ proxies.T, self.smallest))  # (n, K)
        return pair_cosines(profiles).relu().square().mean()
