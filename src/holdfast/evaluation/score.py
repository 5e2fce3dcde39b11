"""One score from the measures of a suite, with its interval over queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.ranking import chunks
from .stats import Estimate, bootstrap
from .suite import EntryResult, Suite


class Score(NamedTuple):
    """The mean of a suite's items.

    Attributes
    ----------
    total
        In the unit of the items, with a 95 % bootstrap interval over queries.
    items
        The same for every item, mapped to [0, 100].
    nothing_to_lose
        Names of the items that count 0 because the clean value was the worst one already; only for
        :func:`~holdfast.evaluation.resistance`.
    """

    total: Estimate
    items: dict[str, Estimate]
    nothing_to_lose: tuple[str, ...] = ()


def score(suite: Suite, results: Sequence[EntryResult], seed: int = 0) -> Score:
    """Compute the score of a suite.

    Nothing is clipped: embeddings that are not normalised can give values outside [0, 100].

    Raises
    ------
    InvalidArgument
        If the suite has no score.
    """
    if not suite.items:
        raise InvalidArgument("suite", "a suite with a score", suite.name)
    outcomes = {result.entry.label: result.outcome for result in results}
    values = torch.stack(
        [item.scale * outcomes[item.label].attacked[item.metric] + item.offset for item in suite.items]
    ).double()  # (items, n)
    weights = query_weights(values.shape[1], suite.batch_means).to(values)
    names = [item.name for item in suite.items]
    items = {name: _estimate(row, weights, seed) for name, row in zip(names, values, strict=True)}
    return Score(_estimate(values.mean(0), weights, seed), items)


def _estimate(values: Tensor, weights: Tensor, seed: int) -> Estimate:
    """Return the weighted mean over queries and its bootstrap interval."""
    v, w = values.numpy(force=True), weights.numpy(force=True)
    mean = float((v * w).sum() / w.sum())
    low, high = bootstrap(lambda rows: float((v[rows] * w[rows]).sum() / w[rows].sum()), len(v), seed=seed)
    return Estimate(mean, min(low, mean), max(high, mean), len(v))


def query_weights(n: int, batch: int | None) -> Tensor:
    """Return how much each query weighs, (n,): alike, or so that every batch weighs alike."""
    if batch is None:
        return torch.ones(n)
    return torch.cat([torch.full((s.stop - s.start,), 1 / (s.stop - s.start)) for s in chunks(n, batch)])
