"""Perturb candidates and anchors in turns, aware of collapse (CA-TRIDE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.collapse import collapseness, half_mean
from ..types import Adversary, Context, Roles, TripletView

AUTO_SPREAD, AUTO_LIMIT = 2.0, 20.0


def sharpness_of(given: float | None, d_ap: Tensor, d_an: Tensor) -> float:
    """Return the sharpness lambda: as given, or ``min(2 / standard deviation, 20)`` of the batch's distances.

    The automatic value is ours: with it the softmax spans about four units between far and near pairs, as
    lambda = 10 does for the published distances.
    """
    if given is not None:
        return given
    spread = float(torch.cat([d_ap, d_an]).detach().std())
    return min(AUTO_SPREAD / max(spread, 1e-12), AUTO_LIMIT)


def _distances(z: Roles, ctx: Context) -> tuple[Tensor, Tensor]:
    rowwise = ctx.distance.rowwise
    return rowwise(z.anchor, z.positive), rowwise(z.anchor, z.negative)


@dataclass(frozen=True, kw_only=True)
class CandidatePerturbation(Adversary[TripletView]):
    """Move positives and negatives so that positives are no nearer than negatives: CAP.

    Attributes
    ----------
    sharpness
        lambda of the collapseness (10 for CUB, 9.5 for Cars, 2 for SOP); ``None`` sets it from the batch.

    References
    ----------
    Tian et al., *Collapse-Aware Triplet Decoupling for Adversarially Robust Image Retrieval*, ICML 2024.
    """

    sharpness: float | None = None
    moves: str = "pn"

    def __post_init__(self) -> None:
        _check(self.sharpness)

    def gain(self, z: TripletView, ctx: Context) -> Tensor:
        """Return ``-relu(D_n - D_p)``: (1,), one value for the batch, at most 0."""
        d_ap, d_an = _distances(z.now, ctx)
        c = collapseness(d_ap, d_an, sharpness_of(self.sharpness, d_ap, d_an))
        return -torch.relu(-c)[None]


@dataclass(frozen=True, kw_only=True)
class AnchorPerturbation(Adversary[TripletView]):
    """Move anchors: ANP, the turn after :class:`CandidatePerturbation`.

    Attributes
    ----------
    sharpness
        As there.
    sign
        Sign of the collapseness term. ``"hardening"`` climbs towards collapse as the candidate turn does.
        ``"released"`` is the opposite sign that the released code has, which is inactive while positives are
        nearer than negatives; which of the two the paper means could not be checked.

    Notes
    -----
    The second term pushes an anchor away from its clean place until it is as far as the nearer half of the
    negatives; its factor ``exp(-relu(D_n - D_p))`` carries no gradient.
    """

    sharpness: float | None = None
    sign: Literal["hardening", "released"] = "hardening"
    moves: str = "a"

    def __post_init__(self) -> None:
        _check(self.sharpness)
        if self.sign not in ("hardening", "released"):
            raise InvalidArgument("sign", "'hardening' or 'released'", self.sign)

    def gain(self, z: TripletView, ctx: Context) -> Tensor:
        """Return minus both terms: (1,), at most 0."""
        d_ap, d_an = _distances(z.now, ctx)
        c = collapseness(d_ap, d_an, sharpness_of(self.sharpness, d_ap, d_an))
        first = torch.relu(c if self.sign == "released" else -c)
        factor = torch.exp(-torch.relu(-c.detach()))
        shift = ctx.distance.rowwise(z.now.anchor, z.clean.anchor).mean()
        return -(first + factor * torch.relu(half_mean(d_an) - shift))[None]


def _check(sharpness: float | None) -> None:
    if sharpness is not None and not sharpness >= 0:
        raise InvalidArgument("sharpness", "a number >= 0, or None", sharpness)
