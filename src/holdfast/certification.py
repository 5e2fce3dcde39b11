"""Certify learned metrics on a table of data: train, certify, keep every radius, compare, report."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ._version import __version__
from .certify import Certificate
from .data.tabular import Table
from .errors import CorruptFile, HoldfastError, InvalidArgument, RunError, UnknownName
from .evaluation.certified import (
    Measured,
    comparisons,
    fitting_radii,
    given_radii,
    read_certificate,
    records_of,
    summarise,
    write_certificate,
)
from .evaluation.shares import Spread, blocks, here, kept
from .files import read_arrays, read_json, write_arrays, write_json
from .linear.competitors import (
    METHODS,
    STOCHASTIC,
    Learned,
    Matrix,
    MethodFailed,
    MetricLearner,
    complete,
    recorded,
)
from .notebooks import table_html
from .report import write_report
from .report.certificates import read_certified, title, write_curves
from .results import record
from .results.record import Record
from .runs import machine

SCHEMA = 1
NORMS: Mapping[str, float] = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
RADII: Mapping[str, tuple[float, ...]] = {
    "digits": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
    "breast-cancer": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
    "wine": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
    "dna": (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    "pendigits": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
}
"""Radii of the published tables, for l2; elsewhere they follow the radii found."""
WAYS = ("auto", "bound", "tight", "exact")
"""How to certify; see :class:`holdfast.linear.RobustKNeighborsClassifier`."""


class Certifier(Protocol):
    """What certifies: a nearest-neighbour classifier under a given metric."""

    def fit(self, x: Any, y: Any, /) -> Any:
        """Keep the training points."""
        ...

    def certify(self, x: Any, y: Any = None, /, *, norm: float = 2) -> Certificate:
        """Return the certificate of test points with their labels."""
        ...

    def attack(self, x: Any, y: Any = None, /) -> tuple[Any, Any]:
        """Return the l2 lengths (n,) of changes that succeed, and the changes."""
        ...


MakeCertifier = Callable[[int, Matrix | None], Certifier]
"""K and a metric (None is the Euclidean one) -> a certifier that is not fitted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Certification:
    """What :func:`certify_table` found.

    Attributes
    ----------
    out
        Folder with ``certify.json``, ``records.jsonl``, ``metrics/``, ``certificates/`` and the report.
    measured
        One for each method, seed and K.
    meta
        The whole of ``certify.json``: settings, ``rows`` (one for each method and K, over its seeds),
        ``failed`` (method -> reason), ``recorded`` (figures measured elsewhere of methods that failed) and
        ``comparisons`` (paired, with the published ARML at its median radius).
    records
        Of all that was measured, also in earlier calls.
    report
        The report, or None.
    """

    out: Path
    measured: tuple[Measured, ...]
    meta: Mapping[str, Any]
    records: list[Record]
    report: Path | None

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        report = None if self.report is None else str(self.report)
        return {**self.meta, "out": str(self.out), "report": report, "records": self.records}

    def _repr_html_(self) -> str:
        """Show the certified errors in a notebook."""
        run = self.meta.get("run", {})
        failed = [f"{title(name)} was not measured: {why}" for name, why in self.meta["failed"].items()]
        caption = f"Certified errors in percent at radii: {run.get('data', '')}, {run.get('norm', '')}"
        return certified_html(self.meta, caption, " ".join([*failed, f"Folder: {self.out}."]))


def certified_html(meta: Mapping[str, Any], caption: str, note: str, *, kept: bool = False) -> str:
    """Return the rows of ``certify.json`` for a notebook.

    Parameters
    ----------
    meta
        The whole of the file.
    caption, note
        Above and beneath.
    kept
        Tell the shares that are certified instead of the errors.
    """

    def share(error: float) -> str:
        return f"{100 * (1 - error if kept else error):.1f}"

    rows = [
        [
            title(row["method"]), str(row["k"]), share(row["clean_error"]["value"]),
            *(share(e["value"]) for e in row["certified_error"]),
            "unbounded" if row["median"]["value"] is None else f"{row['median']['value']:.4g}",
        ]
        for row in meta["rows"]
    ]  # fmt: skip
    head = ["method", "k", "clean", *(f"{r:g}" for r in meta["radii"]), "median radius"]
    return table_html(head, rows, caption=caption, note=note)


