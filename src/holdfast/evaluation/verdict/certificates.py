"""Do the certificates hold? R26, R27."""

from __future__ import annotations

import torch
from torch import Tensor

from ...certify import Certificate
from ...functional.distance import norms
from .compare import share
from .examination import Examination
from .falsify import allowed, strike_inside, words
from .finding import Finding
from .searches import stretched
from .texts import found, percent, skipped

NEEDED = "hand in certificate, the l2 radius of every query and whether its answer is right"


def _lengths(x: Tensor, x0: Tensor) -> Tensor:
    return norms((x - x0).double().flatten(1))


def _of_sample(e: Examination, certificate: Certificate) -> tuple[Tensor, Tensor]:
    radius = certificate.radius.to(e.device)[e.rows].double()
    return radius, certificate.correct.to(e.device)[e.rows].bool()


def against_attack(e: Examination) -> Finding:
    """R26: attack each certified query inside its own l2 radius, and look at all attacks that were run."""
    if e.certificate is None:
        return skipped("R26", NEEDED)
    radius, correct = _of_sample(e, e.certificate)
    part = e.part
    holds = correct & (radius > 0)
    count = int(holds.sum())
    if not count:
        return found("R26", "pass", 0.0, "no query of the sample has a certified radius above 0")
    broken = holds & e.primary.success & (_lengths(e.primary.x, part.x) <= radius)
    search = stretched(e.search, 1 / e.threat.eps)  # directions of these balls are as long as the radius
    bounds = getattr(e.threat, "bounds", (0.0, 1.0))
    rows = torch.nonzero(holds).squeeze(1)
    broken[rows] |= strike_inside(e, part.rows(rows), radius[rows], search=search, bounds=bounds).success
    hits = int(broken.sum())
    most = allowed(count, e.certificate.alpha)
    detail = words(hits, count, most)
    return found("R26", "pass" if hits <= most else "fail", float(hits), detail)


def below_attacks(e: Examination) -> Finding:
    """R27: the curve of the certified score, against the clean one and against every attack that was run."""
    if e.certificate is None:
        return skipped("R27", NEEDED)
    radius, correct = _of_sample(e, e.certificate)
    n = len(e.part)
    slack = allowed(n, e.certificate.alpha) / n
    unsure = share(correct & ~e.right[e.rows])
    reach = float(_lengths(e.primary.x, e.part.x).max())
    certified = share(correct & (radius >= reach))
    empirical = {"primary": share(~e.primary.success)}
    empirical |= {name: share(~success) for name, success in e.stored.items()}
    lowest = min(empirical, key=lambda name: empirical[name])
    reached = {"primary": reach}
    excess = certified - empirical["primary"]
    for entry, outcome, _, covered in e.results:
        if entry.label not in e.stored or outcome.x.ndim < 2 or not outcome.x.numel():
            continue
        at = e.rows if covered is None else torch.searchsorted(covered.to(e.device), e.rows)
        r = reached[entry.label] = float(_lengths(outcome.x[at], e.part.x).max())
        excess = max(excess, share(correct & (radius >= r)) - empirical[entry.label])
    detail = (
        f"certified {e.words.score} {percent(certified)} at radius {reach:.3g}; lowest under attack "
        f"{percent(empirical[lowest])} ({lowest})"
    )
    good = excess <= slack and unsure <= slack
    return found("R27", "pass" if good else "fail", excess, detail)
