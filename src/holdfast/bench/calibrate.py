"""Measure the constants of the cost model: a few real batches, attack chunks and embeddings of a run."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data import DataSplit, ImageSet
from ..encoders import Encoder, EncoderSpec
from ..errors import HoldfastError, InvalidArgument
from ..evaluation import SUITES, embed, retrieval_task, run_suite
from ..evaluation.retrieval import CUTS, evaluate_retrieval
from ..evaluation.suite import Suite
from ..rng import stream
from ..search import Precision, frozen
from ..training import Run, pick_device, train
from ..types import RetrievalTask, Search, Threat
from .cost import Costs
from .harness import interleaved, ratio
from .memory import forget, peak, resident

SECONDS = 20.0
SAMPLE, CHUNK, CHECKED = 512, 128, 200
CHECKS = 1.5
"""Checks of level quick cost about as much as so many attacks on 200 queries: 0.9 to 4 were measured."""
CHECKS_FIXED = 1.0
TINY = 1e-3
SURE = 2.0
"""Standard errors that a trend has to be away from none before it is drawn on."""
WARM, LEAST = 2, 3
"""Batches that warm up, and the fewest that are measured."""


class _Enough(HoldfastError):
    """Ends a training run that was only begun to be timed."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The spec of an encoder that remembers, beside its fields, what it built last."""

    part: EncoderSpec

    @property
    def name(self) -> str:
        """That of the spec."""
        return self.part.name

    @property
    def last(self) -> Encoder:
        """The encoder that was built last."""
        found: Encoder = self.__dict__["built"]
        return found

    def build(self, shape: tuple[int, int, int], seed: int) -> Encoder:
        """Build, and remember."""
        encoder = self.part.build(shape, seed)
        calls: list[int] = []
        gaps: list[float] = []
        clock: Callable[[], float] = self.__dict__.get("clock", time.perf_counter)
        before = [0, 0.0]

        def note(_: Any, given: tuple[Any, ...]) -> None:
            if given and given[0].requires_grad:
                count, now = len(given[0]), clock()
                if calls and count <= before[0]:
                    gaps.append(now - before[1])
                before[:] = count, now
                calls.append(count)

        encoder.register_forward_pre_hook(note)
        object.__setattr__(self, "built", encoder)
        object.__setattr__(self, "calls", calls)
        object.__setattr__(self, "gaps", gaps)
        return encoder

    def taken(self) -> list[int]:
        """Return the sizes of the input-gradient passes since the last call, and forget them."""
        calls: list[int] = self.__dict__.get("calls", [])
        found = calls[:]
        calls.clear()
        return found


def absent(calls: Sequence[int], steps: int) -> int:
    """Return how many input gradients of a batch were saved by rows that left its searches.

    Parameters
    ----------
    calls
        Images of every input-gradient pass of the batch, in order; a search never grows.
    steps
        Of each search.

    Examples
    --------
    >>> absent([10, 10, 4], 5), absent([10, 10, 10], 3), absent([6, 2, 6, 6], 2)
    (26, 0, 4)
    """
    saved, first, length, passed = 0, 0, 0, 0
    before = 0
    for count in [*calls, math.inf]:
        if count > before:
            saved += first * max(steps, length) - passed
            if count == math.inf:
                break
            first, length, passed = int(count), 0, 0
        length, passed, before = length + 1, passed + int(count), int(count)
    return saved


@dataclass(frozen=True)
class Pace:
    """What a training that was only begun took.

    Attributes
    ----------
    setup
        Seconds before the first batch, as far as they are more than later batches take.
    batch
        Mean seconds of a batch, without those that warm up.
    epoch
        Seconds at the end of an epoch; None: not seen.
    batches
        Seconds of every batch.
    passed, saved
        Input gradients of every batch: those that were computed, and those that were saved by rows that left
        a search.
    """

    setup: float
    batch: float
    epoch: float | None
    batches: tuple[float, ...] = ()
    passed: tuple[int, ...] = ()
    saved: tuple[int, ...] = ()
    step: float = 0.0
    """Mean seconds from one step of a search to the next."""

    @property
    def whole(self) -> float:
        """Input gradients of a batch whose searches nobody leaves, on average."""
        return (sum(self.passed) + sum(self.saved)) / max(len(self.passed), 1)

    @property
    def shares(self) -> list[float]:
        """Share of its input gradients that every batch computed."""
        return [p / max(p + s, 1) for p, s in zip(self.passed, self.saved, strict=True)]

    def early(self, count: int) -> float:
        """Return mean seconds of the first batches, so many with those that warm up."""
        some = self.batches[min(WARM, count - 1) : count]
        return sum(some) / len(some)


