"""Are there enough queries and seeds? R32, R33."""

from __future__ import annotations

import statistics

import scipy
import torch

from ...attacks import hits
from ...functional.ranking import chunks
from ..stats import half_width
from .compare import LEVEL, share
from .examination import Examination
from .finding import Finding
from .material import Claim
from .texts import at_most, found, percent, skipped

SEEDS, DRAWS = 3, 5


def power(e: Examination) -> Finding:
    """R32: the interval of the score under the worst of the suite's attacks, or under the primary one."""
    if e.results and e.passes == 1:
        first = e.results[0]
        rows = torch.arange(len(e.task), device=e.device) if first.rows is None else first.rows.to(e.device)
        right = e.right[rows].clone()
        for some in chunks(len(rows), 1024):
            part = e.task.rows(rows[some])
            for result in e.results:
                right[some] &= hits(result.outcome.z[some], part) > 0
        p, n = share(right), len(right)
    else:  # the sample holds only queries that are right when clean
        n = len(e.part)
        p = (1 - share(e.scored)) * share(e.right)
    value = half_width(p, n)
    detail = (
        f"{e.words.score} under the worst attack: {percent(p)} of {n} queries, give or take {percent(value)}"
    )
    return found("R32", at_most(value, 0.02, 0.04), value, detail)


def seed_spread(e: Examination) -> Finding:
    """R33: a claimed difference against its spread over training seeds."""
    if e.claim is None:
        return skipped("R33", "hand in claim, the scores of at least 3 training seeds of both sides")
    ours, theirs, _, draws = e.claim
    if min(len(ours), len(theirs)) < SEEDS:
        n = min(len(ours), len(theirs))
        return found("R33", "fail", float(n), f"{n} training seeds; need {SEEDS} of each")
    gap = abs(statistics.fmean(ours) - statistics.fmean(theirs))
    sd = max(statistics.stdev(ours), statistics.stdev(theirs))
    p = _p_value(e.claim)
    detail = f"difference {gap:.3g} against sd {sd:.3g} over seeds (p = {p:.2g}), {draws} candidate draws"
    good = gap > 2 * sd and p < LEVEL and draws >= DRAWS
    return found("R33", "pass" if good else "fail", gap, detail)


def _p_value(claim: Claim) -> float:
    """Return the given p-value, or that of a t-test over seeds: paired where there are as many."""
    if claim.p_value is not None:
        return claim.p_value
    if len(claim.ours) == len(claim.theirs):
        differences = [a - b for a, b in zip(claim.ours, claim.theirs, strict=True)]
        if len(set(differences)) == 1:  # without spread a t-test has no answer
            return 0.0 if differences[0] else 1.0
        return float(scipy.stats.ttest_rel(claim.ours, claim.theirs).pvalue)
    return float(scipy.stats.ttest_ind(claim.ours, claim.theirs, equal_var=False).pvalue)
