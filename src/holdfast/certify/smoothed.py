"""Certified answers of smoothed embeddings: Recall@k, top-k sets, cluster assignment and verification.

All functions certify the *smoothed* encoder ``g(x) = E f(x + sigma n)`` against vectors that do not move:
clean embeddings of a gallery, centroids, or smoothed embeddings of a gallery. Estimate those under a purpose
of their own, ``smoothed_embeddings(..., purpose="gallery")``: they must not depend on the noise drawn here.

What is certified is chosen on the select sample and proved on the certify sample. A radius is too large with
probability at most alpha for each input; where nothing is proved the answer is -1, the radius 0 and
``correct`` False. A deployed mean of finitely many copies is near g but not g: where margins are small its
answers may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidArgument
from ..functional.distance import Cosine, Euclidean, SquaredEuclidean, norms
from ..functional.ranking import chunks
from ..search import frozen
from ..types import Encoder, RetrievalTask
from .certificate import Certificate
from .gaussian import TOLERANCE, ball_width, rounded_down
from .halfspaces import Halfspaces, Source, ball_radii, choose, conditions_radius
from .smoothing import Smoothing, embeddings_under_noise, numbers, smoothed_embeddings, sum_of

CHUNK = 4096
"""Gallery rows at a time."""
ABSTAINED = -1


class Claim(NamedTuple):
    """What one input's select sample suggests.

    Attributes
    ----------
    answer
        (w,) or () int64.
    right
        Whether that answer is the right one.
    source
        The conditions that make it the answer.
    spare
        How many of them may fail.
    others
        Given a mean embedding, further conditions of which any one set makes it the answer too; only the
        ball, which holds for every choice at once, may certify them.
    """

    answer: Tensor
    right: bool
    source: Source
    spare: int = 0
    others: Callable[[Tensor], Sequence[Source]] = lambda mean: ()


def certify_recall(
    task: RetrievalTask, smoothing: Smoothing, *, k: int = 1, candidates: int = 8
) -> Certificate:
    """Certify that a gallery row of the query's class stays among the first ``k``.

    Parameters
    ----------
    task
        Queries, gallery and self-matches, which are left out by index. The distance must be Euclidean, its
        square, or cosine; gallery vectors may have any length.
    smoothing
        Noise, samples and alpha.
    k
        Recall@k, >= 1.
    candidates
        Gallery rows of the query's class, the nearest ones, of which the best is certified.

    Returns
    -------
    Certificate
        ``answer`` is the certified class, or -1.

    Notes
    -----
    Row p beats row q where ``<g, u> > t`` with ``u = (c_p - c_q) / |c_p - c_q|`` and
    ``t = (|c_p|^2 - |c_q|^2) / (2 |c_p - c_q|)``. With R_pq the radius of that condition the radius is
    ``max_p min_q R_pq`` over p of the class and q of the others (for k > 1 all but the k - 1 hardest q).

    The row p whose *margins* are counted, their levels, and the k - 1 competitors that are spared come from
    the select sample. The ball around the mean holds for all directions at once, so there the maximum over p
    and the k - 1 competitors are taken on the certify sample itself: a maximum of radii that all hold.
    """
    _at_least_one("k", k)
    _at_least_one("candidates", candidates)
    z, y = _gallery(task), task.gallery.y

    def claim(i: int, select: Tensor) -> Claim:
        own = torch.arange(len(z), device=z.device) != task.self_index[i].to(z.device)
        same = torch.nonzero(own & (y == task.y[i])).squeeze(1)
        rivals = torch.nonzero(own & (y != task.y[i])).squeeze(1)

        def near(mean: Tensor) -> list[Source]:
            rows = same[_scores(mean, z, same).topk(min(candidates, len(same))).indices]
            return [_nearer(z, p, rivals) for p in rows]

        def promise(source: Source) -> float:
            return _kth(ball_radii(source, select.mean(0), 0.0, 1.0), k)

        sources = near(select.mean(0)) or [_never(select)]
        best = max(sources, key=promise) if len(sources) > 1 else sources[0]
        return Claim(task.y[i].cpu(), True, best, k - 1, near)

    return _certify(task.encoder, task.x, task.index, smoothing, claim, k)


def certify_topk(task: RetrievalTask, k: int, smoothing: Smoothing) -> Certificate:
    """Certify that the set of the ``k`` nearest gallery rows stays the same, in any order.

    Every member must beat every other row. ``answer`` is (n, k) rows in ascending order, or -1;
    ``correct`` says that one of them is of the query's class. Parameters as in :func:`certify_recall`.
    """
    z = _gallery(task)
    limit = len(z) - int(bool((task.self_index >= 0).any()))
    if not 1 <= k <= limit:
        raise InvalidArgument("k", f"1 to {limit}, the gallery rows to choose from", k)

    def claim(i: int, select: Tensor) -> Claim:
        rows = torch.arange(len(z), device=z.device)
        rows = rows[rows != task.self_index[i].to(z.device)]
        inside = _scores(select.mean(0), z, rows).topk(k).indices
        member = torch.zeros(len(rows), dtype=torch.bool, device=z.device)
        member[inside] = True
        right = bool((task.gallery.y[rows[member]] == task.y[i]).any())
        sources = [_nearer(z, p, rows[~member]) for p in rows[member]]
        return Claim(rows[member].cpu(), right, lambda: (part for source in sources for part in source()))

    return _certify(task.encoder, task.x, task.index, smoothing, claim)


def certify_clusters(
    encoder: Encoder,
    x: Tensor,
    centroids: Tensor,
    smoothing: Smoothing,
    *,
    y: Tensor | None = None,
    index: Tensor | Sequence[int] | None = None,
) -> Certificate:
    """Certify that inputs stay with their nearest centroid.

    Parameters
    ----------
    encoder, x
        Embeddings of length at most 1; (n, *s) inputs.
    centroids
        (c, e) of any length.
    smoothing
        Noise, samples and alpha.
    y
        (n,) right clusters, if there are any.
    index
        (n,) the inputs' own numbers, which name the noise; 0, 1, ... by default.

    Returns
    -------
    Certificate
        ``answer`` is the row of ``centroids``, or -1.
    """
    z = _vectors("centroids", centroids)
    rows = torch.arange(len(z), device=z.device)

    def claim(i: int, select: Tensor) -> Claim:
        nearest = _scores(select.mean(0), z, rows).argmax()
        right = y is None or int(y[i]) == int(nearest)
        return Claim(nearest.cpu(), right, _nearer(z, nearest, rows[rows != nearest]))

    return _certify(encoder, x, _labelled(index, x, y, "y"), smoothing, claim)


def certify_verification(
    encoder: Encoder,
    x: Tensor,
    reference: Tensor,
    threshold: float,
    smoothing: Smoothing,
    *,
    same: Tensor | None = None,
    index: Tensor | Sequence[int] | None = None,
) -> Certificate:
    """Certify the decision ``<g(x), c> > threshold`` about each input and its fixed reference vector.

    Parameters
    ----------
    encoder, x
        Embeddings of length at most 1; (n, *s) inputs.
    reference
        (n, e) vectors c that do not move, none of length 0.
    threshold
        Of the inner product; for vectors of length 1 a squared distance s is the product ``1 - s / 2``.
    smoothing
        Noise, samples and alpha.
    same
        (n,) bool, the right decisions, if they are known.
    index
        (n,) the inputs' own numbers, which name the noise; 0, 1, ... by default.

    Returns
    -------
    Certificate
        ``answer`` is 1 (same), 0 (different) or -1.
    """
    z = _vectors("reference", reference).double()
    if len(z) != len(x):
        raise InvalidArgument("reference", f"a vector for each of the {len(x)} inputs", len(z))
    length = norms(z)
    if not bool((length > 0).all()):
        raise InvalidArgument("reference", "vectors of length above 0", 0.0)
    if not math.isfinite(threshold):
        raise InvalidArgument("threshold", "a finite number", threshold)

    def claim(i: int, select: Tensor) -> Claim:
        above = bool(z[i] @ select.mean(0) > threshold)
        sign = 1.0 if above else -1.0
        spaces = Halfspaces(sign * z[i : i + 1] / length[i], sign * threshold / length[i : i + 1])
        right = same is None or bool(same[i]) == above
        return Claim(torch.tensor(int(above)), right, lambda: iter([spaces]))

    return _certify(encoder, x, _labelled(index, x, same, "same"), smoothing, claim)


def certify_moving_pairs(
    encoder: Encoder,
    x: Tensor,
    other: Tensor,
    threshold: float,
    smoothing: Smoothing,
    *,
    same: Tensor | None = None,
    index: Tensor | Sequence[int] | None = None,
) -> Certificate:
    """Certify the decision ``<g(x), g(x')> > threshold`` while both inputs move.

    Parameters
    ----------
    x, other
        (n, *s) inputs, pair by pair.
    encoder, threshold, smoothing, same, index
        As in :func:`certify_verification`.

    Returns
    -------
    Certificate
        The radius bounds ``|delta| + |delta'|``, the lengths of the two perturbations together.

    Notes
    -----
    g moves by at most ``sqrt(2 / pi) / sigma`` times the length of a perturbation (the slope of Phi in
    :func:`~holdfast.certify.gaussian.halfspace_radius`), and is never longer than 1, so the product moves by
    at most that constant times the sum of the lengths. Each mean has a ball of alpha / 2; both hold for every
    direction, so the decision may be read from the same samples and no select sample is drawn.
    """
    if x.shape != other.shape:
        raise InvalidArgument("other", f"inputs like x, {tuple(x.shape)}", tuple(other.shape))
    if not math.isfinite(threshold):
        raise InvalidArgument("threshold", "a finite number", threshold)
    own = _labelled(index, x, same, "same")
    a = smoothed_embeddings(encoder, x, smoothing, index=own)
    b = smoothed_embeddings(encoder, other, smoothing, index=own, purpose="certify other")
    half, n = smoothing.alpha / 2, smoothing.n_certify
    radius, answer = [], []
    for p, q in zip(a, b, strict=True):
        lengths = float(norms(p)), float(norms(q))
        widths = [ball_width(length, n, half) for length in lengths]
        # |<p, q> - <g, g'>| <= |p - g| |q| + |g| |q - g'|
        error = widths[0] * lengths[1] + min(1.0, lengths[0] + widths[0]) * widths[1]
        above = float(p @ q) - threshold
        answer.append(int(above > 0))
        radius.append(max(0.0, abs(above) - error - TOLERANCE) * smoothing.sigma * math.sqrt(math.pi / 2))
    found = torch.tensor(answer)
    right = torch.ones(len(x), dtype=torch.bool) if same is None else found.bool() == same.bool().cpu()
    exact = torch.from_numpy(rounded_down(torch.tensor(radius, dtype=torch.float64).numpy()))
    return _certificate(exact, right, found, smoothing.alpha)


def _certify(
    encoder: Encoder,
    x: Tensor,
    index: Tensor | Sequence[int] | None,
    s: Smoothing,
    claim: Callable[[int, Tensor], Claim],
    k: int = 1,
) -> Certificate:
    """Select and certify, one input at a time."""
    radius, right, answer = [], [], []
    alpha = s.alpha if s.bound == "ball" else s.alpha / 2
    with frozen(encoder):
        for i, number in enumerate(numbers(index, len(x))):
            select = torch.cat(list(embeddings_under_noise(encoder, x[i], s.n_select, "select", number, s)))
            what = claim(i, select)
            chosen = choose(what.source, select, s, what.spare)
            batches = embeddings_under_noise(encoder, x[i], s.n_certify, "certify", number, s)
            mean = sum_of(z if chosen.margins is None else chosen.margins.see(z) for z in batches)
            mean = mean / s.n_certify
            width = ball_width(float(norms(mean)), s.n_certify, alpha)
            found = conditions_radius(what.source, chosen, mean, width, s)
            others = (_kth(ball_radii(source, mean, width, s.sigma), k) for source in what.others(mean))
            radius.append(max([found, *others]))
            right.append(what.right)
            answer.append(what.answer)
    if not radius:
        raise InvalidArgument("x", "at least one input", 0)
    radii = torch.tensor(radius, dtype=torch.float64)
    return _certificate(radii, torch.tensor(right), torch.stack(answer), s.alpha)


def _certificate(radius: Tensor, right: Tensor, answer: Tensor, alpha: float) -> Certificate:
    proved = radius > 0
    kept = torch.where(proved.reshape(-1, *[1] * (answer.ndim - 1)), answer, ABSTAINED)
    return Certificate(radius=radius, correct=right & proved, alpha=alpha, method="smoothing", answer=kept)


def _kth(radii: Tensor, k: int) -> float:
    """Return the k-th smallest radius; infinity where there are fewer."""
    return float(radii.kthvalue(k).values) if len(radii) >= k else math.inf


def _never(select: Tensor) -> Source:
    """Return a condition that cannot be met."""
    zero = torch.zeros_like(select[:1])
    return lambda: iter([Halfspaces(zero, torch.full_like(zero[:, 0], torch.inf))])


def _nearer(z: Tensor, winner: Tensor, losers: Tensor) -> Source:
    """Return the conditions that one row is nearer than others, in chunks."""
    return lambda: (Halfspaces.nearer(z[winner], z[losers[rows]]) for rows in chunks(len(losers), CHUNK))


def _scores(mean: Tensor, z: Tensor, rows: Tensor) -> Tensor:
    """Return ``<mean, c> - |c|^2 / 2`` (n,) for rows of z: the larger, the nearer."""
    parts = [z[rows[part]].double() for part in chunks(len(rows), CHUNK)]
    return torch.cat([c @ mean - c.square().sum(1) / 2 for c in parts]) if parts else mean.new_empty(0)


def _gallery(task: RetrievalTask) -> Tensor:
    if len(task.gallery.z) == 0:
        raise InvalidArgument("gallery", "at least one row", 0)
    z = _vectors("gallery", task.gallery.z)
    if isinstance(task.distance, Cosine):
        return F.normalize(z.double(), dim=1)
    if not isinstance(task.distance, Euclidean | SquaredEuclidean):
        raise InvalidArgument("distance", "Euclidean, its square, or cosine", task.distance)
    return z


def _vectors(name: str, z: Tensor) -> Tensor:
    if z.ndim != 2:
        raise InvalidArgument(name, "vectors (m, e)", tuple(z.shape))
    if not bool(torch.isfinite(z).all()):
        raise InvalidArgument(name, "finite vectors", "NaN or infinity")
    return z.detach()


def _labelled(
    index: Tensor | Sequence[int] | None, x: Tensor, y: Tensor | None, name: str
) -> Tensor | Sequence[int] | None:
    if y is not None and len(y) != len(x):
        raise InvalidArgument(name, f"one for each of the {len(x)} inputs", len(y))
    return index


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InvalidArgument(name, "an integer >= 1", value)