def certify_table(
    table: Table,
    methods: Sequence[str] | Mapping[str, MetricLearner],
    k: Sequence[int] = (1, 3, 11),
    *,
    norm: str = "l2",
    n_test: int | None = None,
    seeds: Sequence[int] = (0,),
    method: str = "auto",
    radii: Sequence[float] | None = None,
    out: str | Path | None = None,
    attack: bool = False,
    budget: float | None = None,
    device: str = "cpu",
    jobs: int | None = None,
    report: bool = True,
    certifier: MakeCertifier | None = None,
    spread: Spread = here,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Certification:
    """Learn metrics on a table and certify nearest-neighbour classification of its test points.

    What the folder holds already is read back, not measured again: a stopped call goes on, and a call with
    more methods, seeds or K adds to what is there.

    Parameters
    ----------
    table
        Training and test points.
    methods
        Names of ``METHODS``; or functions (x, y, random state) -> M by name. A function is known again by
        its name alone, so a changed one needs another name or folder.
    k
        Numbers of neighbours that vote.
    norm
        ``"l2"``, ``"linf"`` or ``"l1"``: how perturbations are measured.
    n_test
        Certify only the first so many test points.
    seeds
        Random states. Methods that have none are learned once, with the first.
    method
        How to certify; see :class:`holdfast.linear.RobustKNeighborsClassifier`.
    radii
        Where errors are told; by default those of the published tables, or round numbers that fit.
    out
        Folder; by default ``runs/certify-NAME``.
    attack
        Whether to look for short changes that succeed as well (l2 only): bounds from above.
    budget
        Seconds for tightening each certificate, or None; of all processes together.
    device, jobs
        Where and with how many threads each process certifies, -1 for all cores.
    report
        Whether to write ``report.html`` and the curves as ``curves-kK.png``.
    certifier
        Another certifier than Holdfast's; it gets all test points at once.
    spread
        Who certifies parts of the test points: ``partial(holdfast.queues.run_queue, jobs=4)`` for four
        processes, or this one. Parts are the same whoever does them (at most ``ROWS`` points with one
        answer), so radii are equal to the bit where the number of threads is.
    on_step
        Called with what is being done, steps done and steps in all.

    Returns
    -------
    Certification
        Seconds of a certificate are those of all its parts together, whoever did them. A method that fails
        (its package is missing, its matrix is no metric) is told in ``meta["failed"]``;
        where figures of it were recorded elsewhere on the same points, they stand in ``meta["recorded"]``.

    Raises
    ------
    InvalidArgument
        For no methods, K, seeds or radii that cannot be; before anything is learned.
    UnknownName
        For a method or norm that no table holds.
    RunError
        If ``out`` holds something else.
    MethodFailed
        If no method gives a metric.
    """
    learners = _learners(methods)
    table = table.first(n_test)
    ks, states = _whole("k", k, 1), _whole("seeds", seeds, 0)
    if norm not in NORMS:
        raise UnknownName("norm", norm, NORMS)
    if certifier is None and method not in WAYS:
        raise UnknownName("method", method, WAYS)
    if attack and norm != "l2":
        raise InvalidArgument("attack", "the norm l2", norm)
    found = given_radii(radii)
    folder = Path("runs") / f"certify-{table.name}" if out is None else Path(out)
    train = table.fingerprint("train")
    _check_folder(folder, train)
    make: Any = certifier or _Nearest(method, budget, device, jobs)
    for number in ks:  # refuse before anything is learned
        make(number, None).fit(table.x_train, table.y_train)

    plan = [(name, s) for name in learners for s in (states if _stochastic(name) else states[:1])]
    settings: dict[str, Any] = {
        "train": train, "test": table.fingerprint("test"), "norm": norm, "method": method,
        "attack": attack, "budget": budget, "version": __version__,
    }  # fmt: skip
    step, steps = 0, len(plan) * (1 + len(ks))
    measured: list[Measured] = []
    failed: dict[str, str] = {}
    usual = RADII.get(table.name) if norm == "l2" else None

    def tell(words: str) -> None:
        nonlocal step
        if on_step is not None:
            on_step(words, step, steps)
        step += 1

    for name, seed in plan:
        tell(f"{name}: learning, seed {seed}")
        if name in failed:
            step += len(ks)
            continue
        try:
            learned, train_seconds = _metric(folder, name, learners[name], seed, table, train)
        except HoldfastError as error:
            failed[name] = str(error)
            step += len(ks)
            continue
        for number in ks:
            tell(f"{name}: certifying {len(table.y_test)} points, K = {number}")
            one = _certificate(
                folder, make, name, seed, number, learned, train_seconds, table, settings,
                None if certifier is not None or (budget is not None and spread is here) else spread,
            )  # fmt: skip
            measured.append(one)
            found = found or usual or fitting_radii(one.certificate)
            append_new(folder / "records.jsonl", records_of(one, table.name, norm, found))
    if not measured or found is None:
        raise MethodFailed("no method gave a metric: " + "; ".join(failed.values()))

    meta = {
        "schema": SCHEMA,
        "version": __version__,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine(),
        "run": {
            "data": table.name, "provenance": table.provenance, "methods": list(learners), "k": list(ks),
            "norm": norm, "seeds": list(states), "method": method, "attack": attack, "budget": budget,
            "device": device, "train points": len(table.y_train), "test points": len(table.y_test),
            "features": table.x_train.shape[1], "classes": table.n_classes,
        },
        "data_fingerprint": {"train": train, "test": settings["test"]},
        "radii": list(found),
        "rows": summarise(measured, found),
        "failed": failed,
        "recorded": _recorded(table, norm, failed, ks),
        "comparisons": comparisons(measured),
    }  # fmt: skip
    write_json(folder / "certify.json", meta)
    wanted = {one.fingerprint for one in measured}
    kept = [r for r in record.read(folder / "records.jsonl") if r["fingerprint"] in wanted]
    page = None
    if report:
        if (certified := read_certified(folder)) is not None:
            write_curves(certified, folder)
        page = write_report([folder], folder / "report.html")
    return Certification(out=folder, measured=tuple(measured), meta=meta, records=kept, report=page)


def _learners(methods: Sequence[str] | Mapping[str, MetricLearner]) -> dict[str, MetricLearner]:
    if isinstance(methods, Mapping):
        found = dict(methods)
    else:
        names = [methods] if isinstance(methods, str) else list(methods)
        unknown = next((name for name in names if name not in METHODS), None)
        if unknown is not None:
            raise UnknownName("methods", unknown, METHODS)
        found = {name: METHODS[name] for name in names}
    if not found:
        raise InvalidArgument("methods", f"at least one of {', '.join(METHODS)}", [])
    bad = [name for name in found if not name or not set(name) <= _NAME]
    if bad:
        raise InvalidArgument("methods", "names of letters, digits, '-', '_' and '.'", bad[0])
    return found


_NAME = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def _stochastic(name: str) -> bool:
    return name in STOCHASTIC or name not in METHODS


def _whole(argument: str, values: Sequence[int], least: int) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(values))
    if not found or any(isinstance(v, bool) or int(v) != v or v < least for v in found):
        raise InvalidArgument(argument, f"one or more integers >= {least}", list(values))
    return tuple(int(v) for v in found)


