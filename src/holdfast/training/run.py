"""Everything that decides the outcome of a training run, as one frozen value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from ..config import everywhere
from ..data import DataSource, PairSampler
from ..data.augment import Augment
from ..data.sampler import MPerClass
from ..defenses import FreeTraining
from ..encoders import EncoderSpec, SmallCNN
from ..errors import InvalidArgument
from ..functional.distance import Euclidean
from ..search import PGD
from ..threat import L2Threat, LinfThreat
from ..types import Defense, PairwiseDistance
from .engine import Adam
from .guard import CollapseGuard


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run.

    Attributes
    ----------
    name
        What tables call it: the name of the recipe.
    data
        Where images come from.
    defense
        Yields the losses.
    threat
        What the encoder shall withstand; evaluations use it unless told otherwise.
    encoder
        Architecture.
    sampler
        Batches.
    optimizer
        Adam by default.
    distance
        Of losses, gains and rankings.
    epochs
        Passes over the data, >= 1.
    seed
        Names every random stream of the run.
    device
        ``"auto"`` takes a CUDA device when there is one.
    precision
        ``"fp32"``, or ``"bf16"`` for the encoder's forward and backward passes: weights, distances, losses
        and gains stay float32.
    guard
        Steps back when embeddings collapse; ``None`` lets them.
    average
        Decay of an exponential moving average of the weights, which is then what the run hands over; ``None``
        hands over the last weights, as the published defenses do.
    augment
        How training images in memory are changed at each step; ``None`` leaves them.
    accumulate
        Batches for each optimiser step, >= 1: it is made with the mean of their gradients, all taken at the
        same weights, and the last one of an epoch with what is left. Miners and adversaries see one batch at
        a time, so ``k`` batches of ``b`` pairs are not one batch of ``k * b``: negatives come from ``b``
        pairs, and the loss that a gradual adversary remembers is that of the batch before. Steps, in the log
        and everywhere, are batches.
    """

    name: str
    data: DataSource
    defense: Defense
    threat: LinfThreat | L2Threat
    encoder: EncoderSpec = field(default_factory=SmallCNN)
    sampler: PairSampler | MPerClass = field(default_factory=lambda: PairSampler(batch_pairs=128))
    optimizer: Adam = field(default_factory=Adam)
    distance: PairwiseDistance = field(default_factory=Euclidean)
    epochs: int = 8
    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    guard: CollapseGuard | None = None
    average: float | None = None
    augment: Augment | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InvalidArgument("epochs", "an integer >= 1", self.epochs)
        if self.seed < 0:
            raise InvalidArgument("seed", "an integer >= 0", self.seed)
        if self.average is not None and not 0 <= self.average < 1:
            raise InvalidArgument("average", "a number in [0, 1), or None", self.average)
        if self.precision not in ("fp32", "bf16"):
            raise InvalidArgument("precision", "'fp32' or 'bf16'", self.precision)
        if type(self.accumulate) is not int or self.accumulate < 1:
            raise InvalidArgument("accumulate", "an integer >= 1", self.accumulate)
        for part in _parts(self.defense):
            if self.accumulate > 1 and isinstance(part, FreeTraining) and part.replays > 1:
                raise InvalidArgument(
                    "accumulate", "1 for free training, whose replays follow optimiser steps", self.accumulate
                )
            defined = getattr(part, "distances", None)
            if defined is not None and not isinstance(self.distance, defined):
                names = " or ".join(kind.__name__ for kind in defined)
                raise InvalidArgument("distance", f"{names} for {type(part).__name__}", self.distance)


def _parts(value: Any) -> Iterator[Any]:
    """Yield a dataclass, and all that stand in its fields."""
    if is_dataclass(value):
        yield value
        for one in fields(value):
            yield from _parts(getattr(value, one.name))
    elif isinstance(value, tuple):
        for one in value:
            yield from _parts(one)


def with_radius(run: Run, eps: float) -> Run:
    """Return a run with another radius everywhere, and the step lengths of its searches scaled with it."""
    factor = eps / run.threat.eps if run.threat.eps > 0 else 1.0

    def change(part: Any) -> Any:
        if isinstance(part, LinfThreat | L2Threat):
            return replace(part, eps=eps)
        if isinstance(part, PGD) and isinstance(part.alpha, float):
            return replace(part, alpha=part.alpha * factor)
        return part

    return replace(run, threat=change(run.threat), defense=everywhere(run.defense, change))
