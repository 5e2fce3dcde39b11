"""Is there anything to fool? R24."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...functional.spread import effective_rank, mean_cosine
from ...rng import stream
from .compare import share
from .examination import Examination
from .finding import Finding
from .texts import found, percent

MOST = 2000
TIES = 1e-3


def collapse(e: Examination) -> Finding:
    """R24: how the clean embeddings use their space, and whether the encoder retrieves better than chance.

    Where chance is above one third, the encoder has to go half of the way from chance to 1 instead of to
    twice chance. Ties are pairs of queries with the same unit embedding, bit for bit. Every clean query is
    right among clusters, so there the accuracy of their one-to-one names is judged, where these and the
    classes of queries are known; its chance is that of names dealt out to clusters of the same sizes.
    """
    z = e.task.z
    if len(z) > MOST:
        rows = torch.randperm(len(z), generator=stream(e.seed, "examination", "collapse"))[:MOST]
        z = z[rows.to(z.device)]
    unit = F.normalize(z, dim=1)
    cosine = mean_cosine(unit) if len(unit) > 1 else 0.0
    rank = effective_rank(unit)
    counts = torch.unique(unit, dim=0, return_counts=True)[1].double()
    ties = float((counts * (counts - 1)).sum() / max(len(unit) * (len(unit) - 1), 1))
    name, right, chance = _quality(e)
    wanted = min(2 * chance, (1 + chance) / 2)
    detail = f"mean cosine {cosine:.3f}, effective rank {rank:.1f}, {percent(ties)} of pairs tied, " + (
        f"clean {name} {percent(right)} (chance {percent(chance)})" if name else "no classes to compare"
    )
    if cosine > 0.97 or rank < 2 or ties >= TIES or right < wanted:
        return found("R24", "fail", cosine, detail)
    return found("R24", "warn" if cosine >= 0.9 or rank < 5 else "pass", cosine, detail)


def _quality(e: Examination) -> tuple[str, float, float]:
    """Return how well clean queries are told apart, and by chance; without a name where nothing tells."""
    if e.clusters is None:
        return "recall@1", share(e.right), e.chance
    names, truth = e.clusters.names, e.clusters.truth
    known = truth >= 0
    if names is None or not bool(known.any()):
        return "", 0.0, 0.0
    own, truth = e.clusters.cluster_of[known], truth[known]
    called = names.hungarian.to(own.device)[own]
    classes = int(max(called.max(), truth.max())) + 1
    named, there = (torch.bincount(part[part >= 0], minlength=classes).double() for part in (called, truth))
    return "accuracy", share(called == truth), float((named * there).sum()) / len(truth) ** 2
