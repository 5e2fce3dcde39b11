"""``holdfast.evaluate``: a score card for any encoder and any labelled or unlabelled images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from .clusters import Clusters, Inference
from .config import to_plain
from .data import ImageSet, LazyImages, images_in
from .encoders import adapt
from .errors import DataError, InvalidArgument, UnknownName
from .evaluation import SUITES, EntryResult, Share, Suite, retrieval_task
from .evaluation.card import Level, Plan, against, measure, read_back, sample, settled
from .evaluation.cluster_transfer import other_encoders
from .evaluation.indexes import AnyIndex, deployed, parameters_of
from .evaluation.suite import out_of_memory
from .evaluation.vectors import META, fingerprint, open_vectors, read_labels
from .evaluation.verdict import Verdict
from .functional.memory import bytes_of
from .functional.ranking import chunks
from .results import Table, card_html
from .results.record import Record
from .runs import default_search
from .search import Autograd, Precision, Square, full_float32
from .threat import THREATS
from .training import pick_device
from .types import ClusterTask, Encoder, Images, PairwiseDistance, RetrievalTask, Search

BLACK_BOX = Square(queries=1000)
"""The search for encoders without a gradient."""


@dataclass(frozen=True, kw_only=True)
class ScoreCard:
    """What is known about an encoder after an evaluation.

    Attributes
    ----------
    records
        One for each number, with its 95 % interval and the verdict.
    verdict
        On the evaluation itself; ``None`` where it was not checked.
    results
        Per-query values of each attack; empty where the evaluation was read back from its folder.
    queries, asked
        How many queries the figures cover, and how many there were to cover.
    notes
        What a reader should know: black-box attacks only, a budget that ended.
    """

    records: Sequence[Record]
    verdict: Verdict | None
    results: Sequence[EntryResult]
    queries: int
    asked: int
    notes: tuple[str, ...] = ()

    def value(self, metric: str, attack: str = "none", state: str | None = None) -> float:
        """Return one number: ``value("recall@1")``, ``value("recall@1", "ES")``, ``value("ers", "all")``.

        Raises
        ------
        UnknownName
            If it was not measured.
        """
        state = state or ("clean" if attack == "none" else "attacked")
        found = {f"{r['metric']} {r['attack']} {r['state']}": r["value"] for r in self.records}
        name = f"{metric} {attack} {state}"
        if name not in found:
            raise UnknownName("measurement", name, found)
        return found[name]

    def __str__(self) -> str:
        lines = [f"{self.queries} of {self.asked} queries", *self.notes]
        for r in self.records:
            if r["state"] == "attacked" or r["attack"] == "none":
                low, high = r["ci"] or (r["value"], r["value"])
                name = r["metric"] if r["attack"] in ("none", "all") else f"{r['attack']} {r['metric']}"
                lines.append(f"{name:22} {r['value']:8.3f}  [{low:.3f}, {high:.3f}]")
        if self.verdict is None:
            return "\n".join([*lines, "verdict: not checked"])
        lines.append(f"verdict: {self.verdict.word}")
        for f in self.verdict.findings:
            if f.status in ("fail", "warn"):
                lines.append(f"  {f.id} {f.name}, {f.status}: {f.detail} {f.remedy}".rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        findings = () if self.verdict is None else self.verdict.findings
        return card_html(self.records, (f"{self.queries} of {self.asked} queries", *self.notes), findings)

    @property
    def table(self) -> Table:
        """The records as a table."""
        return Table(self.records)


@full_float32()
def evaluate(
    encoder: Encoder,
    images: Images | np.ndarray | str | Path,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    suite: str | Suite | None = None,
    eps: float = 8 / 255,
    norm: str = "linf",
    threat: Any = None,
    search: Search | None = None,
    gallery: Any = None,
    gallery_labels: Tensor | np.ndarray | Sequence[int] | str | Path | None = None,
    self_index: Tensor | np.ndarray | Sequence[int] | None = None,
    distance: PairwiseDistance | None = None,
    normalize: bool = False,
    index: AnyIndex | None = None,
    queries: int | None = None,
    budget: float | None = None,
    memory: str | int | None = None,
    verdict: Level = "quick",
    repair_seconds: float | None = None,
    twin: Encoder | None = None,
    surrogates: Mapping[str, Encoder] | None = None,
    clusters: int | Literal["auto"] | None = None,
    inference: Inference = "kmeans",
    poison: float = 0.1,
    seed: int = 0,
    precision: Precision = "auto",
    device: str = "auto",
    batch_size: int = 256,
    chunk: int = 128,
    shard: tuple[int, int] = (0, 1),
    size: int = 224,
    out: str | Path | None = None,
    name: str = "encoder",
    dataset: str = "images",
    on_chunk: Callable[[str, int, int], None] | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> ScoreCard:
    """Measure how fragile an encoder is, and whether that measurement can be trusted.

    Parameters
    ----------
    encoder
        Anything callable from (n, c, h, w) in [0, 1] to one embedding each. Models that want standardised
        input or return more than an embedding go through :func:`holdfast.encoders.adapt`. Without a gradient
        it is attacked by queries alone, and the notes say so.
    images
        (n, c, h, w) in [0, 1]: tensor, array, or a folder of images (a folder for each class gives labels).
    labels
        (n,) integers; without them only measures that need none are taken.
    suite
        A name of ``SUITES`` or a suite; by default ``"ers"``, and ``"unlabelled"`` without labels.
    eps, norm, threat
        Radius in input units and its norm, or a whole threat instead.
    search
        By default 40 steps of ``eps / 10``.
    gallery, gallery_labels
        What queries are looked up in: images or a folder of them, embeddings (m, e), a ``.npy`` file or a
        folder of :func:`~holdfast.evaluation.vectors.write_vectors` with such (read through a memory map), or
        an index with ``reconstruct_n``; by default the images themselves, every query left out of its own
        list. Labels are integers as those of the images, or a ``.npy`` file of them.
    self_index
        (n,) gallery row that is the query itself, -1 where there is none.
    distance
        Of the ranking; Euclidean by default.
    normalize
        Divide embeddings by their L2 norm, which the score ``ers`` presupposes.
    index
        The index of FAISS that is deployed: ``"flat"``, ``"ivf"``, ``"hnsw"`` or settings of one, which is
        built from the gallery and kept in ``out``; or one that was built from it before. Its answers stand
        beside those of exact search as ``recall@1:index``, an attack ``INDEX`` aims at them, and check R29
        compares the two.
    queries
        Attack only a random sample of so many.
    budget
        Begin nothing new after so many seconds of attacks; the notes say how many queries that covered.
    memory
        ``"4G"``, or bytes: what may be taken between queries and gallery, on top of embeddings, images and
        what the encoder needs. Refused where it does not suffice for one query.
    verdict
        How the evaluation is checked: ``"quick"``, ``"full"`` or ``"off"``.
    repair_seconds
        Time for mending what the checks found too weak: more steps, restarts, other searches, black-box
        queries. The records then hold ``REPAIRED recall@1`` on a sample of the queries.
    twin
        An undefended encoder of the same kind, which some checks need.
    surrogates
        Other encoders of the same images, by name. Suites on clusters attack by transfer from them, from the
        twin and from the members of an ensemble (A8); the checks of any suite look at them.
    clusters, inference, poison
        Of suites on clusters; see :class:`~holdfast.clusters.Clusters`. The gallery are the references that
        are clustered, by default the images themselves; without labels ``clusters`` is needed and only
        ``flip`` is measured.
    seed
        Of every random choice.
    precision
        Of the searches: ``"fp32"``, ``"bf16"``, or ``"auto"``: bfloat16 where the processor multiplies it
        itself, there is enough to do, and check R31 finds nothing lost on a sample. What was taken stands in
        every record; everything reported is measured in float32.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    batch_size, chunk
        Images embedded and queries attacked at a time; they change no result. Where memory runs out, a chunk
        is halved.
    shard
        ``(i, n)``: compute only the i-th of n parts, into the folder ``out`` that all share; then call once
        without ``shard`` to put them together.
    size
        Side in pixels of images read from a folder.
    out
        Folder for records, per-query values, verdict and examples; measured there before, the card is read
        back, and begun there before, it goes on.
    name, dataset
        What records call the encoder and the images.
    on_chunk, on_step
        Called with attack, queries done and queries in all; and with what is done besides, steps done and
        steps in all (0 where that is unknown).

    Raises
    ------
    InvalidArgument
        For an encoder that returns NaN, another shape, or (for a suite with a score) embeddings that are not
        normalised; and for settings that make no sense.
    DataError
        For images or labels that do not fit, a single class, or a gallery smaller than the ranks asked for.

    Examples
    --------
    >>> import torch
    >>> from holdfast.encoders import SmallCNN
    >>> x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 4
    >>> card = evaluate(SmallCNN().build((1, 8, 8), 0), x, y, suite="core", eps=0.1, verdict="off")
    >>> card.value("shift", "ES") > 0, card.queries
    (True, 40)
    """
    notes: list[str] = []
    if shard[1] > 1 and out is None:
        raise InvalidArgument("out", "the folder that all shards share", None)
    tell = on_step or (lambda *_: None)
    tell("reading images", 0, 0)
    x, y, class_names, called = _images(images, labels, dataset, size)
    tell("embedding", 0, 0)
    chosen = _suite(suite, y is not None)
    asked_for = Clusters(count=clusters, inference=inference, poison=poison)
    asked_for.check(chosen)
    plain = isinstance(encoder, nn.Module) and not normalize
    model = encoder if plain else adapt(encoder, normalize=normalize)
    place = pick_device(device)
    model, x = cast(nn.Module, model).to(place), x.to(place)
    known: str | None = None  # of embeddings that bring their own hash
    if isinstance(gallery, str | Path) and (opened := _embeddings(gallery, gallery_labels)) is not None:
        gallery, gallery_labels, known = opened
    elif isinstance(gallery, str | Path):
        if not class_names:
            raise InvalidArgument("gallery", "a folder only beside a folder of images with classes", gallery)
        y, gallery, gallery_labels, class_names = _one_numbering(y, class_names, images_in(gallery, size))
    rows, rows_y = _gallery(gallery, gallery_labels)
    every = torch.full((len(x),), -1) if y is None else y
    if y is None and rows is not None:
        rows_y = torch.full((len(rows),), -1)
    own = None if self_index is None else torch.as_tensor(self_index)
    if chosen.clusters and own is not None:
        raise InvalidArgument("self_index", "None for a suite on clusters", "an index")
    task: RetrievalTask
    try:
        if chosen.clusters:
            references = (x, y) if rows is None else (rows, rows_y)
            task = asked_for.task(
                model, x, None if y is None else every.to(place), *references, distance=distance, seed=seed,
                batch_size=batch_size,
            )  # fmt: skip
        else:
            task = retrieval_task(
                model, x, every.to(place), distance, batch_size,
                gallery=rows, gallery_y=rows_y, self_index=own,
            )  # fmt: skip
    except RuntimeError as error:  # of the user's encoder, on clean images
        if out_of_memory(error):
            raise
        need = f"a callable for images {tuple(x.shape[1:])} ({error})"
        raise InvalidArgument("encoder", need, type(error).__name__) from error
    _check(task, chosen, y is not None)
    limit = threat if threat is not None else _threat(norm, eps)
    if search is None:
        search = default_search(limit.eps, suite=chosen.name)
        if not _differentiable(task):
            search = BLACK_BOX
            notes.append(
                f"The encoder has no gradient: attacked by {BLACK_BOX.queries} queries each, so the figures "
                "are upper bounds."
            )
    asked = len(task)
    task = sample(task, queries, seed)
    if index is not None and (chosen.clusters or y is None):
        raise InvalidArgument("index", "None for a suite on clusters, or without labels", index)
    given = dict(surrogates or {})
    material = ({} if twin is None else {"twin": twin}) | ({"surrogates": given} if given else {})
    plan = Plan(
        suite=chosen,
        search=search,
        threat=limit,
        seed=seed,
        precision=precision,
        level=verdict,
        repair_seconds=repair_seconds,
        labelled=y is not None,
        chunk=chunk,
        share=Share(index=shard[0], count=shard[1], seconds=budget),
        memory=None if memory is None else bytes_of(memory),
        evidence=material,
    )
    settings = {
        "suite": chosen.name, "threat": to_plain(limit), "search": to_plain(search),
        "distance": to_plain(task.distance), "seed": seed, "precision": precision, "queries": len(task),
        "data": _digest(_pixels(x), task.y, _pixels(rows), task.gallery.y, task.self_index),
        "encoder": _digest(task.z, task.gallery.z if known is None else known.encode()),
    }  # fmt: skip
    folder = None if out is None else Path(out)
    plan = settled(task, plan, settings, folder)
    settings["precision"] = plan.precision
    if index is not None:
        built_from = fingerprint(task.gallery.z)
        settings["index"] = parameters_of(index, len(task.gallery.z), built_from)
    others = other_encoders(model, twin, given)
    if isinstance(task, ClusterTask):
        settings |= asked_for.settings(chosen, other_encoders(None, twin, given))
        settings["references"] = _references(task)
        if others and task.references is None:
            others = {}
            notes.append("No attack by transfer (A8): references without images cannot be seen by others.")
    shared = {"run": name, "dataset": called, "protocol": "closed", "encoder": name, "defense": ""}
    found = read_back(folder, settings, plan)
    if found is None:
        if index is not None:
            kept = folder and folder / "indexes"
            plan = against(plan, deployed(index, task.gallery.z, task.distance, kept, built_from).search)
        plan = asked_for.complete(plan, task, others, y if rows is None else rows_y)
        found = measure(
            task, plan, shared, settings, folder,
            gallery_images=x if rows is None else rows if getattr(rows, "ndim", 4) == 4 else None,
            class_names=class_names, on_chunk=on_chunk, on_step=on_step,
        )  # fmt: skip
    covered = max((r["n"] for r in found.records if r["attack"] != "none"), default=len(task))
    if covered < len(task):
        notes.append(f"The budget of {budget:g} s ended: {covered} of {len(task)} queries are covered.")
    return ScoreCard(
        records=found.records, verdict=found.verdict, results=found.results, queries=covered, asked=asked,
        notes=tuple(notes),
    )  # fmt: skip


def _images(
    images: Any, labels: Any, dataset: str, size: int
) -> tuple[Any, Tensor | None, tuple[str, ...], str]:
    """Return images, labels, class names and the name of the set, checked."""
    if isinstance(images, str | Path):
        found = images_in(images, size)
        if labels is not None:
            raise InvalidArgument("labels", "nothing beside a folder, whose folders are the classes", labels)
        y = found.y if found.class_names else None
        if y is not None and found.n_classes < 2:
            raise DataError(f"images: {images}: need at least two classes (folders), got one")
        return found.x, y, found.class_names, dataset if dataset != "images" else Path(images).name
    x = torch.as_tensor(images) if isinstance(images, np.ndarray) else images
    if isinstance(x, Tensor) and x.dtype == torch.float64:
        x = x.float()
    try:
        y = None if labels is None else torch.as_tensor(labels)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("labels", f"integers, (n,) ({error})", type(labels).__name__) from error
    if y is not None and y.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        y = y.long()
    if isinstance(x, Tensor | LazyImages):
        checked = ImageSet(
            x, torch.zeros(len(x), dtype=torch.int64) if y is None else y, dataset,
            min_classes=1 if y is None else 2,
        )  # fmt: skip
        return checked.x, y, (), dataset
    raise InvalidArgument("images", "a tensor or array (n, c, h, w), or a folder", type(images).__name__)


def _one_numbering(
    y: Tensor | None, names: tuple[str, ...], gallery: ImageSet
) -> tuple[Tensor, Any, Tensor, tuple[str, ...]]:
    """Number the classes of queries and of a gallery alike, by name."""
    assert y is not None  # images with class names have labels
    together = tuple(sorted({*names, *gallery.class_names}))
    mine = torch.tensor([together.index(name) for name in names])
    theirs = torch.tensor([together.index(name) for name in gallery.class_names] or [-1])
    return mine[y], gallery.x, theirs[gallery.y], together


def _suite(suite: str | Suite | None, labelled: bool) -> Suite:
    if isinstance(suite, Suite):
        return suite
    name = suite or ("ers" if labelled else "unlabelled")
    if name not in SUITES:
        raise UnknownName("suite", name, SUITES)
    needs_labels = not SUITES[name].clusters
    if (
        not labelled
        and needs_labels
        and any("recall@1" in entry.higher_is_robust for entry in SUITES[name].entries)
    ):
        raise InvalidArgument("suite", "'unlabelled' for images without labels", name)
    return SUITES[name]


def _gallery(gallery: Any, labels: Any) -> tuple[Any, Tensor | None]:
    """Return gallery images or embeddings, and labels, as tensors."""
    if hasattr(gallery, "reconstruct_n"):  # an index of faiss
        gallery = np.asarray(gallery.reconstruct_n(0, gallery.ntotal))
    rows = torch.as_tensor(gallery) if isinstance(gallery, np.ndarray) else gallery
    if isinstance(rows, Tensor) and rows.ndim == 4:
        y = torch.zeros(len(rows), dtype=torch.int64)
        ImageSet(rows, y, "gallery", min_classes=1)
    elif rows is not None and not isinstance(rows, LazyImages) and getattr(rows, "ndim", 0) != 2:
        raise InvalidArgument("gallery", "images (m, c, h, w), embeddings (m, e) or an index", type(gallery))
    return rows, None if labels is None else torch.as_tensor(labels).long()


def _embeddings(path: str | Path, labels: Any) -> tuple[Tensor, Any, str] | None:
    """Return memory-mapped embeddings, their labels and their hash; ``None`` for a folder of images."""
    path = Path(path)
    if path.suffix != ".npy" and not (path / META).is_file():
        return None
    found = open_vectors(path)
    if found.y is not None and labels is not None:
        raise InvalidArgument(
            "gallery_labels", "nothing beside a folder of vectors, which has labels", labels
        )
    if isinstance(labels, str | Path):
        labels = read_labels(labels)
    return found.z, labels if found.y is None else found.y, found.fingerprint


def _threat(norm: str, eps: float) -> Any:
    if norm not in THREATS:
        raise UnknownName("norm", norm, THREATS)
    return THREATS[norm](eps=eps)


def _check(task: RetrievalTask, suite: Suite, labelled: bool) -> None:
    """Refuse what would make figures without meaning."""
    if isinstance(task, ClusterTask):  # looked at when the clusters were found
        return
    others = len(task.gallery.z) - int(bool((task.self_index >= 0).any()))
    needed = max((getattr(entry.attack, "within", 1) for entry in suite.entries), default=1)
    if others <= needed:
        raise DataError(
            f"gallery: need more than {needed} rows besides the query for suite {suite.name}, got {others}"
        )
    if labelled and len(torch.unique(task.gallery.y)) < 2:
        raise DataError("gallery labels: need at least two classes, got one")
    if suite.items:
        norms = [z[rows].norm(dim=1) for z in (task.z, task.gallery.z) for rows in chunks(len(z), 2**16)]
        low, high = float(torch.cat(norms).min()), float(torch.cat(norms).max())
        if not 0.99 < low <= high < 1.01:
            raise InvalidArgument(
                "encoder",
                f"embeddings of length 1, which the score of suite {suite.name} presupposes (normalize=True "
                "divides by the length)",
                f"lengths from {low:.3g} to {high:.3g}",
            )


def _differentiable(task: RetrievalTask) -> bool:
    """Return whether autograd can follow the encoder from embedding to pixels."""
    part = task.rows(slice(0, 1))
    try:
        Autograd()(task.encoder, part.x, lambda z: z.sum(1))
    except (InvalidArgument, RuntimeError):
        return False
    return True


def _pixels(images: Any) -> Tensor | bytes:
    """Return what tells image sets apart: the pixels, or the fingerprint of files; none for embeddings."""
    if isinstance(images, LazyImages):
        return images.listing()
    return images if isinstance(images, Tensor) and images.ndim == 4 else b""


def _references(task: ClusterTask) -> str:
    """Return what tells the clusters and the references behind them from others."""
    parts = [task.truth, task.gallery.z]
    parts += [] if task.names is None else list(task.names)
    parts += [] if task.images is None else [task.images.gallery.z, task.images.gallery.y]
    return _digest(*parts, *([] if task.member_of is None else [task.member_of]))


def _digest(*parts: Tensor | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            digest.update(part)
        elif part.ndim:
            for rows in chunks(len(part), 2**14):
                digest.update(part[rows].detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(part.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
