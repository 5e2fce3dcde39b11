"""Would a stronger search of the same kind find more? R8 to R14."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, cast

import torch

from ...search import APGD, PGD, Square, uses_gradients
from ...search.rules import unit_length
from ...types import Search
from .compare import LEVEL, beats, share, tolerance
from .examination import Examination
from .finding import Finding, Status
from .material import SQUARE
from .searches import (
    changed,
    length_of,
    shortened,
    shows_iterates,
    stretched,
    takes_start,
    with_radius,
)
from .texts import at_least, at_most, found, percent, skipped

LAST = 10
FRACTIONS = (1 / 20, 1 / 10, 1 / 4, 1 / 2)
GRID = (0.0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)


def single_step(e: Examination) -> Finding:
    """R8: one step of length eps against the search."""
    if not uses_gradients(e.search):
        return skipped("R8", "the search uses no gradients")
    step = PGD(steps=1, alpha=unit_length(e.threat), gradient=cast(Any, e.search).gradient)
    single = e.strike(e.part, "one step", search=step)
    e.found["one step"] = single.success
    one, many = share(single.success), share(e.scored)
    p = beats(single.success, e.scored)
    worse = p < LEVEL and one > many + tolerance(many, len(e.part))
    detail = f"one step breaks {percent(one)}, the search {percent(many)} (p = {p:.2g})"
    return found("R8", "fail" if worse else "pass", one - many, detail)


def more_steps(e: Examination) -> Finding:
    """R9: go on from where the search ended, for as many steps again."""
    steps = getattr(e.search, "steps", None)
    if not isinstance(steps, int) or steps < 1:
        return skipped("R9", "the search has no number of steps")
    known = e.scored
    left = torch.nonzero(~known).squeeze(1)
    if not len(left):
        return found("R9", "pass", 0.0, "the search broke every query")
    part = e.part.rows(left)
    if takes_start(e.search):
        longer = e.strike(part, "more steps", search=changed(e.search, restarts=1), start=e.primary.x[left])
    else:
        longer = e.strike(part, "primary", search=changed(e.search, steps=2 * steps))
    rise = e.added("more steps", left, longer.success)
    p = beats(e.found["more steps"] | known, known)
    with torch.no_grad():
        clean = e.attack.gain(part.z, e.attack.target(part, e.streams("primary target", part)), part)
    climbed = float(
        (longer.gain - e.primary.gain[left]).clamp_min(0).mean() / clean.abs().mean().clamp_min(1e-12)
    )
    status: Status = (
        "fail" if rise > 0.02 and p < LEVEL else "warn" if rise > 0.01 or climbed > 0.01 else "pass"
    )
    detail = (
        f"{steps} more steps break {percent(rise)} more (p = {p:.2g}) and raise the gain of the queries that "
        f"hold by {percent(climbed)} of its clean size"
    )
    return found("R9", status, rise, detail)


def last_steps(e: Examination) -> Finding:
    """R10: how much of its climb the search makes in its last ten steps, for queries that held."""
    if e.primary.trace is None or not shows_iterates(e.search):
        return skipped("R10", "the search does not show its iterates")
    held = ~e.primary.success
    if not bool(held.any()):
        return found("R10", "pass", 1.0, "the search broke every query")
    best = e.primary.trace[held].cummax(1).values  # (k, calls)
    climb = (best[:, -1] - best[:, 0]).clamp_min(1e-12)
    late = (best[:, -1] - best[:, max(0, best.shape[1] - 1 - LAST)]) / climb
    value = share(late <= 0.05)
    detail = (
        f"{percent(value)} of {len(best)} queries that held had stopped climbing {LAST} steps before the end"
    )
    return found("R10", at_least(value, 0.9, 0.8), value, detail)


def restarts(e: Examination) -> Finding:
    """R11: what five and ten restarts add."""
    if not hasattr(e.search, "restarts"):
        return skipped("R11", "the search has no restarts")
    single = changed(e.search, restarts=1, random_start=True)
    known = e.scored
    hit = torch.zeros_like(known)
    for number in range(1, 11):
        left = torch.nonzero(~(known | hit)).squeeze(1)
        if len(left):
            hit[left] = e.strike(e.part.rows(left), f"restart {number}", search=single).success
        if number == 5:
            five = hit.clone()
    e.found["restarts"] = hit
    value, early = share(hit & ~five), share(five)
    detail = f"restarts 1 to 5 break {percent(early)} more, 6 to 10 another {percent(value)}"
    return found("R11", at_most(value, 0.01, 0.02), value, detail)


def step_size(e: Examination) -> Finding:
    """R12: other step lengths, and APGD, which chooses its own."""
    steps = getattr(e.search, "steps", None)
    if not isinstance(steps, int) or not uses_gradients(e.search):
        return skipped("R12", "the search takes no gradient steps")
    default = share(e.scored)
    others: dict[str, Search] = {"APGD": APGD(steps=max(steps, 1), gradient=cast(Any, e.search).gradient)}
    if hasattr(e.search, "alpha"):
        for fraction in FRACTIONS:
            others[f"eps/{round(1 / fraction)}"] = changed(e.search, alpha=fraction * unit_length(e.threat))
    best, name = -math.inf, ""
    for label, search in others.items():
        hit = e.strike(e.part, f"step {label}", search=search)
        e.found[f"step {label}"] = hit.success
        if share(hit.success) > best:
            best, name = share(hit.success), label
    detail = f"the search breaks {percent(default)}, the best other step ({name}) {percent(best)}"
    return found("R12", at_most(best - default, 0.01, 0.03), best - default, detail)


def monotone(e: Examination) -> Finding:
    """R13: a grid of radii, each warm-started by the point of the smaller one."""
    length = length_of(e.search) or 1
    search = shortened(e.search, length if e.level == "full" else max(2, length // 8))
    successes, x = [], e.part.x
    for fraction in GRID:
        if fraction == 0:
            successes.append(e.broken(x, e.part))
            continue
        near = with_radius(e.threat, fraction * e.threat.eps)
        scaled = stretched(search, fraction)
        hit = e.strike(e.part, f"radius {fraction}", search=scaled, threat=near, start=x)
        successes.append(hit.success)
        x = hit.x
    shares = [share(s) for s in successes]
    drop, p = 0.0, 1.0
    for before, after in pairwise(successes):
        if share(before) - share(after) > drop:
            drop, p = share(before) - share(after), beats(before, after)
    e.found["radii"] = successes[-1]
    broken = drop > tolerance(max(shares), len(e.part)) and p < LEVEL
    detail = f"success at {', '.join(f'{f:g}' for f in GRID)} of eps: {', '.join(percent(s) for s in shares)}"
    return found("R13", "fail" if broken else "warn" if drop > 0 else "pass", drop, detail)


def large_budget(e: Examination) -> Finding:
    """R14: with the whole pixel range to move in, nothing may stay right."""
    bounds = getattr(e.threat, "bounds", None)
    if bounds is None or not hasattr(e.threat, "norm"):
        return skipped("R14", "the threat has no box")
    part = e.few
    reach = bounds[1] - bounds[0]
    if cast(Any, e.threat).norm == "l2":
        reach *= math.sqrt(part.x[0].numel())
    hit = torch.zeros(len(part), dtype=torch.bool, device=e.device)
    for eps in (reach / 2, reach):
        left = torch.nonzero(~hit).squeeze(1)
        if not len(left) or eps < e.threat.eps:
            continue
        wide, some = with_radius(e.threat, eps), part.rows(left)
        search = stretched(e.search, eps / e.threat.eps)
        hit[left] = e.strike(some, f"radius {eps}", search=search, threat=wide).success
        if SQUARE in e.found and e.union:  # it is part of the score
            search = Square(queries=e.effort.calls, stop_at=0.0)
            hit[left] |= e.strike(some, f"square {eps}", search=search, threat=wide).success
    value = share(hit)
    detail = f"{percent(value)} of {len(part)} queries break when every pixel may take any value"
    status = at_least(value, 0.99, 0.95)
    if 1 - value > e.chance + tolerance(e.chance, len(part)):
        status = "fail"
        detail += f"; {e.words.score} stays above chance ({percent(e.chance)})"
    return found("R14", status, value, detail)
