"""Numbers of the published ARML code: triplets, margins, loss, gradient, and 50 steps of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler

from holdfast.linear import ARML
from holdfast.linear.arml_training import triplet_bound
from holdfast.linear.objectives import LOSSES, triplet_margins
from holdfast.linear.triplets import ClassBlocks, nearest_candidates

pytestmark = pytest.mark.golden
FOLDER = Path(__file__).resolve().parents[3] / "shared" / "golden"
Golden = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def arml() -> Golden:
    path = FOLDER / "arml.npz"
    if not path.exists():
        pytest.skip(f"golden file is not here: {path} does not exist")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def triplets(arml: Golden) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y = torch.from_numpy(arml["X_train"]), torch.from_numpy(arml["y_train"])
    blocks = ClassBlocks.of(x, y)
    near = nearest_candidates(blocks, blocks.x @ torch.from_numpy(arml["G"]).T, blocks.anchors(), 1)
    found = (blocks.order[rows] for rows in (near.anchor, near.positive[:, 0], near.negative[:, 0]))
    anchor, positive, negative = found
    return anchor, positive, negative


def test_nearest_triplets(arml: Golden) -> None:
    anchor, positive, negative = triplets(arml)
    back = anchor.argsort()
    np.testing.assert_array_equal(positive[back], arml["train_triplet_pos_index"])
    np.testing.assert_array_equal(negative[back], arml["train_triplet_neg_index"])


def test_margins_loss_and_gradient(arml: Golden) -> None:
    x, g = torch.from_numpy(arml["X_train"]), torch.from_numpy(arml["G"]).requires_grad_(True)
    positive, negative = (torch.from_numpy(arml[f"train_triplet_{side}_index"]) for side in ("pos", "neg"))
    margins = triplet_margins(x, x[positive], x[negative], g, floor=1e-6)
    loss = LOSSES["neg"](margins, 0.0).mean()
    (gradient,) = torch.autograd.grad(loss, g)
    np.testing.assert_allclose(margins.detach(), arml["train_margins_f64"], atol=1e-12)
    np.testing.assert_allclose(loss.item(), arml["train_loss_neg_f64"], atol=1e-12)
    np.testing.assert_allclose(gradient, arml["train_grad_G_f64"], atol=1e-12)


def test_triplet_radii_of_the_verifier(arml: Golden) -> None:
    x, z, g = (torch.from_numpy(arml[key]) for key in ("X_train", "X_test", "G"))
    margins = triplet_margins(z[:, None, None], x[None, None, :], x[None, :, None], g).clamp_min(0)
    expected = arml["mahalanobis_triplet_eps"]
    pairs = ~np.isnan(expected)
    assert pairs.any()
    np.testing.assert_allclose(margins.numpy()[pairs], expected[pairs], atol=1e-10)


def test_fifty_published_steps(arml: Golden) -> None:
    model = ARML(mode="published", epochs=50, n_candidates=1, random_state=0)
    model.fit(arml["X_train"], arml["y_train"])
    expected = arml["train_M_after_50_epochs_ncand1_adam1e-3_f32"]
    np.testing.assert_allclose(model.get_mahalanobis_matrix(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["wine", "breast"])
def test_published_mode_gains_as_much_as_the_published_code(name: str) -> None:
    path = FOLDER / "arml_runs.npz"
    if not path.exists():
        pytest.skip(f"golden file is not here: {path} does not exist")
    X, y = {"wine": load_wine, "breast": load_breast_cancer}[name](return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)
    scaler = MinMaxScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)

    def mean(factor: np.ndarray) -> float:
        data = (torch.from_numpy(part) for part in (X, y, X_test, y_test))
        return float(triplet_bound(*data, torch.from_numpy(factor)).radius.mean())

    with np.load(path, allow_pickle=False) as file:
        eigenvalues, vectors = np.linalg.eigh(file[f"{name}.arml.M"].astype(np.float64))
    published = mean(np.sqrt(eigenvalues.clip(0))[:, None] * vectors.T)
    euclidean = mean(np.eye(X.shape[1]))
    ours = mean(ARML(mode="published", epochs=300, lr=3e-3, random_state=0).fit(X, y).components_)
    assert ours > euclidean
    assert abs(ours - published) < 0.25 * (published - euclidean), json.dumps([ours, published, euclidean])
