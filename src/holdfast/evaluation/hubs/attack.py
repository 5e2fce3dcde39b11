"""How far an attack on images gets that wants to make hubs, with and without a gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...attacks import run
from ...attacks.hub import HubAttack, reach
from ...errors import InvalidArgument
from ...functional.distance import Euclidean
from ...functional.ranking import chunks
from ...types import Gallery, PairwiseDistance, RetrievalTask, Search, Threat
from .gate import HubGate

NUMBERS = 2**22
"""Distances that are looked at at once."""


@torch.no_grad()
def occurrence(
    z: Tensor,
    stands_for: Tensor,
    queries: Tensor,
    gallery: Tensor,
    *,
    k: int = 10,
    distance: PairwiseDistance | None = None,
    own: Tensor | None = None,
) -> Tensor:
    """Return the share of queries that would list each candidate, put into the gallery by itself.

    Parameters
    ----------
    z, stands_for
        (n, e) candidates, and the gallery row (n,) that each stands in for, -1 where it is added.
    queries, own
        (q, e), and the gallery row (q,) that each is itself, by default none is. A query that is the
        candidate's own row is left out.
    gallery
        (m, e).
    k, distance
        Length of the lists, and what ranks.

    Returns
    -------
    Tensor
        (n,) float64 in [0, 1]; ties count for the candidate.
    """
    own = torch.full((len(queries),), -1, device=gallery.device) if own is None else own
    ranks, rows = distance or Euclidean(), torch.arange(len(gallery), device=gallery.device)
    whole = Gallery(gallery, rows, rows)
    hits, asked = (torch.zeros(len(z), dtype=torch.float64, device=z.device) for _ in range(2))
    for at in chunks(len(queries), max(1, NUMBERS // max(len(gallery), len(z)))):
        others = (own[at][None] != stands_for[:, None]) | (own[at][None] < 0)  # (n, q)
        radius = reach(queries[at], own[at], whole, k, ranks, stands_for)
        d = ranks.matrix(queries[at], z).T
        hits += ((d <= radius) & others).sum(1)
        asked += others.sum(1)
    return hits / asked.clamp_min(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class HubOutcome:
    """What became of images that were to be made hubs.

    Attributes
    ----------
    x, z
        (n, c, h, w) images inside the threat, and their embeddings (n, e).
    before, after
        (n,) share of queries, which the attacker did not see, that list the image.
    admitted_before, admitted
        (n,) bool: what the gate says of clean and of moved images; all True without a gate.
    """

    x: Tensor
    z: Tensor
    before: Tensor
    after: Tensor
    admitted_before: Tensor
    admitted: Tensor

    def hubs(self, level: float) -> Tensor:
        """Return which moved images come back for more than a share ``level`` of the queries: (n,) bool."""
        return self.after > level

    def to_plain(self, level: float) -> dict[str, Any]:
        """Return plain data: mean shares; how many became hubs above ``level``, were refused, got through."""
        hubs = self.hubs(level)
        return {
            "images": len(self.after), "before": float(self.before.mean()), "after": float(self.after.mean()),
            "largest": float(self.after.max()), "level": level,
            "hubs_before": int((self.before > level).sum()), "hubs": int(hubs.sum()),
            "refused_before": int((~self.admitted_before).sum()),
            "refused": int((~self.admitted).sum()), "hubs_refused": int((hubs & ~self.admitted).sum()),
            "hubs_admitted": int((hubs & self.admitted).sum()),
            "admitted_after": float(self.after[self.admitted].mean()) if bool(self.admitted.any()) else 0.0,
        }  # fmt: skip


def attack_hubs(
    task: RetrievalTask,
    queries: Tensor,
    search: Search,
    threat: Threat,
    *,
    own: Tensor | None = None,
    attack: HubAttack | None = None,
    gate: HubGate | None = None,
    adaptive: bool = False,
    seed: int = 0,
    batch_size: int = 128,
) -> HubOutcome:
    """Move images so that they become hubs, and count on queries that the attacker did not see.

    An image whose moved form serves fewer of the attacker's own queries than the clean one (or, adaptively,
    is refused where the clean one is admitted) stays as it is.

    Parameters
    ----------
    task
        The images to be moved, as queries of a task whose ``self_index`` are their rows in the gallery.
    queries, own
        (q, e) clean embeddings on which the result is counted, and their rows in the gallery; see
        :func:`occurrence`.
    search, threat
        How images are moved, and how far.
    attack
        By default :class:`~holdfast.attacks.hub.HubAttack` with lists as long as the gate's, or 10.
    gate
        Judges the images.
    adaptive
        The attacker knows the gate and pays for a score above its limit.
    seed, batch_size
        See :func:`holdfast.attacks.run`.
    """
    chosen = attack or HubAttack(k=10 if gate is None else gate.k)
    if adaptive:
        if gate is None:
            raise InvalidArgument("gate", "the gate that the attacker knows", None)
        chosen = replace(chosen, score=gate.score, limit=0.95 * gate.limit)
    found = run(task, chosen, search, threat, seed=seed, label="HUB", batch_size=batch_size)
    every = torch.ones(len(task), dtype=torch.bool, device=task.z.device)
    clean = every if gate is None else gate.admits(task.z)
    moved = every if gate is None else gate.admits(found.z)
    worse = found.attacked["hub"] < found.clean["hub"]
    if adaptive:
        worse = (worse & (moved | ~clean)) | (clean & ~moved)
    x = torch.where(worse.reshape(-1, *[1] * (task.x.ndim - 1)), task.x, found.x)
    z = torch.where(worse[:, None], task.z, found.z)

    def counted(rows: Tensor) -> Tensor:
        return occurrence(
            rows, task.self_index, queries, task.gallery.z, k=chosen.k, distance=task.distance, own=own
        )

    return HubOutcome(
        x=x, z=z, before=counted(task.z), after=counted(z), admitted_before=clean,
        admitted=torch.where(worse, clean, moved),
    )  # fmt: skip