def mean_share(shares: Sequence[float], count: int) -> float:
    """Return the mean share of rows that move over a training; see :func:`drawn_on`.

    Examples
    --------
    >>> round(mean_share([0.2, 0.2, 0.2], 10), 6), mean_share([0.0, 0.5, 1.0], 2)
    (0.2, 0.25)
    """
    return sum(drawn_on(shares, count)) / count


def drawn_on(shares: Sequence[float], count: int) -> list[float]:
    """Return the share of rows that move in every batch of a training, from that of its first batches.

    Parameters
    ----------
    shares
        Of the first batches, each in [0, 1].
    count
        Batches of the training.

    Notes
    -----
    The log-odds of later shares are taken to lie on ``a + b log(number of the batch)``, fitted to the first
    ones by least squares, each with its number as weight; where ``b`` is within two standard errors of 0, all
    are taken to have the mean. From an eighth of a training of HM recipes on digits this came within
    15 % of the mean share; from fewer batches it stays below it, to a half.
    """
    seen = list(shares[:count])
    n = len(seen)
    odds = [math.log(max(s, TINY) / max(1 - s, TINY)) for s in seen]
    x = [math.log(i + 1) for i in range(count)]
    weight = [(i + 1) / (n * (n + 1) / 2) for i in range(n)]
    middle = sum(w * v for w, v in zip(weight, x, strict=False))
    mean = sum(w * s for w, s in zip(weight, odds, strict=True))
    apart = sum(w * (v - middle) ** 2 for w, v in zip(weight, x, strict=False))
    slope = 0.0
    if n > 3:
        slope = sum(w * (v - middle) * s for w, v, s in zip(weight, x, odds, strict=False)) / apart
        rest = sum(
            w * (s - mean - slope * (v - middle)) ** 2 for w, v, s in zip(weight, x, odds, strict=False)
        )
        if abs(slope) <= SURE * math.sqrt(rest / (n - 2) / apart):
            slope = 0.0
    later = [1 / (1 + math.exp(-(mean + slope * (v - middle)))) for v in x[n:]]
    return seen + later


