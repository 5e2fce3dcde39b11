"""How a run is spread over processes, and what is said when one dies: without starting any."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from holdfast.config import replace as changed
from holdfast.data.sampler import MPerClass
from holdfast.defenses import AdversarialTraining, FreeTraining, Processes
from holdfast.encoders import SmallCNN
from holdfast.errors import DataError, InvalidArgument
from holdfast.functional.parts import deal, mix, own
from holdfast.losses import Triplet
from holdfast.miners import Random
from holdfast.recipes import recipe
from holdfast.runs import allowed_types, check_run, train_run
from holdfast.threat import LinfThreat
from holdfast.training import preflight, spread_over
from holdfast.training.launch import Plan, _first_fault, how_to_go_on, plan_processes
from holdfast.types import Context

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("asked", "env", "plan"),
    [
        ((None, None), {}, Plan(1, 1, "alone")),
        ((1, 1), {}, Plan(1, 1, "alone")),
        ((2, None), {}, Plan(2, 1, "here")),
        ((None, None), TORCHRUN, Plan(4, 2, "torchrun")),
        ((4, 2), TORCHRUN, Plan(4, 2, "torchrun")),
        ((None, 2), SLURM, Plan(4, 2, "slurm")),
        ((None, None), {**SLURM, **TORCHRUN, "WORLD_SIZE": "4"}, Plan(4, 1, "torchrun")),
        ((2, None), {**SLURM, "SLURM_NTASKS": "1"}, Plan(2, 1, "here")),
        ((None, None), {**SLURM, "SLURM_JOB_NAME": "bash"}, Plan(1, 1, "alone")),
    ],
)
def test_flags_and_environment_give_the_plan(asked: Any, env: Mapping[str, str], plan: Plan) -> None:
    assert plan_processes(asked[0], asked[1], "cpu", env) == plan


@pytest.mark.parametrize(
    ("asked", "env", "match"),
    [
        ((0, None), {}, "devices: need an integer >= 1, got 0"),
        ((None, -1), {}, "nodes: need an integer >= 1"),
        ((2, 2), {}, "torchrun --nnodes 2 --nproc-per-node 2"),
        ((2, None), TORCHRUN, "devices: need 4, the number that torchrun started"),
        ((None, 4), SLURM, "nodes: need 2, the number that slurm started"),
        ((None, None), {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, "ntasks-per-node"),
        ((None, None), {**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "same number on every node"),
    ],
)
def test_numbers_that_cannot_be_are_refused(asked: Any, env: Mapping[str, str], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        plan_processes(asked[0], asked[1], "cpu", env)


def test_more_cuda_devices_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("auto", "cuda"):
        with pytest.raises(InvalidArgument, match="at most 1, the CUDA devices"):
            plan_processes(2, None, device, {})
    assert plan_processes(2, None, "cpu", {}).world == 2
    with pytest.raises(InvalidArgument, match="auto, cpu or cuda"):
        plan_processes(2, None, "cuda:0", {})


def test_a_run_is_spread_by_the_parts_of_its_batches() -> None:
    run = recipe("hm", "digits")
    two = spread_over(run, 2)
    assert two.defense == Processes(defense=run.defense, count=2)
    assert replace(two, defense=run.defense) == run
    assert spread_over(run, 1) is run
    four = replace(run, defense=Processes(defense=run.defense, count=4))
    assert [spread_over(four, world) for world in (1, 2, 4)] == [four] * 3
    assert spread_over(run, 2, four) == four  # gone on with by fewer
    assert spread_over(run, 1, four) == four
    for world in (3, 8):
        with pytest.raises(InvalidArgument, match=r"devices \* nodes: need one of \[1, 2, 4\]"):
            spread_over(run, world, four)


def test_batches_too_small_for_the_parts_are_refused_before_training(tmp_path: Path) -> None:
    run = recipe("plain", "digits")
    run = changed(run, "sampler.batch_pairs", 35, allowed_types())  # the last batch has few pairs
    data = run.data.load()
    rest = len(data.train) % 35
    assert 2 <= rest < 2 * 9
    preflight(spread_over(run, rest // 2), data)
    with pytest.raises(DataError, match=rf"each of 9 parts, got {rest} \(the last of an epoch\); choose"):
        preflight(spread_over(run, 9), data)
    assert check_run(run, tmp_path / "new", 2) == spread_over(run, 2)


def test_free_training_keeps_a_perturbation_for_each_place_and_cannot_be_dealt() -> None:
    free = FreeTraining(loss=Triplet(), miner=Random(), threat=LinfThreat(eps=0.1))
    encoder = SmallCNN().build((1, 8, 8), 0)
    Processes(defense=free, count=1).setup(encoder, torch.tensor([0, 1]))
    with pytest.raises(InvalidArgument, match="Perturbation"):
        Processes(defense=free, count=2).setup(encoder, torch.tensor([0, 1]))


def test_deal_gives_every_pair_once_and_whole() -> None:
    for pairs, count in ((4, 2), (9, 4), (15, 6), (112, 2)):
        parts = deal(2 * pairs, count)
        rows = [row for part in parts for row in range(2 * pairs)[part.rows]]
        assert rows == list(range(2 * pairs))
        assert all(part.rows.start % 2 == 0 for part in parts)
        sizes = [part.rows.stop - part.rows.start for part in parts]
        assert max(sizes) - min(sizes) <= 2
        for world in (w for w in range(1, count + 1) if count % w == 0):
            dealt = [part for rank in range(world) for part in own(parts, rank, world)]
            assert tuple(dealt) == parts
    with pytest.raises(DataError, match="two pairs for each of 3 parts, got 5"):
        deal(10, 3)


def test_mix_gives_every_part_two_classes() -> None:
    y = torch.arange(6).repeat_interleave(4)
    (batch, *_) = MPerClass(6, 4).epoch(y, torch.Generator().manual_seed(0))
    assert all(len(set(y[batch[part.rows]].tolist())) == 1 for part in deal(len(batch), 6))
    mixed = mix(batch, y, 6)
    assert all(len(set(y[mixed[part.rows]].tolist())) == 2 for part in deal(len(batch), 6))
    pairs = mixed.reshape(-1, 2)
    assert torch.equal(y[pairs[:, 0]], y[pairs[:, 1]])
    assert sorted(map(tuple, pairs.tolist())) == sorted(map(tuple, batch.reshape(-1, 2).tolist()))
    assert torch.equal(mix(mixed, y, 6), mixed)
    assert torch.equal(mix(batch, y, 1), batch)
    alike = torch.tensor([0, 1, 0, 1, 0, 1, 2, 3])  # a single pair of another class: one part stays
    assert sorted(mix(alike, torch.tensor([0, 0, 1, 1]), 2).tolist()) == sorted(alike.tolist())


def test_parts_begin_with_the_same_buffers_and_leave_their_mean() -> None:
    class Normed(torch.nn.Sequential):
        embedding_dim = 3

    encoder = Normed(torch.nn.BatchNorm1d(3, momentum=1.0))
    plain = AdversarialTraining(loss=Triplet(), miner=Random())
    x = torch.cat([torch.zeros(4, 3), torch.full((4, 3), 8.0)]) + torch.rand(8, 3)
    ctx = Context(
        encoder=encoder, bare=encoder, x=x, y=torch.tensor([0, 0, 1, 1] * 2), index=torch.arange(8),
        distance=recipe("plain").distance, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    (step,) = Processes(defense=plain, count=2).losses(ctx)
    norm: Any = encoder[0]
    assert torch.allclose(norm.running_mean, (x[:4].mean(0) + x[4:].mean(0)) / 2)
    assert torch.allclose(norm.running_var, (x[:4].var(0) + x[4:].var(0)) / 2)
    assert int(norm.num_batches_tracked) == 1
    step.loss.backward()  # type: ignore[no-untyped-call]  # the buffers were set in between


def failure(code: int, message: str = "", timestamp: int = 5) -> Any:
    data = {"message": {"message": message}} if message else {"message": "<NONE>"}
    return SimpleNamespace(exitcode=code, error_file_data=data if message else {}, timestamp=timestamp)


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        (
            {0: failure(2, "PeerLost: x", 1), 1: failure(-signal.SIGKILL, "", 9)},
            "process 1 of 2 was ended by signal SIGKILL",
        ),
        (
            {0: failure(-signal.SIGTERM, "", 1), 1: failure(2, "disk full")},
            "process 1 of 2 stopped: disk full",
        ),
        ({0: failure(2, "process 1 of 2: NaN")}, "process 1 of 2: NaN"),
        ({1: failure(7)}, "process 1 of 2 stopped: exit code 7"),
        ({0: failure(2, "second", 6), 1: failure(2, "first", 5)}, "process 1 of 2 stopped: first"),
    ],
)  # fmt: skip
def test_the_process_that_failed_first_is_named(failures: Any, said: str) -> None:
    assert _first_fault(failures, 2) == said


def test_how_to_go_on(tmp_path: Path) -> None:
    words = ["train", "hm", "--out", "a b", "--devices", "2"]
    assert how_to_go_on(tmp_path, words) == (
        "there is no checkpoint yet; go on with: holdfast train hm --out 'a b' --devices 2"
    )
    (tmp_path / "run.json").touch()
    (tmp_path / "checkpoint.safetensors").touch()
    said = how_to_go_on(tmp_path, words)
    assert said.startswith(f"the last checkpoint is {tmp_path / 'checkpoint.safetensors'}; ")
    assert said.endswith("--devices 2 --resume")
    assert how_to_go_on(tmp_path, [*words, "--resume"]).count("--resume") == 1


def test_a_run_with_parts_is_gone_on_with_under_its_old_name(
    tmp_path: Path, holdfast: Callable[..., Any]
) -> None:
    run = recipe("plain", "digits")
    run = changed(replace(run, epochs=1), "sampler.batch_pairs", 512, allowed_types())
    train_run(replace(run, defense=Processes(defense=run.defense, count=2)), tmp_path / "run")
    words = ["train", "plain", "--epochs", 1, "--batch", 512, "--out", tmp_path / "run", "--resume"]
    done = holdfast(*words, "--json")
    assert done.code == 0, done.err
    refused = holdfast(*words, "--devices", 3)
    assert refused.code == 2
    assert "one of [1, 2]" in refused.err
