"""Certify the encoder of a trained run: Recall@k by smoothing, by votes or by its Lipschitz constant."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._version import __version__
from .attacks import hits
from .certification import SCHEMA, append_new, certified_html, settings_hash
from .certify import Certificate, SmoothedEncoder, Smoothing
from .config import to_plain
from .data import DataSplit
from .defenses import NoiseTraining
from .encoders import Encoder
from .errors import CorruptFile, InvalidArgument, RunError
from .evaluation import retrieval_task
from .evaluation.card import sample
from .evaluation.certified import (
    SUITE,
    Measured,
    fitting_radii,
    given_radii,
    read_certificate,
    records_of,
    share,
    summarise,
    write_certificate,
)
from .evaluation.query_certificates import Way, certify_queries, certify_task, choose_way, pooled
from .evaluation.shares import Spread, blocks, here, kept
from .evaluation.verdict import Falsified, falsify
from .files import read_arrays, read_json, write_arrays, write_json
from .functional.ranking import chunks
from .report import write_report
from .report.certificates import RUN_KIND
from .report.certify_file import read_certify
from .results.record import Record
from .runs import RunFolder, machine, open_run, record_fields
from .search import full_float32
from .training import pick_device
from .types import RetrievalTask

SIGMA = 0.25
"""Noise for encoders that were not trained with any."""
SAMPLES = (200, 10_000)
"""Noisy copies that choose what is certified, and that certify it."""
QUERIES = 100
"""Queries that are certified by sampling, unless told otherwise."""
COPIES = 16
"""Noisy copies in each look of the attack at a smoothed encoder."""
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunCertification:
    """What :func:`certify_run` found.

    Attributes
    ----------
    folder
        The run folder.
    label
        How the queries were certified: ``"lipschitz"``, ``"smoothing, sigma 0.25"``, ``"votes, sigma 0.25"``.
    certificate
        Of every certified query.
    rows
        (n,) the queries among the test images.
    clean
        (n,) bool: the encoder itself, without noise, is right.
    meta
        The whole of ``certify.json``; ``rows`` has one entry for each label and k that was certified so far.
    records
        Of this certification.
    attacked
        What an attack inside the radii did, if one was asked for and can be made.
    report
        The report, or None.
    """

    folder: Path
    label: str
    certificate: Certificate
    rows: Tensor
    clean: Tensor
    meta: Mapping[str, Any]
    records: list[Record]
    attacked: Falsified | None
    report: Path | None

    @property
    def row(self) -> Mapping[str, Any]:
        """The entry of ``meta["rows"]`` about this certification."""
        wanted = self.records[0]["fingerprint"]
        found: Mapping[str, Any] = next(r for r in self.meta["rows"] if r["fingerprint"] == wanted)
        return found

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        report = None if self.report is None else str(self.report)
        return {
            **self.meta, "out": str(self.folder), "report": report, "certified": self.row,
            "records": self.records,
        }  # fmt: skip

    def _repr_html_(self) -> str:
        """Show what is certified in a notebook."""
        attacked = "" if self.attacked is None else f" {self.label}: {self.attacked.words()}."
        caption = f"{self.folder.name}: certified recall@k in percent at radii (l2, pixels from 0 to 1)"
        return certified_html(self.meta, caption, f"Folder: {self.folder}.{attacked}", kept=True)


@full_float32()
def certify_run(
    folder: str | Path | RunFolder,
    *,
    by: str = "auto",
    sigma: float | None = None,
    samples: tuple[int, int] = SAMPLES,
    alpha: float = 1e-3,
    queries: int | None = None,
    k: int = 1,
    seed: int = 0,
    device: str = "auto",
    radii: Sequence[float] | None = None,
    attack: bool = False,
    report: bool = True,
    spread: Spread = here,
    on_step: Tell | None = None,
) -> RunCertification:
    """Certify Recall@k of a finished run on its test split, every image a query against all the others.

    Parameters
    ----------
    folder
        A run folder. It gets ``certify.json``, ``certificates/``, records and ``report.html``.
    by
        ``"lipschitz"``: deterministic, for encoders with a proven constant, under the Euclidean distance.
        ``"smoothing"``: the mean embedding under noise, for embeddings of length at most 1. ``"votes"``: the
        label of the nearest gallery row that most noisy copies get, for any encoder. ``"auto"``: the first of
        these that the encoder allows.
    sigma
        Noise in pixel units, > 0; by default that of the training, else 0.25. None for ``"lipschitz"``.
    samples
        Noisy copies of each query that choose, and that certify. Not used by ``"lipschitz"``, nor alpha.
    alpha
        Probability, for each query, that its radius is too large.
    queries
        Certify a random sample of so many; by default 100, and all by ``"lipschitz"``.
    k
        Places that count; votes are about the first alone.
    seed
        Of the sample of queries, the noise and the attack.
    device
        Where to compute.
    radii
        Where certified shares are told, in pixel units; by default round numbers that fit what was found.
    attack
        Whether to attack every certified query inside its radius
        (:func:`~holdfast.evaluation.verdict.falsify`); not possible for votes.
    report
        Whether to write ``report.html``.
    spread
        Who certifies blocks of queries by sampling: ``partial(holdfast.queues.run_queue, jobs=4)`` for four
        processes, or this one. They get the path of the folder, embed the gallery once each, and leave
        finished blocks in ``certificates/``. A query is certified alone, so radii do not depend on it; with
        as many torch threads they are equal to the bit. ``"lipschitz"`` is one pass, made here, as attacks
        are.
    on_step
        Called with words, queries done and queries in all. The first call tells what is certified, the
        second how long it will take.

    Returns
    -------
    RunCertification
        Radii in the l2 norm of the pixels. Certified before with the same settings and weights, they are read
        back; a stopped call goes on. Of two certifications with the same label and k the later one stands in
        ``certify.json``; both are kept in ``certificates/``.

    Raises
    ------
    UnknownName
        For another ``by``.
    InvalidArgument
        For numbers that cannot be, before anything is computed; for ``"lipschitz"`` if the encoder has no
        proven constant; for ``"smoothing"`` if embeddings are longer than 1.
    RunError
        If it is no finished run, or the folder holds certificates of something else.
    """
    given = given_radii(radii)
    if k < 1:
        raise InvalidArgument("k", "an integer >= 1", k)
    if queries is not None and queries < 1:
        raise InvalidArgument("queries", "an integer >= 1, or None", queries)
    opened = folder if isinstance(folder, RunFolder) else open_run(folder)
    encoder = opened.encoder()
    way = choose_way(by, encoder, opened.run.distance, k)
    smoothing = None
    if way != "lipschitz":
        noise = sigma if sigma is not None else trained_sigma(opened.run.defense) or SIGMA
        smoothing = Smoothing(sigma=noise, n_select=samples[0], n_certify=samples[1], alpha=alpha, seed=seed)
    elif sigma is not None:
        raise InvalidArgument("sigma", "a certificate by smoothing or votes", sigma)
    split = opened.run.data.load()
    task = _task(opened, split, encoder, device)
    wanted = queries if way == "lipschitz" or queries is not None else QUERIES
    part = sample(task, wanted, seed)
    about = {
        "by": way, "k": k, "noise": None if smoothing is None else _noise(smoothing),
        "queries": len(part), "seed": seed if len(part) < len(task) else None,
        "data": split.test.fingerprint(), "distance": to_plain(opened.run.distance),
        "weights": opened.weights(), "version": __version__,
    }  # fmt: skip
    _check(opened.path)
    label = way if smoothing is None else f"{way}, sigma {smoothing.sigma:g}"
    makers = (str(opened.path.resolve()), device, wanted, seed)
    one, clean = _certified(
        opened, task, part, way, smoothing, k, label, about, on_step,
        None if spread is here else spread, makers,
    )  # fmt: skip

    there = _there(opened.path, about)
    _, before = there.pop((label, k), (None, {}))
    row = _row(one, clean, len(task), about)
    broken = None
    if before.get("fingerprint") == one.fingerprint:
        row["attacked"] = before["attacked"]
    if attack and way != "votes":
        broken, row["attacked"] = _attacked(opened.path, one, part, smoothing, k, seed, on_step)
    everything = [*there.values(), (one, row)]
    at = given or fitting_radii(pooled([item.certificate for item, _ in everything]))
    meta = {
        "schema": SCHEMA,
        "kind": RUN_KIND,
        "version": __version__,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine(),
        "run": {
            "data": opened.run.data.name, "norm": "l2", "test images": len(task),
            "classes": len(torch.unique(task.y)), "encoder": opened.run.encoder.name,
            "defense": opened.run.name,
        },
        "data_fingerprint": {"test": about["data"]},
        "weights": about["weights"],
        "radii": list(at),
        "rows": [{**summarise([item], at)[0], **own} for item, own in everything],
        "failed": {}, "recorded": [], "comparisons": [],
    }  # fmt: skip
    write_json(opened.path / "certify.json", meta)
    made = [r for item, _ in everything for r in _records(item, opened, split.protocol, at)]
    append_new(opened.path / "records.jsonl", made)
    return RunCertification(
        folder=opened.path, label=label, certificate=one.certificate, rows=part.index, clean=clean, meta=meta,
        records=[r for r in made if r["fingerprint"] == one.fingerprint], attacked=broken,
        report=write_report([opened.path], opened.path / "report.html") if report else None,
    )  # fmt: skip


def _task(opened: RunFolder, split: DataSplit, encoder: Encoder, device: str) -> RetrievalTask:
    place = pick_device(device)
    return retrieval_task(
        encoder.to(place), split.test.x.to(place), split.test.y.to(place), opened.run.distance
    )


def trained_sigma(defense: Any) -> float:
    """Return the largest noise that a defense trains with; 0 where there is none."""
    if isinstance(defense, NoiseTraining):
        return max(defense.sigma, trained_sigma(defense.part))
    return max(map(trained_sigma, getattr(defense, "parts", ())), default=0.0)


def _noise(s: Smoothing) -> dict[str, Any]:
    return {"sigma": s.sigma, "samples": [s.n_select, s.n_certify], "alpha": s.alpha, "seed": s.seed,
            "bound": s.bound}  # fmt: skip


def _check(folder: Path) -> None:
    path = folder / "certify.json"
    meta = read_json(path) if path.is_file() else {"schema": SCHEMA, "kind": RUN_KIND}
    if not isinstance(meta, dict) or (meta.get("schema"), meta.get("kind")) != (SCHEMA, RUN_KIND):
        raise RunError(f"{path}: holds certificates of something else, or of another schema")
    if path.is_file():
        read_certify(path)


def _there(folder: Path, about: Mapping[str, Any]) -> dict[tuple[str, int], tuple[Measured, dict[str, Any]]]:
    """Read the certifications of the same weights and images; what cannot be read is left out."""
    path = folder / "certify.json"
    meta = read_json(path) if path.is_file() else {}
    same = (meta.get("weights"), meta.get("data_fingerprint")) == (about["weights"], {"test": about["data"]})
    found = {}
    for row in meta.get("rows", []) if same else []:
        try:
            label, k, file = row["method"], row["k"], f"certificates/{Path(row['files'][0]).name}"
            certificate, seconds = read_certificate(folder / file, 2.0)
            one = _measured(label, k, row["fingerprint"], file, row["seeds"][0], certificate, seconds)
            found[label, k] = one, {key: row[key] for key in _OWN}
        except (CorruptFile, OSError, KeyError):
            continue
    return found


_OWN = ("clean_error", "of", "by", "noise", "alpha", "fingerprint", "attacked")
"""What rows hold besides :func:`~holdfast.evaluation.certified.summarise`'s."""


