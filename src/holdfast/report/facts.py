"""What the records say: one strength for the report, clean and attacked side by side, the run to prefer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..results import Record
from .load import RunFolder
from .words import budget, join

HEADLINE = "recall@1"


class Strength(NamedTuple):
    """The norm and radius at which the report shows attacks."""

    norm: str
    eps: float


class Item(NamedTuple):
    """One quantity of one attack before and after it."""

    attack: str
    metric: str
    clean: Record | None
    attacked: Record


@dataclass(frozen=True)
class Headline:
    """The two numbers by which runs are compared; either may be missing."""

    run: RunFolder
    clean: Record | None
    attacked: Record | None


def bounds(record: Record) -> tuple[float, float]:
    """Return the interval of a record; a record without one is taken at its value."""
    ci = record["ci"]
    return (ci[0], ci[1]) if ci is not None else (record["value"], record["value"])


def strength(runs: Sequence[RunFolder]) -> Strength | None:
    """Choose the strength that most runs were attacked with; among equals the largest radius."""
    seen: Counter[Strength] = Counter()
    for run in runs:
        attacked = (r for r in run.records if r["state"] == "attacked" and r["eps"] > 0)
        seen.update({Strength(r["norm"], r["eps"]) for r in attacked})
    return max(seen, key=lambda s: (seen[s], s.eps, s.norm)) if seen else None


def benign(run: RunFolder) -> dict[str, Record]:
    """Return the metrics of the unattacked run."""
    return {r["metric"]: r for r in run.records if r["attack"] == "none"}


def items(run: RunFolder, at: Strength | None) -> list[Item]:
    """Return what each attack at one strength did to each quantity, in the order of the records."""
    clean = benign(run)
    before = {
        (r["attack"], r["metric"]): r
        for r in run.records
        if r["state"] == "clean" and at is not None and (r["eps"] == 0 or (r["norm"], r["eps"]) == at)
    }
    after: dict[tuple[str, str], Record] = {
        (r["attack"], r["metric"]): r
        for r in run.records
        if r["state"] == "attacked" and at is not None and (r["norm"], r["eps"]) == at
    }
    return [Item(*key, before.get(key, clean.get(key[1])), record) for key, record in after.items()]


def headlines(runs: Sequence[RunFolder], at: Strength | None) -> list[Headline]:
    """Return for each run the clean and the lowest attacked recall@1.

    Of several attacks that measure it, only those that every attacked run has faced are compared.
    """
    each = [[i for i in items(run, at) if i.metric == HEADLINE] for run in runs]
    faced = [{i.attack for i in found} for found in each if found]
    common = set.intersection(*faced) if faced else set()
    lines = []
    for run, found in zip(runs, each, strict=True):
        shared = [i for i in found if i.attack in common] or found
        worst = min(shared, key=lambda i: i.attacked["value"], default=None)
        clean = benign(run).get(HEADLINE) or (worst.clean if worst else None)
        lines.append(Headline(run, clean, worst.attacked if worst else None))
    return lines


def _test_data(run: RunFolder) -> str:
    """Return the hash of the images that a run was measured on; empty if it was not stored."""
    stored = run.info.get("data_fingerprint") or ""
    return str(stored.get("test", "") if isinstance(stored, dict) else stored)


def method(runs: Sequence[RunFolder], at: Strength | None) -> str:
    """Return in words what the attacks at one strength were allowed: size of the change and steps."""
    steps = sorted({i.attacked["steps"] for run in runs for i in items(run, at)})
    if at is None or not steps:
        return ""
    return f"Attacked with {budget(*at)}, in {join([str(s) for s in steps])} steps."


def unlike(lines: Sequence[Headline]) -> list[str]:
    """Return why runs may not be compared: measured on other data, or attacked in another way."""
    reasons = []
    both = [(line, line.attacked or line.clean) for line in lines if line.attacked or line.clean]
    for field, words in (("dataset", "other data sets"), ("protocol", "other protocols")):
        if len({dict(r)[field] for _, r in both if r}) > 1:
            reasons.append(f"the runs were measured on {words}")
    prints = {_test_data(line.run) for line in lines} - {""}
    if len(prints) > 1 and not reasons:
        reasons.append("the data of the runs differ")
    attacked = [line.attacked for line in lines if line.attacked]
    for field, words in (("attack", "kinds"), ("steps", "numbers of steps"), ("alpha", "step lengths")):
        if len({dict(r)[field] for r in attacked}) > 1:
            reasons.append(f"the attacks used different {words}")
    return reasons


class Advice(NamedTuple):
    """Which run to prefer, if one can be named, and why."""

    run: RunFolder | None
    why: str


def advice(lines: Sequence[Headline]) -> Advice | None:
    """Recommend the highest attacked recall@1 among runs whose clean recall@1 is not lower beyond intervals.

    Returns
    -------
    Advice or None
        ``None`` when fewer than two runs have both numbers. ``run`` is ``None`` when the intervals do not
        settle it, or when safety costs clean results; ``why`` then says so.
    """
    full = [(line.run, line.clean, line.attacked) for line in lines if line.clean and line.attacked]
    if len(full) < 2:
        return None
    reasons = unlike(lines)
    if reasons:
        return Advice(None, f"No run is recommended, because {' and '.join(reasons)}.")
    top = max(full, key=lambda f: f[1]["value"])
    fit = [f for f in full if bounds(f[1])[1] >= bounds(top[1])[0]]
    best = max(fit, key=lambda f: (f[2]["value"], f[1]["value"]))
    rivals = [f for f in fit if f is not best and bounds(f[2])[1] >= bounds(best[2])[0]]
    dearer = [f for f in full if f not in fit and bounds(f[2])[0] > bounds(best[2])[1]]
    if dearer:
        safer = max(dearer, key=lambda f: f[2]["value"])
        gain, cost = safer[2]["value"] - best[2]["value"], top[1]["value"] - safer[1]["value"]
        return Advice(
            None,
            f"No run is better in both respects. Under attack {safer[0].label} finds the right image "
            f"{100 * gain:.0f} points more often than {best[0].label}, and without an attack "
            f"{100 * cost:.1f} points less often than {top[0].label}, beyond the intervals. "
            f"Prefer {safer[0].label} if you expect attacks.",
        )
    if rivals:
        names = " and ".join(f[0].label for f in rivals)
        return Advice(
            None,
            f"None is better than the others beyond chance: {best[0].label} has the highest recall@1 under "
            f"attack, but its interval overlaps with that of {names}.",
        )
    if len(fit) == 1:
        why = "it leads without an attack, and no other run withstands more."
    else:
        why = (
            "it has the highest recall@1 under attack, beyond the intervals, and without an attack no run "
            "is better than it beyond the intervals."
        )
    return Advice(best[0], why)
