"""Training end to end: killed and resumed, refused, diverged, in low precision, with learnable losses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from holdfast import encoders
from holdfast.adversaries import Gradual, HardnessManipulation, Shift
from holdfast.data import Digits, MPerClass, PairSampler
from holdfast.defenses import AdversarialTraining
from holdfast.encoders import SmallCNN
from holdfast.errors import CorruptFile, DataError, InvalidArgument, RunError
from holdfast.files import read_lines
from holdfast.functional.digest import digest
from holdfast.losses import IntraClassStructure, Margin, MultiSimilarity, ProxyAnchor, Triplet
from holdfast.miners import GradualSemihard, Random, Softhard
from holdfast.rng import stream
from holdfast.runs import evaluate_run, open_run, train_run
from holdfast.search import PGD
from holdfast.threat import LinfThreat
from holdfast.training import Adam, Run, train
from holdfast.training.checkpoint import Checkpoint

pytestmark = pytest.mark.integration

THREAT = LinfThreat(eps=0.1)


def small(**changes: Any) -> Run:
    """HM with the structure term on 100 digits: two epochs of five batches."""
    defense = AdversarialTraining(
        loss=Triplet(), miner=Softhard(), adversary=HardnessManipulation(destination=Gradual()),
        search=PGD(steps=2, alpha=0.05), threat=THREAT, extra=(IntraClassStructure(),),
    )  # fmt: skip
    run = Run(
        name="small", data=Digits(train_images=100), defense=defense, threat=THREAT,
        encoder=SmallCNN(width=4, embedding_dim=8), sampler=PairSampler(20), epochs=2, device="cpu",
    )  # fmt: skip
    return replace(run, **changes)


def plain(loss: Any = None, miner: Any = None, adversary: Any = None, **changes: Any) -> Run:
    """The small run with another defense."""
    threat = {"search": PGD(steps=2, alpha=0.05), "threat": THREAT} if adversary else {}
    loss = loss or Triplet()
    miner = miner or (Random() if loss.reads == "triplets" else None)
    return small(
        defense=AdversarialTraining(loss=loss, miner=miner, adversary=adversary, **threat), **changes
    )


def weights(run: Run, **more: Any) -> dict[str, Tensor]:
    return train(run, run.data.load(), **more).encoder.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def timeless(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    lines = read_lines(folder / "log.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["kind"] in kinds]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(small(), tmp_path_factory.mktemp("whole") / "run", checkpoint_seconds=0).path


def stopped_at(step: int) -> Callable[[dict[str, Any]], None]:
    def stop(line: dict[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == step:
            raise KeyboardInterrupt

    return stop


# --- Interrupted and resumed -------------------------------------------------------------------------------

CHILD = """
    import sys, time
    import torch
    torch.set_num_threads(1)
    from holdfast.runs import open_run, train_run

    def tell(line):
        print(line["kind"], line["step"], flush=True)
        time.sleep(0.05)

    run = open_run(sys.argv[2]).run
    train_run(run, sys.argv[1], resume=sys.argv[3] == "resume", checkpoint_seconds=0, on_line=tell)
    print("done", flush=True)