def _row(one: Measured, clean: Tensor, of: int, about: Mapping[str, Any]) -> dict[str, Any]:
    wrong = float((~clean).double().mean())
    return {
        "clean_error": share([wrong], len(clean)), "of": of, "by": about["by"], "noise": about["noise"],
        "alpha": one.certificate.alpha, "fingerprint": one.fingerprint, "attacked": None,
    }  # fmt: skip


def _measured(
    label: str, k: int, fingerprint: str, file: str, seed: int, certificate: Certificate, seconds: float
) -> Measured:
    return Measured(
        method=label, seed=seed, k=k, certificate=certificate, train_seconds=0.0, seconds=seconds,
        fingerprint=fingerprint, file=file,
    )  # fmt: skip


def _certified(
    opened: RunFolder,
    task: RetrievalTask,
    part: RetrievalTask,
    way: Way,
    smoothing: Smoothing | None,
    k: int,
    label: str,
    about: Mapping[str, Any],
    on_step: Tell | None,
    spread: Spread | None,
    makers: _Makers,
) -> tuple[Measured, Tensor]:
    """Certify, or read what is there; and say which clean queries are right."""
    key = settings_hash(**about)
    file = f"certificates/{way}-k{k}-{key}.npz"
    path = opened.path / file
    n = len(part)

    def tell(words: str, done: int) -> None:
        if on_step is not None:
            on_step(f"{label}: {words}", done, n)

    def told(done: int, each: float) -> None:
        left = f"{_time(each * (n - done))} left" if done < n else "done"
        tell(f"{done} of {n} queries, {each:.2g} s each, {left}", done)

    if path.is_file():
        certificate, seconds = read_certificate(path, 2.0)
        clean = torch.from_numpy(read_arrays(path)["clean"])
    else:
        tell(f"{n} queries" + (f" of {len(task)}, a random sample" if n < len(task) else ""), 0)
        clean = _right(part, k)
        if smoothing is None:
            start = time.perf_counter()
            certificate = certify_task(task, part, k=k)
            seconds = time.perf_counter() - start
            told(n, seconds / n)
        else:
            begun = path.with_suffix(".part.npz")
            if spread is None and not _block_files(path):
                certificate, seconds = certify_queries(part, smoothing, way, k=k, kept=begun, on_query=told)
            else:
                start = time.perf_counter()
                certificate, seconds = _in_blocks(
                    path, n, (way, smoothing, k, *makers), spread or here,
                    lambda done: told(done, (time.perf_counter() - start) / max(done, 1)),
                )  # fmt: skip
        write_certificate(path, certificate, seconds, clean=clean.numpy(), query=part.index.cpu().numpy())
    for part_of_it in (path.with_suffix(".part.npz"), *_block_files(path)):  # of a call that was killed, too
        part_of_it.unlink(missing_ok=True)
    return _measured(label, k, key, file, opened.run.seed, certificate, seconds), clean


