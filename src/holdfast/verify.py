"""Do the records of a run hold? Values computed anew, and a sample of attacks and certificates made again.

Every record is compared with what comes out of the stored per-query values, by the code that made it. Of a
sample of the records some queries are attacked, or certified, once more, from the encoder, the images and the
seeds, and compared with what is stored: bit for bit where machine, threads and versions are those that the
chunk was made by, else within :data:`CLOSE`. [D] Our own procedure, thresholds included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .attacks.run import join
from .certification import settings_hash
from .certify import Smoothing
from .clusters import Clusters
from .config import from_plain, to_plain
from .data import DataSplit
from .errors import CorruptFile, HoldfastError, InvalidArgument, RunError
from .evaluation import SUITES, retrieval_task
from .evaluation.audit import made_by, refuse_outside
from .evaluation.card import (
    DEPLOYED,
    DONE,
    INDEXED,
    VERDICT,
    Plan,
    _attacked,
    _benign,
    _fingerprint,
    sample,
)
from .evaluation.certified import read_certificate
from .evaluation.clusters import farthest, measurable
from .evaluation.query_certificates import certify_queries, certify_task
from .evaluation.stored import Chunk, stored_chunks, stored_name
from .evaluation.suite import EntryResult, Share, _load, attack_again, taken
from .files import read_arrays, read_json
from .report.certify_file import read_certify
from .results import record
from .results.record import Record
from .rng import stream
from .run_certificates import _measured, _records
from .runs import RunFolder, allowed_types, open_run, record_fields
from .search import full_float32
from .training import pick_device
from .types import ClusterTask, RetrievalTask

CLOSE = 1e-3
"""Made elsewhere, a value holds when it differs by no more than this, of itself or of 1."""
FEW = 0.1
"""Made elsewhere, so large a share of the queries may differ by more: an attack that took another path."""
SAMPLED = 4
"""Queries that are certified again by sampling, at most: each takes thousands of passes."""
_FREE = ("schema", "time", "run", "seconds", "version", "verdict", "failed", "fingerprint", "value", "ci")
"""Fields of a record that are not its name, or are compared otherwise."""
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    what
        Which record, attack or file.
    holds
        Whether it holds; ``None`` where it could not be looked at.
    exact
        Equal to the bit.
    detail
        What was found.
    queries
        How many were attacked or certified again for it.
    """

    what: str
    holds: bool | None
    exact: bool = False
    detail: str = ""
    queries: int = 0


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What :func:`verify_run` found.

    Attributes
    ----------
    run
        The folder.
    checks
        One for every file, record and repeated attack or certificate.
    differences
        In what this machine is not the one that made the numbers, in words; empty where bits are promised.
    """

    run: str
    checks: tuple[Check, ...]
    differences: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether something could be looked at and nothing failed."""
        return any(c.holds for c in self.checks) and not self.broken

    @property
    def broken(self) -> tuple[Check, ...]:
        """What does not hold."""
        return tuple(c for c in self.checks if c.holds is False)

    @property
    def queries(self) -> int:
        """Attacks and certificates of single queries that were made again."""
        return sum(c.queries for c in self.checks)

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "run": self.run, "holds": self.holds, "queries": self.queries, "close": CLOSE,
            "differences": list(self.differences), "checks": [asdict(c) for c in self.checks],
        }  # fmt: skip

    def words(self) -> str:
        """Return a line for people."""
        seen = [c for c in self.checks if c.holds is not None]
        exact, skipped = sum(c.exact for c in seen), len(self.checks) - len(seen)
        left = f", {skipped} could not be looked at" if skipped else ""
        word = "holds" if self.holds else "does not hold"
        return (
            f"{self.run}: {word}; {len(seen)} checks, {exact} equal to the bit, {len(self.broken)} "
            f"broken{left}; {self.queries} queries attacked or certified again"
        )


