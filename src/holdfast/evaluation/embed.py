"""Embed images in one pass, and set up queries against a gallery."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..errors import DataError, InvalidArgument
from ..functional.distance import Euclidean
from ..functional.ranking import chunks
from ..search.modes import frozen
from ..types import Encoder, Gallery, Images, PairwiseDistance, RetrievalTask


def embed(encoder: Encoder, x: Images, batch_size: int = 256) -> Tensor:
    """Embed images without gradient and in evaluation mode.

    Parameters
    ----------
    encoder
        (n, c, h, w) in [0, 1] -> (n, e).
    x
        Images.
    batch_size
        Images at a time.

    Returns
    -------
    Tensor
        (n, e).

    Raises
    ------
    InvalidArgument
        If the encoder returns another shape, or NaN or infinity.
    """
    if len(x) == 0:
        raise DataError("images: need at least one image, got 0")
    parts = []
    with frozen(encoder), torch.no_grad():
        for rows in chunks(len(x), batch_size):
            z = encoder(x[rows])
            if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != rows.stop - rows.start:
                got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
                raise InvalidArgument("encoder", f"embeddings ({rows.stop - rows.start}, e)", got)
            if not bool(torch.isfinite(z).all()):
                raise InvalidArgument("encoder", "finite embeddings", "NaN or infinity")
            parts.append(z)
    return torch.cat(parts)


def retrieval_task(
    encoder: Encoder,
    x: Images,
    y: Tensor,
    distance: PairwiseDistance | None = None,
    batch_size: int = 256,
    *,
    gallery: Images | Tensor | None = None,
    gallery_y: Tensor | None = None,
    self_index: Tensor | None = None,
) -> RetrievalTask:
    """Make every image a query against all the others, or against a gallery of its own.

    Parameters
    ----------
    encoder
        (n, c, h, w) in [0, 1] -> (n, e).
    x, y
        Images and labels; at least two images where they are their own gallery.
    distance
        Euclidean by default.
    batch_size
        Images at a time.
    gallery, gallery_y
        Gallery images, or embeddings (m, e) that are there already, and their labels (m,).
    self_index
        (n,) gallery row that is the query itself, -1 where there is none; by default no query stands in a
        gallery of its own.
    """
    if len(x) != len(y):
        raise DataError(f"labels: need one for each of {len(x)} images, got {len(y)}")
    if gallery is None:
        if len(x) < 2:
            raise DataError(f"images: need at least two, so that a query has something to find, got {len(x)}")
        if gallery_y is not None or self_index is not None:
            raise InvalidArgument("gallery", "a gallery beside gallery_y and self_index", None)
    z = embed(encoder, x, batch_size)
    ids = torch.arange(len(x), device=x.device)
    if gallery is None:
        rows, places = Gallery(z, y, ids), ids
    else:
        rows = _gallery(encoder, gallery, gallery_y, z, batch_size)
        places = _places(self_index, len(z), len(rows.z)).to(ids.device)
    return RetrievalTask(
        encoder=encoder,
        x=cast(Tensor, x),  # rows() makes a tensor of files
        y=y,
        z=z,
        gallery=rows,
        self_index=places,
        index=torch.arange(len(x)),
        distance=distance or Euclidean(),
    )


def _gallery(
    encoder: Encoder, gallery: Images | Tensor, y: Tensor | None, z: Tensor, batch_size: int
) -> Gallery:
    if isinstance(gallery, Tensor) and gallery.ndim == 2 and z.shape[1:] == gallery.shape[1:]:
        g = gallery.to(z)
        if not bool(torch.isfinite(g).all()):
            raise InvalidArgument("gallery", "finite embeddings", "NaN or infinity")
    elif isinstance(gallery, Tensor) and gallery.ndim == 2:
        raise InvalidArgument("gallery", f"embeddings (m, {z.shape[1]})", tuple(gallery.shape))
    else:
        g = embed(encoder, gallery, batch_size)
    if y is None or len(y) != len(g):
        got = 0 if y is None else len(y)
        raise DataError(f"gallery labels: need one for each of {len(g)} rows, got {got}")
    return Gallery(g, y.to(z.device), torch.arange(len(g), device=z.device))


def _places(self_index: Tensor | None, n: int, m: int) -> Tensor:
    places = torch.full((n,), -1) if self_index is None else self_index.long()
    if tuple(places.shape) != (n,) or int(places.min()) < -1 or int(places.max()) >= m:
        raise InvalidArgument("self_index", f"({n},) rows in [-1, {m})", tuple(places.shape))
    if m < 1 + int((places >= 0).any()):
        raise DataError(f"gallery: need at least one row besides the query, got {m}")
    return places
