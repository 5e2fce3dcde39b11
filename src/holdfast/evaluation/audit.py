"""Is every image that an attack returned allowed? Looked at in float64, by arithmetic of its own."""

from __future__ import annotations

import platform
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._version import __version__
from ..errors import HoldfastError
from ..threat import L2Threat, LinfThreat

ALLOWED = 1e-6
"""What an image may lie outside by, in input units (for radii above 1 times the radius): float32 rounding."""
_IMAGES = 2**24
"""Numbers that are compared at once (128 MiB in float64)."""


class ConstraintAudit(NamedTuple):
    """What :func:`audit_images` found.

    Attributes
    ----------
    images
        How many were looked at.
    outside
        How many lie outside by more than ``ALLOWED``.
    worst
        By how much the farthest does, in input units: at most 0 where all are inside, infinite for NaN.
    """

    images: int
    outside: int
    worst: float


def excess(x: Tensor, x0: Tensor, threat: Any) -> Tensor:
    """Return by how much attacked images lie outside what a threat allows, in input units.

    Parameters
    ----------
    x, x0
        (n, *s) attacked images and the images that they were made from.
    threat
        What was allowed. The norms and the box of l-inf and l2 balls are computed here, without the
        projection that searches use; of any other threat it is the distance to its own projection.

    Returns
    -------
    Tensor
        (n,) float64: ``max(norm - eps, low - min, max - high)``, negative inside; infinite where ``x`` is not
        finite or has not the shape of ``x0``.
    """
    if x.shape != x0.shape:
        return torch.full((len(x0),), torch.inf, dtype=torch.float64, device=x0.device)
    step = max(1, _IMAGES // max(1, x0[:1].numel()))
    if len(x) > step and not hasattr(threat, "rows"):
        parts = zip(torch.split(x, step), torch.split(x0, step), strict=True)
        return torch.cat([excess(a, b, threat) for a, b in parts])
    a, b = x.detach().double().flatten(1), x0.detach().to(x.device).double().flatten(1)
    if isinstance(threat, LinfThreat):
        over = (a - b).abs().amax(1) - threat.eps
    elif isinstance(threat, L2Threat):
        over = (a - b).square().sum(1).sqrt() - threat.eps
    else:
        over = (a - threat.project(x, x0).double().flatten(1)).abs().amax(1)
    if (bounds := getattr(threat, "bounds", None)) is not None:
        over = torch.maximum(over, torch.maximum(bounds[0] - a, a - bounds[1]).amax(1))
    return torch.where(a.isfinite().all(1), over, torch.inf).nan_to_num(nan=torch.inf, posinf=torch.inf)


def audit_images(x: Tensor, x0: Tensor, threat: Any) -> ConstraintAudit:
    """Look whether every attacked image is allowed: norm at most eps, inside the box, finite.

    Examples
    --------
    >>> x0 = torch.zeros(2, 3)
    >>> audit_images(torch.tensor([[0.1, 0.0, 0.1], [0.0, 0.3, 0.0]]), x0, LinfThreat(eps=0.1)).outside
    1
    """
    over = excess(x, x0, threat)
    limit = ALLOWED * max(1.0, float(getattr(threat, "eps", 0.0)))
    return ConstraintAudit(len(over), int((over > limit).sum()), float(over.max()) if len(over) else 0.0)


def refuse_outside(label: str, x: Tensor, x0: Tensor, threat: Any) -> None:
    """Raise if an attacked image is not allowed; nothing may be recorded of such an attack.

    Raises
    ------
    HoldfastError
        Naming the attack, how many images break the constraint and by how much.
    """
    found = audit_images(x, x0, threat)
    if found.outside:
        far = "are not finite or of another shape" if found.worst == torch.inf else f"by {found.worst:.3g}"
        raise HoldfastError(
            f"{label}: {found.outside} of {found.images} attacked images lie outside the threat ({far})",
            hint="the search or the attack is wrong: its images must come from threat.project",
        )


def made_by(device: torch.device) -> str:
    """Return what the last bits of numbers may depend on besides settings, in words.

    Examples
    --------
    >>> made_by(torch.device("cpu")).split(", ")[0].startswith("holdfast ")
    True
    """
    words = [f"holdfast {__version__}", f"torch {torch.__version__}", platform.machine()]
    if device.type == "cuda":
        words.append(torch.cuda.get_device_name(device))
    else:
        words += [torch.backends.cpu.get_cpu_capability(), f"threads {torch.get_num_threads()}"]
    return ", ".join(words)
