"""Certificates from a Lipschitz constant: deterministic, and free once the embeddings are there.

A query moves by at most ``L`` times the perturbation of its image. A gallery row p stays before a row q as
long as the embedding stays on p's side of the bisector, at distance

    (d(z, q)^2 - d(z, p)^2) / (2 |c_p - c_q|),

which is exact in embedding space and lies between half the difference and half the sum of the two distances.
Divided by L it is a radius for images, in their l2 norm. Only the query moves; the gallery stays as it is.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..functional.distance import norms, squared_matrix
from ..functional.ranking import chunks, without_self
from ..types import Images
from .certificate import Certificate

METHOD = "lipschitz"
EPS = torch.finfo(torch.float64).eps


def lipschitz_constant(encoder: nn.Module) -> float:
    """Return a proven bound of ``|f(x) - f(x')|_2 / |x - x'|_2`` in evaluation mode, rounded up.

    Parameters
    ----------
    encoder
        A module that can prove its own constant by a method ``lipschitz_constant``, such as those of
        :class:`holdfast.encoders.LipschitzEncoder`; or a joint embedding ``M^(-1/2) [z_1; ...; z_M]`` of such
        members, whose embeddings are not divided by their lengths.

    Raises
    ------
    InvalidArgument
        For any other encoder, and if its weights are not finite. A product of spectral norms would be a
        valid constant of some of them, but so large that it certifies nothing; give your own number to
        :class:`LipschitzCertifier` if you have a proof.

    Notes
    -----
    The squared change of a joint embedding is the mean of its members' squared changes, so its constant is
    ``sqrt(mean_m L_m^2)``: at most 1 where theirs are.
    """
    values = [*encoder.parameters(), *encoder.buffers()] if isinstance(encoder, nn.Module) else []
    if not all(bool(v.isfinite().all()) for v in values):
        raise InvalidArgument("encoder", "finite weights", "NaN or infinity")
    if (prove := getattr(encoder, "lipschitz_constant", None)) is not None:
        return float(prove())
    if not (members := _members(encoder)):
        raise InvalidArgument("encoder", "one with a proven Lipschitz constant", type(encoder).__name__)
    return _quadratic_mean([lipschitz_constant(member) for member in members])


def rounding_error(encoder: nn.Module, dtype: torch.dtype = torch.float64) -> float:
    """Return a proven bound of the norm by which rounding moves an embedding of pixels in [0, 1].

    Parameters
    ----------
    encoder
        A module with a method ``rounding_error``, or a joint embedding of such members, as in
        :func:`lipschitz_constant`.
    dtype
        Precision of weights and images.

    Raises
    ------
    InvalidArgument
        For any other encoder.

    Notes
    -----
    A joint embedding adds the rounding of its division by sqrt(M), at most four units in the last place of
    its length, which is at most that of the embedding of the black image plus L times that of the white one.
    """
    if (prove := getattr(encoder, "rounding_error", None)) is not None:
        return float(prove(dtype))
    if not (members := _members(encoder)):
        raise InvalidArgument("encoder", "one with a proven rounding error", type(encoder).__name__)
    whole: Any = encoder
    place = next(encoder.parameters()).device
    black = embed_as(encoder, torch.zeros(1, *whole.shape, device=place), torch.float64)
    longest = float(norms(black)) * (1 + 1e-9) + lipschitz_constant(encoder) * math.sqrt(
        math.prod(whole.shape)
    )
    parts = _quadratic_mean([rounding_error(member, dtype) for member in members])
    exact = _quadratic_mean([rounding_error(member, torch.float64) for member in members])
    return parts + 2 * torch.finfo(dtype).eps * (longest + exact + parts) * (1 + 1e-9)


def is_proven(encoder: Any) -> bool:
    """Return whether an encoder has a proven Lipschitz constant and a proven rounding error."""
    own = all(hasattr(encoder, name) for name in ("lipschitz_constant", "rounding_error"))
    return own or bool(_members(encoder))


def _members(encoder: Any) -> list[nn.Module]:
    """Return the members of a joint embedding if all of them are proven and none is normalised."""
    if not (hasattr(encoder, "member") and hasattr(encoder, "split")) or getattr(encoder, "normalize", True):
        return []
    members = [encoder.member(number) for number in range(len(encoder))]
    return members if all(is_proven(member) for member in members) else []


def _quadratic_mean(values: list[float]) -> float:
    """Return sqrt(mean of squares), rounded up."""
    return math.sqrt(math.fsum(v * v for v in values) / len(values)) * (1 + 8 * EPS)


def certify_lipschitz(
    encoder: nn.Module,
    x: Images,
    y: Tensor,
    *,
    gallery: Images | None = None,
    gallery_y: Tensor | None = None,
    self_index: Tensor | None = None,
    k: int = 1,
    dtype: torch.dtype = torch.float64,
    batch_size: int = 256,
    chunk: int = 1024,
) -> Certificate:
    """Certify Recall@k of images under an encoder with a proven Lipschitz constant.

    Parameters
    ----------
    encoder
        See :func:`lipschitz_constant`. A float64 copy embeds; the encoder is not changed.
    x, y
        (n, c, h, w) images in [0, 1] and (n,) labels.
    gallery, gallery_y, self_index
        (m, c, h, w) gallery images, (m,) labels, and (n,) the gallery row that is the query itself, -1 where
        there is none. Without a gallery every image is a query against all the others.
    k
        A query is right when a row of its class stands among the first ``k``; ties count against it.
    dtype
        Precision in which the certified system embeds: float64, or float32. The proven rounding error of the
        encoder in it (of query and gallery) is taken off every radius.
    batch_size, chunk
        Images and queries at a time; they do not change the certificate.

    Returns
    -------
    Certificate
        Radii in the l2 norm of the pixels, lower bounds; they hold for perturbed images inside [0, 1].
        ``answer`` is the gallery row of the query's class that holds its place longest.
    """
    constant = lipschitz_constant(encoder)
    slack = rounding_error(encoder, torch.float64) + rounding_error(encoder, dtype)
    if gallery is None and (gallery_y is not None or self_index is not None):
        raise InvalidArgument("gallery", "a gallery beside gallery_y and self_index", None)
    if gallery is not None and gallery_y is None:
        raise InvalidArgument("gallery_y", "labels of the gallery", None)
    z = embed_as(encoder, x, torch.float64, batch_size)
    if gallery is None:
        self_index = torch.arange(len(z), device=z.device)
        stored = z if dtype == torch.float64 else embed_as(encoder, x, dtype, batch_size)
    else:
        stored = embed_as(encoder, gallery, dtype, batch_size)
    # The stored gallery is what it is; the query is computed twice, here and, perturbed, by the system.
    certifier = LipschitzCertifier(constant=constant, slack=slack, chunk=chunk)
    labels = y if gallery_y is None else gallery_y
    return certifier.recall(z, y.to(z.device), stored, labels.to(z.device), k=k, self_index=self_index)


def embed_as(encoder: nn.Module, x: Images, dtype: torch.dtype, batch_size: int = 256) -> Tensor:
    """Embed images by a copy of an encoder in a precision, in evaluation mode: (n, ...) -> (n, e) float64."""
    if not len(x):
        raise InvalidArgument("x", "at least one image", 0)
    copied: Any = copy.deepcopy(encoder).to(dtype).eval()
    with torch.no_grad():
        z = torch.cat([copied(x[rows].to(dtype)).double() for rows in chunks(len(x), batch_size)])
    if not bool(z.isfinite().all()):
        raise InvalidArgument("encoder", "finite embeddings", "NaN or infinity")
    return z


def certify_pixels(certificate: Certificate, constant: float, *, slack: float = 0.0) -> Certificate:
    """Carry an l2 certificate of embeddings over to the images: every radius divided by the constant.

    What cannot change while the embedding moves less than r cannot change while the image moves less than
    ``r / L``: an exact k-NN certificate under any Mahalanobis metric on embeddings becomes a certificate of
    the whole, encoder and metric together.

    Parameters
    ----------
    certificate
        Radii in embedding units, l2 norm.
    constant
        L > 0, see :func:`lipschitz_constant`.
    slack
        Taken off every radius first, in embedding units: rounding errors of the embeddings.

    Returns
    -------
    Certificate
        Lower bounds (``exact`` is False everywhere), rounded down; without perturbations, which are known
        for embeddings only.
    """
    if certificate.norm != 2:
        raise InvalidArgument("certificate", "one in the l2 norm", certificate.norm)
    _check_constant(constant, slack)
    return Certificate(
        radius=_down((certificate.radius - slack) / constant),
        correct=certificate.correct,
        norm=2.0,
        alpha=certificate.alpha,
        method=f"{certificate.method}, {METHOD}" if certificate.method else METHOD,
        answer=certificate.answer,
    )


@dataclass(frozen=True, kw_only=True)
class LipschitzCertifier:
    """Certificates for embeddings whose encoder has a known Lipschitz constant.

    Attributes
    ----------
    constant
        L > 0: embeddings move at most L times as far as the images.
    slack
        >= 0, in embedding units: how far the query embedding of the certified system may lie from the one
        that is given plus L times the perturbation, for rounding errors. Taken off every distance to a
        bisector. Gallery embeddings are taken as stored.
    chunk
        Queries at a time; memory grows with ``chunk * m``. Does not change radii.

    Notes
    -----
    Everything is computed in float64, with a bound of its own rounding errors, and rounded down. Radii are
    lower bounds, so ``exact`` is False everywhere; ties count against the certificate.

    Examples
    --------
    >>> gallery = torch.tensor([[0.0], [4.0]])
    >>> clusters = LipschitzCertifier(constant=2.0).clusters(torch.tensor([[1.0]]), gallery)
    >>> round(float(clusters.radius), 6)  # 1 away from the middle, at twice the speed
    0.5
    """

    constant: float
    slack: float = 0.0
    chunk: int = 1024

    def __post_init__(self) -> None:
        _check_constant(self.constant, self.slack)
        if self.chunk < 1:
            raise InvalidArgument("chunk", "an integer >= 1", self.chunk)

    def recall(
        self,
        z: Tensor,
        y: Tensor,
        gallery_z: Tensor,
        gallery_y: Tensor,
        *,
        k: int = 1,
        self_index: Tensor | None = None,
    ) -> Certificate:
        """Certify that a row of the query's class stands among the first k.

        ``max_p kth-smallest_q R(p, q)`` over rows p of the query's class and q of others: as long as fewer
        than k rows of other classes are nearer than p, p or another row of the class is among the first k.

        Parameters
        ----------
        z, y
            (n, e) query embeddings and (n,) labels.
        gallery_z, gallery_y
            (m, e) and (m,).
        k
            Places that count, >= 1.
        self_index
            (n,) gallery row that is the query itself, -1 where there is none; it is left out.

        Returns
        -------
        Certificate
            ``answer`` is the row p. Radii are infinite with fewer than k rows of other classes, and 0, not
            correct, without a row of the query's class.
        """
        _check(z, gallery_z, y=y, gallery_y=gallery_y, self_index=self_index)
        if k < 1:
            raise InvalidArgument("k", "an integer >= 1", k)
        places = _places(self_index, z)
        side = _Sides(gallery_z)
        parts = [side.recall(z[r], y[r], gallery_y, places[r], k) for r in chunks(len(z), self.chunk)]
        height, correct, answer = (torch.cat(column) for column in zip(*parts, strict=True))
        return self._certificate(height, correct, answer, f"{METHOD} recall@{k}")

    def top_k(
        self, z: Tensor, gallery_z: Tensor, *, k: int = 1, self_index: Tensor | None = None
    ) -> Certificate:
        """Certify that the set of the k nearest gallery rows stays the same, in whatever order.

        The smallest R(p, q) over members p and non-members q. Arguments as in :meth:`recall`.

        Returns
        -------
        Certificate
            ``answer`` (n, k) int64, the rows of the set, nearest first; ``correct`` is True everywhere.
        """
        _check(z, gallery_z, self_index=self_index)
        limit = len(gallery_z) - int(self_index is not None and bool((self_index >= 0).any()))
        if not 1 <= k <= limit:
            raise InvalidArgument("k", f"1 to {limit}, the gallery rows to choose from", k)
        places, side = _places(self_index, z), _Sides(gallery_z)
        parts = [side.top_k(z[rows], places[rows], k) for rows in chunks(len(z), self.chunk)]
        height, answer = (torch.cat(column) for column in zip(*parts, strict=True))
        return self._certificate(
            height, torch.ones_like(height, dtype=torch.bool), answer, f"{METHOD} top-{k}"
        )

    def clusters(self, z: Tensor, centroids: Tensor, y: Tensor | None = None) -> Certificate:
        """Certify that the nearest centroid stays the same.

        Parameters
        ----------
        z, centroids
            (n, e) and (c, e).
        y
            (n,) the right centroids, or None.

        Returns
        -------
        Certificate
            ``answer`` (n,) is the nearest centroid.
        """
        found = self.top_k(z, centroids, k=1)
        assert found.answer is not None
        answer = found.answer[:, 0]
        correct = found.correct if y is None else answer == y.to(answer.device)
        return Certificate(radius=found.radius, correct=correct, answer=answer, method=f"{METHOD} clusters")

    def verification(
        self, z: Tensor, reference: Tensor, threshold: float, same: Tensor | None = None
    ) -> Certificate:
        """Certify whether a distance stays on its side of a threshold.

        Parameters
        ----------
        z, reference
            (n, e) queries and (n, e) references, row by row; only the queries move.
        threshold
            A pair is accepted at distances <= threshold.
        same
            (n,) bool, whether it should be; or None.

        Returns
        -------
        Certificate
            ``answer`` (n,) int64: 1 accepted, 0 not.
        """
        if z.ndim != 2 or z.shape != reference.shape or not len(z):
            raise InvalidArgument("reference", f"like the queries, {tuple(z.shape)}", tuple(reference.shape))
        _check(z, reference)
        if not (math.isfinite(threshold) and threshold >= 0):
            raise InvalidArgument("threshold", "a finite number >= 0", threshold)
        d = norms(z.double() - reference.double())
        accepted = d <= threshold
        height = (d - threshold).abs() - (z.shape[1] + 8) * EPS * (d + threshold)
        correct = torch.ones_like(accepted) if same is None else accepted == same.bool().to(accepted.device)
        return self._certificate(height, correct, accepted.long(), f"{METHOD} verification")

    def _certificate(self, height: Tensor, correct: Tensor, answer: Tensor, method: str) -> Certificate:
        """Turn distances to a boundary in embedding space, lower bounds, into radii of images."""
        radius = _down((height - self.slack) / self.constant)
        return Certificate(radius=radius, correct=correct, answer=answer, method=method)


class _Sides:
    """Lower bounds of distances to bisectors between gallery rows, from squared distances.

    Coordinates are centred first. ``error`` bounds what rounding does to a squared distance, that of
    centring included: inner products of e terms, and points that lie no farther than ``size`` from 0.
    """

    def __init__(self, gallery_z: Tensor) -> None:
        g = gallery_z.double()
        self.centre = g.mean(0)
        self.g = g - self.centre
        self.largest = float(norms(self.g).max())

    def measure(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared distances (n, m) to all gallery rows and (n,) their error."""
        z = z.double() - self.centre
        size = norms(z).clamp_min(self.largest)
        return squared_matrix(z, self.g), 8 * (self.g.shape[1] + 8) * EPS * size.square()

    def heights(self, rows: Tensor, d: Tensor, own: Tensor, error: Tensor, sign: float = 1.0) -> Tensor:
        """Return (n, m) lower bounds >= 0 of distances to bisectors with the rows p (n,), 0 beyond them.

        ``own`` (n,) is the squared distance to p; ``sign=-1`` turns the sides: p is the row to avoid.
        """
        error = error[:, None]
        lead = sign * (d - own[:, None]) - 2 * error
        span = (squared_matrix(self.g[rows], self.g) + error).sqrt()
        return (lead / (2 * span)).nan_to_num(nan=0.0).clamp_min(0)  # 0 / 0: all rows are one point

    def recall(
        self, z: Tensor, y: Tensor, gallery_y: Tensor, places: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return height, correct and row p of some queries, each (n,)."""
        d, error = self.measure(z)
        itself = torch.arange(d.shape[1], device=d.device) == places[:, None]
        own = (gallery_y == y[:, None]) & ~itself
        other = (gallery_y != y[:, None]) & ~itself
        enough = other.sum(1) >= k
        nearest, answer = d.masked_fill(~own, torch.inf).min(1)
        rivals, rival_rows = d.masked_fill(~other, torch.inf).topk(min(k, d.shape[1]), largest=False)
        correct = own.any(1) & (~enough | (nearest < rivals[:, -1]))
        best = torch.where(correct & ~enough, torch.inf, 0.0).to(d)

        # No row p can do better than against the k nearest rivals: try them from the most promising on.
        limit = torch.zeros_like(d)
        for j in range(rivals.shape[1]):
            limit = limit.maximum(self.heights(rival_rows[:, j], d, rivals[:, j], error, sign=-1.0))
        limit = limit.masked_fill(~(own & (correct & enough)[:, None]), -torch.inf)
        limit, order = limit.sort(1, descending=True)
        for j in range(d.shape[1]):
            (live,) = torch.nonzero(limit[:, j] > best, as_tuple=True)
            if not len(live):
                break
            p = order[live, j]
            height = self.heights(p, d[live], d[live, p], error[live])
            held = height.masked_fill(~other[live], torch.inf).kthvalue(k, dim=1).values
            won = held > best[live]
            best[live[won]], answer[live[won]] = held[won], p[won]
        return best, correct, answer

    def top_k(self, z: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return height (n,) and members (n, k) of some queries."""
        d, error = self.measure(z)
        d = without_self(d, places)
        own, members = d.topk(k, dim=1, largest=False)
        out = (d == torch.inf).scatter(1, members, True)
        best = torch.full_like(error, torch.inf)
        for j in range(k):
            height = self.heights(members[:, j], d, own[:, j], error)
            best = best.minimum(height.masked_fill(out, torch.inf).amin(1))
        return best, members


def _down(radius: Tensor) -> Tensor:
    """Return radii that the last few roundings cannot have made too large."""
    return (radius * (1 - 8 * EPS)).clamp_min(0)


def _check_constant(constant: float, slack: float) -> None:
    if not 0 < constant < math.inf:
        raise InvalidArgument("constant", "a finite number > 0", constant)
    if not 0 <= slack < math.inf:
        raise InvalidArgument("slack", "a finite number >= 0", slack)


def _check(
    z: Tensor,
    gallery_z: Tensor,
    *,
    y: Tensor | None = None,
    gallery_y: Tensor | None = None,
    self_index: Tensor | None = None,
) -> None:
    for name, value in (("z", z), ("gallery_z", gallery_z)):
        if value.ndim != 2 or not len(value) or not value.is_floating_point():
            raise InvalidArgument(name, "floating-point embeddings (n, e), n >= 1", tuple(value.shape))
        if not bool(value.isfinite().all()):
            raise InvalidArgument(name, "finite embeddings", "NaN or infinity")
    if z.shape[1] != gallery_z.shape[1]:
        raise InvalidArgument("gallery_z", f"embeddings (m, {z.shape[1]})", tuple(gallery_z.shape))
    for name, labels, like in (("y", y, z), ("gallery_y", gallery_y, gallery_z)):
        if labels is not None and tuple(labels.shape) != (len(like),):
            raise InvalidArgument(name, f"one label for each of {len(like)} rows", tuple(labels.shape))
    if self_index is not None:
        fits = tuple(self_index.shape) == (len(z),)
        if not fits or int(self_index.min()) < -1 or int(self_index.max()) >= len(gallery_z):
            raise InvalidArgument(
                "self_index", f"({len(z)},) rows in [-1, {len(gallery_z)})", tuple(self_index.shape)
            )


def _places(self_index: Tensor | None, z: Tensor) -> Tensor:
    if self_index is None:
        return torch.full((len(z),), -1, device=z.device)
    return self_index.long().to(z.device)
