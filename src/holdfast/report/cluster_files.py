"""Read what an evaluation of clusters stored: records, embeddings before and after, members' assignments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFile, RunError
from ..evaluation import SUITES
from ..evaluation.stored import Chunk, stored_chunks, stored_name
from ..files import UNREADABLE, read_arrays, weigh
from ..results import Record
from .words import short, texts

CLUSTER_SUITES = frozenset(name for name, suite in SUITES.items() if suite.clusters)
"""Suites whose records are told in the section on clusters, and nowhere else."""
_BLOCK = 4096
"""Rows compared with all centroids at once."""
_NEED = ("centroids", "cluster_of", "z")


@dataclass(frozen=True, eq=False)
class StoredClusters:
    """The arrays of one ``clusters.npz``.

    Attributes
    ----------
    centroids
        (K, e).
    z
        (n, e) clean embeddings of the queries.
    cluster_of
        (n,) cluster of each clean query, 0 to K - 1.
    truth
        (n,) class of each query, -1 where unknown.
    named
        (K,) class that each cluster stands for, -1 for none.
    class_names
        Name of class i at position i; may be empty.
    """

    centroids: NDArray[np.float64]
    z: NDArray[np.float32]
    cluster_of: NDArray[np.int64]
    truth: NDArray[np.int64]
    named: NDArray[np.int64]
    class_names: tuple[str, ...] = ()

    def class_name(self, y: int) -> str:
        """Return the name of a class, or its number."""
        return self.class_names[y] if 0 <= y < len(self.class_names) else str(y)

    def cluster_name(self, k: int, most: int = 14) -> str:
        """Return the class that a cluster stands for, else its number; cut to ``most`` characters."""
        y = int(self.named[k])
        return short(self.class_name(y), most) if y >= 0 else f"#{k}"


@dataclass(frozen=True, eq=False)
class Members:
    """(M, n) clusters that each member of an ensemble assigns: clean, and under the worst case."""

    assigned: NDArray[np.int64]
    attacked: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Clustering:
    """All that one run folder holds about clusters; the mappings are by the evaluation's fingerprint."""

    records: Sequence[Record] = ()
    folder: Path | None = None
    stored: Mapping[str, StoredClusters] = field(default_factory=dict)
    members: Mapping[str, Members] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Moved(NamedTuple):
    """Where each query went in its worst case: embeddings (n, e) and their nearest centroids (n,)."""

    z: NDArray[np.float32]
    cluster: NDArray[np.int64]


def read_clustering(
    path: Path, records: Sequence[Record], class_names: Sequence[str] = ()
) -> Clustering | None:
    """Read the clusters of a run folder, or return ``None`` where it has neither records nor members.

    Files that cannot be read are left out and named in ``notes``.
    """
    stored: dict[str, StoredClusters] = {}
    members: dict[str, Members] = {}
    notes: list[str] = []
    evaluations = path / "evaluations"
    measured = {r["fingerprint"] for r in records}
    for folder in sorted(evaluations.iterdir()) if evaluations.is_dir() else []:
        if folder.name in measured and (file := folder / "clusters.npz").is_file():
            try:
                stored[folder.name] = _clusters(file, class_names)
            except CorruptFile as error:
                notes.append(f"Clusters left out: {_told(error, folder)}")
        if (file := folder / "members.npz").is_file():
            try:
                members[folder.name] = _members(file)
            except CorruptFile as error:
                notes.append(f"Members left out: {_told(error, folder)}")
    if not records and not members and not notes:
        return None
    return Clustering(tuple(records), evaluations, stored, members, tuple(notes))


def worst_moves(folder: Path, stored: StoredClusters, attacks: Sequence[str]) -> Moved:
    """Return where each query went in its worst case: the attack of the largest margin, or nowhere.

    The margin is the squared distance to the own centroid less that to the nearest other one; above 0 the
    query is in another cluster. It is the rule by which the scores of ``UNION`` are measured.

    Parameters
    ----------
    folder
        The evaluation, with one group of files for each attack.
    stored
        Its clusters.
    attacks
        Labels; those without files are passed over.

    Raises
    ------
    RunError
        If no attack has files, files are missing, or the order of their queries is not known.
    CorruptFile
        If a file cannot be read or does not fit the clusters.
    """
    try:
        chunks = stored_chunks(folder)
    except RunError as error:
        raise RunError(str(error).removeprefix(f"{folder}: ")) from error
    found = [parts for label in attacks if (parts := chunks.get(stored_name(label)))]
    if not found:
        raise RunError("no attacked embeddings are stored")
    if any(part.rows is None for parts in found for part in parts):
        raise RunError("the evaluation had a time budget, and which queries it covered is not stored")
    z, (margin, _) = stored.z.copy(), _margin(stored.z, stored.cluster_of, stored.centroids)
    cluster = stored.cluster_of.copy()
    for parts in found:
        if sum(len(part.rows or ()) for part in parts) != len(z):
            raise CorruptFile(parts[0].path.name, None, f"need attacked embeddings of all {len(z)} queries")
        for part in parts:
            assert part.rows is not None
            rows = slice(part.rows.start, part.rows.stop)
            moved = _embeddings(part, stored.z.shape[1])
            reached, now = _margin(moved, stored.cluster_of[rows], stored.centroids)
            worse = reached > margin[rows]
            z[rows][worse], cluster[rows][worse] = moved[worse], now[worse]
            margin[rows][worse] = reached[worse]
    return Moved(z, cluster)


