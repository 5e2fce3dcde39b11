"""Gradients of encoders that answer differently every time: the mean over several passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import Randomness
from ..types import Encoder, Gradient, Objective
from .gradient import Autograd, value_of


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """Expectation over transformation: mean value and mean gradient of several passes.

    For encoders that draw random numbers in their forward pass. Wrapped in a search, the kept point is chosen
    by mean values too.

    Attributes
    ----------
    gradient
        What is averaged.
    samples
        Passes for each gradient, >= 1; they are made one after the other, so that memory does not grow.

    Notes
    -----
    The noise is the encoder's own: the generator given to a search does not seed it.

    References
    ----------
    Athalye et al., *Synthesizing Robust Adversarial Examples*, ICML 2018; Athalye, Carlini and Wagner,
    *Obfuscated Gradients Give a False Sense of Security*, ICML 2018, section 4.2.
    """

    gradient: Gradient = field(default_factory=Autograd)
    samples: int = 20
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InvalidArgument("samples", "an integer >= 1", self.samples)

    def __call__(
        self, encoder: Encoder, x: Tensor, objective: Objective, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean value (g,) and the mean gradient shaped like ``x``."""
        value, grad = self.gradient(encoder, x, objective, generator)
        for _ in range(self.samples - 1):
            more = self.gradient(encoder, x, objective, generator)
            value, grad = value + more[0], grad + more[1]
        return value / self.samples, grad / self.samples

    def value(self, encoder: Encoder, x: Tensor, objective: Objective) -> Tensor:
        """Return the mean value (g,) alone."""
        values = [value_of(self.gradient, encoder, x, objective) for _ in range(self.samples)]
        return torch.stack(values).mean(0)