"""


def killed(folder: Path, like: Path, lines: int, delay: float, mode: str) -> list[str]:
    """Train in a process of its own and kill it some time after its n-th line; return the lines."""
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(like), mode]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as child:
        assert child.stdout is not None
        said = []
        for line in child.stdout:
            said.append(line.strip())
            if len(said) == lines:
                time.sleep(delay)
                child.send_signal(signal.SIGKILL)
                break
        child.wait(timeout=60)
        assert child.returncode == -signal.SIGKILL, child.stderr.read() if child.stderr else ""
    return said


def test_a_killed_run_ends_like_an_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    delays = torch.rand(2, generator=stream(time.time_ns() % 2**32)).tolist()  # any moment must do
    first = killed(folder, undisturbed, lines=4, delay=0.06 * delays[0], mode="new")
    assert first[-1] == "step 3"
    assert not open_run(folder).finished
    with pytest.raises(RunError, match="not finished; go on with --resume"):
        evaluate_run(folder)
    at = Checkpoint.load(folder / "checkpoint.safetensors").step
    assert 3 <= at <= 5

    second = killed(folder, undisturbed, lines=4, delay=0.06 * delays[1], mode="resume")
    assert second[0] == f"step {at}"  # nothing is done twice
    assert not open_run(folder).finished

    done = train_run(open_run(undisturbed).run, folder, resume=True)
    assert done.finished
    assert same(done.encoder().state_dict(), open_run(undisturbed).encoder().state_dict()), delays
    assert timeless(folder, "step") == timeless(undisturbed, "step"), delays
    assert timeless(folder, "epoch") == timeless(undisturbed, "epoch"), delays
    assert [line["step"] for line in timeless(folder, "step")] == list(range(10))


@pytest.mark.parametrize("step", range(10))
def test_a_run_stopped_at_any_step_ends_the_same(step: int, undisturbed: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "run", open_run(undisturbed).run
    every = 0 if step % 2 else 1e9  # a checkpoint after each step, or only at the end
    with pytest.raises(KeyboardInterrupt):
        train_run(run, folder, checkpoint_seconds=every, on_line=stopped_at(step))
    assert [line["step"] for line in timeless(folder, "step")] == list(range(step + 1))
    done = train_run(run, folder, resume=True)
    assert same(done.encoder().state_dict(), open_run(undisturbed).encoder().state_dict())
    assert timeless(folder, "step", "epoch") == timeless(undisturbed, "step", "epoch")


@pytest.mark.parametrize(
    "run",
    [
        plain(ProxyAnchor(), adversary=Shift()),
        plain(Margin(margin=0.0), adversary=HardnessManipulation()),
        plain(miner=GradualSemihard()),
        small(sampler=MPerClass(5, 4), precision="bf16"),
    ],
    ids=["proxies", "beta", "gradual miner", "bf16 and m per class"],
)
def test_every_kind_of_state_survives_an_interruption(run: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_run(run, tmp_path / "run", checkpoint_seconds=0, on_line=stopped_at(6))
    done = train_run(run, tmp_path / "run", resume=True)
    assert same(done.encoder().state_dict(), weights(run))


def test_a_finished_run_is_returned_as_it_is(undisturbed: Path) -> None:
    before = {path.name: path.read_bytes() for path in undisturbed.iterdir()}

    def never(line: dict[str, Any]) -> None:
        raise AssertionError("trained again")

    assert train_run(small(), undisturbed, resume=True, on_line=never).finished
    assert {path.name: path.read_bytes() for path in undisturbed.iterdir()} == before


def test_resume_writes_the_encoder_that_a_kill_prevented(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_run(small(), folder)
    (folder / "encoder.safetensors").unlink()
    done = train_run(small(), folder, resume=True)
    assert same(done.encoder().state_dict(), open_run(undisturbed).encoder().state_dict())


# --- Refused -----------------------------------------------------------------------------------------------


def test_an_existing_folder_is_refused_and_left_alone(undisturbed: Path, tmp_path: Path) -> None:
    before = (undisturbed / "run.json").read_bytes()
    with pytest.raises(RunError, match="exists already; choose another --out, or go on with --resume"):
        train_run(small(), undisturbed)
    assert (undisturbed / "run.json").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RunError, match="is no run folder"):
            train_run(small(), tmp_path, resume=resume)
        with pytest.raises(RunError, match="is no run folder"):
            train_run(small(), tmp_path / "notes.txt", resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(RunError, match="no run to go on with"):
        train_run(small(), tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert train_run(plain(epochs=1), tmp_path / "run").finished


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: 0 there, 1 asked"),
        ({"epochs": 3}, "epochs: 2 there, 3 asked"),
        ({"encoder": SmallCNN(width=8, embedding_dim=8)}, "encoder.width: 4 there, 8 asked"),
        ({"optimizer": Adam(lr=0.01)}, "optimizer.lr: 0.001 there, 0.01 asked"),
        ({"threat": LinfThreat(eps=0.3)}, "threat.eps: 0.1 there, 0.3 asked"),
        ({"sampler": MPerClass(2, 4)}, "sampler: 'PairSampler' there, 'MPerClass' asked"),
        ({"defense": plain().defense}, "defense.adversary"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_other_settings_are_refused_with_the_changed_field(
    changes: dict[str, Any], named: str, undisturbed: Path
) -> None:
    with pytest.raises(RunError, match="run of other settings") as error:
        train_run(small(**changes), undisturbed, resume=True)
    assert named in str(error.value)
    unchanged = {"seed", "epochs"} - set(changes)
    assert not any(f"{name}:" in str(error.value) for name in unchanged)


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for bad, error in (
        (small(device="tpu-of-tomorrow"), InvalidArgument),
        (small(data=Digits(train_images=10)), DataError),  # one image of each class: no partner
        (small(encoder=SmallCNN(mean=(0.1, 0.2))), InvalidArgument),
    ):
        with pytest.raises(error):
            train_run(bad, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A run that was stopped after step 6, with a checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        train_run(small(), tmp_path / "run", checkpoint_seconds=0, on_line=stopped_at(6))
    return tmp_path / "run"


def rewrite(path: Path, **changes: Any) -> None:
    """Change what the header of a checkpoint says."""
    with safe_open(path, framework="pt") as file:
        meta = json.loads(file.metadata()["holdfast"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    meta = {**meta, **changes}
    meta["sha256"] = digest({name: value for name, value in meta.items() if name != "sha256"}, tensors)
    save_file(tensors, path, metadata={"holdfast": json.dumps(meta)})


def test_a_checkpoint_of_another_schema_is_refused(half: Path) -> None:
    rewrite(half / "checkpoint.safetensors", schema=99)
    with pytest.raises(RunError, match=r"checkpoint.safetensors: checkpoint of schema 99.* reads schema 2"):
        train_run(small(), half, resume=True)
    assert not open_run(half).finished


def test_a_checkpoint_of_other_settings_is_refused(half: Path) -> None:
    rewrite(half / "checkpoint.safetensors", settings="0" * 64)
    with pytest.raises(RunError, match="belongs to a run of other settings"):
        train_run(small(), half, resume=True)


@pytest.mark.parametrize("size", [0, 4, 100, 2000, -1])
def test_a_truncated_checkpoint_is_a_corrupt_file(half: Path, size: int) -> None:
    path = half / "checkpoint.safetensors"
    log = (half / "log.jsonl").read_bytes()
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptFile, match=r"checkpoint.safetensors: cannot be read"):
        train_run(small(), half, resume=True)
    assert (half / "log.jsonl").read_bytes() == log  # nothing is lost by trying


def test_safetensors_of_others_are_no_checkpoint(half: Path) -> None:
    save_file({"w": torch.zeros(2)}, half / "checkpoint.safetensors")
    with pytest.raises(CorruptFile, match="not a Holdfast checkpoint"):
        train_run(small(), half, resume=True)


def test_a_checkpoint_gives_back_what_it_took(half: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(half / "checkpoint.safetensors")
    assert checkpoint.step == 6
    assert set(checkpoint.signal) == {"loss"}
    assert checkpoint.signal["loss"] == timeless(half, "step")[5]["loss"]
    assert checkpoint.seconds > 0
    kinds = {name.split(".")[0] for name in checkpoint.tensors}
    assert kinds == {"modules", "optimizer"}
    checkpoint.save(tmp_path / "copy")
    again = Checkpoint.load(tmp_path / "copy")
    assert same(again.tensors, checkpoint.tensors)
    assert (again.step, again.signal, again.settings) == (6, checkpoint.signal, checkpoint.settings)
    assert not list(half.glob(".*tmp"))


# --- Diverged ----------------------------------------------------------------------------------------------

WILD = Adam(lr=1e30)


@pytest.mark.parametrize(
    ("run", "step"),
    [
        (plain(optimizer=WILD), 1),
        (small(optimizer=WILD), 1),
        (plain(adversary=Shift(), optimizer=WILD), 1),
        (plain(ProxyAnchor(), optimizer=WILD), 1),
        # The loss of embeddings that are not numbers is 0 here: found at the end of the epoch.
        (plain(MultiSimilarity(), optimizer=WILD), 4),
        (plain(optimizer=WILD, sampler=PairSampler(100)), 0),
    ],
    ids=["plain", "hm", "shift", "proxies", "multi-similarity", "one batch"],
)
def test_divergence_is_a_run_error_that_names_the_step(run: Run, step: int, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"NaN or infinite at step {step} \(epoch 0\); no checkpoint yet"):
        train_run(run, tmp_path / "run", checkpoint_seconds=1e9)
    assert not open_run(tmp_path / "run").finished
    steps = [line["step"] for line in timeless(tmp_path / "run", "step")]
    assert steps == list(range(step + (step in (0, 4))))  # what went before is in the log


def test_divergence_names_the_last_checkpoint(tmp_path: Path) -> None:
    class Late(Triplet):
        """A loss that breaks after some calls."""

        calls: ClassVar = [0]

        def __call__(self, z: Any, distance: Any) -> Tensor:
            self.calls[0] += 1
            return super().__call__(z, distance) * (torch.nan if self.calls[0] > 3 else 1.0)

    run = plain(Late())
    with pytest.raises(RunError, match=r"at step 3 \(epoch 0\); the last checkpoint is .*checkpoint.safet"):
        train(run, run.data.load(), folder=tmp_path, checkpoint_seconds=0)
    assert Checkpoint.load(tmp_path / "checkpoint.safetensors").step == 3


def test_an_error_that_is_no_divergence_stays_what_it_is() -> None:
    class Wrong(Random):
        """A miner that complains."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise InvalidArgument("batch", "something else", 0)

    run = plain(miner=Wrong())
    with pytest.raises(InvalidArgument, match="something else"):
        train(run, run.data.load())


