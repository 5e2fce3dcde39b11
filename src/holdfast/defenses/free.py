"""Free adversarial training: every batch is replayed, and each backward pass serves weights and pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..functional.hardness import hardness
from ..losses.checks import reads_of
from ..threat import L2Threat, LinfThreat
from ..types import BatchLoss, Context, Miner, Roles, Step, TripletLoss
from .learnt import learnable_parts, loss_now


class Perturbation(nn.Module):
    """A perturbation that lasts from batch to batch and is part of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.empty(0)

    def like(self, x: Tensor) -> Tensor:
        """Return the perturbation of the rows of a batch; rows beyond the last batch's start at zero."""
        fresh = torch.zeros_like(x)
        if self.value.shape[1:] == x.shape[1:]:
            n = min(len(x), len(self.value))
            fresh[:n] = self.value[:n].to(x)
        return fresh

    def get_extra_state(self) -> Tensor:
        """Return what a checkpoint stores."""
        return self.value

    def set_extra_state(self, state: Tensor) -> None:
        """Take what a checkpoint stored."""
        self.value = state


@dataclass(frozen=True, kw_only=True)
class FreeTraining:
    """Replay each batch ``replays`` times; the gradient of each step also moves the images.

    The adversary climbs the training loss itself. One epoch costs as much as ``replays`` plain ones, so runs
    are shortened by that factor.

    Attributes
    ----------
    loss, miner
        As in :class:`~holdfast.defenses.AdversarialTraining`; triplets are mined anew in every replay.
    threat
        The allowed set; each replay moves an image by ``threat.eps`` along the steepest direction.
    replays
        Optimiser steps for each batch.

    Notes
    -----
    The perturbation is kept by position in the batch and starts the next batch, as published for classifiers.
    The released code of the ranking defenses disables its version, and reports a collapse with min-max.

    References
    ----------
    Shafahi et al., *Adversarial training for free!*, NeurIPS 2019, algorithm 1.
    """

    loss: TripletLoss | BatchLoss
    threat: LinfThreat | L2Threat
    miner: Miner | None = None
    replays: int = 4

    def __post_init__(self) -> None:
        reads = reads_of(self.loss)
        if (reads == "triplets") != (self.miner is not None):
            raise InvalidArgument("miner", "a miner if and only if the loss reads triplets", self.miner)
        if self.replays < 1:
            raise InvalidArgument("replays", "an integer >= 1", self.replays)

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return the lasting perturbation, and the learnable part of the loss if it has one."""
        parts = learnable_parts(self.loss, encoder, y)
        return nn.ModuleDict({**parts, "perturbation": Perturbation()})

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield one loss for each replay; reads the images' gradient after each step."""
        lasting = ctx.learnable["perturbation"]
        assert isinstance(lasting, Perturbation)
        loss = loss_now(self.loss, ctx)
        x = self.threat.project(ctx.x + lasting.like(ctx.x), ctx.x)
        for _ in range(self.replays):
            x = x.detach().requires_grad_(True)
            z = ctx.encoder(x)
            if self.miner is None:
                value, logs = loss(z, ctx.y, ctx.distance).mean(), {}
            else:
                rows = self.miner(z.detach(), ctx.y, ctx.distance, ctx.generator)
                roles = Roles(*(z[role] for role in rows))
                value = loss(roles, ctx.distance).mean()
                logs = {"hardness": float(hardness(roles, ctx.distance).detach().mean())}
            ctx.signal["loss"] = float(value.detach())
            yield Step(value, {"loss": ctx.signal["loss"], **logs})
            assert x.grad is not None  # the trainer has stepped on the loss
            x = self.threat.project(x.detach() + self.threat.eps * self.threat.direction(x.grad), ctx.x)
        lasting.value = (x.detach() - ctx.x).detach()