class Stopwatch:
    """Times the lines of a training log, and raises when there are enough of them.

    ``passes`` returns how many input gradients a batch computed, and how many it saved.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.perf_counter,
        passes: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.seconds, self.clock, self.passes = seconds, clock, passes
        self.counts = list[tuple[int, int]]()
        self.begun = self.last = clock()
        self.batches, self.ends = list[float](), list[float]()

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take the time since the line before; what a guard does counts to the batch before it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = self.clock()
        spent, self.last = now - self.last, now
        if line["kind"] == "epoch":
            self.ends.append(spent)
        elif line["kind"] == "step":
            self.batches.append(spent)
            self.counts.append(self.passes())
        elif self.batches:
            self.batches[-1] += spent
        enough = len(self.batches) >= WARM + LEAST and now - self.begun >= self.seconds
        slow = len(self.batches) > 1 and now - self.begun >= 3 * self.seconds
        if enough or slow:
            raise _Enough

    def pace(self) -> Pace:
        """Return the means, warm-up batches left out where there are others."""
        warm = min(WARM, len(self.batches) - 1)
        measured = self.batches[warm:]
        batch = sum(measured) / len(measured)
        return Pace(
            setup=max(0.0, sum(self.batches[:warm]) - warm * batch),
            batch=batch,
            epoch=sum(self.ends) / len(self.ends) if self.ends else None,
            batches=tuple(self.batches),
            passed=tuple(passed for passed, _ in self.counts),
            saved=tuple(saved for _, saved in self.counts),
        )


def pace(
    run: Run,
    split: DataSplit,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    steps: int = 0,
) -> tuple[Pace, Encoder]:
    """Train for some seconds, with at least a few batches, and return the pace and the encoder so far."""
    kept = Kept(part=run.encoder)
    object.__setattr__(kept, "clock", clock)  # no field: those are settings

    def passes() -> tuple[int, int]:
        calls = kept.taken()
        return sum(calls), absent(calls, steps)

    watch = Stopwatch(seconds, clock, passes)
    with contextlib.suppress(_Enough):
        train(replace(run, encoder=kept), split, on_line=watch)
    gaps: list[float] = kept.__dict__["gaps"]
    return replace(watch.pace(), step=sum(gaps) / max(len(gaps), 1)), kept.last.eval()


def gradient_seconds(encoder: Encoder, x: Tensor, clock: Callable[[], float], seconds: float = 1.0) -> float:
    """Return seconds for each image of an input-gradient pass: the middle of three, after a small one.

    Takes about so many ``seconds``: of images (n, *s) that are slow only some are passed.
    """

    def work(part: Tensor) -> None:
        part = part.detach().requires_grad_(True)
        with frozen(encoder):
            torch.autograd.grad(encoder(part).square().sum(), part)

    few = x[:4]
    work(few)
    one = max(_timed(lambda: work(few), clock) / len(few), 1e-9)
    some = x[: max(len(few), int(min(len(x), seconds / 3 / one)))]
    return sorted(_timed(lambda: work(some), clock) for _ in range(3))[1] / len(some)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is planned.

    Attributes
    ----------
    run, split
        Settings, and images: those of the run, or stand-ins of their shape.
    train_images, test_images
        How many there really are; stand-ins may be fewer.
    image_bytes
        Memory of the images that are not there now.
    suite, search, queries
        Of the evaluation. With ``queries`` beyond the test images all are attacked.
    checks
        Whether the evaluation is checked (level quick).
    precision
        Of the attacks.
    steps
        Of the search of the run, 0 without one.
    half
        The run in bf16; None where it is that already.
    clock
        Seconds; ``time.process_time`` on one thread measures what a quiet machine would need.
    """

    run: Run
    split: DataSplit
    train_images: int
    test_images: int
    suite: Suite
    search: Search
    queries: int
    checks: bool = True
    precision: Precision = "fp32"
    image_bytes: int = 0
    steps: int = 0
    half: Run | None = None
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if self.suite.clusters:
            names = ", ".join(name for name, suite in SUITES.items() if not suite.clusters)
            raise InvalidArgument("suite", f"one without clusters ({names})", self.suite.name)


