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
    twice chance. Ties are pairs of queries with the same unit embedding, bit for bit.
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
    right = share(e.right)
    wanted = min(2 * e.chance, (1 + e.chance) / 2)
    detail = (
        f"mean cosine {cosine:.3f}, effective rank {rank:.1f}, {percent(ties)} of pairs tied, clean recall@1 "
        f"{percent(right)} (chance {percent(e.chance)})"
    )
    if cosine > 0.97 or rank < 2 or ties >= TIES or right < wanted:
        return found("R24", "fail", cosine, detail)
    return found("R24", "warn" if cosine >= 0.9 or rank < 5 else "pass", cosine, detail)
