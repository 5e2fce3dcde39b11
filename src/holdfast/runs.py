"""Run folders: train into one, evaluate one, open one.

A folder holds ``run.json`` (resolved settings, versions, machine), ``log.jsonl``, ``checkpoint.safetensors``,
``encoder.safetensors`` when training is done, ``evaluations/`` (per-query values), ``exhibits/``, ``maps/``
(embeddings before and after) and ``records.jsonl``.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from . import adversaries, data, defenses, encoders, losses, miners, schedules, search
from ._version import __version__
from .clusters import Clusters, Inference
from .config import allow, flatten, from_plain, to_plain
from .encoders import Encoder
from .errors import HoldfastError, InvalidArgument, RunError, UnknownName, near_runs
from .evaluation import SUITES, Share, retrieval_task
from .evaluation.card import Level, Plan, against, measure, read_back, sample, settled
from .evaluation.cluster_transfer import other_encoders
from .evaluation.indexes import AnyIndex, deployed, parameters_of
from .evaluation.query_certificates import certify_task, proves
from .files import read_json, unfinished, write_json
from .functional.distance import Cosine, Euclidean, SquaredEuclidean
from .functional.memory import bytes_of
from .results import Records, run_html
from .search import PGD, Precision, full_float32
from .threat import L2Threat, LinfThreat
from .training import Adam, Alone, CollapseGuard, Run, pick_device, preflight, spread_over, train
from .types import Encoder as AnyEncoder
from .types import RetrievalTask

SCHEMA = 1
REACH = 4.0
STEPS = 40
"""Steps of evaluations, and their length ``REACH * eps / steps``: enough to cross the ball and to settle."""


def _exported(*modules: Any) -> list[type]:
    return [item for m in modules for item in map(m.__dict__.get, m.__all__) if isinstance(item, type)]


def allowed_types() -> dict[str, type]:
    """Return the types that settings may name: all public parts of the library, by class name."""
    parts = _exported(adversaries, data, defenses, encoders, losses, miners, search)
    parts = [cls for cls in parts if hasattr(cls, "__dataclass_fields__")]
    shapes = [schedules.Constant, schedules.Linear, schedules.HalfCosine, schedules.Cycle]
    own = [Run, Adam, CollapseGuard, LinfThreat, L2Threat, Euclidean, SquaredEuclidean, Cosine]
    return allow(*own, *shapes, *parts)


@dataclass(frozen=True)
class RunFolder:
    """An opened run folder.

    Attributes
    ----------
    path
        The folder.
    run
        Its settings.
    meta
        The whole of ``run.json``.
    """

    path: Path
    run: Run
    meta: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether training is done."""
        return (self.path / "encoder.safetensors").exists()

    def encoder(self) -> Encoder:
        """Load the trained encoder.

        Raises
        ------
        RunError
            If training is not done.
        """
        if not self.finished:
            raise RunError(f"{self.path}: training is not finished; go on with --resume")
        return encoders.load(self.path / "encoder.safetensors").eval()

    def _repr_html_(self) -> str:
        return run_html(self.path, self.meta, finished=self.finished)

    def weights(self) -> str:
        """Return the hash of the trained weights."""
        return hashlib.sha256((self.path / "encoder.safetensors").read_bytes()).hexdigest()


def open_run(path: str | Path) -> RunFolder:
    """Open a run folder.

    Raises
    ------
    RunError
        If it is no run folder, or was written by another schema.
    """
    path = Path(path)
    if not (path / "run.json").is_file():
        raise RunError(f"{path}: no run folder (there is no run.json in it)", hint=near_runs(path))
    meta = read_json(path / "run.json")
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else None
        raise RunError(f"{path / 'run.json'}: schema {found!r}, this version reads schema {SCHEMA}")
    run = from_plain(meta.get("run"), allowed_types())
    if not isinstance(run, Run):
        raise RunError(f"{path / 'run.json'}: settings are no Run but {type(run).__name__}")
    return RunFolder(path, run, meta)


