"""What the records say: one strength for the report, clean and attacked side by side, the run to prefer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import NamedTuple

from ..attacks import ATTACKS
from ..evaluation import SUITES
from ..evaluation.suite import Entry
from ..results import Record
from .load import RunFolder
from .load import number as finite
from .words import budget, join

HEADLINE = "recall@1"
WHOLE, SCORE = "all", "ers"
"""The attack and the metric under which a score is recorded; its items are called ``NAME of ers``."""


class Strength(NamedTuple):
    """What attacks were allowed and how long they searched.

    Without ``steps`` and ``alpha`` it is whatever each run has most steps of: no search is shared.
    """

    norm: str
    eps: float
    steps: int | None = None
    alpha: float | None = None


class Item(NamedTuple):
    """One quantity of one attack before and after it; ``suite`` as in :func:`kept_apart`."""

    attack: str
    metric: str
    suite: str
    clean: Record | None
    attacked: Record


class ScoreItem(NamedTuple):
    """One summand of a score, from 0 to 100: before the attack, where that is known, and after it."""

    name: str
    before: float | None
    after: Record
    measured: Item | None


@dataclass(frozen=True)
class Headline:
    """The two numbers by which runs are compared; either may be missing.

    ``faced`` holds the attacks whose lowest recall@1 is ``attacked``; ``lower`` is what an attack found that
    the other runs did not face.
    """

    run: RunFolder
    clean: Record | None
    attacked: Record | None
    faced: frozenset[tuple[str, str]] = frozenset()
    lower: Record | None = None


def bounds(record: Record) -> tuple[float, float]:
    """Return the interval of a record; a record without one is taken at its value."""
    ci = record["ci"]
    return (ci[0], ci[1]) if ci is not None else (record["value"], record["value"])


def strength(runs: Sequence[RunFolder], *, scored: bool = False) -> Strength | None:
    """Choose the strength that most runs share.

    Among equals the radius of the runs' own settings is preferred, then most steps, then the largest radius.
    Where more runs share the radius than share any search at it, the search is left open.
    """
    whole: Counter[Strength] = Counter()
    radius: Counter[Strength] = Counter()
    for run in runs:
        attacked = [r for r in run.records if r["state"] == "attacked" and r["eps"] > 0]
        found = [r for r in attacked if r["attack"] == WHOLE or not scored]
        whole.update({Strength(r["norm"], r["eps"], r["steps"], r["alpha"]) for r in found})
        radius.update({Strength(r["norm"], r["eps"]) for r in found})
    if not whole:
        return None
    own = {threat for run in runs if (threat := _own(run))}

    def meant(s: Strength) -> bool:
        return any(s.norm == norm and isclose(s.eps, eps, rel_tol=1e-6) for norm, eps in own)

    best = max(whole, key=lambda s: (whole[s], meant(s), s.steps or 0, s.eps, s.alpha or 0.0, s.norm))
    wide = max(radius, key=lambda s: (radius[s], meant(s), s.eps, s.norm))
    return best if whole[best] >= radius[wide] else wide


_NORMS = {"LinfThreat": "linf", "L2Threat": "l2"}


def _own(run: RunFolder) -> tuple[str, float] | None:
    """Return the norm and the radius of the threat in a run's settings."""
    settings = run.info.get("run")
    threat = settings.get("threat") if isinstance(settings, dict) else None
    norm = _NORMS.get(str(threat.get("type"))) if isinstance(threat, dict) else None
    eps = finite(threat, "eps") if norm and isinstance(threat, dict) else None
    return None if norm is None or eps is None else (norm, eps)


def _attacked(run: RunFolder, at: Strength | None, *, scored: bool = False) -> list[Record]:
    """Return the records of a run under attack at one strength."""
    if at is None:
        return []
    found = [r for r in run.records if r["state"] == "attacked" and (r["norm"], r["eps"]) == at[:2]]
    found = [r for r in found if (r["attack"] == WHOLE) == scored]
    search = at[2:] if at.steps is not None else max(((r["steps"], r["alpha"]) for r in found), default=None)
    return [r for r in found if (r["steps"], r["alpha"]) == search]


