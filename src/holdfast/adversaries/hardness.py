"""Raise the hardness of triplets to a chosen level and no further (HM)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.distance import Euclidean
from ..functional.hardness import gradual, hardness, mixed_boundary
from ..types import Adversary, Context, Miner, Roles, Triplets, TripletView
from .combine import at_moment
from .moves import check_moves

FIRST_LOSS = 2.0
"""The previous loss that the first step assumes: the largest hardness of unit embeddings."""


class Destination(Protocol):
    """The hardness that triplets shall reach."""

    def __call__(self, z: Tensor, y: Tensor, ctx: Context) -> Tensor:
        """Return (t,) or (1,) from the clean embeddings (n, e) of the batch."""
        ...


def previous_loss(ctx: Context) -> float:
    """Return the adversarial loss of the step before, which the defense keeps in ``ctx.signal``."""
    return ctx.signal.get("loss", FIRST_LOSS)


@dataclass(frozen=True, kw_only=True)
class Mined:
    """The hardness of the triplets that another miner chooses for the same anchors, HM[S, D]."""

    miner: Miner

    def __call__(self, z: Tensor, y: Tensor, ctx: Context) -> Tensor:
        """Return (t,), aligned with the anchors."""
        rows = at_moment(self.miner, ctx.progress)(z, y, ctx.distance, ctx.generator)
        return hardness(Roles(*(z[role] for role in rows)), ctx.distance)


@dataclass(frozen=True, kw_only=True)
class Gradual:
    """Pseudo-hardness that follows the last loss: the linear gradual adversary gLGA and its powers.

    Attributes
    ----------
    margin
        The triplet margin.
    power
        1 (gLGA), 2 (g_2) or 0.5 (g_1/2).
    """

    margin: float = 0.2
    power: float = 1.0

    def __call__(self, z: Tensor, y: Tensor, ctx: Context) -> Tensor:
        """Return (1,), in [-margin, 0]."""
        return z.new_tensor([gradual(previous_loss(ctx), self.margin, self.power)])


@dataclass(frozen=True, kw_only=True)
class MixedBoundary:
    """A mined hardness, raised by at most ``xi`` as the loss falls: g_B."""

    miner: Miner
    margin: float = 0.2
    xi: float = 0.1

    def __call__(self, z: Tensor, y: Tensor, ctx: Context) -> Tensor:
        """Return (t,)."""
        mined = Mined(miner=self.miner)(z, y, ctx)
        return mixed_boundary(mined, previous_loss(ctx), self.margin, self.xi)


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A constant hardness: 0, -margin/2, -margin; 2 is the min-max game."""

    value: float

    def __call__(self, z: Tensor, y: Tensor, ctx: Context) -> Tensor:
        """Return (1,)."""
        return z.new_tensor([self.value])


@dataclass(frozen=True, kw_only=True)
class HardnessManipulation(Adversary[TripletView]):
    """Raise hardness towards a destination; triplets that have reached it stop moving.

    Attributes
    ----------
    destination
        :class:`Mined`, :class:`Gradual`, :class:`MixedBoundary` or :class:`Fixed`.
    objective
        ``"et"``: the published squared hinge; triplets beyond the destination rest. ``"linear"``: that hinge,
        not squared (with ``Gradual(power=0.5)`` the prototype AMD-semi). ``"l2"``: the square, which
        also pulls hardness down. ``"kl"``: minus the divergence of hardness values scaled to sum to 1 in
        absolute value, one value for the batch; the authors report that the last two do not work.
    moves
        ``"apn"``: all three images.

    References
    ----------
    Zhou and Patel, *Enhancing Adversarial Robustness for Deep Metric Learning*, CVPR 2022, equations 3 to 7.
    """

    distances: ClassVar[tuple[type, ...]] = (Euclidean,)
    """Distances that the method is defined for: its destinations are in their units."""

    destination: Destination = field(default_factory=Gradual)
    objective: Literal["et", "linear", "l2", "kl"] = "et"
    moves: str = "apn"

    def __post_init__(self) -> None:
        check_moves(self.moves, "apn")
        if self.objective not in ("et", "linear", "l2", "kl"):
            raise InvalidArgument("objective", "'et', 'linear', 'l2' or 'kl'", self.objective)

    def target(self, z: Tensor, y: Tensor, triplets: Triplets | None, ctx: Context) -> Tensor:
        """Return the destination hardness (t,)."""
        assert triplets is not None  # moves names triplet roles
        return self.destination(z, y, ctx).expand(len(triplets.anchor))

    def gain(self, z: TripletView, ctx: Context) -> Tensor:
        """Return ``-max(0, H* - H)^2`` or the other objective: (t,), or (1,) for ``"kl"``; at most 0."""
        assert z.target is not None  # our own target() ran before
        h = hardness(z.now, ctx.distance)
        if self.objective == "l2":
            return -(z.target - h).square()
        if self.objective == "kl":
            return -_divergence(z.target, h)[None]
        missing = torch.relu(z.target - h)
        return -(missing.square() if self.objective == "et" else missing)


def _divergence(wanted: Tensor, h: Tensor) -> Tensor:
    """Return KL(wanted || h) of absolute values scaled to sum to 1."""
    p, q = (F.normalize(v.abs() + 1e-8, p=1, dim=0) for v in (wanted, h))
    return (p * (p.log() - q.log())).sum()