@full_float32()
def verify_run(
    folder: str | Path | RunFolder,
    *,
    records: int = 10,
    queries: int = 16,
    seed: int = 0,
    device: str = "cpu",
    on_step: Tell | None = None,
) -> Verification:
    """Look whether the records of a finished run hold.

    Parameters
    ----------
    folder
        A run folder with records.
    records
        Records whose attack or certificate is made again, a random sample; 0 for none. All others are only
        compared with the stored per-query values.
    queries
        Queries that each of these attacks is repeated on; certificates by sampling on four at most.
    seed
        Of the samples.
    device
        Where to compute.
    on_step
        Called with what is looked at, parts done and parts in all.

    Returns
    -------
    Verification
        ``holds`` is False as soon as one check fails: weights or images that are not those of a record, a
        record that does not follow from the per-query values, or values that do not come out again.

    Raises
    ------
    RunError
        If it is no finished run, or has no records.
    InvalidArgument
        For counts below 0 or a sample of no queries.

    Notes
    -----
    Records of older lines of ``records.jsonl`` that :func:`~holdfast.results.record.latest` leaves out are
    not looked at; neither are mended numbers (``REPAIRED``), those of a deployed index, and of suites that
    attacked by transfer or poisoned references: these are told as such.
    """
    if records < 0 or queries < 1:
        raise InvalidArgument("records, queries", "records >= 0 and queries >= 1", (records, queries))
    opened = folder if isinstance(folder, RunFolder) else open_run(folder)
    found = record.latest(record.read(opened.path / "records.jsonl"))
    chosen = torch.randperm(len(found), generator=stream(seed, "verify"))[:records].tolist()
    by: dict[str, list[int]] = {}
    for i, one in enumerate(found):
        by.setdefault(one["fingerprint"], []).append(i)
    look = _Look(opened, queries, seed, device)
    checks = look.sources()
    for number, (fingerprint, rows) in enumerate(by.items()):
        some = [found[i] for i in rows]
        again = {found[i]["attack"] for i in rows if i in chosen}
        if on_step is not None:
            on_step(f"{some[0]['suite']}, {fingerprint}", number, len(by))
        try:
            if (opened.path / "evaluations" / fingerprint).is_dir():
                checks += look.evaluation(fingerprint, some, again)
            elif some[0]["suite"] == "certified":
                checks += look.certification(fingerprint, some, bool(again))
            else:
                checks += _unseen(some, "its settings and per-query values are not there")
        except (HoldfastError, OSError, KeyError) as error:
            checks.append(Check(what=f"{some[0]['suite']}, {fingerprint}", holds=False, detail=str(error)))
    return Verification(
        run=str(opened.path), checks=tuple(checks), differences=tuple(dict.fromkeys(look.differences))
    )


