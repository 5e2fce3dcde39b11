"""A calibrated score that says how unlike a clean query a query looks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import allow, from_plain, to_plain
from ..errors import InvalidArgument
from ..functional.conformal import conformal_place
from ..functional.distance import Cosine, Euclidean, SquaredEuclidean
from ..functional.ranking import chunks, nearest, without_self
from ..search import frozen
from ..types import Encoder, PairwiseDistance
from .conformal import SCALE_EVERY, queries_needed
from .copies import Copies, WithCopies

TINY = 1e-6
LEAST_SCALE = 1e-3
"""A scale is at least this share of its mean: a part that does not vary on clean data is not blown up."""


@dataclass(frozen=True, kw_only=True)
class QueryGuard:
    """Settings of an online guard; :meth:`calibrate` makes it usable.

    Three parts of a query are looked at. ``stability``: the mean distance between its embedding and those of
    slightly changed copies. ``neighbours``: the mean distance to its nearest gallery rows. ``lists``, if
    wanted: the share of its first results that the copies do not find. Each part is standardised on clean
    queries, and the score is the **largest** of them.

    Attributes
    ----------
    copies
        Number and kind of the changed copies.
    neighbours
        Gallery rows in the second part, >= 1.
    top
        Length of the compared lists, or ``None`` to leave that part out.
    distance
        The distance that ranks.

    Notes
    -----
    The largest part, not the sum: a targeted attack puts the query *onto* a gallery image, which makes the
    second part unusually small, and in a sum this would pay for an unusually large first part. On digits the
    sum notices more of the untargeted attacks and fewer of the targeted ones, which are the harder to notice.

    A guard is no defense by itself: :func:`~holdfast.guard.evaluate_guard` measures how far an attack that
    knows it gets.

    References
    ----------
    Xu, Evans and Qi, *Feature Squeezing*, NDSS 2018 (comparing an input with simplified copies); Roth,
    Kilcher and Hofmann, *The Odds are Odd*, ICML 2019 (noise); Papernot and McDaniel, *Deep k-Nearest
    Neighbors*, 2018. For retrieval and in this combination: ours.
    """

    copies: Copies = field(default_factory=Copies)
    neighbours: int = 5
    top: int | None = None
    distance: PairwiseDistance = field(default_factory=Euclidean)

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise InvalidArgument("neighbours", "an integer >= 1", self.neighbours)
        if self.top is not None and self.top < 1:
            raise InvalidArgument("top", "an integer >= 1, or None", self.top)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts, in the order of their columns."""
        return ("stability", "neighbours") if self.top is None else ("stability", "neighbours", "lists")

    def parts_of(self, z: Tensor, gallery: Tensor, self_index: Tensor | None = None) -> Tensor:
        """Return the raw parts of queries from the embeddings of queries and copies.

        Parameters
        ----------
        z
            (n, (1 + count) * e), from :class:`~holdfast.guard.WithCopies`.
        gallery
            (m, e) clean embeddings.
        self_index
            (n,) gallery row that is the query itself, -1 where there is none; by default nowhere.

        Returns
        -------
        Tensor
            (n, p), in the order of :attr:`names`; differentiable. The value of ``lists`` is exact, its
            gradient is that of a smooth stand-in (sigmoids), so that an attack can follow it.
        """
        if z.ndim != 2 or z.shape[1] != (1 + self.copies.count) * gallery.shape[1]:
            need = f"embeddings of queries and {self.copies.count} copies of width {gallery.shape[1]} each"
            raise InvalidArgument("z", need, tuple(z.shape))
        if self_index is None:
            self_index = torch.full((len(z),), -1, device=z.device)
        query, *copies = z.reshape(len(z), -1, gallery.shape[1]).unbind(1)
        moved = torch.stack([self.distance.rowwise(query, copy) for copy in copies]).mean(0)
        near = nearest(query, gallery, self.neighbours, self.distance, self_index)[0].mean(1)
        if self.top is None:
            return torch.stack([moved, near], dim=1)
        rows = nearest(query, gallery, self.top, self.distance, self_index)[1]
        lost = [self._lost(copy, rows, gallery, self_index) for copy in copies]
        return torch.stack([moved, near, torch.stack(lost).mean(0)], dim=1)

    def _lost(self, copy: Tensor, rows: Tensor, gallery: Tensor, self_index: Tensor) -> Tensor:
        """Return the share of ``rows`` (n, k) that is not among the first k of a copy: (n,)."""
        d = without_self(self.distance.matrix(copy, gallery), self_index)
        own = d.gather(1, rows)  # (n, k)
        best = d.topk(rows.shape[1], dim=1, largest=False).values
        last = best[:, -1:]
        hard = (own > last).to(d.dtype).mean(1)
        width = (last - best[:, :1]).detach().clamp_min(TINY)
        soft = torch.sigmoid((own - last) / width).mean(1)
        return hard + soft - soft.detach()

    def calibrate(
        self,
        encoder: Encoder,
        x_clean: Tensor,
        gallery: Tensor,
        false_alarm: float = 0.01,
        *,
        self_index: Tensor | None = None,
        batch_size: int = 256,
    ) -> CalibratedGuard:
        """Set means, scales and the threshold on clean queries.

        Parameters
        ----------
        encoder
            (n, c, h, w) in [0, 1] -> (n, e); used in evaluation mode, without gradient, and left as it was.
        x_clean
            (n, c, h, w) clean queries like those that will come, and not used to train the encoder.
        gallery
            (m, e) clean embeddings.
        false_alarm
            Share of clean queries that may be flagged, in (0, 1).
        self_index
            (n,) gallery row that is the query itself, -1 where there is none; by default nowhere.
        batch_size
            Queries at a time; does not change results.

        Returns
        -------
        CalibratedGuard
            Its threshold is the ``ceil((n + 1) (1 - false_alarm))``-th smallest of n clean scores.

        Raises
        ------
        InvalidArgument
            If there are too few clean queries for this rate, they do not lie in [0, 1], or their distances
            are not finite.

        Notes
        -----
        Every fourth query sets means and scales, the others the threshold. Therefore, if clean queries are
        exchangeable, a new one is flagged with probability at most ``false_alarm``, on average over
        calibration sets: the split-conformal bound holds as it stands. If their distribution drifts, it
        does not.

        References
        ----------
        Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005; Bates et al., *Testing for
        outliers with conformal p-values*, Annals of Statistics 2023.
        """
        if not 0 < false_alarm < 1:
            raise InvalidArgument("false_alarm", "a rate in (0, 1)", false_alarm)
        n, needed = len(x_clean), queries_needed(false_alarm)
        if n < needed:
            need = f"at least {needed} clean queries for a false-alarm rate of {false_alarm:g}"
            raise InvalidArgument("x_clean", need, n)
        if bool(((x_clean < 0) | (x_clean > 1)).any()):  # copies are clipped there
            got = f"{float(x_clean.min()):.3g} to {float(x_clean.max()):.3g}"
            raise InvalidArgument("x_clean", "images in [0, 1]", got)
        parts = _parts(self, encoder, x_clean, gallery, self_index, batch_size)
        if not bool(torch.isfinite(parts).all()):
            raise InvalidArgument("encoder", "finite distances on clean queries", "NaN or infinity")
        seen = torch.arange(n, device=parts.device) % SCALE_EVERY == 0
        means, scales = parts[seen].double().mean(0), parts[seen].double().std(0)
        scales = scales.maximum(LEAST_SCALE * means.abs() + TINY)
        scores = _largest(parts[~seen], tuple(means.tolist()), tuple(scales.tolist()))
        place = conformal_place(len(scores), false_alarm)
        calibration = Calibration(
            settings=self,
            means=tuple(means.tolist()),
            scales=tuple(scales.tolist()),
            threshold=float(scores.sort().values[place - 1]),
            false_alarm=float(false_alarm),
            n=n,
        )
        return CalibratedGuard(calibration, encoder, gallery)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration found; plain numbers.

    Attributes
    ----------
    settings
        The guard that was calibrated.
    means, scales
        Of each part, in the units of the distance (``lists``: a share).
    threshold
        Scores above it are flagged; in clean standard deviations.
    false_alarm
        The rate that was asked for.
    n
        Clean queries.
    """

    settings: QueryGuard
    means: tuple[float, ...]
    scales: tuple[float, ...]
    threshold: float
    false_alarm: float
    n: int

    def __post_init__(self) -> None:
        parts = len(self.settings.names)
        for name, values in (("means", self.means), ("scales", self.scales)):
            if len(values) != parts or not all(math.isfinite(v) for v in values):
                raise InvalidArgument(name, f"{parts} finite numbers", values)
        if min(self.scales) <= 0:
            raise InvalidArgument("scales", "numbers > 0", self.scales)
        if not math.isfinite(self.threshold):
            raise InvalidArgument("threshold", "a finite number", self.threshold)


ALLOWED = allow(Calibration, QueryGuard, Copies, Euclidean, SquaredEuclidean, Cosine)


@dataclass(frozen=True, eq=False)
class CalibratedGuard:
    """A guard that can score: its calibration, the encoder and the gallery that it was calibrated with.

    Attributes
    ----------
    calibration
        Settings, means, scales, threshold.
    encoder, gallery
        As at calibration. A gallery that has grown calls for a new calibration.
    """

    calibration: Calibration
    encoder: Encoder
    gallery: Tensor

    @property
    def threshold(self) -> float:
        """Scores above it are flagged."""
        return self.calibration.threshold

    @property
    def wide(self) -> WithCopies:
        """The encoder of queries and copies, whose embeddings :meth:`score_of` takes."""
        return WithCopies(self.encoder, self.calibration.settings.copies)

    def score_of(self, z: Tensor, self_index: Tensor | None = None) -> Tensor:
        """Return the score from wide embeddings, (n, (1 + count) * e) -> (n,); differentiable."""
        c = self.calibration
        return _largest(c.settings.parts_of(z, self.gallery, self_index), c.means, c.scales)

    def parts(self, x: Tensor, self_index: Tensor | None = None, batch_size: int = 256) -> dict[str, Tensor]:
        """Return the standardised parts of queries by name, each (n,): why a query was flagged."""
        c = self.calibration
        raw = _parts(c.settings, self.encoder, x, self.gallery, self_index, batch_size)
        columns = _standard(raw, c.means, c.scales).unbind(1)
        return dict(zip(c.settings.names, columns, strict=True))

    def score(self, x: Tensor, self_index: Tensor | None = None, batch_size: int = 256) -> Tensor:
        """Return how unlike clean queries these are.

        Parameters
        ----------
        x
            (n, c, h, w) in [0, 1].
        self_index
            (n,) gallery row that is the query itself, -1 where there is none; by default nowhere.
        batch_size
            Queries at a time; does not change results.

        Returns
        -------
        Tensor
            (n,), in clean standard deviations; computed without gradient, and the encoder is left as it was.
        """
        c = self.calibration
        raw = _parts(c.settings, self.encoder, x, self.gallery, self_index, batch_size)
        return _largest(raw, c.means, c.scales)

    def flags(self, x: Tensor, self_index: Tensor | None = None, batch_size: int = 256) -> Tensor:
        """Return whether the score lies above the threshold, (n,) bool; a score that is NaN is flagged."""
        return ~(self.score(x, self_index, batch_size) <= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as JSON-ready data, without encoder and gallery."""
        data: dict[str, Any] = to_plain(self.calibration)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], encoder: Encoder, gallery: Tensor) -> CalibratedGuard:
        """Rebuild a guard from :meth:`to_dict`'s data and the same encoder and gallery."""
        calibration = from_plain(dict(data), ALLOWED)
        if not isinstance(calibration, Calibration):
            raise InvalidArgument("data", "a Calibration", type(calibration).__name__)
        return cls(calibration, encoder, gallery)


