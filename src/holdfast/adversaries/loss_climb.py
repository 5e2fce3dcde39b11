"""Climb the training loss itself (classical adversarial training)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InvalidArgument
from ..losses.checks import reads_of
from ..types import Adversary, BatchLoss, BatchView, Context, TripletLoss, TripletView
from .moves import check_moves


@dataclass(frozen=True, kw_only=True)
class LossClimb(Adversary[Any]):
    """Raise the loss that training lowers.

    Attributes
    ----------
    loss
        What is climbed; normally the loss of the defense. If it has learnable parts (``setup``), the learnt
        form of the training loss is climbed as it stands, proxies and all.
    moves
        ``"x"``, every row of the batch, for a loss that reads a batch; some of ``"apn"`` for a loss that
        reads triplets.

    Notes
    -----
    The gain is the mean of the loss, one value for the batch: losses on batches couple their rows, and means
    over violators couple triplets, so best-keeping and restarts compare whole batches. Parameters of the loss
    get no gradient from the search. Where the loss is 0 and flat, as for triplets beyond the margin, images
    do not move; :class:`~holdfast.adversaries.MinMax` climbs hardness, which is not cut off.

    Examples
    --------
    >>> from holdfast.losses import MultiSimilarity, Triplet
    >>> LossClimb(loss=MultiSimilarity()).moves, LossClimb(loss=Triplet(), moves="apn").moves
    ('x', 'apn')

    References
    ----------
    Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018, equation 2.1,
    with a metric-learning loss in place of the classifier's.
    """

    loss: TripletLoss | BatchLoss
    moves: str = "x"

    def __post_init__(self) -> None:
        reads = reads_of(self.loss)
        if reads == "triplets" and self.moves == "x":
            raise InvalidArgument("moves", "some of 'apn', because the loss reads triplets", self.moves)
        check_moves(self.moves, "apn" if reads == "triplets" else "x")

    def gain(self, z: TripletView | BatchView, ctx: Context) -> Tensor:
        """Return the loss of the batch, (1,).

        Raises
        ------
        InvalidArgument
            If the learnt form of the training loss reads something else than ``loss`` does.
        """
        loss = self._now(ctx)
        rest = () if isinstance(z, TripletView) else (z.y,)
        return loss(z.now, *rest, ctx.distance).mean()[None]

    def _now(self, ctx: Context) -> Callable[..., Tensor]:
        """Return the loss as it stands: with its learnt parts where it has some."""
        if not hasattr(self.loss, "setup") or "loss" not in ctx.learnable:
            return self.loss
        learnt = ctx.learnable["loss"]
        if getattr(learnt, "reads", None) != self.loss.reads:  # type: ignore[union-attr]
            raise InvalidArgument("adversary.loss", "the loss of the defense", self.loss)
        return learnt