def _check_folder(folder: Path, train: str) -> None:
    path = folder / "certify.json"
    if path.is_file():
        meta = read_json(path)
        if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
            raise RunError(f"{path}: was written by another schema; choose another --out")
        prints = meta.get("data_fingerprint", {})
        if not isinstance(prints, dict):
            raise CorruptFile(path, None, "need data_fingerprint, an object")
        if prints.get("train") != train:
            raise RunError(f"{folder}: holds certificates of other data; choose another --out")
    elif folder.exists() and (
        not folder.is_dir() or any(p.name not in _PARTS and p.suffix != ".tmp" for p in folder.iterdir())
    ):
        raise RunError(f"{folder}: exists and holds no certificates; choose another --out")


_PARTS = ("records.jsonl", "metrics", "certificates")
"""What a stopped call may leave."""


@dataclass(frozen=True)
class _Nearest:
    """Makes Holdfast's certifier; a value, so that it can be sent to other processes."""

    method: Any
    budget: float | None
    device: str
    jobs: int | None

    def __call__(self, k: int, metric: Matrix | None) -> Any:
        from .linear import RobustKNeighborsClassifier

        return RobustKNeighborsClassifier(
            n_neighbors=k, metric=metric, method=self.method, time_budget=self.budget, device=self.device,
            n_jobs=self.jobs,
        )  # fmt: skip


