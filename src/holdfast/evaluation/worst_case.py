"""The worst case for each query: strong searches of different aims, in turn, until one succeeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..attacks import (
    ATTACKS,
    CentroidGain,
    EmbeddingShift,
    Outcome,
    RankMargin,
    TargetedNeighbour,
    TripletGain,
    hits,
    run,
)
from ..errors import InvalidArgument
from ..search import APGD, Precision, Square
from ..types import RetrievalTask, Search, Threat

OF_ERS = ("ES", "LTM", "GTM", "GTT", "QA+", "QA-", "TMA")
"""The attacks of the empirical robustness score that move a query."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One attempt.

    Attributes
    ----------
    label
        Its name, which also names the random streams.
    attack
        Target and gain; or a composite that has a method ``run``, as in
        :class:`~holdfast.evaluation.Entry`.
    search
        ``None`` takes the search of the evaluation.
    """

    label: str
    attack: Any
    search: Search | None = None


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """Try every stage on the queries that are right when clean and that no stage before has broken.

    A query is broken when none of its first ``k`` results has its label, its own image left out; ties count
    against the defense. What is reported is the worst case over all stages, query by query, so it is never
    higher than under any one of them.

    Attributes
    ----------
    stages
        Attempts, in order.
    k
        Places that count.
    """

    stages: tuple[Stage, ...]
    k: int = 1

    def __post_init__(self) -> None:
        if not self.stages:
            raise InvalidArgument("stages", "at least one", self.stages)
        if self.k < 1:
            raise InvalidArgument("k", "an integer >= 1", self.k)

    def run(
        self,
        task: RetrievalTask,
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
            ``recall@k`` before and after; ``stage``, the number of the stage that broke the query, -1 where
            none did and -2 where it was wrong when clean. Survivors have the images of the closest attempt.
        """
        metric = f"recall@{self.k}"
        margin = RankMargin(k=self.k)
        clean = hits(task.z, task, self.k)
        x, z = task.x.clone(), task.z.clone()
        unhurt = torch.where(clean > 0, -1.0, -2.0).to(z)
        stage = unhurt.clone()
        best = margin.gain(z, None, task)
        for number, part in enumerate(self.stages):
            alive = torch.nonzero(stage == -1).squeeze(1)
            if not len(alive):
                break
            rows = task.rows(alive)
            how: dict[str, Any] = {"seed": seed, "label": part.label, "precision": precision}
            if hasattr(part.attack, "run"):
                outcome = part.attack.run(rows, part.search or search, threat, **how)
            else:
                how["batch_size"] = len(alive)
                outcome = run(rows, part.attack, part.search or search, threat, **how)
            broken = hits(outcome.z, rows, self.k) == 0
            value = margin.gain(outcome.z, None, rows)
            closer = broken | (value > best[alive])
            x[alive[closer]], z[alive[closer]] = outcome.x[closer], outcome.z[closer]
            best[alive[closer]] = value[closer]
            stage[alive[broken]] = float(number)
        return Outcome(
            x=x,
            z=z,
            clean={metric: clean, "stage": unhurt},
            attacked={metric: (stage == -1).to(z), "stage": stage},
        )


def worst_case(k: int = 1, steps: int = 100, targets: int = 3, queries: int = 1000) -> WorstCase:
    """Return the standard worst case: no step length to choose, nothing to tune.

    Adaptive searches (:class:`~holdfast.search.APGD`) on the margin that decides Recall@k, on triplets, on
    the nearest wrong neighbours in turn, on class means, and on the embedding shift from a random start; then
    the attacks of the empirical robustness score as their suite runs them, so that none of those beats it;
    then a random search (:class:`~holdfast.search.Square`) that needs no gradient.

    Parameters
    ----------
    k
        Places that count.
    steps
        Of each adaptive search.
    targets
        Nearest wrong neighbours that are aimed at.
    queries
        Of the random search.

    References
    ----------
    Croce and Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks*, ICML 2020; carried over to retrieval here.
    """
    adaptive = APGD(steps=steps)
    return WorstCase(
        stages=(
            Stage(label="RANK", attack=RankMargin(k=k), search=adaptive),
            Stage(label="TRIPLET", attack=TripletGain(), search=adaptive),
            *(
                Stage(label=f"TARGET{j}", attack=TargetedNeighbour(j=j), search=adaptive)
                for j in range(1, targets + 1)
            ),
            Stage(label="CENTROID", attack=CentroidGain(), search=adaptive),
            Stage(label="SHIFT", attack=EmbeddingShift(), search=APGD(steps=steps, random_start=True)),
            *(Stage(label=name, attack=ATTACKS[name]) for name in OF_ERS),
            Stage(label="SQUARE", attack=RankMargin(k=k), search=Square(queries=queries, stop_at=0.0)),
        ),
        k=k,
    )
