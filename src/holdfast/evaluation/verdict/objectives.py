"""Would the same search find more with another objective, or on another model? R20, R21, R28, R35."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...attacks import ATTACKS, CLUSTER_ATTACKS, hits
from ...functional.ranking import chunks
from ...rng import Randomness
from ...search import Autograd
from ...types import Encoder, Objective, RetrievalTask
from .blackbox import transferred
from .compare import LEVEL, beats, share, tolerance
from .examination import BATCH, Examination
from .finding import Finding
from .material import Unavailable
from .searches import changed
from .texts import at_least, at_most, found, percent, skipped

OBJECTIVES = ("ES", "TARGET1", "TRIPLET", "CENTROID")
TARGETED = ("TARGET1", "GTM")
ON_CLUSTERS = ("A2", "A3.1", "A4", "A5", "A6")
TARGETED_ON_CLUSTERS = ("A3.1",)


def diversity(e: Examination) -> Finding:
    """R20: the best single objective against the union of all that were run."""
    seen: dict[str, Tensor] = {"primary": e.primary.success, **e.stored}
    if e.level == "full":
        for name in OBJECTIVES if e.clusters is None else ON_CLUSTERS:
            if name not in seen:
                seen[name] = _climb(e, name)
    if len(seen) < 2:
        return skipped("R20", "hand in the results of a suite, or use level full")
    union = torch.stack(list(seen.values())).any(0)
    best = max(seen, key=lambda name: share(seen[name]))
    value = share(e.scored | union) - share(e.scored if e.joined else seen[best])
    detail = (
        f"{best} alone breaks {percent(share(seen[best]))}, all {len(seen)} together {percent(share(union))}"
    )
    if e.joined:
        detail += "; the union is the score"
    return found("R20", at_most(value, 0.01, 0.03), value, detail)


def _climb(e: Examination, name: str) -> Tensor:
    """Return the success of the search with another objective, by its name in the tables."""
    attack: Any = ATTACKS[name] if e.clusters is None else CLUSTER_ATTACKS[name]
    success = e.found[f"objective {name}"] = e.strike(e.part, name, attack=attack).success
    return success


def untargeted(e: Examination) -> Finding:
    """R35: the untargeted primary attack against a targeted one."""
    targeted = TARGETED if e.clusters is None else TARGETED_ON_CLUSTERS
    name = next((name for name in targeted if name in e.stored), None)
    if name is not None:
        aimed = e.stored[name]
    elif e.level == "full":
        name = targeted[0]
        aimed = _climb(e, name)
    else:
        return skipped("R35", f"hand in a suite with {' or '.join(targeted)}, or use level full")
    p = beats(aimed, e.scored)
    free, bound = percent(share(e.scored)), percent(share(aimed))
    detail = f"untargeted breaks {free}, targeted ({name}) {bound} (p = {p:.2g})"
    return found("R35", "fail" if p < LEVEL else "pass", share(aimed) - share(e.scored), detail)


def attack_control(e: Examination) -> Finding:
    """R21: the same attack on the undefended twin."""
    if e.twin is None:
        return skipped("R21", "hand in twin, the same network trained without a defense")
    seen = e.under(e.twin, e.part)
    hit = transferred(e, "twin", e.twin)
    able = _right(seen)
    if not bool(able.any()):
        raise Unavailable("the twin is right on no query of the sample")
    value = share(hit.success[able])
    detail = f"the attack breaks {percent(value)} of {int(able.sum())} queries of the undefended twin"
    return found("R21", at_least(value, 0.95, 0.8), value, detail)


def _right(part: RetrievalTask) -> Tensor:
    return hits(part.z, part) > 0


@dataclass(frozen=True, kw_only=True)
class SummedUnitGradients:
    """The sum of several objectives' gradients, each scaled to norm 1 for every row.

    Attributes
    ----------
    parts
        Encoders with their objectives. The value is the mean of theirs.
    """

    parts: Sequence[tuple[Encoder, Objective]]
    exact: ClassVar[bool] = False  # rows never rest: the objectives are fixed to all of them

    def __call__(
        self, encoder: Encoder, x: Tensor, objective: Objective, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """Return the value of ``objective`` (g,) and the summed gradient shaped like ``x``."""
        total = torch.zeros_like(x)
        for member, own in self.parts:
            _, grad = Autograd()(member, x, own)
            length = grad.flatten(1).norm(dim=1).clamp_min(1e-12)
            total += grad / length.reshape(-1, *[1] * (x.ndim - 1))
        with torch.no_grad():
            return objective(encoder(x)), total


def ensemble(e: Examination) -> Finding:
    """R28: the joint embedding against every member, and against the sum of unit gradients."""
    if len(e.parts) < 2:
        return skipped("R28", "hand in members, the encoders of the ensemble")
    joint = e.primary.success
    rivals: dict[str, Tensor] = {}
    seen = [e.under(member, e.part) for member in e.parts]
    for number, part in enumerate(seen):
        rivals[f"member {number + 1}"] = e.broken(e.strike(part, f"member {number}").x, e.part)
    if hasattr(e.search, "gradient"):
        rivals["sum"] = torch.cat([_summed(e, seen, rows) for rows in chunks(len(e.part), BATCH)])
    for name, success in rivals.items():
        e.found[f"ensemble {name}"] = success
    best = max(rivals, key=lambda name: share(rivals[name]))
    gap, p = share(rivals[best]) - share(joint), beats(rivals[best], joint)
    worse = p < LEVEL and gap > tolerance(share(joint), len(joint))
    other = percent(share(rivals[best]))
    detail = f"joint attack {percent(share(joint))}, best other ({best}) {other} (p = {p:.2g})"
    return found("R28", "fail" if worse else "pass", gap, detail)


def _summed(e: Examination, members: Sequence[RetrievalTask], rows: slice) -> Tensor:
    """Return the success of the sum of unit gradients on some queries of the sample."""
    some = [member.rows(rows) for member in members]
    gradient = SummedUnitGradients(parts=[(part.encoder, _objective(e, part)) for part in some])
    return e.strike(e.part.rows(rows), "sum", search=changed(e.search, gradient=gradient)).success


def _objective(e: Examination, part: RetrievalTask) -> Objective:
    target: Any = e.attack.target(part, e.streams("primary target", part))
    return lambda z: e.attack.gain(z, target, part)
