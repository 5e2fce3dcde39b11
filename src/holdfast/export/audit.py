"""Audit the gallery of a run, or of vectors: its hubs, an attack that makes some, a gate against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attacks.hub import HubAttack
from ..errors import InvalidArgument
from ..evaluation import Estimate, embed, estimate, retrieval_task
from ..evaluation.hubs import BUDGET, HubAudit, HubGate, HubOutcome, attack_hubs, audit_hubs
from ..evaluation.vectors import open_vectors
from ..rng import stream
from ..runs import RunFolder, default_search, open_run
from ..search import full_float32
from ..types import PairwiseDistance, RetrievalTask, Search, Threat

LEVEL = 0.99
"""An image counts as a hub where it comes back more often than this share of the clean gallery."""
KNOWN = 1024
"""Gallery rows that the attacker aims at, drawn for each image."""
IMAGES = 200
"""Gallery images that are moved, unless told otherwise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GalleryAudit:
    """What :func:`audit_run` or :func:`audit_vectors` found.

    Attributes
    ----------
    name
        Of the run or of the vectors.
    audit
        Of the clean gallery.
    gate
        Calibrated on the clean gallery; ``None`` where that is too small for its rate.
    false_alarms
        Share of honest new images (the queries) that the gate refuses, with its interval; ``None`` where
        there are none besides the gallery.
    level
        Share of the queries above which an image counts as a hub.
    attacks
        What became of moved images: ``"unaware"`` of the gate, and ``"adaptive"``.
    eps, norm
        How far they were moved; 0 without an attack.
    """

    name: str
    audit: HubAudit
    gate: HubGate | None
    false_alarms: Estimate | None
    level: float
    attacks: Mapping[str, HubOutcome] = field(default_factory=dict)
    eps: float = 0.0
    norm: str = ""

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        found = {name: one.to_plain(self.level) | self._seen(one) for name, one in self.attacks.items()}
        alarms = None
        if self.false_alarms is not None:
            alarms = {"value": self.false_alarms.value, "ci": list(self.false_alarms[1:3])}
        gate: dict[str, Any] | None = None
        if self.gate is not None:
            gate = {"rate": self.gate.rate, "limit": self.gate.limit, "rows": len(self.gate.scores)}
            gate["false_alarms"] = alarms
        return {
            "name": self.name, "gallery": self.audit.to_plain(), "gate": gate, "level": self.level,
            "eps": self.eps, "norm": self.norm, "attacks": found, "verdict": self.words(),
        }  # fmt: skip

    def _seen(self, one: HubOutcome) -> dict[str, int]:
        """Return how many of the moved images an audit would flag, at the counts it flags now."""
        least = self.audit.counts[self.audit.flagged].min()
        flagged = (one.after * self.audit.queries).round() >= least
        return {"flagged": int(flagged.sum()), "hubs_flagged": int((flagged & one.hubs(self.level)).sum())}

    def words(self) -> str:
        """Say what came out, in sentences."""
        a = self.audit
        top = int(a.counts.max())
        said = [
            f"The image that comes back most stands among the first {a.k} of {top} of {a.queries} queries "
            f"(robust z {float(a.z.max()):.1f})."
        ]
        for name, one in self.attacks.items():
            p = one.to_plain(self.level)
            said.append(
                f"Of {p['images']} images moved by an attacker {name} of the gate"
                if name == "unaware"
                else f"Of {p['images']} moved by one who knows the gate"
            )
            said[-1] += (
                f", {p['hubs']} become hubs ({p['hubs_before']} were before; mean share of queries "
                f"{100 * p['before']:.2f} % before, {100 * p['after']:.2f} % after, at most "
                f"{100 * p['largest']:.1f} %)"
            )
            if self.gate is not None:
                said[-1] += f"; the gate refuses {p['hubs_refused']} of these {p['hubs']}"
            said[-1] += f", the audit flags {self._seen(one)['hubs_flagged']}."
        return " ".join(said)


