"""Shared fixtures: one torch thread, and the golden numbers from two places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

torch.set_num_threads(1)


def shared_data(name: str) -> Path:
    """Return a folder of the shared data, or skip with a reason."""
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"real data set {name!r} is not here: {path} does not exist")
    return path


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
