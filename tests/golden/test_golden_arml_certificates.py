"""Numbers of the published ARML code: triplet bounds, k-NN bounds, answers, exact 1-NN perturbations."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from holdfast.certify import Certificate, neighbour_bound, triplet_bounds
from holdfast.certify.references import References
from holdfast.data.tabular import Table, load_table
from holdfast.linear import RobustKNeighborsClassifier

pytestmark = pytest.mark.golden
SHARED = Path(__file__).resolve().parents[3] / "shared"
Golden = dict[str, np.ndarray]
METRICS = pytest.mark.parametrize("metric", ["euclidean", "mahalanobis"])
TOLERANCE = 1e-5


def load(name: str) -> Golden:
    path = SHARED / "golden" / name
    if not path.exists():
        pytest.skip(f"golden file is not here: {path} does not exist")
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def arml() -> Golden:
    return load("arml.npz")


@pytest.fixture(scope="module")
def runs() -> Golden:
    return load("arml_runs.npz")


def classifier(
    arml: Golden, metric: str, k: int = 1, box: tuple[float, float] | None = None
) -> RobustKNeighborsClassifier:
    m = arml["M"] if metric == "mahalanobis" else None
    return RobustKNeighborsClassifier(k, metric=m, box=box).fit(arml["X_train"], arml["y_train"])


def certify(
    arml: Golden,
    metric: str,
    method: Literal["auto", "bound", "exact"],
    k: int = 1,
    box: tuple[float, float] | None = None,
) -> Certificate:
    return classifier(arml, metric, k, box).certify(arml["X_test"], arml["y_test"], method=method)


@METRICS
def test_triplet_bounds(arml: Golden, metric: str) -> None:
    """Entry [t, j, i]; NaN wherever i is no positive or j no negative."""
    m = torch.from_numpy(arml["M"]) if metric == "mahalanobis" else None
    y = torch.from_numpy(arml["y_train"])
    r = References.prepare(torch.from_numpy(arml["X_train"]), y, m)
    every = torch.arange(len(y))
    eps = triplet_bounds(r, r.inside(torch.from_numpy(arml["X_test"])), every, every)  # (t, i, j)
    positive = y == torch.from_numpy(arml["y_test"])[:, None]
    defined = positive[:, :, None] & ~positive[:, None, :]
    ours = torch.where(defined, eps, torch.nan).transpose(1, 2).numpy()
    theirs = arml[f"{metric}_triplet_eps"]
    assert 0 < np.isnan(theirs).mean() < 1
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    assert np.nanmax(ours - theirs) <= 1e-13


@METRICS
@pytest.mark.parametrize("k", [1, 3, 5])
def test_answers_and_neighbour_bounds(arml: Golden, metric: str, k: int) -> None:
    knn, published = classifier(arml, metric, k), arml[f"{metric}_knn{k}_lower_published_f64"]
    np.testing.assert_array_equal(knn.predict(arml["X_test"]), arml[f"{metric}_knn{k}_pred"])
    c = knn.certify(arml["X_test"], arml["y_test"], method="bound")
    np.testing.assert_allclose(c.radius.numpy(), published, rtol=0, atol=TOLERANCE)
    assert (c.radius.numpy() <= published + 1e-13).all()
    np.testing.assert_array_equal(c.correct.numpy(), arml[f"{metric}_knn{k}_pred"] == arml["y_test"])


@METRICS
@pytest.mark.parametrize("source", ["published_f64", "quadprog"])
def test_exact_one_nearest_neighbour(arml: Golden, metric: str, source: str) -> None:
    c = certify(arml, metric, "exact")
    np.testing.assert_allclose(c.radius.numpy(), arml[f"{metric}_exact1nn_{source}"], rtol=0, atol=TOLERANCE)
    assert bool(c.exact_rows().all())


@METRICS
def test_smallest_perturbations(arml: Golden, metric: str) -> None:
    c = certify(arml, metric, "exact")
    assert c.perturbation is not None
    theirs = arml[f"{metric}_exact1nn_delta_f64"]
    np.testing.assert_allclose(c.perturbation.numpy(), theirs, rtol=0, atol=TOLERANCE)
    knn, right = classifier(arml, metric), c.correct.numpy()
    x, y = arml["X_test"][right], arml["y_test"][right]
    assert right.sum() >= 8
    assert (knn.predict(x + 1.0001 * theirs[right]) != y).all()
    assert (knn.predict(x + 0.999 * theirs[right]) == y).all()


@METRICS
@pytest.mark.parametrize("source", ["published_f64", "quadprog"])
def test_exact_inside_the_box(arml: Golden, metric: str, source: str) -> None:
    c = certify(arml, metric, "exact", box=(0.0, 1.0))
    np.testing.assert_allclose(
        c.radius.numpy(), arml[f"{metric}_exact1nn_box01_{source}"], rtol=0, atol=TOLERANCE
    )
    free = certify(arml, metric, "exact").radius
    assert bool((c.radius >= free - 1e-9).all())
    if metric == "mahalanobis":  # the box is active for test point 8
        assert float(c.radius[8] - free[8]) > 1e-4


@METRICS
def test_three_neighbours_exactly(arml: Golden, metric: str) -> None:
    """The smallest perturbation after which the right class can lack a strict majority."""
    enumerated = arml[f"{metric}_knn3_exact_no_strict_majority"]
    bound = certify(arml, metric, "bound", k=3).radius.numpy()
    assert (bound <= enumerated + 1e-9).all()
    right = bound > 0
    assert (bound[right] / enumerated[right]).mean() < 0.97
    exact = certify(arml, metric, "exact", k=3)
    np.testing.assert_allclose(exact.radius.numpy()[right], enumerated[right], rtol=0, atol=TOLERANCE)


def table(name: str) -> Table:
    if name in ("dna", "pendigits") and not (SHARED / "data" / name).exists():
        pytest.skip(f"data are not here: {SHARED / 'data' / name}")
    return load_table({"breast": "breast-cancer"}.get(name, name), SHARED / "data")


RUNS = pytest.mark.parametrize("metric", ["euclidean", "arml"])


@RUNS
@pytest.mark.parametrize(("name", "first"), [("wine", 54), ("breast", 171), ("dna", 40), ("pendigits", 40)])
def test_exact_radii_of_the_published_runs(runs: Golden, name: str, first: int, metric: str) -> None:
    """The published numbers are float32, good to about 1e-5."""
    t = table(name)
    knn = RobustKNeighborsClassifier(metric=runs[f"{name}.{metric}.M"]).fit(t.x_train, t.y_train)
    c = knn.certify(t.x_test[:first], t.y_test[:first], method="exact")
    published = runs[f"{name}.{metric}.exact1"][:first]
    assert (published > 0).mean() > 0.5
    np.testing.assert_allclose(c.radius.numpy(), published, rtol=0, atol=2e-5)


@RUNS
@pytest.mark.parametrize("name", ["wine", "breast", "dna", "pendigits"])
def test_eleven_neighbours_of_the_published_runs(runs: Golden, name: str, metric: str) -> None:
    t = table(name)
    published = runs[f"{name}.{metric}.knn11_first60"]
    n = len(published)
    knn = RobustKNeighborsClassifier(11, metric=runs[f"{name}.{metric}.M"]).fit(t.x_train, t.y_train)
    c = knn.certify(t.x_test[:n], t.y_test[:n], method="bound")
    assert (published > 0).mean() > 0.5
    np.testing.assert_allclose(c.radius.numpy(), published, rtol=0, atol=2e-5)
    r = knn.references_
    y = torch.from_numpy(np.searchsorted(knn.classes_, t.y_test[:n]))
    assert torch.equal(neighbour_bound(r, r.inside(torch.from_numpy(t.x_test[:n])), y, 11), c.radius)
