"""Do the checks catch what is broken on purpose? R22."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ...rng import stream
from ..embed import retrieval_task
from .collapse import collapse
from .controls import CONTROLS
from .examination import Examination, Unavailable
from .finding import Finding
from .gradients import gradient_correct, gradient_exists
from .pipeline import determinism
from .texts import found

IMAGES = 96
CHEAP: tuple[Callable[[Examination], Finding], ...] = (
    determinism,
    collapse,
    gradient_exists,
    gradient_correct,
)


def self_test(e: Examination) -> Finding:
    """R22: wrap the encoder in every control, and run the cheap checks until one fails.

    On 96 of the task's own images as queries and gallery, and with two steps.
    """
    order = torch.randperm(len(e.task), generator=stream(e.seed, "examination", "controls"))[:IMAGES]
    part = e.task.rows(order.sort().values.to(e.device))
    blind = []
    for name, broken in CONTROLS.items():
        task = retrieval_task(broken(e.task.encoder), part.x, part.y, part.distance)
        control = replace(
            e, task=task, results=(), level="quick", queries=32, passes=1, found={}, union=False,
            certificate=None, gallery_x=None,
        )  # fmt: skip
        if not any(_fails(check, control) for check in CHEAP):
            blind.append(name)
    caught = len(CONTROLS) - len(blind)
    detail = f"{caught} of {len(CONTROLS)} broken encoders were caught"
    if blind:
        detail += f"; not caught: {', '.join(blind)}"
    return found("R22", "fail" if blind else "pass", float(caught), detail)


def _fails(check: Callable[[Examination], Finding], e: Examination) -> bool:
    try:
        return check(e).status == "fail"
    except Unavailable:  # such as no query that is right: another check has to see it
        return False