def _margin(
    z: NDArray[Any], own: NDArray[np.int64], centroids: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the margin (n,) and the nearest centroid (n,); where two are as near, the own one."""
    margins, nearest = np.empty(len(z)), np.empty(len(z), dtype=np.int64)
    lengths = np.square(centroids).sum(1)
    for start in range(0, len(z), _BLOCK):
        rows = slice(start, start + _BLOCK)
        d = lengths - 2 * z[rows].astype(np.float64) @ centroids.T  # less |z|^2, the same in each row
        at = (np.arange(len(d)), own[rows])
        kept = d[at]
        d[at] = np.inf
        margins[rows] = kept - d.min(1)
        nearest[rows] = np.where(margins[rows] > 0, d.argmin(1), own[rows])
    return margins, nearest


def _told(error: CorruptFile, folder: Path) -> str:
    """Return an error with the path from the evaluations on: the page tells nothing of this machine."""
    return f"{folder.name}: {str(error).removeprefix(f'{folder}/')}"


def _embeddings(part: Chunk, width: int) -> NDArray[np.float32]:
    """Return the attacked embeddings of one file; images are not loaded."""
    with part.path.open("rb") as handle:
        try:
            weigh(handle)
            with np.load(handle, allow_pickle=False) as file:
                z = np.asarray(file["z"])
        except UNREADABLE as error:
            raise CorruptFile(part.path.name, None, f"need an .npz archive with z ({error})") from error
    if z.shape != (len(part.rows or ()), width) or z.dtype.kind != "f" or not np.isfinite(z).all():
        raise CorruptFile(part.path.name, None, f"need finite embeddings of width {width} for each query")
    return z.astype(np.float32)


NAMES = ("hungarian", "majority")
"""Arrays that name a cluster's class, the first where it names one; -1 where it does not."""


def _clusters(path: Path, class_names: Sequence[str]) -> StoredClusters:
    a = read_arrays(path)
    lacking = [name for name in _NEED if name not in a]
    if lacking:
        raise CorruptFile(path.name, None, f"it lacks {', '.join(lacking)}")
    k, e = a["centroids"].shape if a["centroids"].ndim == 2 else (0, 0)
    n = len(a["z"]) if a["z"].ndim == 2 else 0
    a.setdefault("truth", np.full(n, -1))
    for name in NAMES:
        a.setdefault(name, np.full(k, -1))
    shapes = {"centroids": (k, e), "z": (n, e), "cluster_of": (n,), "truth": (n,)}
    shapes |= dict.fromkeys(NAMES, (k,))
    wrong = [
        name for name, shape in shapes.items() if a[name].shape != shape or a[name].dtype.kind not in "iuf"
    ]
    wrong += [name for name in ("cluster_of", "truth", *NAMES) if a[name].dtype.kind == "f"]
    if min(k, e, n) < 1 or wrong:
        raise CorruptFile(
            path.name, None, f"unexpected shape or kind of {', '.join(sorted(set(wrong))) or 'z'}"
        )
    if not (np.isfinite(a["z"]).all() and np.isfinite(a["centroids"]).all()):
        raise CorruptFile(path.name, None, "need finite embeddings and centroids")
    if a["cluster_of"].min() < 0 or a["cluster_of"].max() >= k:
        raise CorruptFile(path.name, None, f"need clusters from 0 to {k - 1}")
    hungarian, majority = (a[name] for name in NAMES)
    named = np.where(hungarian >= 0, hungarian, majority)  # the one-to-one names where there are any
    try:
        names = texts(a["class_names"]) if "class_names" in a else tuple(map(str, class_names))
    except ValueError as error:
        raise CorruptFile(path.name, None, f"class_names: {error}") from error
    return StoredClusters(
        centroids=a["centroids"].astype(np.float64),
        z=a["z"].astype(np.float32),
        cluster_of=a["cluster_of"].astype(np.int64),
        truth=a["truth"].astype(np.int64),
        named=named.astype(np.int64),
        class_names=names,
    )


def _members(path: Path) -> Members:
    a = read_arrays(path)
    lacking = [name for name in ("assigned", "attacked") if name not in a]
    if lacking:
        raise CorruptFile(path.name, None, f"it lacks {', '.join(lacking)}")
    clean, attacked = a["assigned"], a["attacked"]
    sound = clean.ndim == 2 and clean.shape == attacked.shape and min(clean.shape) >= 1
    if not sound or {clean.dtype.kind, attacked.dtype.kind} - set("iu"):
        raise CorruptFile(path.name, None, "need two arrays of whole numbers, (members, queries)")
    return Members(clean.astype(np.int64), attacked.astype(np.int64))