def machine() -> dict[str, Any]:
    """Return what the numbers may depend on besides settings."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
    }


def train_run(
    run: Run,
    folder: str | Path,
    *,
    resume: bool = False,
    defaults: Run | None = None,
    command: str = "",
    on_line: Callable[[dict[str, Any]], None] | None = None,
    checkpoint_seconds: float = 30.0,
    group: Alone | None = None,
) -> RunFolder:
    """Train into a folder.

    Parameters
    ----------
    run
        All settings.
    folder
        New, or with ``resume`` one of the same settings; a finished one is returned as it is.
    resume
        Go on where a stopped run left off.
    defaults
        The recipe before changes, so that the report can show what was changed.
    command
        The command line that asked for it, kept for the report.
    on_line
        Called with every line of the log.
    checkpoint_seconds
        Least time between checkpoints.
    group
        The processes that train together, one by default. Several train
        :class:`~holdfast.defenses.Processes` with a part of each batch for each; a run with parts can be
        gone on with by any number of processes that divides theirs. Process 0 alone has to see the folder.

    Raises
    ------
    RunError
        If the folder exists and ``resume`` is not set, or holds a run of other settings.
    """
    folder, group = Path(folder), group or Alone()
    run = group.first(lambda: check_run(run, folder, group.world, resume))
    defaults = None if defaults is None else spread_over(defaults, group.world, run)
    split = run.data.load()
    preflight(run, split)
    opened = group.first(lambda: _prepare(run, folder, split, defaults, command))
    if not group.first(lambda: opened.finished):
        result = train(
            run,
            split,
            folder=folder,
            resume=True,
            on_line=on_line,
            checkpoint_seconds=checkpoint_seconds,
            group=group,
        )
        if group.rank == 0:
            encoders.save(result.encoder, folder / "encoder.safetensors")
        group.gather(None)  # all are back when the file is there
    return opened


def check_run(run: Run, folder: str | Path, world: int = 1, resume: bool = False) -> Run:
    """Return the run that so many processes train into a folder; refuse what cannot be.

    Raises
    ------
    RunError
        If the folder exists and ``resume`` is not set, or holds a run of other settings.
    InvalidArgument
        If the run has a number of parts that ``world`` does not divide.
    """
    folder = Path(folder)
    try:
        from_plain(to_plain(run), allowed_types())
    except UnknownName as error:
        raise RunError(
            f"{run.name}: a run folder keeps settings that can be read back, and {error.name!r} is no type "
            "of the library",
            hint="train it with holdfast.train(run, split), or make it a part of the library",
        ) from error
    there = open_run(folder) if (folder / "run.json").exists() else None
    run = spread_over(run, world, there.run if there and resume else None)
    if there is not None:
        if not resume:
            raise RunError(f"{folder}: exists already; choose another --out, or go on with --resume")
        _same_settings(there, run)
    elif folder.exists() and (not folder.is_dir() or not all(map(unfinished, folder.iterdir()))):
        raise RunError(f"{folder}: exists and is no run folder; choose another --out")
    elif resume:
        raise RunError(f"{folder}: there is no run to go on with")
    return run


def _prepare(run: Run, folder: Path, split: data.DataSplit, defaults: Run | None, command: str) -> RunFolder:
    """Write ``run.json`` if it is not there; make sure that the images are those it was written for."""
    if not (folder / "run.json").exists():
        meta = {
            "schema": SCHEMA,
            "name": run.name,
            "version": __version__,
            "run": to_plain(run),
            "defaults": to_plain(defaults or run),
            "machine": machine(),
            "command": command or " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "data_fingerprint": {"train": split.train.fingerprint(), "test": split.test.fingerprint()},
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_json(folder / "run.json", meta)
    opened = open_run(folder)
    if opened.meta.get("data_fingerprint", {}).get("train") != split.train.fingerprint():
        raise RunError(f"{folder}: the training images are not those that this run began with")
    return opened


def _same_settings(there: RunFolder, run: Run) -> None:
    old, new = flatten(to_plain(there.run)), flatten(to_plain(run))
    changed = [
        f"{k}: {old.get(k)!r} there, {new.get(k)!r} asked" for k in {**old, **new} if old.get(k) != new.get(k)
    ]
    if changed:
        raise RunError(f"{there.path}: holds a run of other settings ({'; '.join(changed[:5])})")


def default_search(eps: float, steps: int = STEPS, alpha: float | None = None, suite: str = "") -> PGD:
    """Return the search of evaluations: ``alpha`` is ``4 * eps / steps`` unless given.

    The best point is kept, but for the suite that repeats the published faults: there the last one.
    """
    published = suite in SUITES and SUITES[suite].batch_means is not None
    length = REACH * eps / max(steps, 1) if alpha is None else alpha
    return PGD(steps=steps, alpha=length, keep="last" if published else "best")


def record_fields(opened: RunFolder, protocol: str) -> dict[str, Any]:
    """Return the fields that all records of a run have."""
    run: Any = opened.run
    return {
        "run": opened.path.name,
        "dataset": run.data.name,
        "protocol": protocol,
        "encoder": run.encoder.name,
        "defense": run.name,
        "seed": run.seed,
    }


@full_float32()
def evaluate_run(
    folder: str | Path | RunFolder,
    *,
    suite: str = "core",
    threat: LinfThreat | L2Threat | None = None,
    search: PGD | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
    verdict: Level = "quick",
    queries: int | None = None,
    share: Share | None = None,
    twin: Encoder | None = None,
    surrogates: Mapping[str, AnyEncoder] | None = None,
    repair_seconds: float | None = None,
    clusters: int | Literal["auto"] | None = None,
    inference: Inference = "kmeans",
    poison: float = 0.1,
    memory: str | int | None = None,
    index: AnyIndex | None = None,
    on_chunk: Callable[[str, int, int], None] | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Records:
    """Evaluate a finished run on its test split and append the records to its folder.

    Parameters
    ----------
    folder
        A run folder.
    suite
        A name of ``SUITES``; clean retrieval metrics are always measured.
    threat
        The run's own by default.
    search
        By default 40 steps of ``eps / 10``.
    seed
        Of targets, random starts, k-means and bootstrap; not the training seed.
    device
        Where to compute.
    precision
        Of the searches: ``"fp32"``, ``"bf16"``, or ``"auto"``: bfloat16 where the processor multiplies it
        itself, there is enough to do, and check R31 finds nothing lost on a sample; what was measured before
        is read back in either. What was taken stands in every record; everything reported is measured in
        float32.
    verdict
        How the evaluation is checked: ``"off"``, ``"quick"`` or ``"full"``.
    queries
        Attack only a random sample of so many.
    share
        Compute a part only: for several processes, or within a time budget. One of several processes returns
        no records.
    twin
        An encoder of the same kind without a defense, which some checks need.
    surrogates
        Other encoders of the same images, by name. Suites on clusters attack by transfer from them, from the
        twin and from the members of an ensemble (A8); the checks of any suite look at them.
    repair_seconds
        Time for mending what the checks found too weak; see :class:`~holdfast.evaluation.card.Plan`.
    clusters, inference, poison
        Of suites on clusters; see :class:`~holdfast.clusters.Clusters`. Clusters are those of the training
        images under a closed protocol, and of the clean test images themselves where test classes are not
        trained on.
    memory
        ``"4G"``, or bytes: what may be taken between queries and gallery; see
        :class:`~holdfast.evaluation.card.Plan`.
    index
        The deployed index of FAISS: ``"flat"``, ``"ivf"``, ``"hnsw"``, settings of one or an index. It is
        built from the clean test images, kept in the run folder, and put into the loop
        (:func:`~holdfast.evaluation.card.against`).
    on_chunk, on_step
        Called with attack, queries done and queries in all; and with what is done besides, steps done and
        steps in all (0 where that is unknown).

    Returns
    -------
    Records
        A list: of these settings; measured before, they are read back instead of being repeated.
    """
    opened = folder if isinstance(folder, RunFolder) else open_run(folder)
    if suite not in SUITES:
        raise UnknownName("suite", suite, SUITES)
    chosen, asked = SUITES[suite], Clusters(count=clusters, inference=inference, poison=poison)
    asked.check(chosen)
    encoder, run = opened.encoder(), opened.run
    threat = threat or run.threat
    search = search or default_search(threat.eps, suite=suite)
    tell = on_step or (lambda *_: None)
    tell("reading images", 0, 0)
    split = run.data.load()
    test = split.test
    settings = {
        "suite": suite,
        "threat": to_plain(threat),
        "search": to_plain(search),
        "distance": to_plain(run.distance),
        "seed": seed,
        "precision": precision,
        "data": test.fingerprint(),
        "weights": opened.weights(),
        "version": __version__,
    }
    if queries is not None and queries < len(test):
        settings["queries"] = queries
    if index is not None:
        if chosen.clusters:
            raise InvalidArgument("index", "None for a suite on clusters", index)
        settings["index"] = parameters_of(index, len(test))
    place = pick_device(device)
    given = {name: _placed(e, place) for name, e in (surrogates or {}).items()}
    other = None if twin is None else twin.to(place)
    settings |= asked.settings(chosen, other_encoders(None, other, given))
    closed = split.protocol == "closed"
    if chosen.clusters:
        settings["references"] = split.train.fingerprint() if closed else "queries"
    plan = Plan(
        suite=chosen,
        search=search,
        threat=threat,
        seed=seed,
        precision=precision,
        level=verdict if chosen.entries or not chosen.clusters else "off",
        repair_seconds=repair_seconds,
        share=share or Share(),
        memory=None if memory is None else bytes_of(memory),
        evidence=({} if other is None else {"twin": other}) | ({"surrogates": given} if given else {}),
    )
    for word in ("bf16", "fp32") if precision == "auto" else (precision,):
        if known := read_back(opened.path, {**settings, "precision": word}, plan):
            return Records(known.records)
    tell("embedding", 0, 0)
    encoder, x, y = encoder.to(place), test.x.to(place), test.y.to(place)
    task: RetrievalTask
    if chosen.clusters:
        references = (split.train.x.to(place), split.train.y.to(place)) if closed else (x, y)
        task = asked.task(encoder, x, y, *references, distance=run.distance, seed=seed)
        part, shown = sample(task, queries, seed), references[0]
        plan = asked.complete(plan, part, other_encoders(encoder, other, given), references[1])
    else:
        task, shown = retrieval_task(encoder, x, y, run.distance), x
        part = sample(task, queries, seed)
        if index is not None:
            found_index = deployed(index, task.gallery.z, run.distance, opened.path / "indexes")
            plan = against(plan, found_index.search)
    plan = settled(part, plan, settings, opened.path)
    settings["precision"] = plan.precision
    # a budget covers an unknown part of the queries, and a certificate has to have those
    proven = proves(encoder, task.distance, clusters=chosen.clusters)
    if plan.level != "off" and plan.share == Share() and proven:
        tell("certificate", 0, 0)
        plan = replace(plan, evidence={**plan.evidence, "certificate": certify_task(task, part)})
    found = measure(
        part,
        plan,
        record_fields(opened, split.protocol),
        settings,
        opened.path,
        gallery_images=shown,
        class_names=test.class_names,
        on_chunk=on_chunk,
        on_step=on_step,
    )
    return Records(found.records)


def _placed(encoder: AnyEncoder, place: torch.device) -> AnyEncoder:
    return encoder.to(place) if isinstance(encoder, torch.nn.Module) else encoder


__all__ = [
    "HoldfastError",
    "RunFolder",
    "allowed_types",
    "check_run",
    "default_search",
    "evaluate_run",
    "machine",
    "open_run",
    "record_fields",
    "train_run",
]