def benign(run: RunFolder, fingerprint: str = "") -> dict[str, Record]:
    """Return the metrics of the unattacked run; of the named evaluation where it has them."""
    found = [r for r in run.records if r["attack"] == "none"]
    found.sort(key=lambda r: bool(fingerprint) and r["fingerprint"] == fingerprint)
    return {r["metric"]: r for r in found}


def _entry(record: Record) -> Entry | None:
    suite = SUITES.get(record["suite"])
    return next((e for e in suite.entries if e.label == record["attack"]), None) if suite else None


def kept_apart(record: Record) -> str:
    """Return the suite whose numbers alone a record may stand beside; empty for attacks of the usual form.

    Attacks mean the same in ``core`` and ``ers``; what repeats published faults stays by itself.
    """
    suite, entry = SUITES.get(record["suite"]), _entry(record)
    usual = entry is not None and entry.fewer_steps == 0 and entry.attack == ATTACKS.get(entry.label)
    return "" if usual and suite is not None and suite.batch_means is None else record["suite"]


def _counts(record: Record) -> bool:
    """Whether a record speaks for itself: of a shortened search only what the score takes does."""
    suite, entry = SUITES.get(record["suite"]), _entry(record)
    if suite is None or entry is None or entry.fewer_steps == 0:
        return True
    return any((i.label, i.metric) == (record["attack"], record["metric"]) for i in suite.items)


def items(run: RunFolder, at: Strength | None) -> list[Item]:
    """Return what each attack at one strength did to each quantity, in the order of the records."""
    clean = benign(run)
    before = {
        (r["attack"], r["metric"], kept_apart(r)): r
        for r in run.records
        if r["state"] == "clean" and at is not None and (r["eps"] == 0 or (r["norm"], r["eps"]) == at[:2])
    }
    after = {(r["attack"], r["metric"], kept_apart(r)): r for r in _attacked(run, at) if _counts(r)}
    return [Item(*key, before.get(key, clean.get(key[1])), record) for key, record in after.items()]


def scores(run: RunFolder, at: Strength | None) -> dict[str, Record]:
    """Return the score of each suite that scored a run at one strength."""
    return {r["suite"]: r for r in _attacked(run, at, scored=True) if r["metric"] == SCORE}


def score_items(run: RunFolder, at: Strength | None, suite: str) -> list[ScoreItem]:
    """Return the summands of a score; the clean measures are mapped as the attacked ones were."""
    specs = {i.name: i for i in SUITES[suite].items} if suite in SUITES else {}
    measured = {(i.attack, i.metric, i.attacked["suite"]): i for i in items(run, at)}
    found = []
    for r in _attacked(run, at, scored=True):
        name = r["metric"].removesuffix(f" of {SCORE}")
        if r["suite"] != suite or name == r["metric"]:
            continue
        spec = specs.get(name)
        item = measured.get((spec.label, spec.metric, suite)) if spec else None
        before = spec.scale * item.clean["value"] + spec.offset if spec and item and item.clean else None
        found.append(ScoreItem(name, before, r, item))
    return found


def mixed_scores(runs: Sequence[RunFolder], at: Strength | None) -> str:
    """Say why scores may not be compared, where runs were scored by different suites; else nothing."""
    by = [(run.label, set(scores(run, at))) for run in runs if scores(run, at)]
    if not by or set.intersection(*(suites for _, suites in by)):
        return ""
    told = join([f"{label} by {join(sorted(suites))}" for label, suites in by])
    return (
        f"The scores cannot be compared: the runs were scored by different suites, {told}. "
        "Scores of different suites mean different things."
    )