class _Look:
    """Looks at the parts of one run; embeds its images once."""

    def __init__(self, opened: RunFolder, queries: int, seed: int, device: str) -> None:
        self.opened, self.queries, self.seed = opened, queries, seed
        self.place = pick_device(device)
        self.encoder = opened.encoder().to(self.place)
        self.weights = opened.weights()
        self.split: DataSplit = opened.run.data.load()
        self.data = self.split.test.fingerprint()
        self.here = made_by(self.place)
        self.differences: list[str] = []

    def sources(self) -> list[Check]:
        """Compare the images with those that the run was trained and tested on."""
        told = self.opened.meta.get("data_fingerprint", {})
        now = {"train": self.split.train.fingerprint(), "test": self.data}
        return [
            _same(f"{name} images", told[name], now[name], "images of another fingerprint")
            for name in now
            if name in told
        ]

    def of_this(self, what: str, weights: Any, data: Any) -> list[Check]:
        """Compare weights and images with those that numbers are about."""
        return [
            _same(f"{what}: weights", weights, self.weights, "numbers of another encoder"),
            _same(f"{what}: images", data, self.data, "numbers of other images"),
        ]

    def promised(self, told: str | None) -> bool:
        """Return whether bits are promised of numbers that were made so; note in what not."""
        if told is None:
            told = "an earlier version of Holdfast, which did not tell"
        if told != self.here:
            self.differences.append(f"made by {told}; here {self.here}")
        return told == self.here

    def all_promised(self, parts: Sequence[Chunk]) -> bool:
        """Return whether bits are promised of all chunks."""
        told = [self.promised(_maker(part)) for part in parts]
        return all(told)

    # Evaluations

    def evaluation(self, fingerprint: str, some: Sequence[Record], again: set[str]) -> list[Check]:
        """Look at the records of one evaluation."""
        store = self.opened.path / "evaluations" / fingerprint
        settings = read_json(store / "settings.json")
        name = f"{settings.get('suite')} {fingerprint}"
        checks = self.of_this(name, settings.get("weights"), settings.get("data"))
        if not all(c.holds for c in checks):
            return checks
        plan = self.plan(settings)
        mixed = replace(plan, share=Share(seconds=1.0))
        hashes = [_fingerprint(settings, plan), _fingerprint(settings, mixed)]
        checks.append(_same(f"{name}: settings", True, fingerprint in hashes, "settings that were changed"))
        if settings.get("poison") is not None or settings.get("surrogates"):
            return [*checks, *_unseen(some, "poisoned references, or attacks by transfer")]
        task = self.task(plan, settings)
        if isinstance(task, ClusterTask):
            plan = replace(plan, suite=measurable(plan.suite, task))
        if fingerprint == hashes[1]:
            plan = mixed
        checks += self.numbers(name, store, plan, task, some)
        whole = {entry.label for entry in plan.suite.entries}
        wanted = again if again <= whole | {"none"} else whole  # a union or a score is of all attacks
        for entry in plan.suite.entries:
            if entry.label in wanted:
                checks.append(self.attacked_again(name, store, plan, task, entry))
        return checks

    def plan(self, settings: Mapping[str, Any]) -> Plan:
        """Return the plan that settings tell."""
        types = allowed_types()
        suite = SUITES.get(settings["suite"])
        if suite is None:
            raise RunError(f"suite {settings['suite']!r} is not in this version")
        return Plan(
            suite=suite, search=from_plain(settings["search"], types), level="off",
            threat=from_plain(settings["threat"], types), seed=int(settings["seed"]),
            precision=settings["precision"],
        )  # fmt: skip

    def task(self, plan: Plan, settings: Mapping[str, Any]) -> RetrievalTask:
        """Return the queries of an evaluation."""
        x, y = self.split.test.x.to(self.place), self.split.test.y.to(self.place)
        task: RetrievalTask
        if plan.suite.clusters:
            asked = Clusters(count=settings.get("clusters"), inference=settings.get("inference", "kmeans"))
            train = self.split.train
            closed = self.split.protocol == "closed"
            references = (train.x.to(self.place), train.y.to(self.place)) if closed else (x, y)
            distance = self.opened.run.distance
            task = asked.task(self.encoder, x, y, *references, distance=distance, seed=plan.seed)
        else:
            task = retrieval_task(self.encoder, x, y, from_plain(settings["distance"], allowed_types()))
        return sample(task, settings.get("queries"), plan.seed)

    def numbers(
        self, name: str, store: Path, plan: Plan, task: RetrievalTask, some: Sequence[Record]
    ) -> list[Check]:
        """Compare the records of an evaluation with what comes out of its per-query values."""
        covered, promised = torch.arange(len(task)), True
        results: list[EntryResult] = []
        stored = stored_chunks(store)
        for entry in plan.suite.entries:
            parts = stored.get(stored_name(entry.label), ())
            if not parts:
                raise RunError(f"{store}: {entry.label} has no per-query values")
            rows = torch.cat([_rows(part, len(task), plan) for part in parts])
            loaded = [_load(part.path, self.place) for part in parts]
            promised &= self.all_promised(parts)
            most = next((r["n"] for r in some if r["attack"] == entry.label), len(rows))
            rows = rows[: most if plan.share.seconds is not None else len(rows)]
            covered = rows.sort().values
            outcome = taken(join([outcome for outcome, _ in loaded]), rows.argsort())
            left = None if len(rows) == len(task) else covered
            results.append(EntryResult(entry, outcome, sum(seconds for _, seconds in loaded), left))
        part = task if len(covered) == len(task) else task.rows(covered.to(task.z.device))
        about = {
            **record_fields(self.opened, self.split.protocol), "suite": plan.suite.name,
            "norm": plan.threat.norm, "precision": plan.precision,
        }  # fmt: skip
        worst = farthest(part, results) if isinstance(part, ClusterTask) else None
        made = _attacked(plan, results, about, part, worst)
        if any(r["attack"] == "none" for r in some):
            made += [
                record.make(
                    attack="none", metric=metric, value=e.value, n=e.n, ci=(e.low, e.high), **about
                )
                for metric, e in _benign(part, plan).items()
            ]  # fmt: skip
        return _compared(name, some, made, promised) + _verdicts(name, store, some)

    def attacked_again(self, name: str, store: Path, plan: Plan, task: RetrievalTask, entry: Any) -> Check:
        """Attack some queries again and compare them with what is stored of them."""
        parts = stored_chunks(store)[stored_name(entry.label)]
        rows = [_rows(part, len(task), plan) for part in parts]
        everything = torch.cat(rows)
        order = torch.randperm(len(everything), generator=stream(self.seed, "verify", entry.label))
        places = order[: self.queries].sort().values
        promised = self.all_promised(parts)
        stored = join([_load(part.path, self.place)[0] for part in parts])

        def strike(at: Tensor) -> Any:
            part = task.rows(everything[at].to(task.z.device))
            return attack_again(
                part, entry, plan.search, plan.threat, seed=plan.seed, precision=plan.precision
            )  # fmt: skip

        if stored.x.ndim > 2 or stored.x.numel():
            moved = task.rows(everything.to(task.z.device)).x
            refuse_outside(f"{entry.label} (stored)", stored.x, moved, plan.threat)
        differ, far = _differing(strike(places), taken(stored, places))
        what, count = f"{name}: {entry.label} attacked again", len(places)
        if not bool(differ.any()):
            detail = f"{count} queries, equal to the bit"
            return Check(what=what, holds=True, exact=True, detail=detail, queries=count)
        if not promised:
            share = float((far > CLOSE).double().mean())
            detail = (
                f"{count} queries, {share:.0%} differ by more than {CLOSE:g}, at most {float(far.max()):.2g}"
            )
            return Check(what=what, holds=share <= FEW, detail=detail, queries=count)
        # An attack in stages goes on with fewer queries than it began with, so its last bits may depend on
        # the others of the chunk: the whole chunk decides.
        start, wrong = 0, 0
        for part_rows in rows:
            at = torch.arange(start, start + len(part_rows))
            start += len(part_rows)
            if bool(differ[torch.isin(places, at)].any()):
                here, _ = _differing(strike(at), taken(stored, at))
                wrong += int(here.sum())
                count += len(at)
        detail = f"{count} queries, " + (
            f"{wrong} differ, by up to {float(far.max()):.2g}"
            if wrong
            else "equal to the bit by whole chunks"
        )
        return Check(what=what, holds=wrong == 0, exact=wrong == 0, detail=detail, queries=count)

    # Certificates

    def certification(self, fingerprint: str, some: Sequence[Record], again: bool) -> list[Check]:
        """Look at the records of one certification."""
        meta = read_certify(self.opened.path / "certify.json")
        row = next((r for r in meta.get("rows", []) if r.get("fingerprint") == fingerprint), None)
        if row is None:
            return _unseen(some, "certify.json tells of a later one")
        name = f"certified {fingerprint}"
        data = meta.get("data_fingerprint", {}).get("test")
        checks = self.of_this(name, meta.get("weights"), data)
        if not all(c.holds for c in checks):
            return checks
        way, k, file = row["by"], int(row["k"]), f"certificates/{Path(row['files'][0]).name}"
        certificate, seconds = read_certificate(self.opened.path / file, 2.0)
        if row["noise"] is not None:
            checks.append(
                _same(f"{name}: settings", True, self.hashed(row, meta), "settings that were changed")
            )
        one = _measured(
            row["method"], k, fingerprint, file, row["seeds"][0], certificate, seconds
        )  # fmt: skip
        radii = sorted({r["eps"] for r in some if r["metric"].startswith("certified@")})
        checks += _compared(name, some, _records(one, self.opened, self.split.protocol, radii), True)
        if again:
            checks.append(self.certified_again(name, way, k, row["noise"], file, certificate, meta))
        return checks

    def hashed(self, row: Mapping[str, Any], meta: Mapping[str, Any]) -> bool:
        """Return whether the settings of a certification have the hash that names it."""
        return any(
            row["fingerprint"]
            == settings_hash(
                by=row["by"], k=row["k"], noise=row["noise"], queries=row["n"], seed=seed,
                data=self.data, distance=to_plain(self.opened.run.distance), weights=meta["weights"],
                version=meta["version"],
            )
            for seed in (None, row["noise"]["seed"])
        )  # fmt: skip

    def certified_again(
        self, name: str, way: Any, k: int, noise: Any, file: str, certificate: Any, meta: Mapping[str, Any]
    ) -> Check:
        """Certify some queries again and compare radii and answers."""
        x, y = self.split.test.x.to(self.place), self.split.test.y.to(self.place)
        task = retrieval_task(self.encoder, x, y, self.opened.run.distance)
        queries = torch.from_numpy(read_arrays(self.opened.path / file)["query"])
        count = min(self.queries, len(queries), SAMPLED if noise is not None else len(queries))
        order = torch.randperm(len(queries), generator=stream(self.seed, "verify", file))
        at = order[:count].sort().values
        part = task.rows(queries[at].to(task.z.device))
        if noise is None:
            made = certify_task(task, part, k=k)
        else:
            n_select, n_certify = noise["samples"]
            smoothing = Smoothing(
                sigma=noise["sigma"], n_select=n_select, n_certify=n_certify, alpha=noise["alpha"],
                seed=noise["seed"], bound=noise["bound"],
            )  # fmt: skip
            made, _ = certify_queries(part, smoothing, way, k=k)
        stored = certificate.radius[at]
        far = (made.radius - stored).abs() / stored.abs().clamp_min(1)
        far = torch.where(made.radius == stored, 0.0, far).nan_to_num(nan=torch.inf, posinf=torch.inf)
        far = torch.where(made.correct == certificate.correct[at], far, torch.inf)
        told = meta.get("machine", {})
        told = f"holdfast {meta.get('version')}, torch {told.get('torch')}, threads {told.get('threads')}"
        version, torch_word, *_, threads = self.here.split(", ")
        here = f"{version}, {torch_word}, {threads}"
        exact = not bool(far.any())
        if told != here:
            self.differences.append(f"made by {told}; here {here}")
        holds = exact or (told != here and float((far > CLOSE).double().mean()) <= FEW)
        detail = f"{count} queries, " + (
            "equal to the bit" if exact else f"{int((far > 0).sum())} differ, by up to {float(far.max()):.2g}"
        )
        return Check(what=f"{name}: certified again", holds=holds, exact=exact, detail=detail, queries=count)


