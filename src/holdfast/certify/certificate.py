"""What a certificate says: a radius for every point inside which its answer cannot change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..notebooks import table_html


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificate:
    """Certified radii of n points; what is right stays right for every perturbation shorter than the radius.

    Attributes
    ----------
    radius
        (n,) float64 radii in input units, >= 0 or infinite, rounded down; 0 where ``correct`` is False.
    correct
        (n,) bool: the certified answer is the right one (all True where no labels were given).
    norm
        The norm of the perturbation: 1, 2 or infinity.
    exact
        (n,) bool: the radius is the length of the smallest perturbation that changes the answer, up to
        rounding, and not only a lower bound of it.
    alpha
        Probability that a radius is too large; 0 for certificates that always hold.
    method
        What computed it: ``"quadratic programme"``, ``"triplet bound"``, ``"smoothing"``, ...
    answer
        (n,) the certified answers (class codes, gallery rows), or None.
    upper
        (n,) float64 length of a perturbation that is known to change the answer; infinite where none is
        known, 0 where ``correct`` is False; None where none was looked for.
    perturbation
        (n, ...) float64 the perturbations of ``upper``, rows of zeros where there is none; or None.

    Examples
    --------
    >>> import torch
    >>> c = Certificate(radius=torch.tensor([0.5, 0.2, 0.0]), correct=torch.tensor([True, True, False]))
    >>> c.accuracy_at(0.3), c.accuracy_at(0.0)
    (0.3333333333333333, 0.6666666666666666)
    """

    radius: Tensor
    correct: Tensor
    norm: float = 2.0
    exact: Tensor | None = None
    alpha: float = 0.0
    method: str = ""
    answer: Tensor | None = None
    upper: Tensor | None = None
    perturbation: Tensor | None = None

    def __post_init__(self) -> None:
        radius = self.radius.double()
        if radius.ndim != 1:
            raise InvalidArgument("radius", "one radius for each point, (n,)", tuple(radius.shape))
        if bool(radius.isnan().any()) or bool((radius < 0).any()):
            raise InvalidArgument("radius", "numbers >= 0", float(radius.nan_to_num(nan=-math.inf).min()))
        if not 0 <= self.alpha < 1:
            raise InvalidArgument("alpha", "a probability in [0, 1)", self.alpha)
        if self.norm not in (1.0, 2.0, math.inf):
            raise InvalidArgument("norm", "1, 2 or infinity", self.norm)
        correct = self.correct.bool()
        exact = torch.zeros_like(correct) if self.exact is None else self.exact.bool()
        for name, value in {
            "correct": correct, "exact": exact, "answer": self.answer, "upper": self.upper,
            "perturbation": self.perturbation,
        }.items():  # fmt: skip
            if value is not None and len(value) != len(radius):
                raise InvalidArgument(name, f"a value for each of the {len(radius)} points", len(value))
        object.__setattr__(self, "radius", torch.where(correct, radius, torch.zeros_like(radius)))
        object.__setattr__(self, "correct", correct)
        object.__setattr__(self, "exact", exact)

    def __len__(self) -> int:
        return len(self.radius)

    def cpu(self) -> Certificate:
        """Return the same certificate in the memory of the CPU."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {n: value.cpu() for n, value in parts.items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def accuracy_at(self, eps: float) -> float:
        """Return the share of points that are right and whose radius exceeds ``eps``."""
        return float((self.correct & (self.radius > eps)).double().mean())

    def error_at(self, eps: float) -> float:
        """Return the certified robust error: the share of points with a radius <= ``eps``, or wrong."""
        return 1 - self.accuracy_at(eps)

    def attacked_error_at(self, eps: float) -> float:
        """Return the empirical robust error: the share of points that are wrong or changed within ``eps``."""
        if self.upper is None:
            raise InvalidArgument("upper", "a certificate that looked for perturbations", None)
        return float((~self.correct | (self.upper <= eps)).double().mean())

    def curve(self, radii: Sequence[float]) -> list[float]:
        """Return :meth:`accuracy_at` for each of the radii."""
        return [self.accuracy_at(r) for r in radii]

    def median(self) -> float:
        """Return the median radius over all points, wrong ones counted as 0."""
        return float(self.radius.quantile(0.5)) if len(self) else math.nan

    def gap(self) -> Tensor:
        """Return (n,) upper minus lower bound; 0 where exact, infinite where no upper bound is known."""
        if self.upper is None:
            return torch.where(self.exact_rows(), 0.0, math.inf)
        return torch.where(self.exact_rows() | ~self.correct, 0.0, (self.upper - self.radius).clamp_min(0))

    def exact_rows(self) -> Tensor:
        """Return ``exact`` as a tensor."""
        assert self.exact is not None
        return self.exact

    def _repr_html_(self) -> str:
        """Show what is certified in a notebook: shares of points at a few radii."""
        norm = {1.0: "l1", 2.0: "l2"}.get(self.norm, "l-inf")
        finite = self.radius[self.radius.isfinite()]
        top = float(f"{float(finite.max()):.1g}") if len(finite) else 0.0
        radii = [top * part / 4 for part in range(5)] if top > 0 else [0.0]
        sure = f"Each radius is too large with probability {self.alpha:g} at most." if self.alpha else ""
        facts = f"{len(self)} points, {norm} norm" + (f", {self.method}" if self.method else "")
        exact = float(self.exact_rows().double().mean()) if len(self) else 0.0
        return table_html(
            ["radius", *(f"{r:.3g}" for r in radii)],
            [["right and certified", *(f"{100 * self.accuracy_at(r):.1f} %" for r in radii)]],
            caption=f"Certificate: {facts}",
            note=f"Median radius {self.median():.4g}; {100 * exact:.0f} % of the radii are exact. {sure}",
        )
