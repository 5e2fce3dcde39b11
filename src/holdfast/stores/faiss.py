"""A gallery as a folder with an index of FAISS, its labels and its ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CorruptFile, InvalidArgument
from ..evaluation.hubs import HubGate
from ..evaluation.indexes import AnyIndex, GalleryIndex, deployed
from ..evaluation.vectors import Vectors, fingerprint
from ..files import read_arrays, write_arrays
from ..types import Encoder, PairwiseDistance
from .rows import admitted, rows_of

ROWS = "rows.npz"


@dataclass(frozen=True, kw_only=True, eq=False)
class FaissStore:
    """An index with the labels and ids of its rows.

    Attributes
    ----------
    index
        See :class:`~holdfast.evaluation.indexes.GalleryIndex`; it knows the SHA-256 of its embeddings.
    y, ids
        (m,) labels, -1 where unknown, and ids of the rows.
    refused
        Ids that a gate left out.
    """

    index: GalleryIndex
    y: Tensor
    ids: Tensor
    refused: Tensor

    def search(self, z: Tensor, k: int) -> Tensor:
        """Return the ids that come back, nearest first, -1 where fewer were found: (n, e) -> (n, k) int64."""
        rows = self.index.search(z, k)
        ids = self.ids.to(rows.device)
        return torch.where(rows >= 0, ids[rows.clamp_min(0)], rows)

    def save(self, folder: str | Path) -> None:
        """Write everything into a folder."""
        self.index.save(folder)
        arrays = {name: getattr(self, name).numpy() for name in ("y", "ids", "refused")}
        write_arrays(Path(folder) / ROWS, arrays)

    @classmethod
    def load(cls, folder: str | Path, embeddings: str | None = None, *, trusted: bool = False) -> FaissStore:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        folder, embeddings, trusted
            See :meth:`~holdfast.evaluation.indexes.GalleryIndex.load`; ``trusted=True`` says that you know
            who wrote the folder.

        Raises
        ------
        InvalidArgument
            Unless ``trusted``.
        RunError
            If there is no index, or it was built from other embeddings.
        CorruptFile
            If a file cannot be read, or is not what was written.
        """
        index, path = GalleryIndex.load(folder, embeddings, trusted=trusted), Path(folder) / ROWS
        arrays = read_arrays(path)
        parts = {name: arrays.get(name) for name in ("y", "ids", "refused")}
        if any(part is None or part.ndim != 1 or part.dtype.kind != "i" for part in parts.values()) or any(
            len(arrays[name]) != index.size for name in ("y", "ids")
        ):
            raise CorruptFile(path, None, f"need labels and ids of {index.size} rows, and those refused")
        return cls(index=index, **{name: torch.from_numpy(arrays[name]) for name in parts})


def build_faiss(
    source: Encoder | Tensor | Vectors | str | Path,
    gallery: Any = None,
    folder: str | Path | None = None,
    *,
    kind: AnyIndex = "flat",
    distance: PairwiseDistance | None = None,
    admit: HubGate | None = None,
    batch_size: int = 256,
) -> FaissStore:
    """Build an index of FAISS from an encoder and images, or from embeddings.

    Parameters
    ----------
    source, gallery, batch_size
        See :func:`~holdfast.stores.rows.rows_of`.
    folder
        Where it is kept; ``None`` keeps it in memory.
    kind
        ``"flat"`` (exact), ``"ivf"``, ``"hnsw"``, or settings.
    distance
        Euclidean (by default), squared Euclidean or cosine.
    admit
        Leaves out rows that would be hubs; see :class:`~holdfast.evaluation.hubs.HubGate`.

    Raises
    ------
    MissingExtra
        If FAISS is not installed.
    """
    rows = admitted(rows_of(source, gallery, batch_size), admit)
    if isinstance(kind, GalleryIndex):
        raise InvalidArgument("kind", "what is to be built, not an index", "an index")
    index = deployed(kind, rows.gallery.z, distance, embeddings=fingerprint(rows.gallery.z))
    store = FaissStore(index=index, y=rows.gallery.y, ids=rows.gallery.ids, refused=rows.refused)
    if folder is not None:
        store.save(folder)
    return store
