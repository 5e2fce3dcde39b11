"""Can the encoder be climbed? R4 to R7."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ...functional.ranking import chunks
from ...rng import normal, uniform
from ...search import Autograd, frozen, uses_gradients
from ...types import RetrievalTask
from .compare import share
from .examination import BATCH, Examination
from .finding import Finding
from .material import SQUARE, Unavailable
from .searches import in_double
from .texts import at_most, found, percent, skipped

DIRECTIONS = 10
JITTER = 0.002


def gradient_exists(e: Examination) -> Finding:
    """R4: the share of queries whose gain has no gradient with respect to the image."""
    if not uses_gradients(e.search):
        return found("R4", "warn", None, "the search uses no gradients, which might find more")
    dead = []
    for rows in chunks(len(e.part), BATCH):
        some = e.part.rows(rows)
        try:
            _, grad = _value_and_gradient(e, some, some.x)
        except InvalidArgument as error:
            return found("R4", "fail", 1.0, f"the graph is broken: {error}")
        flat = grad.flatten(1)
        dead.append((flat == 0).all(1) | ~torch.isfinite(flat).all(1))
    value = share(torch.cat(dead))
    detail = f"{percent(value)} of {len(e.part)} queries have a zero or NaN gradient"
    status = at_most(value, 0.0, 0.01)
    if status == "fail" and _has_black_box(e):
        return found("R4", "warn", value, f"{detail}; Square is part of the score")
    if status != "fail":
        try:
            _ = e.primary
        except Unavailable as error:
            return found("R4", "fail", value, str(error))
    return found("R4", status, value, detail)


def _value_and_gradient(e: Examination, part: RetrievalTask, x: Tensor) -> tuple[Tensor, Tensor]:
    target = e.attack.target(part, e.streams("gradient", part))
    with frozen(part.encoder):
        return Autograd()(part.encoder, x, lambda z: e.attack.gain(z, target, part))


def gradient_correct(e: Examination) -> Finding:
    """R5: directional derivatives by back-propagation and by central differences, in float64."""
    if not uses_gradients(e.search):
        return skipped("R5", "the search uses no gradients")
    part = e.few
    double = in_double(part)
    h = 1e-4 if double.x.dtype == torch.float64 else 1e-3
    low, high = getattr(e.threat, "bounds", None) or (-torch.inf, torch.inf)
    # Away from kinks that images sit on exactly: a clamp at the border, equal pixels under a max-pooling.
    jitter = JITTER * (2 * uniform(double.x, e.streams("jitter", part)) - 1)
    x = double.x.clamp(low + 0.01, high - 0.01) + jitter
    target = e.attack.target(double, e.streams("gradient", part))

    def value(images: Tensor) -> Tensor:
        with frozen(double.encoder), torch.no_grad():
            return e.attack.gain(double.encoder(images), target, double)

    try:
        _, grad = _value_and_gradient(e, double, x)
    except InvalidArgument as error:
        raise Unavailable(f"there is no gradient to compare: {error}") from error
    errors = []
    streams = e.streams("directions", part)
    for _ in range(DIRECTIONS):
        u = normal(x, streams)
        u = u / u.flatten(1).norm(dim=1).reshape(-1, *[1] * (u.ndim - 1))
        slope = (value(x + h * u) - value(x - h * u)) / (2 * h)
        claimed = (grad * u).flatten(1).sum(1)
        size = torch.maximum(slope.abs(), claimed.abs())
        errors.append(torch.where(size > 1e-12, (slope - claimed).abs() / size.clamp_min(1e-12), 0.0))
    median = float(torch.cat(errors).nan_to_num(nan=1.0).median())
    detail = f"median relative error {median:.2g} over {len(part)} queries and {DIRECTIONS} directions"
    status = at_most(median, 1e-2, 1e-1)
    if status == "fail" and _has_black_box(e):
        return found("R5", "warn", median, f"{detail}; Square is part of the score")
    return found("R5", status, median, detail)


def _has_black_box(e: Examination) -> bool:
    """Return whether the score counts a black-box attack beside the gradients."""
    return e.union and SQUARE in e.found


def landscape(e: Examination) -> Finding:
    """R6: how much the gain changes at random points of the ball, against its own size."""
    part, streams = e.few, e.streams("landscape", e.few)
    near = e.near(part)
    target = e.attack.target(part, e.streams("gradient", part))
    change = torch.zeros(len(part), dtype=torch.float64, device=e.device)
    with frozen(part.encoder), torch.no_grad():
        here = e.attack.gain(part.encoder(part.x), target, part).double()
        for _ in range(e.effort.points):
            there = e.attack.gain(part.encoder(near.noise(part.x, streams)), target, part).double()
            change += (there - here).abs() / e.effort.points
    value = min(float(change.mean() / here.abs().mean().clamp_min(1e-12)), 1e9)
    detail = f"the gain changes by {value:.2g} of its size at {e.effort.points} random points of the ball"
    return found("R6", at_most(value, 0.1, 0.5), value, detail)


def inner_loop(e: Examination) -> Finding:
    """R7: watch for back-propagation inside the forward pass."""
    x = e.task.rows(slice(0, 2)).x.detach().requires_grad_(True)
    watched = (torch.autograd.grad, torch.autograd.backward)
    with frozen(e.task.encoder), _calls(*watched) as seen, torch.enable_grad():
        e.task.encoder(x)
    if seen:
        detail = f"the forward pass calls {', '.join(sorted(set(seen)))}: the attack must know about it"
        return found("R7", "fail", float(len(seen)), detail)
    return found("R7", "pass", 0.0, "the forward pass differentiates nothing")


@contextmanager
def _calls(*functions: Callable[..., Any]) -> Iterator[list[str]]:
    """Collect the names of some functions as often as Python calls them in this thread."""
    names: dict[CodeType, str] = {f.__code__: f.__qualname__ for f in functions}
    seen: list[str] = []

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code in names:
            seen.append(names[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(before)
