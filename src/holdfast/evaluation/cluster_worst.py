"""The worst case of clustering-based inference: strong searches in turn until a query leaves its cluster."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacks import CLUSTER_ATTACKS, Outcome
from ..attacks.cluster import cluster_measures
from ..errors import InvalidArgument
from ..rng import Randomness
from ..search import APGD, Precision, RayS, Square
from ..types import ClusterTask, Encoder, Objective, Search, Threat
from .worst_case import Stage, WorstCase

WHITE_BOX = ("A1", "A2", "A3.1", "A3.2", "A3.3", "A4", "A5", "A6")
"""The attacks that follow a gradient."""
FLAT_AT_CLEAN = ("A5",)
"""Those of them whose gain has next to no slope at the clean input, so that they begin at random."""


@dataclass(frozen=True, kw_only=True)
class HardLabelQueries:
    """A search that is told only whether a query is broken: rays in an l-inf ball, squares elsewhere.

    Attributes
    ----------
    queries
        Passes of every input, >= 1.
    """

    queries: int = 500

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise InvalidArgument("queries", "an integer >= 1", self.queries)

    def __call__(
        self,
        encoder: Encoder,
        x0: Tensor,
        objective: Objective,
        threat: Threat,
        generator: Randomness = None,
    ) -> Tensor:
        """Return what :class:`~holdfast.search.RayS` or :class:`~holdfast.search.Square` finds."""
        ball = getattr(threat, "norm", "") == "linf"
        search: Search = RayS(queries=self.queries) if ball else Square(queries=self.queries, stop_at=0.0)
        return search(encoder, x0, objective, threat, generator)


@dataclass(frozen=True, kw_only=True)
class ClusterWorstCase:
    """:class:`~holdfast.evaluation.worst_case.WorstCase` on clusters, with the measures of clusters.

    Attributes
    ----------
    cases
        The stages; a query is broken when its own centroid is not strictly nearest any more.
    """

    cases: WorstCase

    def run(
        self,
        task: ClusterTask,
        search: Search,
        threat: Threat,
        *,
        seed: int = 0,
        label: str = "",
        precision: Precision = "fp32",
    ) -> Outcome:
        """Attack every query of a task.

        Returns
        -------
        Outcome
            Before and after: ``flip``; ``accuracy``, 1 where the query is named rightly when clean and kept
            its cluster, which with one-to-one names is the robust accuracy exactly; ``majority``,
            ``recall@1`` and ``map@r`` on the image that left the cluster, or on the closest attempt, and
            never above their clean values. These three are not what the stages aim at, so the suite's own
            union may show lower ones. ``stage`` as in
            :class:`~holdfast.evaluation.worst_case.WorstCase`.
        """
        found = self.cases.run(task, search, threat, seed=seed, label=label, precision=precision)
        before, after = (cluster_measures(z, task) for z in (task.z, found.z))
        attacked = {metric: torch.minimum(before[metric], values) for metric, values in after.items()}
        attacked["flip"] = torch.maximum(before["flip"], after["flip"])
        return Outcome(
            x=found.x,
            z=found.z,
            clean={**before, "stage": found.clean["stage"]},
            attacked={**attacked, "stage": found.attacked["stage"]},
        )


def cluster_worst_case(steps: int = 50, restarts: int = 3, queries: int = 500) -> ClusterWorstCase:
    """Return the standard worst case of clustering-based inference.

    Adaptive searches (:class:`~holdfast.search.APGD`) on A1 to A6, A5 from random starts throughout; then the
    evaluation's own search on A1, with the random numbers of suite ``clustering``, so that its A1 cannot do
    better; then a random search (:class:`~holdfast.search.Square`) on the margin of A1, which needs no
    gradient.

    Parameters
    ----------
    steps, restarts
        Of each adaptive search.
    queries
        Of the random search.

    Notes
    -----
    The attacks are our own design for clustering-based inference (section 2 of the specification), not those
    of Ke, arXiv 2501.01025, which could not be read.
    """
    stages = [
        Stage(
            label=f"APGD {name}",
            attack=CLUSTER_ATTACKS[name],
            search=APGD(steps=steps, restarts=restarts, random_start=name in FLAT_AT_CLEAN),
        )
        for name in WHITE_BOX
    ]
    margin = CLUSTER_ATTACKS["A1"]
    stages.append(Stage(label="A1", attack=margin))
    stages.append(Stage(label="A7", attack=margin, search=Square(queries=queries, stop_at=0.0)))
    return ClusterWorstCase(cases=WorstCase(stages=tuple(stages)))
