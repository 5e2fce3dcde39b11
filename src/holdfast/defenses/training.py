"""Adversarial training of embeddings: nearly every published defense is a value of this one class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..functional.hardness import hardness
from ..search.modes import frozen
from ..types import (
    Adversary,
    BatchLoss,
    BatchView,
    Context,
    Miner,
    PairwiseDistance,
    Roles,
    Search,
    Step,
    Threat,
    TripletLoss,
    Triplets,
    TripletView,
)

ROLES = "apn"


class ExtraLoss(Protocol):
    """A term that sees clean and moved embeddings of the same triplets, such as the structure term."""

    @property
    def clean_roles(self) -> str:
        """Which clean embeddings it reads, out of ``"apn"``; only these are computed with gradient."""
        ...

    def __call__(self, z: TripletView, distance: PairwiseDistance) -> Tensor:
        """Return (t,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """Move some inputs inside a threat, then train on them.

    Attributes
    ----------
    loss
        A triplet loss (then ``miner`` is needed) or a batch loss.
    miner
        Chooses the triplets, from clean embeddings; when every row moves, again from the moved ones.
    adversary
        Who moves and why; ``None`` is plain training.
    search, threat
        How and how far; needed with an adversary.
    extra
        Further terms on clean and moved triplets, such as
        :class:`~holdfast.losses.IntraClassStructure`; needs an adversary that moves triplet roles.

    Notes
    -----
    The mean of ``loss`` (without ``extra``) is kept in ``ctx.signal["loss"]`` for gradual adversaries.
    """

    loss: TripletLoss | BatchLoss
    miner: Miner | None = None
    adversary: Adversary[Any] | None = None
    search: Search | None = None
    threat: Threat | None = None
    extra: tuple[ExtraLoss, ...] = ()

    def __post_init__(self) -> None:
        reads = getattr(self.loss, "reads", None)
        if reads not in ("triplets", "batch"):
            raise InvalidArgument("loss", "a loss whose attribute reads is 'triplets' or 'batch'", self.loss)
        if reads == "triplets" and self.miner is None:
            raise InvalidArgument("miner", "a miner, because the loss reads triplets", None)
        if self.adversary is None:
            if self.extra:
                raise InvalidArgument("extra", "nothing without an adversary", self.extra)
            return
        if self.search is None or self.threat is None:
            raise InvalidArgument("search, threat", "both with an adversary", (self.search, self.threat))
        moves = self.adversary.moves
        if moves != "x" and (not moves or set(moves) - set(ROLES) or len(set(moves)) < len(moves)):
            raise InvalidArgument("adversary.moves", "'x' or some of 'apn', each once", moves)
        if moves != "x" and reads != "triplets":
            raise InvalidArgument(
                "adversary", "one that moves every row ('x'), as the loss reads a batch", moves
            )
        if moves == "x" and self.extra:
            raise InvalidArgument("extra", "an adversary that moves triplet roles", moves)

    def setup(self, embedding_dim: int, n_classes: int) -> nn.ModuleDict:
        """Return the learnable part of the loss, if it has one."""
        build = getattr(self.loss, "setup", None)
        return nn.ModuleDict({} if build is None else {"loss": build(embedding_dim, n_classes)})

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the one loss of the batch."""
        loss = ctx.learnable["loss"] if "loss" in ctx.learnable else self.loss  # noqa: SIM401, no .get there
        if self.adversary is None:
            yield self._step(ctx, loss, ctx.encoder(ctx.x))
        elif self.adversary.moves == "x":
            yield self._step(ctx, loss, ctx.encoder(self._move_rows(ctx)))
        else:
            yield from self._triplet_losses(ctx, loss)

    def _mine(self, z: Tensor, ctx: Context) -> Triplets:
        """Mine with the miner of this moment: a gradual one changes with progress."""
        assert self.miner is not None  # checked when the value was built
        at = getattr(self.miner, "at", None)
        miner: Miner = self.miner if at is None else at(ctx.progress)
        return miner(z, ctx.y, ctx.distance, ctx.generator)

    def _step(self, ctx: Context, loss: Callable[..., Tensor], z: Tensor) -> Step:
        """Make the step of a batch whose rows all go through the loss."""
        logs: dict[str, float] = {}
        if self.miner is not None:
            rows = self._mine(z.detach(), ctx)
            roles = Roles(*(z[role] for role in rows))
            value = loss(roles, ctx.distance).mean()
            logs["hardness"] = float(hardness(roles, ctx.distance).detach().mean())
        else:
            value = loss(z, ctx.y, ctx.distance).mean()
        ctx.signal["loss"] = float(value.detach())
        return Step(value, {"loss": ctx.signal["loss"], **logs})

    def _clean(self, ctx: Context) -> Tensor:
        with frozen(ctx.bare), torch.no_grad():
            z: Tensor = ctx.bare(ctx.x)
        return z

    def _move_rows(self, ctx: Context) -> Tensor:
        adversary, search, threat = self._parts()
        clean = self._clean(ctx)
        target = adversary.target(clean, ctx.y, None, ctx)

        def objective(z: Tensor) -> Tensor:
            return adversary.gain(BatchView(z, clean, ctx.y, target), ctx)

        return search(ctx.bare, ctx.x, objective, threat, ctx.generator)

    def _triplet_losses(self, ctx: Context, loss: Callable[..., Tensor]) -> Iterator[Step]:
        adversary, search, threat = self._parts()
        clean_z = self._clean(ctx)
        rows = self._mine(clean_z, ctx)
        clean = Roles(*(clean_z[role] for role in rows))
        target = adversary.target(clean_z, ctx.y, rows, ctx)
        moving = [ROLES.index(role) for role in adversary.moves]

        def arrange(z: Tensor, rest: Roles) -> Roles:
            """Put moved embeddings (r*t, e) into their roles beside the resting ones."""
            roles = list(rest)
            for place, part in zip(moving, z.chunk(len(moving)), strict=True):
                roles[place] = part
            return Roles(*roles)

        def objective(z: Tensor) -> Tensor:
            return adversary.gain(TripletView(arrange(z, clean), clean, target), ctx)

        x0 = torch.cat([ctx.x[rows[place]] for place in moving])
        moved = search(ctx.bare, x0, objective, threat, ctx.generator)

        # One forward pass for all that the loss needs: moved images, then the clean roles that are read.
        read = {place for place in range(3) if place not in moving}
        read |= {ROLES.index(role) for term in self.extra for role in term.clean_roles}
        resting = sorted(read)
        z = ctx.encoder(torch.cat([moved, *(ctx.x[rows[place]] for place in resting)]))
        now_z, *clean_parts = z.split([len(moved), *(len(rows[place]) for place in resting)])
        with_grad = list(clean)
        for place, part in zip(resting, clean_parts, strict=True):
            with_grad[place] = part
        view = TripletView(arrange(now_z, Roles(*with_grad)), Roles(*with_grad), target)
        value = loss(view.now, ctx.distance).mean()
        total = value + sum(term(view, ctx.distance).mean() for term in self.extra)
        ctx.signal["loss"] = float(value.detach())
        logs = {
            "loss": ctx.signal["loss"],
            "total": float(total.detach()),
            "hardness": float(hardness(view.now, ctx.distance).detach().mean()),
            "clean_hardness": float(hardness(clean, ctx.distance).mean()),
        }
        if target is not None:
            logs["target"] = float(target.mean())
        yield Step(total, logs)

    def _parts(self) -> tuple[Adversary[Any], Search, Threat]:
        assert self.adversary is not None  # the three come together, see __post_init__
        assert self.search is not None
        assert self.threat is not None
        return self.adversary, self.search, self.threat
