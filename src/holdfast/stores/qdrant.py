"""A gallery as a local collection of Qdrant, with labels and ids as payload; the extra ``qdrant``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CorruptFile, DataError, InvalidArgument, MissingExtra, RunError
from ..evaluation.hubs import HubGate
from ..evaluation.indexes import ranks_by
from ..evaluation.vectors import Vectors, fingerprint
from ..files import read_json, write_json
from ..functional.ranking import chunks
from ..types import Encoder, PairwiseDistance
from .rows import admitted, rows_of

HEADER = "holdfast.json"
MEMORY = ":memory:"
BLOCK = 1024
"""Rows that are handed over at a time."""
_KINDS: Mapping[str, type] = {
    "collection": str, "embeddings": str, "cosine": bool, "size": int, "width": int, "refused": list,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class QdrantStore:
    """A collection of Qdrant in this process; made by :func:`build_qdrant` or :meth:`load`.

    Attributes
    ----------
    collection
        Its name.
    embeddings
        SHA-256 of the embeddings that it was built from.
    cosine
        Whether it ranks by cosine; else by Euclidean distance.
    size, width
        Rows and numbers of each.
    refused
        Ids that a gate left out.
    client
        The client of ``qdrant_client``, for filters on the payload ``{"label": ..., "id": ...}`` and whatever
        else it offers.
    """

    collection: str
    embeddings: str
    cosine: bool
    size: int
    width: int
    refused: tuple[int, ...]
    client: Any = field(repr=False)

    def search(self, z: Tensor, k: int) -> Tensor:
        """Return the ids that come back, nearest first: (n, e) -> (n, k) int64; local mode is exact."""
        if z.ndim != 2 or z.shape[1] != self.width:
            raise InvalidArgument("z", f"embeddings (n, {self.width})", tuple(z.shape))
        if not 1 <= k <= self.size:
            raise InvalidArgument("k", f"1 to {self.size}, the rows of the gallery", k)
        models = _client().models
        ids = []
        for at in chunks(len(z), BLOCK):
            asked = [
                models.QueryRequest(query=row, limit=k, with_payload=["id"]) for row in _plain(z[at]).tolist()
            ]
            found = self.client.query_batch_points(self.collection, requests=asked)
            ids += [[int(point.payload["id"]) for point in one.points] for one in found]
        return torch.tensor(ids, dtype=torch.int64, device=z.device).reshape(len(z), k)

    def close(self) -> None:
        """Let go of the folder, which one client at a time may open."""
        self.client.close()

    @classmethod
    def load(cls, folder: str | Path, embeddings: str | None = None, *, trusted: bool = False) -> QdrantStore:
        """Open a folder that :func:`build_qdrant` wrote.

        Parameters
        ----------
        folder
            Where it is.
        embeddings
            SHA-256 of the embeddings that it has to be of; ``None`` does not compare.
        trusted
            Say that you know who wrote the folder: Qdrant's local mode keeps its points as pickles, so
            opening a stranger's collection would let it run code.

        Raises
        ------
        InvalidArgument
            Unless ``trusted``.
        RunError
            If there is none, it was built from other embeddings, or another client has it open.
        CorruptFile
            If its description cannot be read.
        """
        if trusted is not True:
            need = "True, for a folder of your own: Qdrant keeps local points as pickles, which are code"
            raise InvalidArgument("trusted", need, trusted)
        folder = Path(folder)
        if not (folder / HEADER).is_file():
            raise RunError(f"{folder}: no collection here ({HEADER} is missing)")
        header = read_json(folder / HEADER)
        for name, kind in _KINDS.items():
            if not isinstance(header, dict) or type(header.get(name)) is not kind:
                raise CorruptFile(folder / HEADER, None, f"need {name}, a {kind.__name__}")
        if any(type(number) is not int for number in header["refused"]):
            raise CorruptFile(folder / HEADER, None, "need refused, a list of ids")
        if embeddings is not None and header["embeddings"] != embeddings:
            raise RunError(
                f"{folder}: a collection built from other embeddings (SHA-256 {header['embeddings']}), "
                f"expected those of {embeddings}"
            )
        client = _opened(folder)
        there = client.collection_exists(header["collection"])
        if not there or client.count(header["collection"]).count != header["size"]:
            client.close()
            raise CorruptFile(folder, None, f"need a collection of {header['size']} rows")
        values = {name: header[name] for name in _KINDS if name != "refused"}
        return cls(**values, refused=tuple(header["refused"]), client=client)


def build_qdrant(
    source: Encoder | Tensor | Vectors | str | Path,
    gallery: Any = None,
    folder: str | Path = MEMORY,
    *,
    collection: str = "gallery",
    distance: PairwiseDistance | None = None,
    admit: HubGate | None = None,
    batch_size: int = 256,
) -> QdrantStore:
    """Build a collection of Qdrant from an encoder and images, or from embeddings, without a server.

    Parameters
    ----------
    source, gallery, batch_size
        See :func:`~holdfast.stores.rows.rows_of`.
    folder
        Where it is kept, a folder of its own; by default in memory.
    collection
        Its name; one that is in the folder already is replaced.
    distance
        Euclidean (by default), squared Euclidean (the same order) or cosine.
    admit
        Leaves out rows that would be hubs; see :class:`~holdfast.evaluation.hubs.HubGate`.

    Returns
    -------
    QdrantStore
        Payload of row i: its ``label`` (-1 where unknown) and its ``id``.

    Raises
    ------
    MissingExtra
        If qdrant-client is not installed.
    RunError
        If another client has the folder open.

    Notes
    -----
    The local mode compares a query with every row: exact, and as slow as that. For millions of rows hand the
    same points to a server through ``client``.
    """
    module = _client()
    cosine = ranks_by(distance)
    if not collection or "/" in collection:
        raise InvalidArgument("collection", "a name without /", collection)
    rows = admitted(rows_of(source, gallery, batch_size), admit)
    z, y, ids = rows.gallery
    if not all(bool(z[at].isfinite().all()) for at in chunks(len(z), BLOCK)):
        raise DataError("embeddings: need finite numbers for an index, got NaN or infinity")
    client = _opened(folder)
    try:
        models = module.models
        if client.collection_exists(collection):
            client.delete_collection(collection)
        kind = models.Distance.COSINE if cosine else models.Distance.EUCLID
        client.create_collection(collection, models.VectorParams(size=z.shape[1], distance=kind))
        for at in chunks(len(z), BLOCK):
            labels, numbers = y[at].tolist(), ids[at].tolist()
            payload = [{"label": a, "id": b} for a, b in zip(labels, numbers, strict=True)]
            batch = models.Batch(ids=numbers, vectors=_plain(z[at]).tolist(), payloads=payload)
            client.upsert(collection, batch)
        made = QdrantStore(
            collection=collection, embeddings=fingerprint(z), cosine=cosine, size=len(z), width=z.shape[1],
            refused=tuple(rows.refused.tolist()), client=client,
        )  # fmt: skip
        if str(folder) != MEMORY:
            values = {name: getattr(made, name) for name in _KINDS if name != "refused"}
            write_json(Path(folder) / HEADER, {**values, "refused": list(made.refused)})
    except BaseException:
        client.close()
        raise
    return made


def _plain(z: Tensor) -> Any:
    return z.detach().cpu().float().numpy()


def _opened(folder: str | Path) -> Any:
    module = _client()
    if str(folder) == MEMORY:
        return module.QdrantClient(MEMORY)
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        return module.QdrantClient(path=str(folder))
    except RuntimeError as error:
        raise RunError(f"{folder}: cannot be opened ({str(error).splitlines()[0]})") from error


def _client() -> Any:
    try:
        import qdrant_client
    except ImportError as error:
        raise MissingExtra("qdrant-client", "qdrant", "a collection of Qdrant") from error
    return qdrant_client