# --- Seeds, precision, learnable losses --------------------------------------------------------------------


def test_the_seed_decides_the_weights() -> None:
    first = weights(small())
    assert same(first, weights(small()))
    assert not same(first, weights(small(seed=1)))
    started = small().encoder.build((1, 8, 8), 0).state_dict()
    assert not same(first, started)


def test_training_reads_the_training_images_alone() -> None:
    run = small()
    split = run.data.load()
    other = replace(split, test=replace(split.test, x=1 - split.test.x))
    assert same(train(run, split).encoder.state_dict(), train(run, other).encoder.state_dict())


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights(plain(ProxyAnchor(), adversary=Shift()))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(first, weights(plain(ProxyAnchor(), adversary=Shift())))


def test_labels_may_be_any_numbers() -> None:
    run = plain(ProxyAnchor())
    split = run.data.load()
    sides = (replace(s, y=s.y * 7 + 100, class_names=()) for s in (split.train, split.test))
    renamed = replace(split, **dict(zip(("train", "test"), sides, strict=True)))
    assert same(train(run, split).encoder.state_dict(), train(run, renamed).encoder.state_dict())


@pytest.mark.parametrize("run", [plain(epochs=4), plain(ProxyAnchor(), adversary=Shift(), epochs=4)])
def test_bf16_trains(run: Run) -> None:
    lines: list[dict[str, Any]] = []
    run = replace(run, precision="bf16", optimizer=Adam(lr=3e-3))
    result = train(run, run.data.load(), on_line=lines.append)
    assert all(p.dtype == torch.float32 for p in result.encoder.state_dict().values())
    assert not same(result.encoder.state_dict(), weights(replace(run, precision="fp32")))
    losses = [line["loss"] for line in lines if line["kind"] == "epoch"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "run",
    [
        plain(ProxyAnchor(), epochs=6),
        plain(ProxyAnchor(), adversary=Shift(), epochs=6),
        plain(MultiSimilarity(), adversary=Shift(), epochs=6),
        plain(epochs=6),
        small(epochs=6),
    ],
    ids=["proxies", "proxies under shift", "multi-similarity under shift", "plain", "hm-ics"],
)
def test_training_lowers_the_loss_and_finds_more(run: Run) -> None:
    lines: list[dict[str, Any]] = []
    run = replace(run, optimizer=Adam(lr=3e-3))
    result = train(run, run.data.load(), on_line=lines.append)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    steps = [line for line in lines if line["kind"] == "step"]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[-1]["recall@1"] > 0.4  # chance is 0.1
    assert [line["step"] for line in steps] == list(range(30))
    assert result.steps == 30
    assert not result.encoder.training
    for epoch, line in enumerate(epochs):
        assert (line["epoch"], line["epochs"], line["step"]) == (epoch, 6, 5 * epoch + 4)
        mean = sum(step["loss"] for step in steps if step["epoch"] == epoch) / 5
        assert line["loss"] == pytest.approx(mean)