def _same(what: str, told: Any, now: Any, otherwise: str) -> Check:
    same = told == now
    return Check(what=what, holds=same, exact=same, detail="the same" if same else otherwise)


def _unseen(some: Iterable[Record], why: str) -> list[Check]:
    return [Check(what=_title(r), holds=None, detail=why) for r in some]


def _title(r: Record) -> str:
    return f"{r['suite']}, {r['attack']} {r['state']}: {r['metric']} at {r['norm']} {r['eps']:.6g}"


def _rows(part: Chunk, n: int, plan: Plan) -> Tensor:
    """Return the queries of a chunk, as :func:`~holdfast.evaluation.run_suite` chose them."""
    if part.rows is not None:
        return torch.arange(part.rows.start, part.rows.stop)
    match = re.fullmatch(r"mixed-(\d+)-(\d+)-(\d+)", part.name)
    assert match is not None
    seed, chunk, number = map(int, match.groups())
    mixed = torch.randperm(n, generator=stream(seed, "share"))
    return torch.split(mixed, chunk)[number].sort().values


def _maker(part: Chunk) -> str | None:
    """Return what a chunk says that it was made by."""
    found = read_arrays(part.path).get("made_by")
    return None if found is None else str(found)


def _differing(made: Any, stored: Any) -> tuple[Tensor, Tensor]:
    """Return which queries differ in any bit (n,), and by how much their measures do (n,), relative to 1."""
    n = len(stored.z)
    differ = (made.z != stored.z).any(1)
    if stored.x.ndim > 2 or stored.x.numel():
        differ |= (made.x != stored.x).flatten(1).any(1)
    far = torch.zeros(n, dtype=torch.float64, device=stored.z.device)
    for state in ("clean", "attacked"):
        values, now = getattr(stored, state), getattr(made, state)
        if values.keys() != now.keys():
            raise CorruptFile(state, None, f"need the measures {sorted(now)}, got {sorted(values)}")
        for metric, v in values.items():
            there, here = v.double(), now[metric].double()
            differ |= there != here
            far = torch.maximum(far, (there - here).abs() / there.abs().clamp_min(1))
    return differ.cpu(), far.nan_to_num(nan=torch.inf, posinf=torch.inf).cpu()


