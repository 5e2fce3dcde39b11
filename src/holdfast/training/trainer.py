"""The training loop: batches in, losses from the defense, steps, logs, checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import to_plain
from ..data import DataSplit, LazyImages
from ..encoders import Encoder
from ..errors import InvalidArgument, RunError
from ..evaluation import embed
from ..functional.ranking import retrieval_scores
from ..functional.spread import spread
from ..rng import seeded, stream
from ..search import frozen
from ..types import Context, Progress
from .checkpoint import Checkpoint
from .engine import Engine, pick_device
from .guard import Watch
from .log import RunLog
from .run import Run

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
    return hashlib.sha256(json.dumps(to_plain(run), sort_keys=True).encode()).hexdigest()


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
    run.sampler.epoch(data.train.y, stream(run.seed, "sampler", 0))
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

    Raises
    ------
    RunError
        If the loss stops being finite, or the checkpoint belongs to other settings.
    """
    job = _Job(run, data, folder, checkpoint_seconds, on_line)
    if resume:
        job.restore()
    else:
        job.log.cut(0)
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
    ) -> None:
        self.run, self.settings = run, settings_hash(run)
        self.x, labels = data.train.x, data.train.y
        # Labels as 0 to n_classes - 1, whatever the data set calls them.
        self.y = torch.unique(labels, return_inverse=True)[1]
        self.encoder = run.encoder.build(data.train.shape, run.seed)
        with seeded(run.seed, "learnable"):
            self.learnable = run.defense.setup(self.encoder, self.y)
        device = pick_device(run.device)
        self.x, self.y = self.x.to(device), self.y.to(device)
        modules = nn.ModuleDict({"encoder": self.encoder, "learnable": self.learnable})
        self.average: AveragedModel | None = None
        if run.average is not None:
            update = get_ema_multi_avg_fn(run.average)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.encoder, multi_avg_fn=update, use_buffers=True)
            modules["average"] = self.average.requires_grad_(False)
        self.engine = Engine(modules, run.optimizer, device, run.precision)
        self.watch = Watch(run.guard)
        self.path = folder / CHECKPOINT if folder else None
        self.log = RunLog(folder / "log.jsonl" if folder else None)
        self.on_line, self.checkpoint_seconds = on_line, checkpoint_seconds
        self.step, self.seconds, self.signal = 0, 0.0, dict[str, float]()
        self.losses = list[float]()  # of this epoch

    def restore(self) -> None:
        if self.path is None or not self.path.exists():
            self.log.cut(0)
            return
        checkpoint = Checkpoint.load(self.path)
        if checkpoint.settings != self.settings:
            raise RunError(f"{self.path}: belongs to a run of other settings; choose another folder")
        checkpoint.restore(self.engine.modules, self.engine.optimizer)
        self.watch.healthy = checkpoint.healthy
        self.step, self.seconds, self.signal = checkpoint.step, checkpoint.seconds, checkpoint.signal
        kept = [line for line in self.log.cut(self.step) if line.get("kind") == "step"]
        epoch = self.step // self.run.sampler.batches_per_epoch(self.y)
        self.losses = [line["loss"] for line in kept if line["epoch"] == epoch]

    def save(self) -> None:
        if self.path is None:
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
        for epoch in range(self.step // per_epoch, self.run.epochs):
            batches = self.run.sampler.epoch(self.y.cpu(), stream(self.run.seed, "sampler", epoch))
            for rows in batches[self.step - epoch * per_epoch :]:
                start = time.perf_counter()
                logs = self._batch(rows, Progress(self.step, steps, epoch, self.run.epochs))
                self.seconds += time.perf_counter() - start
                self.losses.append(logs["loss"])
                self._say({"kind": "step", "epoch": epoch, "steps": steps, **logs})
                self.step += 1
                self._guard(epoch)
                if self.step % per_epoch and time.monotonic() - saved >= self.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
            self._end_epoch(epoch, sum(self.losses) / max(len(self.losses), 1))
            self.losses = []
            if time.monotonic() - saved >= self.checkpoint_seconds or epoch + 1 == self.run.epochs:
                self.save()
                saved = time.monotonic()

    def _batch(self, rows: Tensor, progress: Progress) -> Line:
        rows = rows.to(self.x.device)
        draws = stream(self.run.seed, "augment", progress.step)
        x = self.x.augmented(rows, draws) if isinstance(self.x, LazyImages) else self.x[rows]
        if self.run.augment is not None and not isinstance(self.x, LazyImages):
            x = self.run.augment(x, draws)
        context = Context(
            encoder=self.encoder,
            bare=self.encoder,
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
        self.engine.modules.train()
        losses = self.run.defense.losses(context)
        while True:
            try:
                with self.engine.autocast():
                    step = next(losses, None)
            except InvalidArgument as error:
                if self._finite(context.x):
                    raise
                raise RunError(self._not_finite(progress.step, progress.epoch)) from error
            if step is None:
                return logs
            if not math.isfinite(float(step.loss.detach())):
                raise RunError(self._not_finite(progress.step, progress.epoch))
            self.engine.step(step.loss)
            if self.average is not None:
                self.average.update_parameters(self.encoder)
            logs = step.logs

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
        x, y = self.x[:MONITORED], self.y[:MONITORED]
        if not self._finite(x):
            raise RunError(self._not_finite(self.step - 1, epoch))
        z = embed(self.result, x)
        rows = torch.arange(len(x), device=x.device)
        recall = retrieval_scores(z, y, z, y, self.run.distance, rows).recall(1)
        line = {"kind": "epoch", "epoch": epoch, "epochs": self.run.epochs, "loss": loss}
        measures = {"recall@1": float(recall.float().mean()), **spread(z, y, self.run.distance)}
        self._say({**line, **measures}, step=self.step - 1)

    @property
    def result(self) -> Encoder:
        """What the run hands over: the averaged encoder where weights are averaged."""
        return self.encoder if self.average is None else cast(Encoder, self.average.module)

    def _guard(self, epoch: int) -> None:
        """Let the guard look, and log what it does."""
        if self.run.guard is None or self.step % self.run.guard.every:
            return
        x, y = self.x[:MONITORED], self.y[:MONITORED]
        measures = spread(embed(self.encoder, x), y, self.run.distance)
        modules, optimizer = self.engine.modules, self.engine.optimizer
        acted = self.watch.look(measures, self.step, self.signal, modules, optimizer)
        self._say(
            {"kind": "guard", "epoch": epoch, "acted": acted, "ease": self.signal["ease"], **measures},
            step=self.step - 1,
        )

    def _say(self, line: Line, step: int | None = None) -> None:
        line = {**line, "step": self.step if step is None else step, "seconds": round(self.seconds, 4)}
        self.log.write(line)
        if self.on_line is not None:
            self.on_line(line)
