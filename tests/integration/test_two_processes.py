"""Two real processes on this machine train what one process trains, and one that dies ends the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from holdfast import open_run
from holdfast.cli.options import changed
from holdfast.files import read_lines
from holdfast.recipes import recipe
from holdfast.runs import train_run
from holdfast.training import Run, spread_over

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")

CASES = '''
import json, sys
from dataclasses import dataclass, replace
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
from holdfast.data import Augment, Digits
from holdfast.data.sampler import MPerClass
from holdfast.defenses import AdversarialTraining, Processes
from holdfast.encoders import Encoder
from holdfast.errors import RunError
from holdfast.losses import ProxyAnchor, Triplet
from holdfast.miners import Random
from holdfast.threat import LinfThreat
from holdfast.training import CollapseGuard, Run, train
from holdfast.training.launch import plan_processes, processes

torch.set_num_threads(1)

class Net(nn.Sequential):
    embedding_dim = 16

@dataclass(frozen=True, kw_only=True)
class Normed:
    name: str = "normed"
    def build(self, shape, seed):
        torch.manual_seed(seed)
        body = nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
        return Net(*body, nn.Linear(128, 16))

@dataclass(frozen=True, kw_only=True)
class Broken:
    """No number in the second process, from the fourth step on."""
    part: AdversarialTraining
    rank: int
    def setup(self, encoder, y):
        return self.part.setup(encoder, y)
    def losses(self, ctx):
        for step in self.part.losses(ctx):
            bad = self.rank == 1 and ctx.progress.step >= 3
            yield step._replace(loss=step.loss * float("nan")) if bad else step

def cases(rank):
    plain = AdversarialTraining(loss=Triplet(), miner=Random())
    base = Run(name="case", data=Digits(), defense=plain, threat=LinfThreat(eps=0.1), epochs=1, device="cpu")
    # four parts, batch normalisation, proxies, images moved at random, all parts of one class as they come
    wide = replace(
        base, encoder=Normed(), defense=Processes(defense=AdversarialTraining(loss=ProxyAnchor()), count=4),
        sampler=MPerClass(4, 32), augment=Augment(shift=1), average=0.9, accumulate=2,
        guard=CollapseGuard(every=4, grace=2),
    )
    broken = replace(base, defense=Processes(defense=Broken(part=plain, rank=rank), count=2))
    return {"wide": wide, "broken": broken}

def trained(run, group, lines):
    result = train(run, run.data.load(), on_line=lines.append, group=group)
    return {name: value.clone().contiguous() for name, value in result.encoder.state_dict().items()}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with processes(plan_processes(2, None, "cpu"), "cpu") as group:
        found = {}
        for name, run in cases(group.rank).items():
            lines = []
            try:
                save_file(trained(run, group, lines), folder / f"{name}{group.rank}.safetensors")
            except RunError as error:
                found[name + " error"] = str(error)
            found[name] = lines
    (folder / f"found{group.rank}.json").write_text(json.dumps(found))
'''


def command(*words: object) -> subprocess.Popen[str]:
    """Start Python in a process of its own, as a user would outside of torchrun."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "SLURM"))}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *map(str, words)], env=env, text=True, stdout=pipe, stderr=pipe)


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.allclose(a[k], b[k], rtol=1e-4, atol=1e-5) for k in a)


def numbers(lines: list[dict[str, Any]]) -> list[float]:
    return [
        v for line in lines for k, v in sorted(line.items()) if k != "seconds" and type(v) in (int, float)
    ]


def test_two_processes_train_what_one_trains_and_name_the_one_that_breaks(tmp_path: Path) -> None:
    """Under torchrun: parts, batch-norm, proxies, augmentation, accumulation, average and guard at once."""
    script = tmp_path / "cases_of_two.py"
    script.write_text(CASES)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    with command(*torchrun, script, tmp_path) as both:
        sys.path.insert(0, str(tmp_path))
        try:
            module = __import__("cases_of_two")
        finally:
            sys.path.remove(str(tmp_path))
        lines: list[dict[str, Any]] = []
        alone = module.trained(module.cases(0)["wide"], None, lines)
        _, said = both.communicate(timeout=300)
    assert both.returncode == 0, said
    first, second = (json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in range(2))
    assert [line["kind"] for line in lines].count("guard") == 2
    assert numbers(first["wide"]) == pytest.approx(numbers(lines), rel=1e-4, abs=1e-5)
    assert second["wide"] == []  # the second process says nothing
    for rank in range(2):
        assert close(load_file(tmp_path / f"wide{rank}.safetensors"), alone)
    assert len(first["broken"]) == 3
    assert first["broken error"] == second["broken error"]
    assert "process 1 of 2" in first["broken error"]
    assert "step 3" in first["broken error"]


def hm_ics() -> Run:
    return changed(recipe("hm-ics", "digits"), {"epochs": 3, "steps": 3, "device": "cpu"}, [])


def below(pid: int) -> dict[str, int]:
    """Return the processes that a launcher started, by rank."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if int((place / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                env = dict(
                    item.split("=", 1) for item in (place / "environ").read_text().split("\0") if "=" in item
                )
                found[env["RANK"]] = int(place.name)
        except (OSError, KeyError):
            continue
    return found


def test_a_killed_process_ends_the_run_which_one_process_then_finishes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["train", "hm-ics", "--epochs", 3, "--steps", 3, "--device", "cpu", "--checkpoint-seconds", 0]
    with command("-m", "holdfast", *words, "--out", folder, "--devices", 2) as launcher:
        whole = train_run(spread_over(hm_ics(), 2), tmp_path / "whole")  # meanwhile
        deadline = time.monotonic() + 300
        while not (folder / "checkpoint.safetensors").exists():
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks = below(launcher.pid)
        assert sorted(ranks) == ["0", "1"]
        os.kill(ranks["1"], signal.SIGKILL)
        _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 2
    assert "process 1 of 2 was ended by signal SIGKILL" in said
    assert f"the last checkpoint is {folder / 'checkpoint.safetensors'}" in said
    assert "go on with: holdfast train hm-ics" in said
    assert said.rstrip().endswith("--devices 2 --resume")
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert not (folder / "encoder.safetensors").exists()

    resumed = train_run(hm_ics(), folder, resume=True)  # by one process
    assert close(resumed.encoder().state_dict(), whole.encoder().state_dict())
    steps, expected = (
        [line for line in read_lines(path / "log.jsonl") if line["kind"] == "step"]
        for path in (folder, tmp_path / "whole")
    )
    assert [line["step"] for line in steps] == list(range(len(expected)))
    assert numbers(steps) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-5)
    assert open_run(folder).run == spread_over(hm_ics(), 2)
