"""Votes under noise: a certificate around any search engine that answers with a label or a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import RowStreams
from ..search import frozen
from .certificate import Certificate
from .gaussian import lower_proportion, noisy_batches, vote_radius
from .smoothing import Smoothing, numbers

ABSTAINED = -1


def certify_votes(
    answer: Callable[[Tensor], Tensor],
    x: Tensor,
    smoothing: Smoothing,
    *,
    y: Tensor | None = None,
    index: Tensor | Sequence[int] | None = None,
) -> Certificate:
    """Certify the answer that most noisy copies of an input get.

    Parameters
    ----------
    answer
        (b, *s) inputs -> (b,) int64 answers >= 0: the label or the row of the nearest gallery item, from an
        exact or approximate index, a service, a nearest-neighbour classifier. Only asked, never looked into;
        it must answer each copy for itself and without memory (a network inside in evaluation mode). Clipping
        of inputs, if any, is part of it.
    x
        (n, *s) inputs; the noisy copies are not clipped here.
    smoothing
        ``sigma``, ``n_select``, ``n_certify``, ``alpha``, ``seed`` and ``batch_size`` are read.
    y
        (n,) right answers, if they are known.
    index
        (n,) the inputs' own numbers, which name the noise; 0, 1, ... by default.

    Returns
    -------
    Certificate
        Radii about the answer of the *majority under noise*. Where no majority is proved the answer is -1,
        the radius 0 and ``correct`` False.

    Notes
    -----
    The candidate is the most frequent answer of the select sample (the smallest one on a tie). With p its
    Clopper-Pearson lower bound on the fresh certify sample, the radius is ``sigma Phi^-1(p)`` if p > 1/2. All
    other answers together are bounded by 1 - p, so their number does not matter. A separate bound of the
    second answer is not offered: answers that were never seen would have to be bounded as well.

    References
    ----------
    Cohen, Rosenfeld and Kolter, *Certified Adversarial Robustness via Randomized Smoothing*, ICML 2019,
    section 3.2.2 and theorem 1.

    Examples
    --------
    >>> def sign(x): return (x[:, 0] > 0).long()
    >>> x = torch.tensor([[0.5], [-0.25], [0.0]])
    >>> c = certify_votes(sign, x, Smoothing(sigma=0.25, n_certify=2000))
    >>> c.answer.tolist(), [round(float(r), 2) for r in c.radius]  # true radii 0.5, 0.25, 0
    ([1, 0, -1], [0.44, 0.22, 0.0])
    """
    if y is not None and len(y) != len(x):
        raise InvalidArgument("y", f"an answer for each of the {len(x)} inputs", len(y))
    s = smoothing
    radius, found = [], []
    with frozen(answer):
        for i, number in enumerate(numbers(index, len(x))):
            votes = _votes(answer, x[i], s.n_select, "select", number, s)
            most = max(votes.values())
            candidate = min(a for a, count in votes.items() if count == most)
            hits = _votes(answer, x[i], s.n_certify, "certify", number, s)[candidate]
            r = float(vote_radius(lower_proportion(np.array(hits), s.n_certify, s.alpha), s.sigma))
            radius.append(r)
            found.append(candidate if r > 0 else ABSTAINED)
    radii, answers = torch.tensor(radius, dtype=torch.float64), torch.tensor(found, dtype=torch.int64)
    proved = radii > 0
    right = proved if y is None else proved & (answers == y.cpu())
    return Certificate(radius=radii, correct=right, alpha=s.alpha, method="vote", answer=answers)


def _votes(
    answer: Callable[[Tensor], Tensor], x: Tensor, n: int, purpose: str, index: int, s: Smoothing
) -> Counter[int]:
    """Count the answers to ``n`` noisy copies."""
    votes: Counter[int] = Counter()
    streams = RowStreams(s.seed, "vote", purpose, index=[index])
    for copies in noisy_batches(x, s.sigma, n, streams, s.batch_size):
        with torch.no_grad():
            given = answer(copies)
        if not isinstance(given, Tensor) or tuple(given.shape) != (len(copies),):
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InvalidArgument("answer", f"one answer for each input, ({len(copies)},)", got)
        if given.dtype.is_floating_point or given.dtype.is_complex or bool((given < 0).any()):
            raise InvalidArgument("answer", "integers >= 0", f"{given.dtype}, least {given.min()}")
        votes.update(given.tolist())
    return votes