def _standard(parts: Tensor, means: tuple[float, ...], scales: tuple[float, ...]) -> Tensor:
    return (parts - parts.new_tensor(means)) / parts.new_tensor(scales)


def _largest(parts: Tensor, means: tuple[float, ...], scales: tuple[float, ...]) -> Tensor:
    return _standard(parts, means, scales).amax(1)


@torch.no_grad()
def _parts(
    settings: QueryGuard,
    encoder: Encoder,
    x: Tensor,
    gallery: Tensor,
    self_index: Tensor | None,
    batch_size: int,
) -> Tensor:
    """Return the raw parts of images, (n, p), in batches and evaluation mode."""
    if x.ndim != 4:
        raise InvalidArgument("x", "images (n, c, h, w)", tuple(x.shape))
    if gallery.ndim != 2 or len(gallery) == 0:
        raise InvalidArgument("gallery", "embeddings (m, e), at least one", tuple(gallery.shape))
    if self_index is not None and len(self_index) != len(x):
        raise InvalidArgument("self_index", f"one for each of {len(x)} queries", len(self_index))
    wide = WithCopies(encoder, settings.copies)
    found = [gallery.new_zeros(0, len(settings.names))]
    with frozen(wide):
        for rows in chunks(len(x), batch_size):
            own = None if self_index is None else self_index[rows]
            found.append(settings.parts_of(wide(x[rows]), gallery, own))
    return torch.cat(found)