def settings_hash(**settings: Any) -> str:
    """Return a short hash of plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _metric(
    folder: Path, name: str, learner: MetricLearner, seed: int, table: Table, train: str
) -> tuple[Learned, float]:
    """Learn a metric, or read the one that is there; and the seconds that it took."""
    key = settings_hash(train=train, method=name, seed=seed, version=__version__)
    path = folder / "metrics" / f"{name}-seed{seed}-{key}.npz"
    if path.is_file():
        return _kept_metric(path, table.x_train.shape[1])
    start = time.perf_counter()
    learned = complete(name, learner(table.x_train, table.y_train, seed))
    taken = time.perf_counter() - start
    if len(learned.matrix) != table.x_train.shape[1]:
        raise InvalidArgument(name, f"a matrix of {table.x_train.shape[1]} rows", learned.matrix.shape)
    own = {name: part for name, part in (("x", learned.x), ("y", learned.y)) if part is not None}
    write_arrays(path, {"m": learned.matrix, "seconds": np.array(taken), **own})
    return learned, taken


def _kept_metric(path: Path, width: int) -> tuple[Learned, float]:
    """Read a metric that an earlier call learned."""
    arrays = read_arrays(path)
    none = np.empty(0)
    m, seconds, x, y = (arrays.get(name, none) for name in ("m", "seconds", "x", "y"))
    own = "x" in arrays or "y" in arrays
    sound = m.shape == (width, width) and seconds.shape == () and (not own or x.shape == (y.size, width))
    sound = sound and y.ndim == 1 and all(a.dtype.kind in "fiu" for a in (m, seconds, x))
    if not (sound and np.isfinite(m).all() and np.isfinite(seconds) and np.isfinite(x).all()):
        raise CorruptFile(path, None, f"need a metric of {width} features, and the seconds that it took")
    return Learned(m, x if own else None, y if own else None), float(seconds)


def _certificate(
    folder: Path,
    make: Any,
    name: str,
    seed: int,
    k: int,
    learned: Learned,
    train_seconds: float,
    table: Table,
    settings: Mapping[str, Any],
    spread: Spread | None,
) -> Measured:
    """Certify, or read what is there."""
    m = learned.matrix
    x, y = learned.x, learned.y
    if x is None or y is None:
        x, y = table.x_train, table.y_train
    weights = hashlib.sha256(np.ascontiguousarray(m).tobytes() + np.ascontiguousarray(x).tobytes())
    key = settings_hash(**settings, name=name, seed=seed, k=k, weights=weights.hexdigest()[:16])
    file = f"certificates/{name}-k{k}-{settings['norm']}-seed{seed}-{key}.npz"
    if (folder / file).is_file():
        certificate, taken = read_certificate(folder / file, NORMS[settings["norm"]])
    else:
        votes, metric = k if learned.x is None else 1, None if np.array_equal(m, np.eye(len(m))) else m
        norm, attack = NORMS[settings["norm"]], bool(settings["attack"])
        if spread is None:
            start = time.perf_counter()
            fitted = make(votes, metric)
            fitted.fit(x, y)
            certificate, _ = _certified(fitted, table.x_test, table.y_test, norm, attack)
            taken = time.perf_counter() - start
        else:
            certificate, taken = _in_parts(make, votes, metric, x, y, table, norm, attack, key, spread)
        write_certificate(folder / file, certificate, taken)
    return Measured(
        method=name, seed=seed, k=k, certificate=certificate, train_seconds=train_seconds, seconds=taken,
        fingerprint=key, file=file,
    )  # fmt: skip


ROWS = 256
"""Test points, all with one answer, that are certified together: two batches of the certificates."""


def _in_parts(
    make: _Nearest,
    votes: int,
    metric: Matrix | None,
    x: np.ndarray,
    y: np.ndarray,
    table: Table,
    norm: float,
    attack: bool,
    key: str,
    spread: Spread,
) -> tuple[Certificate, float]:
    """Certify parts of the test points; of a time budget each gets as much as it has of the points."""
    start = time.perf_counter()
    answer = make(votes, metric).fit(x, y).predict(table.x_test)
    wrong = answer != table.y_test
    groups = [np.flatnonzero(wrong)]
    groups += [np.flatnonzero((answer == label) & ~wrong) for label in np.unique(answer)]
    rows = [group[first:last] for group in groups for first, last in blocks(len(group), ROWS)]
    own = [_budgeted(make, len(part) / len(answer)) for part in rows]
    before = time.perf_counter() - start
    done = spread(
        _part,
        [
            (key, one, votes, metric, x, y, table.x_test[part], table.y_test[part], norm, attack)
            for one, part in zip(own, rows, strict=True)
        ],
    )
    certificate = joined([c for c, _ in done], torch.from_numpy(np.argsort(np.concatenate(rows))))
    return certificate, before + sum(seconds for _, seconds in done)


def joined(parts: Sequence[Certificate], rows: torch.Tensor) -> Certificate:
    """Return certificates put together and then in another order, (n,) rows; what one lacks is left out."""
    fields: dict[str, Any] = {}
    for name in ("radius", "correct", "exact", "answer", "upper"):
        values = [getattr(part, name) for part in parts]
        fields[name] = None if any(v is None for v in values) else torch.cat(values)[rows]
    return replace(parts[0], **fields)


def _budgeted(make: _Nearest, share: float) -> _Nearest:
    return make if make.budget is None else replace(make, budget=make.budget * share)


def _part(
    key: str,
    make: _Nearest,
    votes: int,
    metric: Matrix | None,
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    norm: float,
    attack: bool,
) -> tuple[Certificate, float]:
    """Certify some test points, in any process; references are prepared once in each."""
    fitted = kept(f"{key} {make}", lambda: make(votes, metric).fit(x, y))
    return _certified(fitted, x_test, y_test, norm, attack)


def _certified(
    fitted: Certifier, x: np.ndarray, y: np.ndarray, norm: float, attack: bool
) -> tuple[Certificate, float]:
    """Return the certificate of points and the seconds it took; perturbations are not kept."""
    start = time.perf_counter()
    certificate = replace(fitted.certify(x, y, norm=norm), perturbation=None)
    if attack and certificate.upper is None:
        lengths, _ = fitted.attack(x, y)
        certificate = replace(certificate, upper=torch.from_numpy(np.asarray(lengths, dtype=np.float64)))
    return certificate, time.perf_counter() - start


def append_new(path: Path, records: Sequence[Record]) -> None:
    """Append the records whose fingerprint and metric do not stand in the file."""
    there = {(r["fingerprint"], r["metric"]) for r in record.read(path)} if path.is_file() else set()
    new = [r for r in records if (r["fingerprint"], r["metric"]) not in there]
    if new:
        record.append(path, new)


def _recorded(table: Table, norm: str, failed: Iterable[str], ks: Sequence[int]) -> list[dict[str, Any]]:
    """Return figures measured elsewhere, on these very points, of methods that cannot be run here."""
    file = recorded(table.name)
    if file is None or file["norm"] != norm or file["n_test"] != len(table.y_test):
        return []
    rows = []
    for name in failed:
        for k in ks:
            figures = file["methods"].get(name, {}).get(str(k))
            if figures is not None:
                errors = dict(zip(file["radii"], figures["certified_error"], strict=True))
                kept = [{"radius": r, "value": value} for r, value in errors.items()]
                rows.append({"method": name, "k": k, **figures, "certified_error": kept})
    return [{**row, "provenance": file["provenance"]} for row in rows]


__all__ = ["NORMS", "RADII", "Certification", "Certifier", "Measured", "certify_table"]
