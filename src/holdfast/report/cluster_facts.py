"""What the records say about clusters at one strength: values of one run without and under each attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..results import Record
from .cluster_files import Clustering
from .facts import Headline, Strength
from .load import RunFolder

FLIP = "flip"
WORST = ("UNION", "WORST", "REPAIRED")
"""Attacks of records that hold the worst case, query by query."""
COLUMNS: Mapping[str, str] = {
    FLIP: "leave their cluster",
    "accuracy": "right cluster (one-to-one)",
    "majority": "right cluster (majority)",
    "purity": "purity",
    "nmi": "NMI",
    "ami": "AMI",
    "ari": "ARI",
    "recall@1": "recall@1",
    "map@r": "MAP@R",
}
ANEW: Mapping[str, str] = {
    "accuracy-t": "right cluster (one-to-one)",
    "majority-t": "right cluster (majority)",
    "purity-t": "purity",
    "nmi-t": "NMI",
    "ami-t": "AMI",
    "ari-t": "ARI",
}
NO_ATTACK = "no attack"


@dataclass(frozen=True)
class Measured:
    """What one run shows at one strength.

    ``clean`` holds the values without an attack by metric, ``attacked`` those under each attack; ``worst`` is
    the label of the headline, and empty where no attack measured the flips.
    """

    run: RunFolder
    clean: Mapping[str, Record]
    attacked: Mapping[str, Mapping[str, Record]]
    worst: str

    @property
    def flip(self) -> Record | None:
        """The record of the headline."""
        return self.attacked[self.worst].get(FLIP) if self.worst else None

    def cell(self, attack: str, metric: str) -> Record | None:
        """Return a value under an attack, or without one."""
        return self.clean.get(metric) if attack == NO_ATTACK else self.attacked.get(attack, {}).get(metric)


def measured(run: RunFolder, c: Clustering, at: Strength | None) -> Measured:
    """Choose the records of a run at one radius, of each suite those of the longest search."""
    here = [
        r for r in c.records
        if at is not None and r["state"] == "attacked" and (r["norm"], r["eps"]) == at[:2]
    ]  # fmt: skip
    longest = {
        r["suite"]: max((q["steps"], q["alpha"]) for q in here if q["suite"] == r["suite"]) for r in here
    }
    attacked: dict[str, dict[str, Record]] = {}
    for r in here:
        if (r["steps"], r["alpha"]) == longest[r["suite"]]:
            attacked.setdefault(r["attack"], {})[r["metric"]] = r
    clean: dict[str, Record] = {}
    prints = {r["fingerprint"] for found in attacked.values() for r in found.values()}
    for r in sorted(c.records, key=lambda r: (r["fingerprint"] in prints, r["attack"] == "none")):
        if r["state"] == "clean":
            clean[r["metric"]] = r
    flips = {a: found[FLIP]["value"] for a, found in attacked.items() if FLIP in found}
    of_all = [a for a in flips if a in WORST]
    single = [a for a in flips if not a.startswith("G")]  # poisoned references move clusters, not queries
    worst = max(of_all or single or list(flips), key=lambda a: flips[a], default="")
    order = sorted(attacked, key=lambda a: (a not in WORST, -flips.get(a, -1.0), a))
    return Measured(run, clean, {a: attacked[a] for a in order}, worst)


def headline(m: Measured) -> Headline:
    """Return the numbers of a run in the form that verdicts and comparisons of runs take."""
    flip = m.flip
    faced = {(a, r["suite"]) for a, each in m.attacked.items() if (r := each.get(FLIP))}
    if m.worst in WORST and flip is not None:
        faced = {(m.worst, flip["suite"])}
    return Headline(m.run, m.clean.get("accuracy") or m.clean.get("recall@1"), flip, frozenset(faced))
