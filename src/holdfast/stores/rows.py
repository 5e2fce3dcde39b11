"""What goes into an index: embeddings, labels and ids of a gallery, and what a gate lets in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import ImageSet
from ..errors import DataError, InvalidArgument
from ..evaluation import embed
from ..evaluation.hubs import HubGate
from ..evaluation.vectors import Vectors, open_vectors
from ..functional.ranking import chunks
from ..types import Encoder, Gallery


@dataclass(frozen=True, kw_only=True, eq=False)
class Admitted:
    """The rows of an index, and those that a gate refused.

    Attributes
    ----------
    gallery
        (m, e) embeddings, (m,) labels, -1 where unknown, and (m,) ids.
    refused
        Ids of the rows that are left out.
    """

    gallery: Gallery
    refused: Tensor


def rows_of(source: Encoder | Tensor | Vectors | str | Path, gallery: Any, batch_size: int = 256) -> Gallery:
    """Return embeddings, labels and ids out of what a user has.

    Parameters
    ----------
    source
        An encoder, which embeds ``gallery``; or embeddings (m, e) that are there: a tensor, vectors of
        :func:`~holdfast.evaluation.vectors.write_vectors`, or their path.
    gallery
        For an encoder an :class:`~holdfast.data.ImageSet`, or a pair of images (m, c, h, w) and labels (m,).
        For embeddings their labels (m,), or ``None``.
    batch_size
        Images embedded at a time.
    """
    y: Tensor | None
    if isinstance(source, str | Path):
        source = open_vectors(source)
    if isinstance(source, Vectors):
        z, y = source.z, source.y if gallery is None else torch.as_tensor(gallery)
    elif isinstance(source, Tensor):
        z, y = source, None if gallery is None else torch.as_tensor(gallery)
    else:
        x, y = (gallery.x, gallery.y) if isinstance(gallery, ImageSet) else _pair(gallery)
        z = embed(source, x, batch_size)
    if z.ndim != 2 or not len(z):
        raise InvalidArgument("source", "an encoder, or embeddings (m, e)", tuple(z.shape))
    y = torch.full((len(z),), -1) if y is None else y.long().cpu()
    if y.shape != (len(z),):
        raise DataError(f"labels: need one for each of {len(z)} rows, got {tuple(y.shape)}")
    return Gallery(z, y, torch.arange(len(z)))


def _pair(gallery: Any) -> tuple[Any, Tensor | None]:
    if not isinstance(gallery, tuple | list) or len(gallery) != 2:
        need = "an ImageSet, or images and labels, for an encoder"
        raise InvalidArgument("gallery", need, type(gallery).__name__)
    return gallery[0], None if gallery[1] is None else torch.as_tensor(gallery[1])


def admitted(gallery: Gallery, admit: HubGate | None) -> Admitted:
    """Return the rows that a gate admits; all of them without one.

    Raises
    ------
    DataError
        If it admits none.
    """
    if admit is None:
        return Admitted(gallery=gallery, refused=gallery.ids[:0])
    allowed = torch.cat([admit.admits(gallery.z[at]) for at in chunks(len(gallery.z), 4096)]).cpu()
    if not bool(allowed.any()):
        raise DataError(f"gallery: the gate refuses all {len(allowed)} rows")
    kept = allowed.nonzero()[:, 0]
    return Admitted(
        gallery=Gallery(gallery.z[kept.to(gallery.z.device)], gallery.y[kept], gallery.ids[kept]),
        refused=gallery.ids[~allowed],
    )
