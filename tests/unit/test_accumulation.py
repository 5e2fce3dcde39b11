"""Several batches for one optimiser step: what the step is, where it falls, and that nothing is lost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.adversaries import Gradual, HardnessManipulation
from holdfast.config import from_plain, to_plain
from holdfast.data import Digits, PairSampler
from holdfast.defenses import AdversarialTraining, FreeTraining, Processes
from holdfast.encoders import SmallCNN
from holdfast.errors import InvalidArgument, RunError
from holdfast.files import read_lines
from holdfast.losses import MultiSimilarity, Triplet
from holdfast.miners import Softhard
from holdfast.rng import stream
from holdfast.runs import allowed_types
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.training import Adam, CollapseGuard, Engine, Run, train
from holdfast.training.checkpoint import Checkpoint
from holdfast.training.trainer import settings_hash
from holdfast.types import Context, Step

THREAT = LinfThreat(eps=0.1)
PLAIN = AdversarialTraining(loss=MultiSimilarity())
HM = AdversarialTraining(
    loss=Triplet(), miner=Softhard(), adversary=HardnessManipulation(destination=Gradual()),
    search=PGD(steps=1, alpha=0.05), threat=THREAT,
)  # fmt: skip


def small(**changes: Any) -> Run:
    """Two epochs of five batches of 20 digits."""
    run = Run(
        name="small", data=Digits(train_images=50), defense=PLAIN, threat=THREAT, sampler=PairSampler(10),
        encoder=SmallCNN(width=4, embedding_dim=8), epochs=2, device="cpu",
    )  # fmt: skip
    return replace(run, **changes)


def weights(run: Run, **more: Any) -> dict[str, Tensor]:
    return train(run, run.data.load(), **more).encoder.state_dict()


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


# --- What a step is ----------------------------------------------------------------------------------------


def test_the_engine_steps_on_the_mean_gradient() -> None:
    module = nn.ModuleDict({"encoder": nn.Linear(1, 1, bias=False)})
    nn.init.constant_(module["encoder"].weight, 1.0)  # type: ignore[arg-type]
    engine = Engine(module, Adam(lr=0.5, weight_decay=0.0), torch.device("cpu"))
    w = module["encoder"].weight
    told = [engine.step(c * w.sum(), place, 3) for place, c in enumerate((1.0, 2.0, 6.0))]
    assert told == [False, False, True]
    assert float(w.grad) == 3.0  # type: ignore[arg-type]
    assert float(w.detach()) == pytest.approx(0.5)  # Adam's first step is lr long
    assert engine.step(w.sum())
    assert float(w.grad) == 1.0  # type: ignore[arg-type]


def by_hand(run: Run, windows: list[list[int]]) -> dict[str, Tensor]:
    """Train without the trainer: one update for each window of batches, on the mean of their losses."""
    train_set = run.data.load().train
    encoder = run.encoder.build(train_set.shape, run.seed)
    optimizer = run.optimizer.build(nn.ModuleDict({"encoder": encoder}))
    for epoch in range(run.epochs):
        batches = run.sampler.epoch(train_set.y, stream(run.seed, "sampler", epoch))
        for window in windows:
            losses = [
                MultiSimilarity()(encoder(train_set.x[batches[i]]), train_set.y[batches[i]], run.distance)
                for i in window
            ]
            optimizer.zero_grad()
            torch.stack([loss.mean() for loss in losses]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return encoder.state_dict()


@pytest.mark.parametrize(
    ("k", "windows"),
    [
        (1, [[0], [1], [2], [3], [4]]),
        (2, [[0, 1], [2, 3], [4]]),  # windows end with the epoch
        (5, [[0, 1, 2, 3, 4]]),
        (9, [[0, 1, 2, 3, 4]]),
    ],
)
def test_windows_are_what_the_docstring_says(k: int, windows: list[list[int]]) -> None:
    run = small(accumulate=k)
    made = weights(run)
    assert gap(made, by_hand(run, windows)) < 1e-5
    assert gap(made, by_hand(run, [[0, 1, 2], [3, 4]])) > 1e-4


def test_logs_have_a_line_for_every_batch_and_the_average_moves_with_the_weights() -> None:
    lines: list[dict[str, Any]] = []
    run = small(accumulate=5, epochs=1, average=0.5)
    averaged = train(run, run.data.load(), on_line=lines.append).encoder.state_dict()
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(5))
    # One update only: the average begins as a copy of the first weights that it sees.
    assert gap(averaged, weights(small(accumulate=5, epochs=1))) == 0


# --- Stopped in the middle ---------------------------------------------------------------------------------


def stopped(run: Run, folder: Path, step: int) -> None:
    def stop(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, run.data.load(), folder=folder, checkpoint_seconds=0, on_line=stop)


GUARD = CollapseGuard(every=2, grace=0, max_cosine=0.2)
"""Sees collapse in nearly everything, so that it acts."""
FULL = small(accumulate=3, defense=HM, average=0.9, guard=GUARD)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return weights(FULL, folder=folder), timeless(folder)


def timeless(folder: Path) -> list[Any]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(folder / "log.jsonl")]


@pytest.mark.parametrize("step", range(10))
def test_a_stopped_run_ends_like_an_undisturbed_one(
    step: int, undisturbed: tuple[dict[str, Tensor], list[Any]], tmp_path: Path
) -> None:
    stopped(FULL, tmp_path, step)
    path = tmp_path / "checkpoint.safetensors"
    # Checkpoints fall between optimiser steps: after batches 3 and 5 of an epoch.
    at = max((edge for edge in (0, 3, 5, 8) if edge <= step), default=0)
    assert path.exists() == (at > 0)
    assert not at or Checkpoint.load(path).step == at
    assert gap(weights(FULL, folder=tmp_path, resume=True), undisturbed[0]) == 0
    assert timeless(tmp_path) == undisturbed[1]


def test_the_guard_looks_between_optimiser_steps(undisturbed: tuple[dict[str, Tensor], list[Any]]) -> None:
    looks = [line["step"] for line in undisturbed[1] if line["kind"] == "guard"]
    assert looks == [2, 4, 7, 9]  # a multiple of 2 lies in every window
    assert any(line["acted"] for line in undisturbed[1] if line["kind"] == "guard")


def test_without_accumulation_the_guard_looks_as_ever() -> None:
    lines: list[dict[str, Any]] = []
    run = small(guard=replace(GUARD, every=3))
    train(run, run.data.load(), on_line=lines.append)
    assert [line["step"] for line in lines if line["kind"] == "guard"] == [2, 5, 8]


# --- Settings ----------------------------------------------------------------------------------------------


def test_runs_from_before_keep_their_hash_and_can_be_read() -> None:
    old = to_plain(small())
    assert old.pop("accumulate") == 1
    assert settings_hash(small()) == hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    assert from_plain(old, allowed_types()) == small()
    assert len({settings_hash(small(accumulate=k)) for k in (1, 2, 3)}) == 3


def test_a_checkpoint_of_another_window_is_refused(tmp_path: Path) -> None:
    stopped(small(accumulate=2), tmp_path, 5)
    with pytest.raises(RunError, match="other settings"):
        train(small(), small().data.load(), folder=tmp_path, resume=True)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_the_number_of_batches_is_an_integer(bad: Any) -> None:
    with pytest.raises(InvalidArgument, match="accumulate: need an integer >= 1"):
        small(accumulate=bad)


@dataclass(frozen=True, kw_only=True)
class Twice:
    """Two losses for each batch."""

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        return nn.ModuleDict()

    def losses(self, ctx: Context) -> Iterator[Step]:
        for _ in range(2):
            loss = ctx.encoder(ctx.x).square().mean()
            yield Step(loss, {"loss": float(loss.detach())})


def test_defenses_that_step_several_times_for_a_batch_are_refused() -> None:
    free = FreeTraining(loss=MultiSimilarity(), threat=THREAT, replays=2)
    for defense in (free, Processes(defense=free, count=1)):
        with pytest.raises(InvalidArgument, match=r"accumulate: need 1 for free training.* got 2"):
            small(defense=defense, accumulate=2)
    once = small(defense=replace(free, replays=1), accumulate=2, epochs=1)
    assert gap(weights(once), weights(replace(once, accumulate=1))) > 0
    twice = small(defense=Twice(), accumulate=2)
    with pytest.raises(InvalidArgument, match="accumulate: need 1 for a defense that yields several"):
        train(twice, twice.data.load())
    assert train(replace(twice, accumulate=1), twice.data.load()).steps == 10
