"""The training loop: batches in, losses from the defense, steps, logs, checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import to_plain
from ..data import DataSplit, LazyImages
from ..data.prefetch import AHEAD, Batch, prefetch_files
from ..defenses import Processes
from ..defenses.processes import memory_of
from ..encoders import Encoder
from ..errors import DataError, HoldfastError, InvalidArgument, RunError
from ..evaluation import embed
from ..functional.parts import Part, deal, mix, own
from ..functional.ranking import retrieval_scores
from ..functional.spread import spread
from ..rng import seeded, stream
from ..search import frozen
from ..types import Context, Progress, Step
from .checkpoint import Checkpoint
from .engine import Engine, pick_device
from .group import Alone
from .guard import Watch
from .log import RunLog
from .precision import for_training
from .run import Run
from .spread import check_parts

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 30.0
MONITORED = 500

Line = dict[str, Any]


@dataclass(frozen=True)
class TrainResult:
    """A trained encoder.

    Attributes
    ----------
    encoder
        In evaluation mode.
    steps
        Batches done.
    seconds
        Training time, earlier tries included.
    """

    encoder: Encoder
    steps: int
    seconds: float


def settings_hash(run: Run) -> str:
    """Return a hash of all settings that decide the outcome."""
    plain = to_plain(run)
    if run.accumulate == 1:
        del plain["accumulate"]  # younger than the others: runs from before keep their hash
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def preflight(run: Run, data: DataSplit) -> None:
    """Refuse what cannot be trained, before anything is written.

    Raises
    ------
    HoldfastError
        If the device is not there, the encoder does not fit the images or the defense, or the sampler cannot
        make batches.
    """
    pick_device(run.device)
    encoder = run.encoder.build(data.train.shape, run.seed)
    batches = run.sampler.epoch(data.train.y, stream(run.seed, "sampler", 0))
    check_parts(run, [len(batch) for batch in batches])
    with seeded(run.seed, "learnable"):
        run.defense.setup(encoder, torch.unique(data.train.y, return_inverse=True)[1])


def train(
    run: Run,
    data: DataSplit,
    *,
    folder: Path | None = None,
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_line: Callable[[Line], None] | None = None,
    group: Alone | None = None,
) -> TrainResult:
    """Train an encoder.

    Parameters
    ----------
    run
        All settings.
    data
        Only ``data.train`` is looked at.
    folder
        Where ``log.jsonl`` and the checkpoint go; ``None`` keeps nothing.
    resume
        Go on from the checkpoint in ``folder``, if there is one. Weights end up the same, bit for bit on the
        CPU with the same number of threads, as without the interruption.
    checkpoint_seconds
        Least time between checkpoints; one is always written at the end.
    on_line
        Called with every line of the log.
    group
        The processes that train together, whose number divides that of the defense's parts; one by default.
        Only process 0 writes, calls ``on_line`` and has to see the folder.

    Raises
    ------
    RunError
        If the loss stops being finite, or the checkpoint belongs to other settings; names the process where
        there are several.
    """
    job = _Job(run, data, folder, checkpoint_seconds, on_line, group or Alone())
    if resume:
        job.restore()
    else:
        job.log.cut(0)
        job.group.begin(job.engine.modules)
    try:
        job.go()
    finally:
        job.log.flush()
    return TrainResult(job.result.requires_grad_(True).eval(), job.step, job.seconds)


class _Job:
    """The changing state of one run."""

    def __init__(
        self,
        run: Run,
        data: DataSplit,
        folder: Path | None,
        checkpoint_seconds: float,
        on_line: Callable[[Line], None] | None,
        group: Alone,
    ) -> None:
        self.run, self.group = run, group
        self.settings = settings_hash(run) if folder else ""  # objects of other packages are no settings
        self.count = run.defense.count if isinstance(run.defense, Processes) else 1
        if self.count % group.world:
            need = f"a number of parts that {group.world} processes divide"
            raise InvalidArgument("defense.count", need, self.count)
        self.x, labels = data.train.x, data.train.y
        # Labels as 0 to n_classes - 1, whatever the data set calls them.
        self.y = torch.unique(labels, return_inverse=True)[1]
        self.encoder = run.encoder.build(data.train.shape, run.seed)
        with seeded(run.seed, "learnable"):
            self.learnable = run.defense.setup(self.encoder, self.y)
        device = group.device or pick_device(run.device)
        self.x, self.y = self.x.to(device), self.y.to(device)
        modules = nn.ModuleDict({"encoder": self.encoder, "learnable": self.learnable})
        self.average: AveragedModel | None = None
        if run.average is not None:
            update = get_ema_multi_avg_fn(run.average)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.encoder, multi_avg_fn=update, use_buffers=True)
            modules["average"] = self.average.requires_grad_(False)
        self.engine = Engine(modules, run.optimizer, device, group)
        self.seen = for_training(self.encoder, run.precision)
        self.watch = Watch(run.guard)
        self.path = folder / CHECKPOINT if folder else None
        self.log = RunLog(folder / "log.jsonl" if folder and group.rank == 0 else None)
        self.on_line, self.checkpoint_seconds = on_line, checkpoint_seconds
        self.step, self.seconds, self.signal = 0, 0.0, dict[str, float]()
        self.losses = list[float]()  # of this epoch
        self.window = 1  # batches in the optimiser step that was just made, 0 while gradients add up

    def restore(self) -> None:
        checkpoint, kept = self.group.first(self._stored)
        if checkpoint is None:
            self.group.begin(self.engine.modules)
            return
        checkpoint.restore(self.engine.modules, self.engine.optimizer)
        self.watch.healthy = checkpoint.healthy
        self.step, self.seconds, self.signal = checkpoint.step, checkpoint.seconds, checkpoint.signal
        epoch = self.step // self.run.sampler.batches_per_epoch(self.y)
        self.losses = [line["loss"] for line in kept if line["epoch"] == epoch]

    def _stored(self) -> tuple[Checkpoint | None, list[Line]]:
        """Read the checkpoint, if there is one, and the log of the steps up to it."""
        if self.path is None or not self.path.exists():
            self.log.cut(0)
            return None, []
        checkpoint = Checkpoint.load(self.path)
        if checkpoint.settings != self.settings:
            raise RunError(f"{self.path}: belongs to a run of other settings; choose another folder")
        return checkpoint, [line for line in self.log.cut(checkpoint.step) if line.get("kind") == "step"]

    def save(self) -> None:
        if self.path is None or self.group.rank:
            return
        self.log.flush()
        Checkpoint.take(
            self.engine.modules,
            self.engine.optimizer,
            step=self.step,
            signal=self.signal,
            settings=self.settings,
            seconds=self.seconds,
            healthy=self.watch.healthy,
        ).save(self.path)

    def go(self) -> None:
        per_epoch = self.run.sampler.batches_per_epoch(self.y)
        steps = per_epoch * self.run.epochs
        saved = time.monotonic()
        with self._loaded(self._plan(self.step)) as batches:
            for epoch in range(self.step // per_epoch, self.run.epochs):
                for _ in range(self.step - epoch * per_epoch, per_epoch):
                    start = time.perf_counter()
                    batch, parts = self._joined(batches)
                    logs = self._batch(batch, Progress(self.step, steps, epoch, self.run.epochs), parts)
                    self._share_memory(parts)
                    self.seconds += time.perf_counter() - start
                    self.losses.append(logs["loss"])
                    self._say({"kind": "step", "epoch": epoch, "steps": steps, **logs})
                    self.step += 1
                    self._guard(epoch)
                    due = time.monotonic() - saved >= self.checkpoint_seconds
                    if due and self.window and self.step % per_epoch:
                        self.save()
                        saved = time.monotonic()
                self._end_epoch(epoch, sum(self.losses) / max(len(self.losses), 1))
                self.losses = []
                if time.monotonic() - saved >= self.checkpoint_seconds or epoch + 1 == self.run.epochs:
                    self.save()
                    saved = time.monotonic()

    def _plan(self, start: int) -> Iterator[tuple[int, Tensor]]:
        """Yield number and rows of this process's parts of all batches from ``start`` on.

        Part p of step s has the number ``s * count + p``: that of the step where there is one part.
        """
        per_epoch = self.run.sampler.batches_per_epoch(self.y)
        for epoch in range(start // per_epoch, self.run.epochs):
            batches = self.run.sampler.epoch(self.y.cpu(), stream(self.run.seed, "sampler", epoch))
            for at, rows in enumerate(batches):
                step = epoch * per_epoch + at
                if step >= start:
                    rows = mix(rows, self.y.cpu(), self.count)
                    for part in own(deal(len(rows), self.count), self.group.rank, self.group.world):
                        yield step * self.count + part.number, rows[part.rows]

    def _loaded(self, plan: Iterator[tuple[int, Tensor]]) -> AbstractContextManager[Iterator[Batch]]:
        """Return the batches of a plan; files are decoded ahead of the training loop."""

        def draws(number: int) -> torch.Generator:
            step, part = divmod(number, self.count)
            name = (step,) if self.count == 1 else (step, part)  # parts draw alike in any number of processes
            return stream(self.run.seed, "augment", *name)

        def batch(step: int, rows: Tensor) -> Batch:
            x = self.x[rows.to(self.x.device)]
            return Batch(step, rows, x if self.run.augment is None else self.run.augment(x, draws(step)))

        if isinstance(self.x, LazyImages):
            pieces = self.count // self.group.world  # that make up a batch
            return prefetch_files(self.x, plan, draws, ahead=AHEAD * pieces)
        return nullcontext(batch(step, rows) for step, rows in plan)

    def _joined(self, batches: Iterator[Batch]) -> tuple[Batch, list[Part]]:
        """Return the rows of the next batch that this process computes, and how they form parts."""
        try:
            pieces = [next(batches) for _ in range(self.count // self.group.world)]
        except (
            HoldfastError
        ) as error:  # a broken file: the others hear of it where they agree on their first loss
            self.group.agree(None, error)
            raise
        parts, end = list[Part](), 0
        for piece in pieces:
            parts.append(Part(piece.step % self.count, slice(end, end + len(piece.rows))))
            end += len(piece.rows)
        if len(pieces) == 1:
            return pieces[0], parts
        rows, x = torch.cat([p.rows for p in pieces]), torch.cat([p.x for p in pieces])
        return Batch(pieces[0].step, rows, x), parts

    def _share_memory(self, parts: Sequence[Part]) -> None:
        """Let all processes know what the parts remember, for the checkpoint."""
        mine = tuple(memory_of(part.number) for part in parts)
        for memory in self.group.gather({k: v for k, v in self.signal.items() if k.startswith(mine)}):
            self.signal.update(memory)

    def _losses(self, context: Context, parts: Sequence[Part]) -> Iterator[Step]:
        if isinstance(self.run.defense, Processes):
            return self.run.defense.losses_of(context, parts)
        return self.run.defense.losses(context)

    def _next(self, losses: Iterator[Step], x: Tensor, progress: Progress) -> Step | None:
        """Return the next loss of a batch, if all processes have one that is finite."""
        step: Step | None = None
        failed: HoldfastError | None = None
        try:
            step = next(losses, None)
            if step is not None and not math.isfinite(float(step.loss.detach())):
                failed = RunError(self._not_finite(progress.step, progress.epoch))
        except InvalidArgument as error:
            failed = error
            if not self._finite(x):
                failed = RunError(self._not_finite(progress.step, progress.epoch))
                failed.__cause__ = error
        except DataError as error:
            failed = error
        return self.group.agree(step, failed)

    def _batch(self, batch: Batch, progress: Progress, parts: Sequence[Part]) -> Line:
        x, rows = batch.x, batch.rows.to(self.x.device)
        context = Context(
            encoder=self.seen,
            bare=self.seen,
            x=x,
            y=self.y[rows],
            index=rows,
            distance=self.run.distance,
            learnable=self.learnable,
            progress=progress,
            signal=self.signal,
            generator=stream(self.run.seed, "step", progress.step),
        )
        logs: dict[str, float] = {}
        place, of = self._window(progress)
        self.engine.modules.train()
        losses = self._losses(context, parts)
        while (step := self._next(losses, context.x, progress)) is not None:
            if logs and self.run.accumulate > 1:
                need = "1 for a defense that yields several losses for a batch"
                raise InvalidArgument("accumulate", need, self.run.accumulate)
            updated = self.engine.step(step.loss, place, of)
            self.window = of if updated else 0
            if updated and self.average is not None:
                self.average.update_parameters(self.encoder)
            logs = step.logs
        return logs

    def _window(self, progress: Progress) -> tuple[int, int]:
        """Return the place of a batch among those of its optimiser step, and their number."""
        per_epoch = progress.steps // progress.epochs
        at = progress.step - progress.epoch * per_epoch
        place = at % self.run.accumulate
        return place, min(self.run.accumulate, per_epoch - (at - place))

    @torch.no_grad()
    def _finite(self, x: Tensor) -> bool:
        """Whether weights and embeddings are finite; huge weights give embeddings that are not."""
        with frozen(self.encoder):
            checked = [self.encoder(x), *self.engine.modules.parameters()]
        return all(bool(values.isfinite().all()) for values in checked)

    def _not_finite(self, step: int, epoch: int) -> str:
        kept = (
            f"the last checkpoint is {self.path}" if self.path and self.path.exists() else "no checkpoint yet"
        )
        return (
            f"loss, weights or embeddings are NaN or infinite at step {step} (epoch {epoch}); {kept}. "
            "Try a smaller learning rate (--set optimizer.lr=...) or radius (--eps)."
        )

    def _end_epoch(self, epoch: int, loss: float) -> None:
        """Log Recall@1 and spread on the first training images: the test split is not looked at."""
        measures = self.group.first(lambda: self._measures(epoch))
        line = {"kind": "epoch", "epoch": epoch, "epochs": self.run.epochs, "loss": loss}
        self._say({**line, **measures}, step=self.step - 1)

    def _measures(self, epoch: int) -> dict[str, float]:
        x, y = self.x[:MONITORED], self.y[:MONITORED]
        if not self._finite(x):
            raise RunError(self._not_finite(self.step - 1, epoch))
        z = embed(self.result, x)
        rows = torch.arange(len(x), device=x.device)
        recall = retrieval_scores(z, y, z, y, self.run.distance, rows).recall(1)
        return {"recall@1": float(recall.float().mean()), **spread(z, y, self.run.distance)}

    @property
    def result(self) -> Encoder:
        """What the run hands over: the averaged encoder where weights are averaged."""
        return self.encoder if self.average is None else cast(Encoder, self.average.module)

    def _guard(self, epoch: int) -> None:
        """Let the guard look, and log what it does."""
        guard = self.run.guard  # looks at whole optimiser steps: gradients of other weights never mix
        if guard is None or self.step // guard.every == (self.step - self.window) // guard.every:
            return

        def look() -> dict[str, float]:
            x, y = self.x[:MONITORED], self.y[:MONITORED]
            return spread(embed(self.encoder, x), y, self.run.distance)

        measures = self.group.first(look)
        modules, optimizer = self.engine.modules, self.engine.optimizer
        acted = self.watch.look(measures, self.step, self.signal, modules, optimizer)
        self._say(
            {"kind": "guard", "epoch": epoch, "acted": acted, "ease": self.signal["ease"], **measures},
            step=self.step - 1,
        )

    def _say(self, line: Line, step: int | None = None) -> None:
        line = {**line, "step": self.step if step is None else step, "seconds": round(self.seconds, 4)}
        self.log.write(line)
        if self.on_line is not None and self.group.rank == 0:
            self.on_line(line)
