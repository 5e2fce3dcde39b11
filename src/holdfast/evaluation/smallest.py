"""The smallest change for each query as an entry of a suite, and the robustness curve that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..attacks import Outcome, hits
from ..errors import InvalidArgument
from ..search import Precision
from ..types import ClusterTask, RetrievalTask, Search, Threat
from .curve import curve, median_radius
from .minimum import minimum_norm
from .stats import Estimate


@dataclass(frozen=True, kw_only=True)
class SmallestChange:
    """Search for the smallest change that makes a query's first result wrong, or takes it out of its cluster.

    The radius of the threat is the largest that is tried. The search of the evaluation lends its number of
    steps; its step length is not used.

    Attributes
    ----------
    steps, bisections
        See :func:`~holdfast.evaluation.minimum.minimum_norm`.
    """

    steps: int = 40
    bisections: int = 8

    def run(
        self,
        task: RetrievalTask,
        search: Search,
        threat: Threat,
        *,
        seed: int = 0,
        label: str = "minimum",
        precision: Precision = "fp32",
    ) -> Outcome:
        """Attack every query of a task.

        Returns
        -------
        Outcome
            ``recall@1`` before and after, and ``radius``, the size of the smallest change found: 0 where the
            query is wrong when clean, infinite where none was found. For clusters ``recall@1`` is about the
            nearest centroid, and ``flip`` is one minus it.
        """
        if precision != "fp32":
            raise InvalidArgument("precision", "'fp32' for the smallest change", precision)
        found = minimum_norm(
            task,
            None,
            threat,  # type: ignore[arg-type]  # refused there if it is no ball
            steps=self.steps,
            bisections=self.bisections,
            search_steps=max(1, getattr(search, "steps", 32)),
            seed=seed,
            label=label,
            chunk=len(task),
        )
        with torch.no_grad():
            z = task.encoder(found.x)
        clean = hits(task.z, task, 1)
        radius = found.radius.to(task.z.device)
        before = {"recall@1": clean, "radius": torch.zeros_like(radius)}
        after = {"recall@1": (radius > threat.eps).to(clean), "radius": radius}
        if isinstance(task, ClusterTask):
            for measures in (before, after):
                measures["flip"] = 1 - measures["recall@1"]
        return Outcome(x=found.x, z=z, clean=before, attacked=after)


class CurvePoint(NamedTuple):
    """The share of queries that hold at a radius."""

    eps: float
    recall: Estimate


def robustness_curve(outcome: Outcome, eps: float, points: int = 10) -> tuple[Sequence[CurvePoint], Estimate]:
    """Return the robustness curve up to a radius, and the median of the smallest radii.

    Parameters
    ----------
    outcome
        Of :class:`SmallestChange`.
    eps
        Largest radius.
    points
        Equal steps from 0 to ``eps``.
    """
    radius, clean = outcome.attacked["radius"], outcome.clean["recall@1"]
    radii = [eps * i / points for i in range(1, points + 1)]
    found = curve(radius, clean, radii)
    return [CurvePoint(*pair) for pair in zip(radii, found, strict=True)], median_radius(radius, clean)
