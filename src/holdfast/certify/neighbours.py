"""Certificates of k-NN classifiers under a Mahalanobis metric: which computation, for which points."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch
from torch import Tensor

from ..errors import InvalidArgument
from .bisectors import Bisectors
from .certificate import Certificate
from .counterexample import counterexamples, flips
from .nearest import Effort, smallest
from .references import References
from .territory import Territory
from .triplet import neighbour_bound

Method = Literal["auto", "bound", "tight", "exact"]
METHODS: tuple[Method, ...] = ("auto", "bound", "tight", "exact")
SMALL = 5000
"""References up to which "auto" takes "tight" for K > 1."""
POINTS = 128
"""Points of one class that are worked on together."""
EXACT = 1e-7
"""Relative distance of upper and lower bound at which a radius counts as exact."""
EFFORTS = {"tight": Effort(nodes=32, sets=32), "exact": Effort(nodes=10**9, sets=10**9)}


def certify_neighbours(
    references: References,
    x: Tensor,
    y: Tensor,
    *,
    k: int = 1,
    norm: float = 2.0,
    method: Method = "auto",
    time_budget: float | None = None,
) -> Certificate:
    """Certify that no perturbation shorter than a radius changes the answers of a k-NN classifier.

    Parameters
    ----------
    references
        The classifier.
    x
        (n, D) points in input units.
    y
        (n,) their right class codes.
    k
        Neighbours that vote, 1 <= k <= N.
    norm
        2 (tightest), 1 or infinity (bounds only).
    method
        ``"bound"`` is the published triplet bound; ``"tight"`` raises it by quadratic programmes, within
        fixed limits; ``"exact"`` goes on until nothing shorter is possible, or the time is over;
        ``"auto"`` is exact for k = 1 and otherwise tight up to 5000 references.
    time_budget
        Seconds for all points, or None. Points that it does not reach keep a sound, smaller radius.

    Returns
    -------
    Certificate
        ``exact`` says where the radius is the smallest perturbation after which the right class has no
        strict majority of the k votes: for k <= 3 or two classes just what changes the answer when ties
        count against it, otherwise a little earlier. ``upper`` and ``perturbation`` are moves after which the
        classifier's answer was seen to change.
    """
    if method not in METHODS:
        raise InvalidArgument("method", f"one of {', '.join(METHODS)}", method)
    if time_budget is not None and not time_budget > 0:
        raise InvalidArgument("time_budget", "seconds > 0, or None", time_budget)
    if norm != 2 and method in ("tight", "exact"):
        raise InvalidArgument("method", "'bound' or 'auto' for norms other than 2", method)
    if method == "auto":
        tight = k > 1 and len(references) <= SMALL
        method = "bound" if norm != 2 else "exact" if k == 1 else "tight" if tight else "bound"
    t = references.inside(x)
    answer = references.answer(t, k)
    correct = answer == y
    if method == "bound":
        return Certificate(
            radius=neighbour_bound(references, t, y, k, norm=norm),
            correct=correct,
            norm=float(norm),
            method="triplet bound",
            answer=answer,
        )
    effort = Effort() if k == 1 else EFFORTS[method]
    radius, least = torch.zeros_like(t[:, 0]), torch.zeros_like(t[:, 0])
    upper, move = torch.full_like(radius, math.inf), torch.zeros_like(t)
    end = None if time_budget is None else time.monotonic() + time_budget
    parts = _parts(references, answer, correct)
    left = sum(len(at) for _, at in parts)
    for land, at in parts:
        if end is not None:
            now = time.monotonic()
            effort = effort._replace(deadline=now + max(0.0, end - now) * len(at) / left)
        left -= len(at)
        known = counterexamples(land, t[at], k) if k > 1 else None
        seen = [] if known is None else [flips(references, t[at], known, answer[at], k)]
        found = smallest(land, t[at], k, effort, known)
        radius[at], least[at] = found.lower, found.upper
        for moves in (*seen, flips(references, t[at], found, answer[at], k)):
            shorter = moves.upper <= upper[at]
            upper[at[shorter]], move[at[shorter]] = moves.upper[shorter], moves.move[shorter]
    return Certificate(
        radius=radius,
        correct=correct,
        exact=~correct | (least - radius <= EXACT * least) | torch.isinf(radius),
        method="quadratic programmes",
        answer=answer,
        upper=torch.where(correct, upper, 0.0),
        perturbation=references.outside(move),
    )


def find_perturbations(
    references: References, x: Tensor, y: Tensor, *, k: int = 1, starts: int = 8, rounds: int = 3
) -> tuple[Tensor, Tensor]:
    """Attack a k-NN classifier: look for short l2 perturbations that change its right answers.

    Parameters
    ----------
    references, x, y, k
        As for :func:`certify_neighbours`.
    starts, rounds
        As for :func:`holdfast.certify.counterexample.counterexamples`.

    Returns
    -------
    tuple
        (n,) lengths, 0 where the answer is wrong already and infinite where nothing was found, and (n, D)
        perturbations.
    """
    t = references.inside(x)
    answer = references.answer(t, k)
    correct = answer == y
    upper, move = torch.where(correct, math.inf, torch.zeros_like(t[:, 0])), torch.zeros_like(t)
    for land, at in _parts(references, answer, correct):
        found = counterexamples(land, t[at], k, starts, rounds)
        seen = flips(references, t[at], found, answer[at], k)
        upper[at], move[at] = seen.upper, seen.move
    return upper, references.outside(move)


def _parts(references: References, answer: Tensor, correct: Tensor) -> list[tuple[Territory, Tensor]]:
    """Return classes with the rows of some of their points."""
    parts, bisectors = [], Bisectors(references=references)
    for label in torch.unique(answer[correct]).tolist():
        land = Territory.of(bisectors, label)
        rows = torch.nonzero(correct & (answer == label)).squeeze(1)
        parts += [(land, at) for at in torch.split(rows, POINTS)]
    return parts
