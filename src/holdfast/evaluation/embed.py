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
) -> RetrievalTask:
    """Make every image a query against all the others.

    Parameters
    ----------
    encoder
        (n, c, h, w) in [0, 1] -> (n, e).
    x, y
        Images and labels; at least two images.
    distance
        Euclidean by default.
    batch_size
        Images at a time.
    """
    if len(x) != len(y):
        raise DataError(f"labels: need one for each of {len(x)} images, got {len(y)}")
    if len(x) < 2:
        raise DataError(f"images: need at least two, so that a query has something to find, got {len(x)}")
    z = embed(encoder, x, batch_size)
    ids = torch.arange(len(x), device=x.device)
    return RetrievalTask(
        encoder=encoder,
        x=cast(Tensor, x),  # rows() makes a tensor of files
        y=y,
        z=z,
        gallery=Gallery(z, y, ids),
        self_index=ids,
        index=ids.cpu(),
        distance=distance or Euclidean(),
    )