def _compared(name: str, some: Sequence[Record], made: Sequence[Record], promised: bool) -> list[Check]:
    """Compare records with those that come out now."""
    order = [field for field in Record.__annotations__ if field not in _FREE]

    def key(r: Any) -> tuple[Any, ...]:
        return tuple(r[field] for field in order)

    expected = {key(r): r for r in made}
    checks = []
    for r in some:
        own = expected.get(key(r))
        if own is None:
            if r["attack"] in ("REPAIRED", INDEXED) or r["metric"] == DEPLOYED:
                checks += _unseen([r], "not computed again: mended, or of a deployed index")
            else:
                checks.append(Check(what=_title(r), holds=False, detail=f"{name} gives no such number"))
            continue
        pairs = list(zip([r["value"], *(r["ci"] or ())], [own["value"], *(own["ci"] or ())], strict=False))
        exact = all(a == b for a, b in pairs) and len(r["ci"] or ()) == len(own["ci"] or ())
        far = max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)
        holds = exact or (not promised and far <= (CLOSE if r["attack"] != "none" else FEW / 10))
        detail = f"{r['value']:.6g}" + ("" if exact else f", but {own['value']:.6g} comes out")
        checks.append(Check(what=_title(r), holds=holds, exact=exact, detail=detail))
    return checks


def _verdicts(name: str, store: Path, some: Sequence[Record]) -> list[Check]:
    """Compare the verdict of records with the stored one."""
    path = store / VERDICT
    level = read_json(store / DONE).get("level") if (store / DONE).is_file() else "off"
    told = {r["verdict"] for r in some if r["attack"] != "REPAIRED"}
    if level == "off" or not path.is_file():
        return []
    return [_same(f"{name}: verdict", told, {read_json(path).get("verdict")}, "another verdict is stored")]


__all__ = ["CLOSE", "FEW", "Check", "Verification", "verify_run"]
