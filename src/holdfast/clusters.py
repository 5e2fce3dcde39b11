"""How an evaluation finds its clusters, and what the suites on clusters need besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from .errors import DataError, InvalidArgument, UnknownName
from .evaluation import Suite
from .evaluation.card import Plan
from .evaluation.cluster_poison import poisoning
from .evaluation.cluster_transfer import digest, with_transfer
from .types import ClusterTask, Encoder, Images, PairwiseDistance, RetrievalTask

Inference = Literal["kmeans", "spherical", "prototype"]
INFERENCES: tuple[Inference, ...] = ("kmeans", "spherical", "prototype")


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """How the clusters of an evaluation are found, and which share of their references is poisoned.

    Attributes
    ----------
    count
        Number of clusters; ``"auto"`` chooses by silhouette, ``None`` takes the number of classes.
    inference
        ``"kmeans"``, ``"spherical"`` or ``"prototype"``; see :class:`~holdfast.inference.ClusterIndex`.
    poison
        Of suite ``poisoning``, in [0, 1].
    """

    count: int | Literal["auto"] | None = None
    inference: Inference = "kmeans"
    poison: float = 0.1

    def __post_init__(self) -> None:
        if self.inference not in INFERENCES:
            raise UnknownName("inference", self.inference, INFERENCES)
        whole = isinstance(self.count, int) and not isinstance(self.count, bool) and self.count >= 2
        if not (self.count is None or self.count == "auto" or whole):
            raise InvalidArgument("clusters", "an integer >= 2, 'auto' or None", self.count)
        if not 0 <= self.poison <= 1:
            raise InvalidArgument("poison", "a share in [0, 1]", self.poison)

    def check(self, suite: Suite) -> None:
        """Refuse settings that a suite does not read."""
        if not suite.clusters and self != Clusters():
            need = (
                "a suite on clusters (clustering, clustering-worst, poisoning) beside clusters or inference"
            )
            raise InvalidArgument("suite", need, suite.name)

    def settings(self, suite: Suite, others: Mapping[str, Encoder]) -> dict[str, Any]:
        """Return what decides numbers besides the references, as plain data; nothing for other suites."""
        if not suite.clusters:
            return {}
        told: dict[str, Any] = {"clusters": self.count, "inference": self.inference}
        if suite.entries:
            told["surrogates"] = {name: digest(encoder) for name, encoder in others.items()}
        else:
            told["poison"] = self.poison
        return told

    def task(
        self,
        encoder: Encoder,
        x: Images,
        truth: Tensor | None,
        references: Images | Tensor,
        reference_labels: Tensor | None,
        *,
        distance: PairwiseDistance | None = None,
        seed: int = 0,
        batch_size: int = 256,
    ) -> ClusterTask:
        """Return queries against the clusters of references; ``distance`` ranks images for Recall@1.

        Raises
        ------
        InvalidArgument
            If there are more clusters than references, or labels are missing that are asked for.
        DataError
            If there is a single cluster.
        """
        from .inference import ClusterIndex, cluster_task  # slow to import

        index = ClusterIndex(self.count, inference=self.inference, random_state=seed)
        task = cluster_task(
            encoder, x, truth, references=references, reference_labels=reference_labels, index=index,
            batch_size=batch_size,
        )  # fmt: skip
        if len(task.gallery.z) < 2:
            raise DataError("clusters: need at least two, so that a query can leave its own, got 1")
        if distance is None or task.images is None:
            return task
        return replace(task, images=replace(task.images, distance=distance))

    def complete(self, plan: Plan, task: RetrievalTask, others: Mapping[str, Encoder], y: Any) -> Plan:
        """Return a plan whose suite on clusters has what depends on the task: A8, or poisoned references."""
        if not isinstance(task, ClusterTask):
            return plan
        if plan.suite.entries:
            return replace(plan, suite=with_transfer(plan.suite, task, others))
        suite = poisoning(
            plan.suite, task, plan.search, plan.threat,
            share=self.poison, seed=plan.seed, reference_labels=y,
        )  # fmt: skip
        return replace(plan, suite=suite, level="off")  # nobody attacks a query: nothing to examine