_Makers = tuple[str, str, int | None, int]
"""What a worker makes the queries from: run folder, device, how many are sampled, seed of the sample."""
BLOCKS = 128
"""Blocks of queries, at most; which they are does not depend on the number of processes."""


def _block_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.block-*.npz"))


def _in_blocks(
    path: Path, n: int, how: tuple[Any, ...], spread: Spread, tell: Callable[[int], None]
) -> tuple[Certificate, float]:
    """Certify blocks of queries that have no file yet, then read all; seconds are those of all processes.

    What a call without ``spread`` left (``.part.npz``: the first so many queries) is taken over.
    """
    whole = blocks(n, max(1, -(-n // BLOCKS)))
    begun = path.with_suffix(".part.npz")
    known = {} if not begun.is_file() else {(0, len(read_certificate(begun, 2.0)[0])): begun}
    first = max((last for _, last in known), default=0)
    rest = [(max(first, a), b) for a, b in whole if b > first]
    files = known | {b: path.with_name(f"{path.stem}.block-{b[0]:08d}-{b[1]:08d}.npz") for b in rest}
    left = [(rows, file) for rows, file in files.items() if not file.is_file()]
    done = n - sum(b - a for (a, b), _ in left)
    spread(
        _block,
        [(str(file.resolve()), *rows, path.stem, *how) for rows, file in left],
        on_done=lambda ready, _: tell(done + sum(b - a for (a, b), _ in left[:ready])),
    )
    read = [read_certificate(file, 2.0) for file in files.values()]
    return pooled([certificate for certificate, _ in read]), sum(seconds for _, seconds in read)


def _block(
    file: str, first: int, last: int, key: str, way: Way, smoothing: Smoothing, k: int, folder: str,
    device: str, wanted: int | None, seed: int,
) -> None:  # fmt: skip
    """Certify some queries into a file, in any process; it embeds the gallery once."""

    def make() -> RetrievalTask:
        opened = open_run(folder)
        return sample(_task(opened, opened.run.data.load(), opened.encoder(), device), wanted, seed)

    part = kept(f"{folder} {key}", make)
    certificate, seconds = certify_queries(part.rows(slice(first, last)), smoothing, way, k=k)
    write_certificate(Path(file), certificate, seconds)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _right(part: RetrievalTask, k: int) -> Tensor:
    """Return (n,) bool, which clean queries are right; no image is looked at."""
    light = replace(part, x=part.z)
    return torch.cat([hits(q.z, q, k) > 0 for q in map(light.rows, chunks(len(part), 256))]).cpu()


def _attacked(
    folder: Path, one: Measured, part: RetrievalTask, s: Smoothing | None, k: int, seed: int,
    on_step: Tell | None,
) -> tuple[Falsified | None, dict[str, int] | None]:  # fmt: skip
    """Attack inside the radii, or read what an attack did."""
    path = folder / "certificates" / f"attack-{one.fingerprint}-{seed}.npz"
    if path.is_file():
        a = read_arrays(path)
        found = Falsified(tried=int(a["tried"]), rows=torch.from_numpy(a["rows"]), allowed=int(a["allowed"]))
    else:
        if on_step is not None:
            on_step(f"{one.method}: attacking certified queries inside their radii", 0, len(part))
        attempt = partial(falsify, one.certificate, part, k=k, seed=seed)
        if s is None:
            found = attempt()
        else:
            smoothed = SmoothedEncoder(part.encoder, s.sigma, samples=COPIES, seed=seed)
            found = attempt(smoothed, bounds=None, copies=s.n_certify)
        facts = {"tried": np.array(found.tried), "allowed": np.array(found.allowed)}
        write_arrays(path, {**facts, "rows": found.rows.numpy()})
    return found, {"tried": found.tried, "broken": found.broken, "allowed": found.allowed}


def _records(one: Measured, opened: RunFolder, protocol: str, radii: Sequence[float]) -> list[Record]:
    """Return certified shares and the median; ``attack`` tells how they were certified, and for which k."""
    about = {
        **record_fields(opened, protocol), "suite": SUITE, "state": "attacked",
        "attack": one.method if one.k == 1 else f"{one.method}, recall@{one.k}",
    }  # fmt: skip
    found = records_of(one, about["dataset"], "l2", radii, about)
    return [r for r in found if r["metric"] != "clean-error"]


__all__ = ["RunCertification", "certify_run", "trained_sigma"]
