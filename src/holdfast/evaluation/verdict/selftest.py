"""Do the checks catch what is broken on purpose? R22."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ...rng import stream
from ...search import PGD
from ...types import ClusterTask, Encoder, Gallery, RetrievalTask
from ..embed import retrieval_task, under_clusters
from .collapse import collapse
from .controls import CONTROLS
from .examination import Examination
from .finding import Finding
from .gradients import gradient_correct, gradient_exists
from .material import Unavailable
from .pipeline import determinism
from .texts import found, skipped

IMAGES = 96
CHEAP: tuple[Callable[[Examination], Finding], ...] = (
    determinism,
    collapse,
    gradient_exists,
    gradient_correct,
)


def self_test(e: Examination) -> Finding:
    """R22: wrap the encoder in every control, and run the cheap checks until one fails.

    On 96 of the task's own images as queries and gallery, or as queries and references of the clusters that
    they are in, with a search of two steps. An encoder that fails one of these checks by itself shows nothing
    more under a control.
    """
    order = torch.randperm(len(e.task), generator=stream(e.seed, "examination", "controls"))[:IMAGES]
    part = e.task.rows(order.sort().values.to(e.device))
    among = clusters_among(part) if isinstance(part, ClusterTask) else None

    def caught_by(encoder: Encoder) -> str | None:
        if among is None:
            task: RetrievalTask = retrieval_task(encoder, part.x, part.y, part.distance)
        else:
            task = under_clusters(among, encoder)
        small = replace(
            e, task=task, results=(), level="quick",
            queries=32, passes=1, found={}, union=False, certificate=None, gallery_x=None,
            search=PGD(steps=2, alpha=e.threat.eps / 2),
            threat=e.near(part),
        )  # fmt: skip
        return next((name for check in CHEAP if (name := _failure(check, small))), None)

    if name := caught_by(e.task.encoder):
        return skipped("R22", f"the encoder fails {name} without any control")
    blind = [name for name, broken in CONTROLS.items() if not caught_by(broken(e.task.encoder))]
    caught = len(CONTROLS) - len(blind)
    detail = f"{caught} of {len(CONTROLS)} broken encoders were caught"
    if blind:
        detail += f"; not caught: {', '.join(blind)}"
    return found("R22", "fail" if blind else "pass", float(caught), detail)


def clusters_among(task: ClusterTask) -> ClusterTask:
    """Return a task of the clusters that its queries are in, with the queries as their references."""
    inside, member_of = torch.unique(task.cluster_of, return_inverse=True)
    numbers = torch.arange(len(inside), device=inside.device)
    return replace(
        task, y=member_of, cluster_of=member_of, names=None, images=None, references=task.x,
        member_of=member_of, gallery=Gallery(task.gallery.z[inside], numbers, numbers),
    )  # fmt: skip


def _failure(check: Callable[[Examination], Finding], e: Examination) -> str | None:
    """Return the id of the check if it fails."""
    try:
        finding = check(e)
    except Unavailable:  # such as no query that is right: another check has to see it
        return None
    return finding.id if finding.status == "fail" else None
