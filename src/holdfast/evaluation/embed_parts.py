"""Embed images in parts that lie on disk, by one process or several, and put them together as vectors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, InvalidArgument, RunError
from ..files import read_arrays, read_json, write_arrays, write_json
from ..types import Encoder, Images
from .embed import embed
from .shares import Spread, blocks, here, kept
from .vectors import write_vectors


class ToEmbed(NamedTuple):
    """An encoder, the images to embed, (n, c, h, w), and their labels (n,), -1 where they have none."""

    encoder: Encoder
    x: Images
    y: Tensor


BATCHES = 16
"""Batches of images that one task embeds, and one file of parts holds."""


def embed_to(
    out: str | Path,
    make: Callable[..., ToEmbed],
    arguments: tuple[Any, ...] = (),
    *,
    key: str,
    batch_size: int = 256,
    spread: Spread = here,
    on_done: Callable[[int, int], None] | None = None,
) -> Path:
    """Embed images into a folder of vectors, part by part; more images than memory holds are no trouble.

    Parameters
    ----------
    out
        New folder; gets the vectors in the order of the images, see
        :func:`~holdfast.evaluation.vectors.write_vectors`. Beside it ``OUT.parts`` holds what is embedded so
        far: a stopped call goes on there, and the last step removes it.
    make, arguments
        ``make(*arguments)`` says what is embedded. Each process calls it once, so neither encoder nor images
        are sent.
    key
        Names what ``make`` returns: a hash of weights, and of the images. Parts of another key are refused.
    batch_size
        Images in one forward pass. Batches are the same whoever embeds them, so vectors are equal to the bit
        where the number of threads is.
    spread
        Who embeds: this process, or a queue.
    on_done
        Called with tasks done and tasks in all, each of up to 16 batches.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    DataError
        If there is no image.
    RunError
        If ``out`` exists, or the parts beside it are of something else.
    """
    out = Path(out).resolve()
    if batch_size < 1:
        raise InvalidArgument("batch_size", "an integer >= 1", batch_size)
    if out.exists():
        raise RunError(f"{out}: exists already; choose another folder")
    asked = kept(key, lambda: make(*arguments))
    n, y = len(asked.x), asked.y
    if n == 0:
        raise DataError("images: need at least one image, got 0")
    parts, about = out.with_name(f"{out.name}.parts"), {"key": key, "images": n, "batch_size": batch_size}
    if (parts / "parts.json").is_file() and read_json(parts / "parts.json") != about:
        raise RunError(f"{parts}: holds parts of another encoder, other images or batches; remove it first")
    write_json(parts / "parts.json", about)
    files = {rows: parts / f"{rows[0]:010d}.npz" for rows in blocks(n, BATCHES * batch_size)}
    left = [(str(f), *rows, batch_size, key, make, arguments) for rows, f in files.items() if not f.is_file()]
    spread(_embedded, left, on_done=on_done)
    write_vectors(out, ((torch.from_numpy(read_arrays(f)["z"]), y[a:b]) for (a, b), f in files.items()))
    shutil.rmtree(parts)
    return out


def _embedded(
    file: str, first: int, last: int, batch_size: int, key: str, make: Callable[..., ToEmbed],
    arguments: tuple[Any, ...],
) -> None:  # fmt: skip
    """Embed some images into a file, in any process; no more than a batch is in memory."""
    asked = kept(key, lambda: make(*arguments))
    rows = [slice(first + a, first + b) for a, b in blocks(last - first, batch_size)]
    z = torch.cat([embed(asked.encoder, asked.x[part], batch_size).float().cpu() for part in rows])
    write_arrays(file, {"z": z.numpy()})
