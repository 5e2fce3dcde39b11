"""Where a search gets its gradient from: back-propagation, or queries alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import Randomness, normal, uniform
from ..types import Encoder, Gradient, Objective


def value_of(gradient: Gradient, encoder: Encoder, x: Tensor, objective: Objective) -> Tensor:
    """Return the value (g,) alone, by the method ``value`` of a source of gradients that has one."""
    value: Callable[..., Tensor] | None = getattr(gradient, "value", None)
    with torch.no_grad():
        return objective(encoder(x)) if value is None else value(encoder, x, objective)


@dataclass(frozen=True)
class Autograd:
    """Back-propagation to the input alone: weights get no ``.grad`` and cost no backward pass."""

    exact: ClassVar[bool] = True

    def __call__(
        self, encoder: Encoder, x: Tensor, objective: Objective, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """Return the value (g,) and its gradient shaped like ``x``.

        Raises
        ------
        InvalidArgument
            If the value does not depend on ``x`` in a way that autograd can follow.
        """
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            value = objective(encoder(x))
            grad = None
            if value.requires_grad:  # perhaps only through the weights: then the input is unused
                (grad,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
        if grad is None:
            raise InvalidArgument(
                "encoder", "a differentiable encoder (or a search with NES or SPSA)", "no gradient"
            )
        return value.detach(), grad


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    """Two-sided finite differences along random directions; the subclasses say which directions.

    Attributes
    ----------
    samples
        Pairs of queries for each gradient; the cost is ``2 * samples + 1`` passes.
    sigma
        Length of a difference, in input units.
    """

    samples: int = 50
    sigma: float = 0.01
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InvalidArgument("samples", "an integer >= 1", self.samples)
        if not self.sigma > 0:
            raise InvalidArgument("sigma", "a number > 0", self.sigma)

    def directions(self, x: Tensor, generator: Randomness) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self, encoder: Encoder, x: Tensor, objective: Objective, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """Return the value (g,) and an estimated gradient shaped like ``x``; queries only."""
        value = objective(encoder(x))
        grad = torch.zeros_like(x)
        for _ in range(self.samples):
            u = self.directions(x, generator)
            rise = objective(encoder(x + self.sigma * u)) - objective(encoder(x - self.sigma * u))  # (g,)
            rows = rise.repeat(len(x) // len(rise)).reshape(-1, *[1] * (x.ndim - 1))
            grad += rows * u
        return value, grad / (2 * self.sigma * self.samples)


@dataclass(frozen=True, kw_only=True)
class NES(_Sampled):
    """Natural evolution strategies: Gaussian directions, antithetic pairs (Ilyas et al. 2018)."""

    def directions(self, x: Tensor, generator: Randomness) -> Tensor:
        """Return N(0, 1) directions."""
        return normal(x, generator)


@dataclass(frozen=True, kw_only=True)
class SPSA(_Sampled):
    """Simultaneous perturbation: directions of signs (Spall 1992; Uesato et al. 2018)."""

    def directions(self, x: Tensor, generator: Randomness) -> Tensor:
        """Return directions of -1 and +1."""
        return torch.where(uniform(x, generator) < 0.5, -1.0, 1.0).to(x)


def uses_gradients(search: Any) -> bool:
    """Return whether a search back-propagates, once or on average."""
    gradient = getattr(search, "gradient", None)
    return bool(getattr(getattr(gradient, "gradient", gradient), "exact", False))
