"""Train on images with Gaussian noise: what an encoder needs before it is smoothed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..errors import InvalidArgument
from ..rng import normal
from ..types import Context, Defense, Step


@dataclass(frozen=True, kw_only=True)
class NoiseTraining:
    """Add N(0, sigma^2) noise to every value of a batch, then train as another defense says.

    Attributes
    ----------
    part
        The defense that sees the noisy images.
    sigma
        Standard deviation in input units, >= 0; the one that will smooth the encoder
        (:mod:`holdfast.certify.smoothing`).

    Notes
    -----
    Noisy images are not clipped to [0, 1], neither here nor when certifying: the encoder must meet in
    training what it meets when it is smoothed. An adversary of ``part`` that knows a box clips them. Noise is
    drawn from the generator of the step, anew for every batch.

    References
    ----------
    Lecuyer et al., *Certified Robustness to Adversarial Examples with Differential Privacy*, S&P 2019;
    Cohen, Rosenfeld and Kolter, *Certified Adversarial Robustness via Randomized Smoothing*, ICML 2019,
    section 3.3.
    """

    part: Defense
    sigma: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise InvalidArgument("sigma", "a finite number >= 0, in input units", self.sigma)

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return the learnable parts of the defense inside."""
        return self.part.setup(encoder, y)

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the losses of the defense inside, on ``ctx.x + sigma * n``."""
        noisy = ctx.x + self.sigma * normal(ctx.x, ctx.generator)
        yield from self.part.losses(replace(ctx, x=noisy))
