"""Shared fixtures: one torch thread, the golden numbers from two places, and the command line."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

torch.set_num_threads(1)


def _here(host: object) -> bool:
    """Whether an address is this machine itself."""
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Any:
    """Let nothing beyond this machine be reached while tests run."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def only_here(self: socket.socket, address: Any) -> None:
        near = self.family not in (socket.AF_INET, socket.AF_INET6) or self.type == socket.SOCK_DGRAM
        if not near and not _here(address[0]):  # naming the other end of a datagram sends nothing
            raise RuntimeError(f"a test asked for the network: {address[0]}")
        connect(self, address)

    def only_near(host: Any, *more: Any, **others: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if not _here(name) and not _numeric(name):
            raise RuntimeError(f"a test asked the network for a name: {name}")
        return look_up(host, *more, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", only_here)
        patch.setattr(socket, "getaddrinfo", only_near)
        yield


def _numeric(host: object) -> bool:
    try:
        ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return True


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