@full_float32()
def audit_run(
    run: str | Path | RunFolder,
    *,
    k: int = 10,
    budget: float = BUDGET,
    rate: float = 0.01,
    attack: bool = False,
    images: int = IMAGES,
    threat: Threat | None = None,
    search: Search | None = None,
    seed: int = 0,
    memory: int | None = None,
) -> GalleryAudit:
    """Audit the gallery of a finished run.

    Where train and test share classes the gallery are the training images and the queries the test images;
    else both are the test images, and no query lists itself.

    Parameters
    ----------
    run
        A run folder.
    k, budget, seed, memory
        See :func:`~holdfast.evaluation.hubs.audit_hubs`.
    rate
        False alarms of the gate.
    attack
        Also move gallery images so that they become hubs, with and without knowledge of the gate.
    images
        How many are moved, each by itself; drawn at random.
    threat, search
        By default the run's threat, and 40 steps of ``eps / 10``.
    """
    opened = run if isinstance(run, RunFolder) else open_run(run)
    encoder, split = opened.encoder(), opened.run.data.load()
    closed, distance = split.protocol == "closed", opened.run.distance
    stored = split.train if closed else split.test
    task = retrieval_task(encoder, stored.x, stored.y, distance)
    queries = embed(encoder, split.test.x) if closed else task.z
    found = _audited(
        opened.path.name, task.z, queries if closed else None, split.test.y, distance, k, budget, rate, seed,
        memory,
    )  # fmt: skip
    if not attack:
        return found
    limit = threat or opened.run.threat
    radius = float(getattr(limit, "eps", 0.0))
    rows = torch.randperm(len(task), generator=stream(seed, "hub images"))[:images].sort().values
    own = None if closed else torch.arange(len(queries))
    return replace(
        found, attacks=_attacks(task.rows(rows), queries, own, found, k, search, limit, seed), eps=radius,
        norm=str(getattr(limit, "norm", "")),
    )  # fmt: skip


@full_float32()
def audit_vectors(
    vectors: str | Path | Tensor,
    queries: str | Path | Tensor | None = None,
    *,
    k: int = 10,
    distance: PairwiseDistance | None = None,
    budget: float = BUDGET,
    rate: float = 0.01,
    seed: int = 0,
    memory: int | None = None,
) -> GalleryAudit:
    """Audit embeddings alone: a tensor, a ``.npy`` file, or a folder of ``holdfast embed``.

    Parameters
    ----------
    vectors, queries
        Gallery and queries; by default a sample of the gallery asks.
    k, distance, budget, rate, seed, memory
        See :func:`audit_run`.
    """
    z = vectors if isinstance(vectors, Tensor) else open_vectors(vectors).z
    asked = queries if isinstance(queries, Tensor | None) else open_vectors(queries).z
    name = "vectors" if isinstance(vectors, Tensor) else Path(vectors).name
    return _audited(name, z, asked, None, distance, k, budget, rate, seed, memory)


def _audited(
    name: str,
    z: Tensor,
    queries: Tensor | None,
    groups: Tensor | None,
    distance: PairwiseDistance | None,
    k: int,
    budget: float,
    rate: float,
    seed: int,
    memory: int | None,
) -> GalleryAudit:
    known = groups if queries is not None else None  # a sample of the gallery is grouped by k-means
    audit = audit_hubs(
        z, queries, k=k, distance=distance, groups=known, budget=budget, seed=seed, memory=memory
    )
    gate, alarms = None, None
    try:
        gate = HubGate.fit(z, k=k, rate=rate, distance=distance, seed=seed, memory=memory)
    except InvalidArgument as error:
        if error.argument != "gallery":
            raise
    if gate is not None and queries is not None:
        alarms = estimate((~gate.admits(queries)).double())
    level = float(torch.quantile(audit.share()[: 2**24], LEVEL))
    return GalleryAudit(name=name, audit=audit, gate=gate, false_alarms=alarms, level=level)


def _attacks(
    task: RetrievalTask,
    queries: Tensor,
    own: Tensor | None,
    found: GalleryAudit,
    k: int,
    search: Search | None,
    threat: Threat,
    seed: int,
) -> dict[str, HubOutcome]:
    searched = search or default_search(threat.eps)
    ways = {"unaware": False} | ({} if found.gate is None else {"adaptive": True})
    return {
        name: attack_hubs(
            task, queries, searched, threat, own=own, attack=HubAttack(k=k, w=KNOWN), gate=found.gate,
            adaptive=adaptive, seed=seed,
        )
        for name, adaptive in ways.items()
    }  # fmt: skip
