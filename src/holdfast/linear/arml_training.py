"""ARML's training loop: redraw candidates, choose triplets, step, watch the certified radius."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..certify import Certificate
from ..certify.neighbours import certify_neighbours
from ..certify.references import References
from ..errors import InvalidArgument
from ..rng import stream
from .adam import Adam
from .arml_plan import Plan
from .objectives import LOSSES, triplet_margins
from .triplets import RULES, Candidates, ClassBlocks, nearest_candidates

EVALUATIONS = 10
"""The validation radius is computed about this many times."""
GAIN = 1e-4
"""Relative gain of the validation radius below which patience is lost."""
VALIDATION_ROWS, VALIDATION_WORK = 1000, 5 * 10**9
"""Most rows of the validation split whose radius is computed, and beyond 100 the most times n D."""


def watched_rows(held: int, rows: int, width: int) -> int:
    """Return of how many of ``held`` rows the radius is computed."""
    return min(held, VALIDATION_ROWS, max(100, VALIDATION_WORK // (rows * width)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """What one training returns.

    Attributes
    ----------
    components
        (r, D) float64, on the CPU.
    history
        One entry for each epoch that ended in a redraw or an evaluation, and for the last: ``epoch``,
        ``loss`` (mean since the entry before) and, where there is a validation split, ``radius`` (median) and
        ``error`` of it.
    epochs
        Epochs that ran.
    radius
        Median certified radius on the validation split, or None.
    """

    components: Tensor
    history: list[dict[str, float]]
    epochs: int
    radius: float | None


def learn(
    x: Tensor,
    y: Tensor,
    start: Tensor,
    plan: Plan,
    *,
    seed: int,
    run: int = 0,
    validation: tuple[Tensor, Tensor] | None = None,
    told: Callable[[int, float], None] | None = None,
) -> Learned:
    """Train a factor G from ``start``.

    Parameters
    ----------
    x, y
        (n, D) centred rows and (n,) class codes, on the device and in the dtype of training.
    start
        (r, D).
    plan
        The settings.
    seed, run
        Name the random streams; the draws of a row do not depend on the other rows or on the device.
    validation
        Rows and class codes whose median certified radius decides which G is kept.
    told
        Called after every epoch with its number, from 1, and its mean loss.

    Raises
    ------
    InvalidArgument
        If G does not stay finite.
    """
    loop = _Loop(x, y, start, plan, seed, run)
    every = max(plan.refresh, math.ceil(plan.epochs / EVALUATIONS)) if validation else 0
    history: list[dict[str, float]] = []
    best, kept, stale, since = -1.0, loop.factor(), 0, 0
    before, total = math.inf, x.new_zeros(())
    for epoch in range(1, plan.epochs + 1):
        loss = loop.epoch(epoch - 1)
        total = total + loss
        if told:
            told(epoch, float(loss))
        evaluate = bool(every) and (epoch % every == 0 or epoch == plan.epochs)
        if not (evaluate or epoch % plan.refresh == 0 or epoch == plan.epochs):
            continue
        if not loop.finite():
            raise InvalidArgument("lr", "a rate under which the metric stays finite", plan.lr)
        mean = float(total) / (epoch - since)
        entry: dict[str, float] = {"epoch": epoch, "loss": mean}
        total, since = torch.zeros_like(total), epoch
        history.append(entry)
        if evaluate and validation:
            certificate = triplet_bound(x, y, *validation, loop.factor())
            entry["radius"], entry["error"] = certificate.median(), certificate.error_at(0)
            stale = 0 if entry["radius"] > best + GAIN * abs(best) else stale + 1
            if entry["radius"] > best:
                best, kept = entry["radius"], loop.factor()
            if plan.patience is not None and stale >= plan.patience:
                break
        if plan.tol > 0 and abs(before - mean) <= plan.tol * max(abs(mean), 1e-12):
            break
        before = mean
    return Learned(
        components=(kept if validation else loop.factor()).double().cpu(), history=history, epochs=epoch,
        radius=best if validation else None,
    )  # fmt: skip


def triplet_bound(x: Tensor, y: Tensor, z: Tensor, t: Tensor, components: Tensor) -> Certificate:
    """Certify points z (m, D) with class codes t (m,) by the closed-form bound for one nearest neighbour.

    References are x (n, D) with codes y (n,); the factor G is (r, D).
    """
    factor = components.double()
    references = References.prepare(x.double(), y, factor.T @ factor)
    return certify_neighbours(references, z.double(), t, k=1, method="bound")


class _Loop:
    """The state of one training: factor, optimiser, candidates."""

    def __init__(self, x: Tensor, y: Tensor, start: Tensor, plan: Plan, seed: int, run: int) -> None:
        self.plan, self.name = plan, (seed, "arml", run)
        length = float(x.square().sum(1).mean().sqrt())
        self.unit = length if plan.unit_data and length > 0 else 1.0
        self.blocks = ClassBlocks.of(x / self.unit, y)
        self.g = start.to(x).clone()
        self.rescale()
        self.g.requires_grad_(True)
        self.adam = Adam([self.g])
        self.anchors = self.blocks.anchors()
        batches = math.ceil(len(self.anchors) / (plan.batch_size or len(self.anchors)))
        self.steps = plan.epochs * batches
        self.near: Candidates | None = None

    def factor(self) -> Tensor:
        return self.g.detach().clone()

    def finite(self) -> bool:
        return bool(self.g.isfinite().all())

    @torch.no_grad()
    def rescale(self) -> None:
        """Give G the length of an identity of its rank: the margins do not see it, Adam's steps do."""
        if self.plan.normalize_scale:
            self.g.mul_(math.sqrt(len(self.g)) / torch.linalg.norm(self.g).clamp_min(1e-30))

    def epoch(self, number: int) -> Tensor:
        """Step once on every batch of anchors and return the mean loss, not yet read from the device."""
        draw = stream(*self.name, "draw", number)
        redraw = number % self.plan.refresh == 0
        losses = [self.descend(near, draw) * len(near.anchor) for near in self.batches(number, redraw)]
        return torch.stack(losses).sum() / len(self.anchors)

    def batches(self, number: int, redraw: bool) -> Iterator[Candidates]:
        """Yield the candidates of each batch; those of a redraw belong to the metric of that very step."""
        size = self.plan.batch_size
        if size is None or size >= len(self.anchors):
            if redraw or self.near is None:
                self.near = self.search(self.anchors, self.near)
            yield self.near
            return
        shuffled = torch.randperm(len(self.anchors), generator=stream(*self.name, "batches", number))
        for places in torch.split(shuffled.to(self.g.device), size):
            places = places.sort().values
            if redraw or self.near is None:
                found = self.search(self.anchors[places])
                self.store(places, found)
                yield found
            else:
                yield self.near.rows(places)

    def search(self, rows: Tensor, previous: Candidates | None = None) -> Candidates:
        z = self.blocks.x @ self.g.detach().T
        return nearest_candidates(self.blocks, z, rows, self.plan.n_candidates, previous)

    def store(self, places: Tensor, found: Candidates) -> None:
        """Keep candidates for the epochs until the next redraw."""
        if self.near is None:
            parts = (part.new_zeros((len(self.anchors), *part.shape[1:])) for part in found)
            self.near = Candidates(*parts)
        for whole, part in zip(self.near, found, strict=True):
            whole[places] = part

    def descend(self, near: Candidates, draw: torch.Generator) -> Tensor:
        plan, x = self.plan, self.blocks.x
        anchor, positive, negative = RULES[plan.triplets](near, x, self.g.detach(), draw)
        margins = self.unit * triplet_margins(x[anchor], x[positive], x[negative], self.g, plan.floor)
        loss = LOSSES[plan.loss](margins, plan.calibration).mean()
        (gradient,) = torch.autograd.grad(loss, self.g)
        self.adam.step([gradient], [plan.rate(self.adam.count / self.steps)])
        self.rescale()
        return loss.detach()