@pytest.mark.parametrize("loss", [ProxyAnchor(), Margin(margin=0.0)], ids=["proxies", "beta"])
def test_learnable_parts_are_trained_with_the_encoder(loss: Any, tmp_path: Path) -> None:
    run = plain(loss, epochs=1)
    found = []
    for stop in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            train_run(run, tmp_path / str(stop), checkpoint_seconds=0, on_line=stopped_at(stop))
        found.append(Checkpoint.load(tmp_path / str(stop) / "checkpoint.safetensors").tensors)
    learnt = [name for name in found[0] if name.startswith("modules.learnable.")]
    assert learnt
    for name in learnt:
        assert not torch.equal(found[0][name], found[1][name]), name
    assert all(name.startswith(("modules.encoder.", "modules.learnable.", "optimizer.")) for name in found[0])
    done = train_run(run, tmp_path / "4", resume=True)
    header = set(encoders.load(done.path / "encoder.safetensors").state_dict())
    assert not any("learnable" in name or "proxies" in name for name in header)


def test_training_again_without_resume_starts_a_new_log(tmp_path: Path) -> None:
    run = plain(epochs=1)
    for _ in range(2):
        train(run, run.data.load(), folder=tmp_path)
    assert [line["step"] for line in timeless(tmp_path, "step")] == list(range(5))
