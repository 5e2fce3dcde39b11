"""The worst case over the attacks of a suite, query by query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .suite import EntryResult, Suite

UNION = "UNION"
"""Attack of the records of :func:`union`."""


def union(suite: Suite, results: Sequence[EntryResult]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the worst case over all attacks of a suite, query by query.

    The attacker may also leave a query alone, so the clean value counts as one more attack: a query that is
    wrong when clean stays wrong, and no measure is better for the defense than under any one attack or
    without one.

    Parameters
    ----------
    suite
        Its ``union`` names the measures.
    results
        Of :func:`~holdfast.evaluation.run_suite`; an entry that lacks a measure is no part of its union.

    Returns
    -------
    tuple of dict
        (n,) clean and worst values of each measure.
    """
    clean: dict[str, Tensor] = {}
    worst: dict[str, Tensor] = {}
    for metric, higher in suite.union.items():
        having = [r.outcome for r in results if metric in r.outcome.attacked]
        if not having:
            continue
        pick = torch.amin if higher else torch.amax
        before = torch.stack([outcome.clean[metric] for outcome in having])
        clean[metric] = pick(before, 0)
        worst[metric] = pick(torch.cat([before, torch.stack([o.attacked[metric] for o in having])]), 0)
    return clean, worst
