"""What an adversary may do: l-inf and l2 balls around an input, inside the box of valid inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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

    def within(self, x: Tensor, x0: Tensor, radius: float | Tensor) -> Tensor:
        """Return the nearest point of the balls of ``radius``, a number or (n, 1, ..., 1); no box."""
        raise NotImplementedError

    def sample(self, x0: Tensor, generator: Randomness = None) -> Tensor:
        """Return changes shaped like ``x0``, drawn uniformly from the ball of radius 1."""
        raise NotImplementedError

    def direction(self, grad: Tensor) -> Tensor:
        """Return the steepest ascent direction of length 1."""
        raise NotImplementedError

    def size(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the norm of the change of every row: (n,)."""
        raise NotImplementedError

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return an allowed point: the ball, then the box; clipping towards ``x0`` stays in the ball."""
        return box(self.within(x, x0, self.eps), self.bounds)

    def noise(self, x0: Tensor, generator: Randomness = None) -> Tensor:
        """Return points drawn uniformly from the ball, clipped to the box."""
        return self.project(x0 + self.sample(x0, generator) * self.eps, x0)


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

    def within(self, x: Tensor, x0: Tensor, radius: float | Tensor) -> Tensor:
        """Return the nearest point of the balls of ``radius``, a number or (n, 1, ..., 1); no box."""
        return linf_ball(x, x0, radius)

    def sample(self, x0: Tensor, generator: Randomness = None) -> Tensor:
        """Return changes shaped like ``x0``, drawn uniformly from the ball of radius 1."""
        return 2 * uniform(x0, generator) - 1

    def direction(self, grad: Tensor) -> Tensor:
        """Return the sign of the gradient; 0 stays 0, so saturated values do not move."""
        return grad.sign()

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

    def within(self, x: Tensor, x0: Tensor, radius: float | Tensor) -> Tensor:
        """Return the nearest point of the balls of ``radius``, a number or (n, 1, ..., 1); no box."""
        return l2_ball(x, x0, radius)

    def sample(self, x0: Tensor, generator: Randomness = None) -> Tensor:
        """Return changes shaped like ``x0``, drawn uniformly from the ball of radius 1."""
        d = x0[0].numel()
        length = uniform(x0.flatten(1)[:, :1], generator).pow(1 / d)  # (n, 1): uniform in volume
        return unit(normal(x0, generator)) * length.reshape(-1, *[1] * (x0.ndim - 1))

    def direction(self, grad: Tensor) -> Tensor:
        """Return the gradient of every row scaled to norm 1; zero rows stay zero."""
        return unit(grad)

    def size(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the norm of the change of every row: (n,)."""
        return norms((x - x0).reshape(len(x), -1))


@dataclass(frozen=True, kw_only=True, eq=False)
class RowBall:
    """A ball with a radius of its own for every row.

    Attributes
    ----------
    threat
        Geometry and box; its own ``eps`` is not used.
    radii
        (n,) radii in input units, >= 0.

    Notes
    -----
    :meth:`direction` has the length of the row's radius, so that the step length of a search is a share of
    that radius: one number suits all rows.

    Examples
    --------
    >>> import torch
    >>> x0 = torch.full((2, 1), 0.5)
    >>> ball = RowBall(threat=LinfThreat(eps=1.0), radii=torch.tensor([0.25, 0.125]))
    >>> ball.project(x0 + 1, x0).tolist()
    [[0.75], [0.625]]
    """

    threat: LinfThreat | L2Threat
    radii: Tensor

    def __post_init__(self) -> None:
        if self.radii.ndim != 1:
            raise InvalidArgument("radii", "one number for each row, (n,)", tuple(self.radii.shape))
        if not bool((self.radii.isfinite() & (self.radii >= 0)).all()):
            raise InvalidArgument("radii", "finite numbers >= 0, in input units", "NaN, infinity or below 0")

    @property
    def norm(self) -> str:
        """Name of the geometry."""
        return self.threat.norm

    @property
    def eps(self) -> float:
        """The largest radius; 0 where there is no row."""
        return float(self.radii.max()) if len(self.radii) else 0.0

    def rows(self, which: Tensor) -> RowBall:
        """Return the balls of some rows, given as (k,) numbers or an (n,) mask."""
        return replace(self, radii=self.radii[which.to(self.radii.device)])

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return an allowed point: the ball of the row, then the box."""
        return box(self.threat.within(x, x0, self.radius(x0)), self.threat.bounds)

    def direction(self, grad: Tensor) -> Tensor:
        """Return the steepest ascent direction, as long as the row's radius."""
        return self.threat.direction(grad) * self.radius(grad)

    def noise(self, x0: Tensor, generator: Randomness = None) -> Tensor:
        """Return points drawn uniformly from the balls, clipped to the box."""
        return self.project(x0 + self.threat.sample(x0, generator) * self.radius(x0), x0)

    def size(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the norm of the change of every row: (n,)."""
        return self.threat.size(x, x0)

    def radius(self, like: Tensor) -> Tensor:
        """Return the radii as (n, 1, ..., 1), in the dtype of inputs (n, *s)."""
        if len(like) != len(self.radii):
            raise InvalidArgument("radii", f"one for each of {len(like)} rows", len(self.radii))
        return self.radii.to(like).reshape(-1, *[1] * (like.ndim - 1))


THREATS: Mapping[str, Callable[..., LinfThreat | L2Threat]] = {"linf": LinfThreat, "l2": L2Threat}
