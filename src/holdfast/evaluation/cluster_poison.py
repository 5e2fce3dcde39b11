"""Poisoned references as a suite: what clean queries meet when the clusters are fitted again (G1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attacks import Outcome
from ..attacks.poison import Refits, poison
from ..search import Precision
from ..types import ClusterTask, Search, Threat
from .suite import Entry, Suite


@dataclass(frozen=True, kw_only=True, eq=False)
class Refitted:
    """What became of queries that nobody moved, as an attack of a suite.

    Attributes
    ----------
    index
        (n,) sample numbers of the queries.
    clean, attacked
        Their measures (n,) under clean and under changed references.
    """

    index: Tensor
    clean: dict[str, Tensor]
    attacked: dict[str, Tensor]
    moves_queries: bool = False

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
        """Return the measures of some of the queries, with their clean images."""
        order = self.index.argsort()
        rows = order[torch.searchsorted(self.index[order], task.index)]

        def some(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {metric: v[rows.to(v.device)] for metric, v in values.items()}

        return Outcome(x=task.x, z=task.z, clean=some(self.clean), attacked=some(self.attacked))


def poisoning(
    suite: Suite,
    task: ClusterTask,
    search: Search,
    threat: Threat,
    *,
    share: float = 0.1,
    seed: int = 0,
    reference_labels: Tensor | None = None,
) -> Suite:
    """Poison the references of a task, and return a suite with what that did to its clean queries.

    Parameters
    ----------
    suite
        Its entries are replaced.
    task, search, threat, share, seed, reference_labels
        See :func:`holdfast.attacks.poison.poison`.

    Returns
    -------
    Suite
        ``G1`` with poisoned references and ``G1-noise`` with random noise on the same images. Measures are
        ``flip`` and, where clusters have names, ``accuracy``: for each query the mean over the five seeds by
        which k-means is run again. The clean values are those of k-means run again on clean references, so
        ``flip`` is above 0 there too where k-means is unsteady.
    """
    found = poison(task, search, threat, share=share, seed=seed, reference_labels=reference_labels)
    flags = {"flip": False} | ({} if found.clean.accuracy is None else {"accuracy": True})
    clean = _means(found.clean)
    entries = tuple(
        Entry(
            label=label,
            attack=Refitted(index=task.index, clean=clean, attacked=_means(refits)),
            higher_is_robust=flags,
        )
        for label, refits in (("G1", found.poisoned), ("G1-noise", found.control))
    )
    return replace(suite, entries=entries)


def _means(found: Refits) -> dict[str, Tensor]:
    """Return the means over the seeds, each (n,)."""
    means = {"flip": found.flip.mean(0)}
    if found.accuracy is not None:
        means["accuracy"] = found.accuracy.mean(0)
    return means
