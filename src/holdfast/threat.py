"""What an adversary may do: l-inf and l2 balls around an input, inside the box of valid inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .errors import InvalidArgument
from .functional.distance import norms
from .functional.projection import box, l2_ball, linf_ball, unit
from .rng import Randomness, normal, uniform


@dataclass(frozen=True, kw_only=True)
class _Ball:
    """A ball of radius ``eps`` and a box; the subclasses fill in the geometry."""

    eps: float
    bounds: tuple[float, float] | None = (0.0, 1.0)
    norm: ClassVar[str]

    def __post_init__(self) -> None:
        if not (isinstance(self.eps, int | float) and math.isfinite(self.eps) and self.eps >= 0):
            raise InvalidArgument("eps", "a finite number >= 0, in input units (8/255, 0.1)", self.eps)
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise InvalidArgument("bounds", "(low, high) with low < high, or None", self.bounds)


@dataclass(frozen=True, kw_only=True)
class LinfThreat(_Ball):
    """Every input value may change by at most ``eps``.

    Attributes
    ----------
    eps
        Radius in input units, >= 0; images lie in [0, 1], so 8/255 is eight grey levels.
    bounds
        Box of valid inputs, or ``None``.

    Examples
    --------
    >>> import torch
    >>> LinfThreat(eps=0.1).project(torch.tensor([[0.5, -1.0]]), torch.tensor([[0.2, 0.05]]))
    tensor([[0.3000, 0.0000]])
    """

    norm: ClassVar[str] = "linf"

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the nearest allowed point: first the ball, then the box."""
        return box(linf_ball(x, x0, self.eps), self.bounds)

    def direction(self, grad: Tensor) -> Tensor:
        """Return the sign of the gradient; 0 stays 0, so saturated values do not move."""
        return grad.sign()

    def noise(self, x0: Tensor, generator: Randomness = None) -> Tensor:
        """Return points drawn uniformly from the ball, clipped to the box."""
        return box(x0 + (2 * uniform(x0, generator) - 1) * self.eps, self.bounds)

    def size(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the norm of the change of every row: (n,)."""
        return (x - x0).abs().reshape(len(x), -1).amax(1)


@dataclass(frozen=True, kw_only=True)
class L2Threat(_Ball):
    """The Euclidean norm of the change of an input is at most ``eps``.

    Attributes
    ----------
    eps
        Radius in input units, >= 0.
    bounds
        Box of valid inputs, or ``None``.
    """

    norm: ClassVar[str] = "l2"

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return an allowed point: the ball, then the box; clipping towards ``x0`` stays in the ball."""
        return box(l2_ball(x, x0, self.eps), self.bounds)

    def direction(self, grad: Tensor) -> Tensor:
        """Return the gradient of every row scaled to norm 1; zero rows stay zero."""
        return unit(grad)

    def noise(self, x0: Tensor, generator: Randomness = None) -> Tensor:
        """Return points drawn uniformly from the ball, clipped to the box."""
        d = x0[0].numel()
        radius = uniform(x0.flatten(1)[:, :1], generator).pow(1 / d)  # (n, 1): uniform in volume
        step = unit(normal(x0, generator)) * radius.reshape(-1, *[1] * (x0.ndim - 1)) * self.eps
        return self.project(x0 + step, x0)

    def size(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the norm of the change of every row: (n,)."""
        return norms((x - x0).reshape(len(x), -1))


THREATS: Mapping[str, Callable[..., LinfThreat | L2Threat]] = {"linf": LinfThreat, "l2": L2Threat}