def headlines(runs: Sequence[RunFolder], at: Strength | None) -> list[Headline]:
    """Return for each run the clean and the lowest attacked recall@1.

    Of several attacks that measure it, only those that every attacked run has faced are compared.
    """
    each = [[i for i in items(run, at) if i.metric == HEADLINE] for run in runs]
    faced = [{(i.attack, i.suite) for i in found} for found in each if found]
    common = set.intersection(*faced) if faced else set()

    def lowest(found: Sequence[Item]) -> Item | None:
        return min(found, key=lambda i: i.attacked["value"], default=None)

    lines = []
    for run, found in zip(runs, each, strict=True):
        shared = [i for i in found if (i.attack, i.suite) in common] or found
        worst, lower = lowest(shared), lowest([i for i in found if i not in shared])
        same = worst.attacked["fingerprint"] if worst else ""
        clean = benign(run, same).get(HEADLINE) or (worst.clean if worst else None)
        less = worst and lower and lower.attacked["value"] < worst.attacked["value"]
        lines.append(
            Headline(
                run,
                clean,
                worst.attacked if worst else None,
                frozenset((i.attack, i.suite) for i in shared),
                lower.attacked if lower and less else None,
            )
        )
    return lines


class Ranked(NamedTuple):
    """Recall@k without an attack and under the attack that leaves least of it; either may be missing."""

    k: int
    clean: Record | None
    attacked: Record | None


def recalls(line: Headline, at: Strength | None) -> list[Ranked]:
    """Return recall@k for every k that was recorded, from the smallest on; of the attacks that were faced."""
    prefix = "recall@"
    same = line.attacked["fingerprint"] if line.attacked else ""
    clean = {
        int(m[7:]): r for m, r in benign(line.run, same).items() if m.startswith(prefix) and m[7:].isdigit()
    }
    lowest: dict[int, Record] = {}
    for item in items(line.run, at):
        faced = (item.attack, item.suite) in line.faced
        if faced and item.metric.startswith(prefix) and item.metric[7:].isdigit():
            k = int(item.metric[7:])
            if k not in lowest or item.attacked["value"] < lowest[k]["value"]:
                lowest[k] = item.attacked
    return [Ranked(k, clean.get(k), lowest.get(k)) for k in sorted(clean.keys() | lowest.keys())]


def _test_data(run: RunFolder) -> str:
    """Return the hash of the images that a run was measured on; empty if it was not stored."""
    stored = run.info.get("data_fingerprint") or ""
    return str(stored.get("test", "") if isinstance(stored, dict) else stored)


def method(runs: Sequence[RunFolder], at: Strength | None) -> str:
    """Return in words what the attacks at one strength were: suite, size of the change and steps."""
    found = [r for run in runs for r in _attacked(run, at)]
    if at is None or not found:
        return ""
    steps, suites = sorted({r["steps"] for r in found}), sorted({r["suite"] for r in found})
    low = " (searched in bfloat16, measured in float32)" * any(r["precision"] == "bf16" for r in found)
    return (
        f"Attacked by the suite{'s' * (len(suites) > 1)} {join(suites)} with {budget(*at[:2])}, "
        f"in {join([str(s) for s in steps])} steps{low}."
    )


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
    if len({line.faced for line in lines if line.attacked}) > 1:
        suites = sorted({r["suite"] for r in attacked})
        by = f"the suites {join(suites)} attack in different ways" if len(suites) > 1 else ""
        reasons.append(by or "the attacks were of different kinds")
    for field, words in (("steps", "numbers of steps"), ("alpha", "step lengths")):
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
    costly = [f for f in full if f not in fit and f[2]["value"] > best[2]["value"]]
    among = " among the runs that lose nothing without one beyond the intervals" if costly else ""
    if rivals:
        names = join([f[0].label for f in rivals])
        also = join([f[0].label for f in costly])
        return Advice(
            None,
            f"None is better than the others beyond chance: {best[0].label} has the highest recall@1 under "
            f"attack{among}, but its interval overlaps with that of {names}."
            + (f" {also} withstands more, not beyond the intervals, and costs clean results." * bool(also)),
        )
    if costly:
        safer = max(costly, key=lambda f: f[2]["value"])
        why = (
            f"it has the highest recall@1 under attack{among}; {safer[0].label} withstands more, but not "
            "beyond the intervals."
        )
    elif len(fit) == 1:
        why = "it leads without an attack, and no other run withstands more."
    else:
        why = (
            "it has the highest recall@1 under attack, beyond the intervals, and without an attack no run "
            "is better than it beyond the intervals."
        )
    return Advice(best[0], why)
