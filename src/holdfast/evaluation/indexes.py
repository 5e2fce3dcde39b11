"""Galleries behind an index of FAISS: exact, by cells (IVF) or by a graph (HNSW); the extra ``faiss``."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import CorruptFile, DataError, InvalidArgument, MissingExtra, RunError, UnknownName
from ..files import read_json, replacing, write_json
from ..functional.distance import Cosine, Euclidean, SquaredEuclidean
from ..functional.ranking import chunks
from ..rng import stream
from ..types import PairwiseDistance
from .vectors import fingerprint

_log = logging.getLogger(__name__)
Kind = Literal["flat", "ivf", "hnsw"]
KINDS: tuple[Kind, ...] = ("flat", "ivf", "hnsw")
HEADER = "index.json"
BLOCK = 65536
PER_CELL = 64
"""Rows of training for each cell of an inverted file; FAISS asks for at least 39."""


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """What kind of index, and its parameters.

    Attributes
    ----------
    kind
        ``"flat"``: exact. ``"ivf"``: cells of k-means, of which the nearest few are read. ``"hnsw"``: a graph
        of neighbours.
    nlist, nprobe
        IVF: cells, by default ``4 * sqrt(m)`` and at most one for each 39 rows; and cells read for a query.
    links, ef_construction, ef_search
        HNSW: neighbours of a row (M); rows looked at for an insertion and for a query.
    seed
        Of the sample that cells are trained on, and of their k-means.
    threads
        That build a graph. Its edges depend on the order of insertion, so that only one thread makes the same
        graph twice; ``None`` takes all.

    References
    ----------
    Johnson, Douze and Jegou, *Billion-scale similarity search with GPUs*, 2017 (FAISS); Malkov and Yashunin,
    *Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
    graphs*, TPAMI 2018.
    """

    kind: Kind = "hnsw"
    nlist: int | None = None
    nprobe: int = 8
    links: int = 32
    ef_construction: int = 80
    ef_search: int = 64
    seed: int = 0
    threads: int | None = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("index", self.kind, KINDS)
        for name in ("nlist", "nprobe", "links", "ef_construction", "ef_search", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidArgument(name, "an integer >= 1", value)
        if self.links < 2:
            raise InvalidArgument("links", "an integer >= 2", self.links)
        if self.seed < 0:
            raise InvalidArgument("seed", "an integer >= 0", self.seed)

    def told(self, m: int) -> dict[str, Any]:
        """Return the parameters that count for this kind on a gallery of ``m`` rows, as plain data."""
        if self.kind == "ivf":
            cells = self.nlist or max(1, min(round(4 * math.sqrt(m)), m // 39))
            return {"kind": "ivf", "nlist": cells, "nprobe": min(self.nprobe, cells), "seed": self.seed}
        if self.kind == "hnsw":
            return {
                "kind": "hnsw", "links": self.links, "ef_construction": self.ef_construction,
                "ef_search": self.ef_search,
            }  # fmt: skip
        return {"kind": "flat"}


@dataclass(frozen=True, kw_only=True, eq=False)
class GalleryIndex:
    """An index of a gallery, made by :meth:`build` or :meth:`load`.

    Attributes
    ----------
    parameters
        Kind and parameters, as plain data.
    cosine
        Whether rows and queries are divided by their length.
    embeddings
        SHA-256 of the embeddings that it was built from (:func:`~holdfast.evaluation.vectors.fingerprint`).
    size, width
        Rows and numbers of each.

    Notes
    -----
    FAISS keeps a copy of the embeddings in memory (float32), whatever the kind; they are handed over in
    blocks, so a memory-mapped gallery is never read whole.
    """

    parameters: Mapping[str, Any]
    cosine: bool
    embeddings: str
    size: int
    width: int
    _index: Any = field(repr=False)

    @classmethod
    def build(
        cls,
        z: Tensor,
        kind: Kind | IndexSettings = "hnsw",
        distance: PairwiseDistance | None = None,
        *,
        embeddings: str | None = None,
    ) -> GalleryIndex:
        """Build an index.

        Parameters
        ----------
        z
            (m, e) gallery embeddings.
        kind
            A name, for the parameters by default, or settings.
        distance
            What the gallery is ranked by: Euclidean (by default), squared Euclidean or cosine.
        embeddings
            Their SHA-256 where it is known already.

        Raises
        ------
        MissingExtra
            If FAISS is not installed.
        InvalidArgument
            For a distance that FAISS cannot rank by, or more cells than rows.
        """
        faiss = _faiss()
        settings = _settings(kind)
        cosine = ranks_by(distance)
        if z.ndim != 2 or not len(z):
            raise InvalidArgument("z", "embeddings (m, e)", tuple(z.shape))
        m, width = z.shape
        told = settings.told(m)
        if settings.kind == "flat":
            index = faiss.IndexFlatL2(width)
        elif settings.kind == "ivf":
            if told["nlist"] > m:
                raise InvalidArgument("nlist", f"at most {m} cells, one for each row", told["nlist"])
            index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, told["nlist"])
            index.nprobe, index.cp.seed, index.cp.min_points_per_centroid = told["nprobe"], settings.seed, 1
            chosen = torch.randperm(m, generator=stream(settings.seed, "index"))[: PER_CELL * told["nlist"]]
            with _threads(faiss, settings.threads):
                index.train(_block(z[chosen.sort().values.to(z.device)], cosine))
        else:
            index = faiss.IndexHNSWFlat(width, settings.links)
            index.hnsw.efConstruction, index.hnsw.efSearch = settings.ef_construction, settings.ef_search
        with _threads(faiss, settings.threads):
            for rows in chunks(m, BLOCK):
                index.add(_block(z[rows], cosine))
        return cls(
            parameters=told, cosine=cosine, embeddings=embeddings or fingerprint(z), size=m, width=width,
            _index=index,
        )  # fmt: skip

    def search(self, z: Tensor, k: int) -> Tensor:
        """Return the gallery rows that come back for queries.

        Parameters
        ----------
        z
            (n, e) embeddings.
        k
            Rows for each, 1 to m.

        Returns
        -------
        Tensor
            (n, k) int64 on the device of ``z``, nearest first; -1 where the index found fewer.
        """
        if z.ndim != 2 or z.shape[1] != self.width:
            raise InvalidArgument("z", f"embeddings (n, {self.width})", tuple(z.shape))
        if not 1 <= k <= self.size:
            raise InvalidArgument("k", f"1 to {self.size}, the rows of the gallery", k)
        if not len(z):
            return torch.empty(0, k, dtype=torch.int64, device=z.device)
        _, rows = self._index.search(_block(z, self.cosine), k)
        return torch.from_numpy(rows).to(z.device)

    def save(self, folder: str | Path) -> None:
        """Write the index and ``index.json`` that describes it; a reader sees the old pair or the new one."""
        faiss, folder = _faiss(), Path(folder)
        file = f"{_name(self.embeddings, self.cosine, self.parameters)}.faiss"  # never two contents of a name
        with replacing(folder / file) as temporary:
            faiss.write_index(self._index, str(temporary))
        header = {
            "file": file, "sha256": _sha256(folder / file), "embeddings": self.embeddings,
            "cosine": self.cosine, "size": self.size, "width": self.width,
            "parameters": dict(self.parameters),
        }  # fmt: skip
        write_json(folder / HEADER, header)

    @classmethod
    def load(
        cls, folder: str | Path, embeddings: str | None = None, *, trusted: bool = False
    ) -> GalleryIndex:
        """Read an index that :meth:`save` wrote.

        Parameters
        ----------
        folder
            Where it is.
        embeddings
            SHA-256 of the embeddings that it has to be of; ``None`` does not compare.
        trusted
            Say that you know who wrote the folder: FAISS reads the file in native code that was not made for
            files of strangers. Build such an index again from the embeddings.

        Raises
        ------
        InvalidArgument
            Unless ``trusted``.
        RunError
            If there is none, or it was built from other embeddings; names both hashes.
        CorruptFile
            If a file cannot be read, or is not what was written.

        Notes
        -----
        ``index.json`` holds the SHA-256 of the file, which is compared before FAISS sees it. It tells damage;
        whoever forges the one can forge the other.
        """
        if trusted is not True:
            need = (
                "True, for a folder of your own: FAISS reads it in native code, unsafe for strangers' files"
            )
            raise InvalidArgument("trusted", need, trusted)
        return cls._read(Path(folder), embeddings)

    @classmethod
    def _read(cls, folder: Path, embeddings: str | None) -> GalleryIndex:
        faiss = _faiss()
        if not (folder / HEADER).is_file():
            raise RunError(f"{folder}: no index here ({HEADER} is missing)")
        header = _header(folder / HEADER)
        if embeddings is not None and header["embeddings"] != embeddings:
            raise RunError(
                f"{folder}: an index built from other embeddings (SHA-256 {header['embeddings']}), "
                f"expected those of {embeddings}"
            )
        path = folder / header["file"]
        if not path.is_file():
            raise RunError(f"{folder}: the index {path.name} that {HEADER} names is missing")
        found = _sha256(path)
        if header.get("sha256", found) != found:
            told = f"not an index of FAISS as it was written (SHA-256 {found}, need {header['sha256']})"
            raise CorruptFile(path, None, told)
        try:
            index = faiss.read_index(str(path))
        except (RuntimeError, MemoryError) as error:
            told = (str(error).splitlines() or ["too large"])[0]
            raise CorruptFile(path, None, f"not an index of FAISS ({told})") from error
        if (index.ntotal, index.d) != (header["size"], header["width"]):
            told = f"need {header['size']} rows of {header['width']}, found {index.ntotal} of {index.d}"
            raise CorruptFile(path, None, told)
        return cls(
            parameters=header["parameters"], cosine=header["cosine"], embeddings=header["embeddings"],
            size=header["size"], width=header["width"], _index=index,
        )  # fmt: skip


_KINDS: Mapping[str, type] = {
    "file": str, "embeddings": str, "cosine": bool, "size": int, "width": int, "parameters": dict,
}  # fmt: skip
_FILE = re.compile(r"[a-z]+-[0-9a-f]{16}\.faiss")


def _header(path: Path) -> dict[str, Any]:
    """Read the description of an index, each field of its kind."""
    header = read_json(path)
    for name, kind in _KINDS.items():
        if not isinstance(header, dict) or type(header.get(name)) is not kind:
            raise CorruptFile(path, None, f"need {name}, a {kind.__name__}")
    if not _FILE.fullmatch(header["file"]):
        raise CorruptFile(path, None, "need file, a name that save() gives")
    if type(header.get("sha256", "")) is not str:
        raise CorruptFile(path, None, "need sha256, a str")
    found: dict[str, Any] = header
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


AnyIndex = Kind | IndexSettings | GalleryIndex
"""An index that is there, or one to be built: its settings, or its kind for those by default."""


def parameters_of(index: AnyIndex, m: int, embeddings: str | None = None) -> Mapping[str, Any]:
    """Return the parameters of an index on a gallery of ``m`` rows, as plain data.

    Raises
    ------
    InvalidArgument
        If one that is there was built from other ``embeddings`` than those of this SHA-256; names both.
    """
    if isinstance(index, GalleryIndex):
        if embeddings is not None and index.embeddings != embeddings:
            need = f"an index of the gallery's embeddings (SHA-256 {embeddings})"
            raise InvalidArgument("index", need, index.embeddings)
        return index.parameters
    return _settings(index).told(m)


def deployed(
    index: AnyIndex,
    z: Tensor,
    distance: PairwiseDistance | None = None,
    folder: Path | None = None,
    embeddings: str | None = None,
) -> GalleryIndex:
    """Return the index of a gallery: the one that is there, one from a folder, or a new one, saved there.

    Parameters
    ----------
    index
        The index, or what is to be built.
    z, distance
        The gallery (m, e), and what ranks it.
    folder
        Holds indexes, each in a folder named by embeddings, distance and parameters; ``None`` saves nothing.
        One that is whole, by the SHA-256 in its description, is read without asking whether the folder is
        trusted (see :meth:`GalleryIndex.load`); anything else there is built anew. The hash tells damage
        and does not stop a forger: delete ``indexes`` in the run folder of a stranger.
    embeddings
        SHA-256 of the gallery where it is known already.

    Raises
    ------
    InvalidArgument
        As :func:`parameters_of` and :meth:`GalleryIndex.build`.
    """
    cosine, embeddings = ranks_by(distance), embeddings or fingerprint(z)
    told = parameters_of(index, len(z), embeddings)
    if isinstance(index, GalleryIndex):
        if index.cosine != cosine:
            raise InvalidArgument("index", "an index that ranks by the distance of the gallery", distance)
        return index
    place = None if folder is None else folder / _name(embeddings, cosine, told)
    if place is not None and (found := _kept(place, embeddings, cosine, told, z)) is not None:
        return found
    made = GalleryIndex.build(z, _settings(index), distance, embeddings=embeddings)
    if place is not None:
        made.save(place)
    return made


def _kept(
    place: Path, embeddings: str, cosine: bool, parameters: Mapping[str, Any], z: Tensor
) -> GalleryIndex | None:
    """Read the index of a run if it is the one that would be built, and whole; else none."""
    if not (place / HEADER).is_file():
        return None
    try:
        header = _header(place / HEADER)
        found = [header.get(name) for name in ("embeddings", "cosine", "parameters", "size", "width")]
        if "sha256" in header and found == [embeddings, cosine, dict(parameters), *z.shape]:
            return GalleryIndex._read(place, embeddings)
        _log.warning("%s: an index of something else, or of an earlier version; it is built anew", place)
    except (CorruptFile, RunError) as error:
        _log.warning("%s; it is built anew", error)
    return None


def _settings(index: Kind | IndexSettings) -> IndexSettings:
    return index if isinstance(index, IndexSettings) else IndexSettings(kind=index)


def _name(embeddings: str, cosine: bool, parameters: Mapping[str, Any]) -> str:
    """Return a name that is the same for the same embeddings, distance and parameters."""
    told = repr((embeddings, cosine, sorted(parameters.items())))
    return f"{parameters['kind']}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def ranks_by(distance: PairwiseDistance | None) -> bool:
    """Return whether embeddings are divided by their length before FAISS ranks them by L2.

    Raises
    ------
    InvalidArgument
        For a distance that it cannot rank by.
    """
    if distance is None or isinstance(distance, Euclidean | SquaredEuclidean):
        return False
    if isinstance(distance, Cosine):
        return True
    raise InvalidArgument("distance", "Euclidean, SquaredEuclidean or Cosine for an index of FAISS", distance)


def _plain(z: Tensor) -> np.ndarray:
    return np.ascontiguousarray(z.detach().cpu().numpy(), dtype=np.float32)


def _block(z: Tensor, cosine: bool) -> np.ndarray:
    """Return finite float32 rows, divided by their length where asked for."""
    rows = torch.nn.functional.normalize(z.detach().float(), dim=1) if cosine else z
    plain = _plain(rows)
    if not np.isfinite(plain).all():
        raise DataError("embeddings: need finite numbers for an index, got NaN or infinity")
    return plain


@contextmanager
def _threads(faiss: Any, threads: int | None) -> Iterator[None]:
    before = cast(int, faiss.omp_get_max_threads())
    faiss.omp_set_num_threads(threads or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss", "faiss", "an index of a gallery") from error
    return faiss
