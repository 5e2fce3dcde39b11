"""Shared fixtures: one torch thread, the golden numbers from two places, and the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["copy", "shared"])
def golden(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """Numbers of the published reference code: the trimmed copy in the tree, and the full file beside it."""
    path = {"copy": ROOT / "tests" / "golden" / "deep.npz", "shared": SHARED / "golden" / "deep.npz"}[
        request.param
    ]
    if request.param == "shared" and not path.exists():
        pytest.skip(f"full golden file is not here: {path} does not exist")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


class Said(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def holdfast(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command in this process."""

    def call(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["holdfast", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return Said(int(stopped.value.code or 0), out, err)

    return call


class GoldenNet(nn.Module):
    """The network of the golden numbers, with its normalised output, in float64."""

    def __init__(self, golden: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(144, 24),
        ).double()  # fmt: skip
        weights = {k[4:]: torch.from_numpy(golden[k]) for k in golden if k.startswith("net.")}
        self.net.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.net(x))


@pytest.fixture(scope="session")
def golden_net(golden: dict[str, np.ndarray]) -> GoldenNet:
    """The encoder that the golden numbers belong to."""
    return GoldenNet(golden)
