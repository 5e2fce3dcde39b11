"""Adversarial training of embeddings: nearly every published defense is a value of this one class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..adversaries import at_moment
from ..errors import InvalidArgument
from ..functional.hardness import hardness
from ..losses.checks import reads_of
from ..search.modes import frozen
from ..types import (
    BatchLoss,
    BatchView,
    Context,
    Objective,
    PairwiseDistance,
    Progress,
    Roles,
    Step,
    TripletLoss,
    TripletView,
)
from .learnt import learnable_parts, loss_now

ROLES = "apn"


def arranged(z: Tensor, moving: Sequence[int], rest: Sequence[Tensor]) -> Roles:
    """Put moved rows (r*t, ...), those of one role after those of another, into their roles beside the rest.

    Parameters
    ----------
    z
        Embeddings or images of r roles.
    moving
        Places of these roles in :data:`ROLES`, in their order in ``z``.
    rest
        Three times (t, ...); what stands at ``moving`` is replaced.
    """
    roles = list(rest)
    for place, part in zip(moving, z.chunk(len(moving)), strict=True):
        roles[place] = part
    return Roles(*roles)


class ExtraLoss(Protocol):
    """A term on clean and moved embeddings of triplets, or (``reads = "batch"``) of all rows."""

    @property
    def clean_roles(self) -> str:
        """Which clean embeddings it reads, out of ``"apn"``; only these are computed with gradient."""
        ...

    def __call__(self, z: Any, distance: PairwiseDistance) -> Tensor:
        """Return one value for each triplet or row, or one for all."""
        ...


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """Move some inputs inside a threat, then train on them.

    Attributes
    ----------
    loss
        A triplet loss (then ``miner`` is needed) or a batch loss.
    miner
        Chooses the triplets, from clean embeddings; when every row moves, from the embeddings that the loss
        reads. Only for a triplet loss.
    adversary
        Who moves and why; ``None`` is plain training.
    search, threat
        How and how far; needed with an adversary.
    extra
        Further terms on clean and moved embeddings, such as
        :class:`~holdfast.losses.IntraClassStructure`.
    on
        ``"moved"``: the loss reads the moved inputs. ``"clean"``: it reads the clean ones, and only ``extra``
        sees the moved ones.

    monitor
        A stronger search that attacks the same batch every ``monitor_every`` steps: where it raises the
        gain much more than ``search`` does, single-step training has overfitted to its own step (catastrophic
        overfitting, Wong et al. 2020). Logged as ``gain`` and ``monitor_gain``; None watches nothing.

    Notes
    -----
    Miner, adversary, search and threat may be parts that change with progress (they have a method ``at``).
    The mean of ``loss`` (without ``extra``) is kept in ``ctx.signal["loss"]`` for gradual adversaries. The
    radius is multiplied by ``ctx.signal["ease"]`` where a collapse guard has set it.
    """

    loss: TripletLoss | BatchLoss
    miner: Any = None
    adversary: Any = None
    search: Any = None
    threat: Any = None
    extra: tuple[ExtraLoss, ...] = ()
    on: Literal["moved", "clean"] = "moved"
    monitor: Any = None
    monitor_every: int = 10

    def __post_init__(self) -> None:
        reads = reads_of(self.loss)
        if reads == "triplets" and self.miner is None:
            raise InvalidArgument("miner", "a miner, because the loss reads triplets", None)
        if reads == "batch" and self.miner is not None:
            raise InvalidArgument("miner", "none, because the loss reads a whole batch", self.miner)
        if self.on not in ("moved", "clean"):
            raise InvalidArgument("on", "'moved' or 'clean'", self.on)
        for name, method in _CHANGING.items():
            part = getattr(self, name)
            if part is not None and not (hasattr(part, method) or hasattr(part, "at")):
                raise InvalidArgument(name, f"a {name} (an object with {method}), or None", part)
        if self.adversary is None:
            if self.extra:
                raise InvalidArgument("extra", "nothing without an adversary", self.extra)
            return
        if self.search is None or self.threat is None:
            raise InvalidArgument("search, threat", "both with an adversary", (self.search, self.threat))
        for adversary in getattr(self.adversary, "parts", (self.adversary,)):  # Alternate has parts
            self._check_moves(adversary.moves, reads)

    def _check_moves(self, moves: str, reads: str) -> None:
        if moves != "x" and (not moves or set(moves) - set(ROLES) or len(set(moves)) < len(moves)):
            raise InvalidArgument("adversary.moves", "'x' or some of 'apn', each once", moves)
        if moves != "x" and reads != "triplets":
            raise InvalidArgument(
                "adversary", "one that moves every row ('x'), as the loss reads a batch", moves
            )
        for term in self.extra:
            wants_rows = getattr(term, "reads", "triplets") == "batch"
            if wants_rows != (moves == "x"):
                need = "every row ('x')" if wants_rows else "triplet roles"
                raise InvalidArgument("extra", f"an adversary that moves {need} for {term}", moves)

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return the learnable part of the loss, if it has one."""
        return nn.ModuleDict(learnable_parts(self.loss, encoder, y))

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the one loss of the batch."""
        loss = loss_now(self.loss, ctx)
        now = self.at(ctx.progress, ctx.signal.get("ease", 1.0))
        if now.adversary is None:
            yield now._step(ctx, loss, ctx.encoder(ctx.x))
        elif now.adversary.moves == "x":
            yield now._row_step(ctx, loss)
        else:
            yield now._triplet_step(ctx, loss)

    def at(self, progress: Progress, ease: float = 1.0) -> AdversarialTraining:
        """Return the defense as it is at a moment, its radius multiplied by ``ease``."""
        parts = {name: at_moment(getattr(self, name), progress) for name in _CHANGING}
        if ease != 1.0 and parts["threat"] is not None:
            parts["threat"] = replace(parts["threat"], eps=parts["threat"].eps * ease)
        return replace(self, **parts)

    def _step(self, ctx: Context, loss: Callable[..., Tensor], z: Tensor) -> Step:
        """Make the step of a batch whose rows all go through the loss."""
        logs: dict[str, float] = {}
        if self.miner is not None:
            rows = self.miner(z.detach(), ctx.y, ctx.distance, ctx.generator)
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

    def _row_step(self, ctx: Context, loss: Callable[..., Tensor]) -> Step:
        clean = self._clean(ctx)
        target = self.adversary.target(clean, ctx.y, None, ctx)

        def objective(z: Tensor) -> Tensor:
            gain: Tensor = self.adversary.gain(BatchView(z, clean, ctx.y, target), ctx)
            return gain

        moved, watched = self._move(ctx, ctx.x, objective)
        if not self.extra:
            step = self._step(ctx, loss, ctx.encoder(moved if self.on == "moved" else ctx.x))
            return Step(step.loss, {**step.logs, **watched})
        now, before = ctx.encoder(torch.cat([moved, ctx.x])).chunk(2)
        step = self._step(ctx, loss, now if self.on == "moved" else before)
        return self._with_extra(
            step.loss, BatchView(now, before, ctx.y, target), ctx, {**step.logs, **watched}
        )

    def _triplet_step(self, ctx: Context, loss: Callable[..., Tensor]) -> Step:
        clean_z = self._clean(ctx)
        rows = self.miner(clean_z, ctx.y, ctx.distance, ctx.generator)
        clean = Roles(*(clean_z[role] for role in rows))
        target = self.adversary.target(clean_z, ctx.y, rows, ctx)
        moving = [ROLES.index(role) for role in self.adversary.moves]

        def objective(z: Tensor) -> Tensor:
            gain: Tensor = self.adversary.gain(TripletView(arranged(z, moving, clean), clean, target), ctx)
            return gain

        x0 = torch.cat([ctx.x[rows[place]] for place in moving])
        moved, watched = self._move(ctx, x0, objective)

        # One forward pass for all that the loss needs: moved images, then the clean roles that are read.
        read = set(range(3)) if self.on == "clean" else {place for place in range(3) if place not in moving}
        read |= {ROLES.index(role) for term in self.extra for role in term.clean_roles}
        resting = sorted(read)
        z = ctx.encoder(torch.cat([moved, *(ctx.x[rows[place]] for place in resting)]))
        now_z, *clean_parts = z.split([len(moved), *(len(rows[place]) for place in resting)])
        with_grad = list(clean)
        for place, part in zip(resting, clean_parts, strict=True):
            with_grad[place] = part
        view = TripletView(arranged(now_z, moving, with_grad), Roles(*with_grad), target)
        value = loss(view.now if self.on == "moved" else view.clean, ctx.distance).mean()
        ctx.signal["loss"] = float(value.detach())
        logs = {
            "loss": ctx.signal["loss"],
            "hardness": float(hardness(view.now, ctx.distance).detach().mean()),
            "clean_hardness": float(hardness(clean, ctx.distance).mean()),
        }
        logs |= watched
        if target is not None:
            logs["target"] = float(target.mean())
        return self._with_extra(value, view, ctx, logs)

    def _move(self, ctx: Context, x0: Tensor, objective: Objective) -> tuple[Tensor, dict[str, float]]:
        """Search, and now and then search again with the monitor to see what the search misses."""
        moved: Tensor = self.search(ctx.bare, x0, objective, self.threat, ctx.generator)
        if self.monitor is None or ctx.progress.step % self.monitor_every:
            return moved, {}
        stronger = self.monitor(ctx.bare, x0, objective, self.threat, ctx.generator)
        with frozen(ctx.bare), torch.no_grad():
            gains = [float(objective(ctx.bare(x)).mean()) for x in (moved, stronger)]
        return moved, {"gain": gains[0], "monitor_gain": gains[1]}

    def _with_extra(
        self, value: Tensor, view: TripletView | BatchView, ctx: Context, logs: dict[str, float]
    ) -> Step:
        total = value + sum(term(view, ctx.distance).mean() for term in self.extra)
        return Step(total, {**logs, "total": float(total.detach())})


_CHANGING = {
    "monitor": "__call__",
    "miner": "__call__",
    "adversary": "gain",
    "search": "__call__",
    "threat": "project",
}
"""Parts that may change with progress, and the method by which each is known."""