def calibrate(subject: Subject, seconds: float = SECONDS) -> Costs:
    """Run real batches, attacks and embeddings for about so many seconds.

    Parameters
    ----------
    subject
        What is planned.
    seconds
        In all, > 0; slow models take longer, for a few batches are run whatever they cost.

    Notes
    -----
    Rows whose gain is flat leave a search, in some recipes most rows at first and fewer and fewer as training
    goes on: the share that stays is drawn on by :func:`mean_share`, and ``batch_most`` is a batch that no row
    leaves.
    Attacks are timed on the encoder that the few batches have trained. Searches on it seldom end early, as
    they may on a trained one, so times err to the longer side. One that has collapsed errs to the shorter.
    Attacks with many steps are timed with few and drawn on in a straight line.
    """
    if not 0 < seconds < math.inf:
        raise InvalidArgument("seconds", "a time > 0", seconds)
    run, split = subject.run, subject.split
    forget()
    base = resident()
    device = pick_device(run.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    tempo, encoder = pace(run, split, 0.4 * seconds, subject.clock, subject.steps)
    train_bytes = _peak(device)
    labels = split.train.y
    if len(labels) < subject.train_images:
        classes = torch.unique(labels)
        labels = classes[torch.arange(subject.train_images) % len(classes)]
    batches = run.sampler.batches_per_epoch(labels)
    batch = most = tempo.batch
    slope, half = 0.0, None
    shorter: tuple[float, ...] = ()
    if subject.steps and tempo.whole:
        rows = min(SAMPLE, len(split.train), max(4, round(tempo.whole / subject.steps)))
        x = split.train.x[torch.arange(rows)].to(device)
        one = gradient_seconds(encoder.to(device), x, subject.clock) * tempo.whole  # all gradients of a batch
        shares = tempo.shares
        measured = shares[min(WARM, len(shares) - 1) :]
        every = drawn_on(shares, run.epochs * batches)
        seen, later = sum(measured) / len(measured), sum(every) / len(every)
        batch, most = max(0.0, batch + (later - seen) * one), batch + (1 - seen) * one
        slope = min(tempo.step * later / max(seen, 1e-9), batch / subject.steps)
        so_far = itertools.accumulate(every)
        means = [s / i for i, s in enumerate(so_far, 1) if i % batches == 0]  # of 1, 2, ... epochs
        shorter = tuple(max(0.0, batch + (mean - later) * one) / batch for mean in means)
    if subject.half is not None:
        other, _ = pace(subject.half, split, 0.1 * seconds, subject.clock)
        n = min(len(other.batches), len(tempo.batches))
        half = other.early(n) / tempo.early(n)
    forget()
    found = _evaluation(subject, encoder.to(device), 0.4 * seconds)
    return Costs(
        setup=tempo.setup,
        batch=batch,
        batch_most=most,
        epoch=found.embed * min(500, subject.train_images) if tempo.epoch is None else tempo.epoch,
        search_step=slope,
        batches=batches,
        shorter=shorter,
        half=half,
        half_attack=found.half,
        load=found.embed * subject.test_images,
        benign=found.benign,
        attacks=found.attacks,
        verdict=found.verdict,
        train_bytes=train_bytes + subject.image_bytes,
        evaluate_bytes=_peak(device) + subject.image_bytes,
        base_bytes=(0 if device.type == "cuda" else base) + subject.image_bytes,
    )


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak()


@dataclass(frozen=True, kw_only=True)
class _Evaluated:
    embed: float  # seconds for each image
    benign: float  # for each query
    attacks: dict[str, dict[str, float]]
    verdict: float
    half: float | None


def _evaluation(subject: Subject, encoder: Encoder, seconds: float) -> _Evaluated:
    """Time embedding, the metrics and every attack of the suite."""
    device = next(encoder.parameters()).device
    task, per_image = stand_in(encoder, subject, device)
    queries = min(subject.queries, subject.test_images)
    cuts = [k for k in CUTS if k < len(task.gallery.z)]
    benign = _timed(lambda: evaluate_retrieval(task, cuts), subject.clock) / len(task)
    part = task.rows(slice(0, min(CHUNK, len(task), queries)))
    threat: Any = subject.run.threat
    entries = subject.suite.entries
    each, half = dict[str, float](), None
    if entries:
        each = attack_seconds(part, subject, threat, seconds)
        if subject.precision == "fp32":
            half = _half(part, subject, threat)
    attacks = {subject.suite.name: each}
    for name, other in SUITES.items():
        labels = [entry.label for entry in other.entries]
        known = {e.label: e for e in entries}
        if labels and name not in attacks and all(known.get(e.label) == e for e in other.entries):
            attacks[name] = {label: each[label] for label in labels}
    checked = min(CHECKED, queries)
    mean = sum(each.values()) / len(each) if each else 0.0
    verdict = CHECKS_FIXED + CHECKS * checked * mean if subject.checks and each else 0.0
    return _Evaluated(embed=per_image, benign=benign, attacks=attacks, verdict=verdict, half=half)


def stand_in(encoder: Encoder, subject: Subject, device: torch.device) -> tuple[RetrievalTask, float]:
    """Return a task on some test images against a gallery of the real size, and seconds to embed an image.

    Rows of the gallery are those of the sample again and again: what an attack costs depends on their number.
    """
    test, distance = subject.split.test, subject.run.distance
    sample = max(CHUNK, min(SAMPLE, 2**22 // math.prod(test.shape)))
    rows = torch.linspace(0, len(test) - 1, min(sample, len(test))).long()
    x, y = test.x[rows].to(device), test.y[rows].to(device)
    embed(encoder, x[: min(64, len(x))])
    start = subject.clock()
    z = embed(encoder, x)
    spent = subject.clock() - start
    places: Tensor = torch.arange(max(subject.test_images, len(rows)), device=device) % len(rows)
    task = retrieval_task(
        encoder, x, y, distance, gallery=z[places], gallery_y=y[places], self_index=torch.arange(len(x))
    )
    return task, spent / len(x)


def attack_seconds(part: RetrievalTask, subject: Subject, threat: Threat, seconds: float) -> dict[str, float]:
    """Return seconds for each query of every attack of a suite, at all its steps.

    All steps are run where that fits into ``seconds``; otherwise two short searches give a straight line, on
    fewer queries if need be.
    """
    search: Any = subject.search
    steps = getattr(search, "steps", None)
    entries = subject.suite.entries

    def took(entry: Any, rows: int, count: int | None) -> float:
        used = search if count is None else replace(search, steps=count)
        suite = Suite(name="plan", entries=(entry,))
        some = part.rows(slice(0, rows))

        def work() -> Any:
            return run_suite(some, suite, used, threat, chunk=rows, precision=subject.precision)

        return _timed(work, subject.clock) / rows

    rows = len(part)
    if not isinstance(steps, int) or steps < 8:
        return {entry.label: took(entry, rows, None) for entry in entries}
    took(entries[0], rows, 1)
    one = took(entries[0], rows, 4) / 4  # for each query and step, the fixed part in it
    if one * rows * steps * len(entries) <= seconds:
        return {entry.label: took(entry, rows, None) for entry in entries}
    few, more = 2, 6
    rows = max(1, min(rows, int(seconds / (one * (few + more) * len(entries)))))
    found = {}
    for entry in entries:
        short, long = took(entry, rows, few), took(entry, rows, more)
        found[entry.label] = max(long, long + (steps - more) * (long - short) / (more - few))
    return found


def _half(part: RetrievalTask, subject: Subject, threat: Threat) -> float:
    """Return the time of the first attack in bf16 over that in float32, a few steps of each in turn."""
    search: Any = subject.search
    if isinstance(getattr(search, "steps", None), int):
        search = replace(search, steps=min(search.steps, 4))
    suite, some = Suite(name="plan", entries=subject.suite.entries[:1]), part.rows(slice(0, 32))

    def work(precision: Precision) -> Callable[[], Any]:
        return lambda: run_suite(some, suite, search, threat, precision=precision)

    times = interleaved({"half": work("bf16"), "whole": work("fp32")}, 2, clock=subject.clock)
    return ratio(times["half"], times["whole"]).median


def _timed(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


IN_MEMORY = 64
"""Side in pixels from which images are taken to be files that are decoded when they are needed."""


def made_up(
    shape: tuple[int, int, int], classes: int, train_images: int, test_images: int, most: int = 4096
) -> tuple[DataSplit, int]:
    """Return random images of a shape in place of a data set, and the bytes that the real ones take besides.

    Large images are decoded when they are needed: then the bytes are negative, for the stand-ins are held.

    Parameters
    ----------
    shape
        Channels, height and width.
    classes
        >= 2, at most half of the images of each side.
    train_images, test_images
        Of the real set; fewer are made where there are many.
    most
        Stand-ins at most for each side, fewer for large images (256 MiB); if need be of fewer classes, two of
        each at least.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise InvalidArgument("shape", "channels, height and width such as 1x28x28", shape)
    for name, count in (("images", train_images), ("test_images", test_images)):
        if count < 2 * classes:
            raise InvalidArgument(name, f"at least {2 * classes}, two of each class", count)
    if classes < 2:
        raise InvalidArgument("classes", "an integer >= 2", classes)
    pixels = shape[0] * shape[1] * shape[2]
    most = max(4, min(most, 2**26 // pixels))

    def side(count: int, name: str) -> ImageSet:
        n = min(count, most)
        x = torch.rand(n, *shape, generator=stream(0, "plan", name))
        return ImageSet(x, torch.arange(n) % min(classes, n // 2), f"made-up {name}")

    split = DataSplit(side(train_images, "train"), side(test_images, "test"), "made-up", "closed")
    held = train_images + test_images if shape[1] < IN_MEMORY else 0
    return split, (held - len(split.train) - len(split.test)) * pixels * 4
