"""Relative resistance: how much of what an encoder could lose to each attack it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..errors import InvalidArgument
from .score import Score, query_weights
from .stats import Estimate, resample
from .suite import EntryResult, Suite

NOTHING = 1e-6
"""A clean value this near to the worst one leaves nothing to lose."""


def resistance(suite: Suite, results: Sequence[EntryResult], seed: int = 0) -> Score:
    """Compute the relative resistance: the share that is kept of what each attack could take.

    It is the mean over the items of a suite of ``r = 100 (1 - |m_adv - m_ben| / |m_worst - m_ben|)``, clipped
    to [0, 100]: ``m_ben`` and ``m_adv`` are the means of the measure before and after the attack, ``m_worst``
    is the value at which nothing is left.

    Parameters
    ----------
    suite
        One whose items all have a worst value: ``ers`` or ``ers-robrank``.
    results
        Of every entry of the suite, on the same queries.
    seed
        Of the bootstrap.

    Returns
    -------
    Score
        Total and items in [0, 100], 100 for an attack that changed nothing, each with a 95 % bootstrap
        interval over queries; ``nothing_to_lose`` names the items without a ratio.

    Raises
    ------
    InvalidArgument
        If the suite has no items, or one without a worst value.

    Notes
    -----
    This is our own substitute and **not ARS**: the published formula of ARS (CA-TRIDE, arXiv 2312.07364) was
    not available to us and is not in the released code. Clean and attacked values of every query are kept
    with each evaluation, so that any such score can be computed later without attacking again. Unlike the
    empirical robustness score, this one measures an encoder against its own clean state.

    The ratio is formed of means over queries. For one query it is often undefined: an image that is wrong
    before the attack has the worst recall already.

    An item whose *mean* clean value is the worst one counts 0. Were it left out, an encoder that maps all
    images to one point would be judged by the few items that a point cannot lose, and would score 100; and
    means over different items could not be compared.

    A change for the better counts as a change: the ratio asks how much the attack moved, not where to. A
    small benign recall makes it unsteady, which its interval shows; read it together with R@1.
    """
    worst = np.array([np.nan if item.worst is None else item.worst for item in suite.items])
    if not suite.items or np.isnan(worst).any():
        raise InvalidArgument("suite", "a suite whose items all have a worst value", suite.name)
    outcomes = {result.entry.label: result.outcome for result in results}
    missing = sorted({item.label for item in suite.items} - outcomes.keys())
    if missing:
        raise InvalidArgument("results", f"all entries of {suite.name}", f"none of {', '.join(missing)}")
    clean, attacked = (
        torch.stack([getattr(outcomes[item.label], state)[item.metric] for item in suite.items])
        .double()
        .numpy(force=True)
        for state in ("clean", "attacked")
    )  # (items, n)
    n = clean.shape[1]
    weights = query_weights(n, suite.batch_means).double().numpy()

    def kept(rows: np.ndarray) -> np.ndarray:
        """Return every item and, last, their mean: (items + 1,)."""
        w = weights[rows] / weights[rows].sum()
        items = _kept(clean[:, rows] @ w, attacked[:, rows] @ w, worst)
        return np.append(items, items.mean())

    values = kept(np.arange(n))
    lows, highs = np.percentile(resample(kept, n, seed=seed), [2.5, 97.5], axis=0)
    found = [
        Estimate(float(v), float(min(low, v)), float(max(high, v)), n)
        for v, low, high in zip(values, lows, highs, strict=True)
    ]
    items = {item.name: e for item, e in zip(suite.items, found[:-1], strict=True)}
    without = np.abs(worst - clean @ (weights / weights.sum())) <= NOTHING
    nothing = tuple(item.name for item, none in zip(suite.items, without, strict=True) if none)
    return Score(found[-1], items, nothing)


def _kept(clean: np.ndarray, attacked: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """Return the ratio of each item; all arguments are (items,)."""
    room = np.abs(worst - clean)
    some = room > NOTHING
    lost = np.divide(np.abs(attacked - clean), room, out=np.ones_like(room), where=some)
    return np.asarray(100 * (1 - lost.clip(0, 1)))
