"""Faults that were demonstrated in the published ARML code, as regression tests of ours.

``specs/arml-baseline.md``, "Demonstrated faults". An index error for more evaluated points than the test set
has does not apply: certificates are computed for the points that are given.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.linear import ARML, RobustKNeighborsClassifier
from holdfast.linear.objectives import triplet_margins
from holdfast.linear.triplets import RULES, ClassBlocks, nearest_candidates
from holdfast.rng import stream

METHODS = ("bound", "tight", "exact")
EVERY = pytest.mark.parametrize("method", METHODS)


def radii(
    x: Any, y: Any, z: Any, labels: Any, k: int = 1, method: Any = "exact", metric: Any = None
) -> np.ndarray:
    knn = RobustKNeighborsClassifier(k, metric=metric, method=method).fit(x, y)
    out: np.ndarray = knn.certify(z, labels).radius.numpy()
    return out


def random_problem(seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    x = rng.random((40, 6))
    g = rng.normal(size=(6, 6))
    return x, (2 * x[:, 0] + x[:, 1] > 1.4).astype(int), rng.random((15, 6)), g.T @ g


# ------------------------------------------------------------------------- duplicates of another class

DUPLICATE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, -2.0]])
LABELS = np.array([1, 0, 1, 0, 1])  # (1, 0) stands there in both classes
ORIGIN = np.zeros((1, 2))


@EVERY
def test_a_duplicate_of_another_class_is_not_passed_over(method: str) -> None:
    """From the origin the twin at (1, 0) is reached half way; 0 / 0 hid it, and 1.5 or more came out."""
    radius = radii(DUPLICATE, LABELS, ORIGIN, [1], method=method)
    assert radius.tolist() == pytest.approx([0.5], abs=1e-9)
    assert radius[0] <= 0.5
    without = np.arange(5) != 1
    assert radii(DUPLICATE[without], LABELS[without], ORIGIN, [1], method=method)[0] == pytest.approx(2.0)
    knn = RobustKNeighborsClassifier().fit(DUPLICATE, LABELS)
    assert knn.predict([[0.49, 0.0], [0.51, 0.0]]).tolist() == [1, 0]


@EVERY
@pytest.mark.parametrize("k", [1, 3])
def test_whole_classes_of_duplicates_certify_nothing(method: str, k: int) -> None:
    x, _, z, m = random_problem()
    both, labels = np.concatenate((x, x)), np.repeat([0, 1], 40)
    for metric in (None, m):
        knn = RobustKNeighborsClassifier(k, metric=metric, method=method).fit(both, labels)
        radius = knn.certify(z[:6]).radius.numpy()
        assert np.isfinite(radius).all()
        if k == 1:
            assert radius.max() <= 1e-12


# ------------------------------------------------------------------------------------------------ even K


@EVERY
def test_an_even_number_of_neighbours_is_sound(method: str) -> None:
    """K = 2: positives 0.1 and 0.2, negative 1. A tie is reached at 0.55; 0.6 came out."""
    x, y = [[0.1], [0.2], [1.0]], [1, 1, 0]
    radius = radii(x, y, [[0.0]], [1], k=2, method=method)
    assert radius.tolist() == pytest.approx([0.55], abs=1e-9)
    assert radius[0] <= 0.55
    knn = RobustKNeighborsClassifier(2).fit(x, y)
    assert knn.predict([[0.54], [0.56]]).tolist() == [1, 0]


@pytest.mark.parametrize("k", [2, 4, 6])
def test_even_numbers_hold_against_many_perturbations(k: int) -> None:
    x, y, z, m = random_problem(1)
    knn = RobustKNeighborsClassifier(k, metric=m, method="bound").fit(x, y)
    answers, rng = knn.predict(z), np.random.default_rng(2)
    radius = knn.certify(z).radius.numpy()
    assert (radius > 0).sum() >= 5
    for _ in range(100):
        towards = x[rng.integers(0, len(x), len(z))] - z
        moves = towards / np.linalg.norm(towards, axis=1, keepdims=True) * (radius * (1 - 1e-9))[:, None]
        assert (knn.predict(z + moves) == answers)[radius > 0].all()


# ------------------------------------------------------------------------------------------- translation


@EVERY
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shift", [10.0, 100.0, 1000.0])
def test_translation_changes_no_radius(method: str, k: int, shift: float) -> None:
    """float32 without centring lost 1.5e-4, 9e-3 and everything."""
    x, y, z, m = random_problem(2)
    labels = RobustKNeighborsClassifier(k, metric=m).fit(x, y).predict(z)
    here = radii(x, y, z, labels, k, method, m)
    there = radii(x + shift, y, z + shift, labels, k, method, m)
    assert (here > 0).sum() > 10
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-8)


# ---------------------------------------------------------------------------------- candidates, class sizes


@pytest.mark.parametrize("rule", sorted(RULES))
def test_candidates_of_a_small_class_are_of_that_class(rule: str) -> None:
    """A class of 4 and 5 candidates: 3 of 12 "positives" had another label, 3 "negatives" the same one."""
    x = torch.rand(30, 3, generator=stream(0, "faults"), dtype=torch.float64)
    y = torch.tensor([0] * 4 + [1] * 13 + [2] * 13)
    blocks = ClassBlocks.of(x, y)
    near = nearest_candidates(blocks, blocks.x, blocks.anchors(), 5)
    assert near.positives[:4].tolist() == [3, 3, 3, 3]
    for draw in range(20):
        chosen = RULES[rule](near, blocks.x, torch.eye(3, dtype=torch.float64), stream(draw))
        labels = y[blocks.order]
        assert torch.equal(labels[chosen.positive], labels[chosen.anchor])
        assert bool((labels[chosen.negative] != labels[chosen.anchor]).all())
        assert bool((chosen.positive != chosen.anchor).all())


@pytest.mark.parametrize("mode", ["default", "published"])
def test_training_with_a_class_smaller_than_the_candidates(mode: Any) -> None:
    x, _, _, _ = random_problem(3)
    y = np.repeat([0, 1, 2], [4, 18, 18])
    model = ARML(mode=mode, n_candidates=30, epochs=3, random_state=0).fit(x, y)
    assert np.isfinite(model.components_).all()


@EVERY
@pytest.mark.parametrize("k", [9, 11])
def test_more_neighbours_than_two_classes_hold(method: str, k: int) -> None:
    """K > 2 x class size raised; a class without a majority is answered with radius 0."""
    x, _, z, _ = random_problem(4)
    y = np.repeat([0, 1, 2], [4, 4, 32])
    knn = RobustKNeighborsClassifier(k, method=method).fit(x, y)
    c = knn.certify(z, np.zeros(len(z), dtype=int))
    assert c.radius.tolist() == [0.0] * len(z)
    assert bool(torch.isfinite(knn.certify(z, method="bound").radius).all())
    few = RobustKNeighborsClassifier(k, method=method).fit(x[:12], np.repeat([0, 1], [9, 3]))
    assert few.certify(z).radius.tolist() == [math.inf] * len(z)  # 3 rivals never have a majority


# ---------------------------------------------------------------------------------- scale of the metric


@EVERY
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("scale", [1e-4, 1e2])
def test_the_scale_of_the_metric_changes_no_radius(method: str, k: int, scale: float) -> None:
    """G x 0.01 took the mean training margin from 0.2307 to 0.0183."""
    x, y, z, m = random_problem(5)
    labels = RobustKNeighborsClassifier(k, metric=m).fit(x, y).predict(z)
    here = radii(x, y, z, labels, k, method, m)
    assert (here > 0).sum() > 10
    np.testing.assert_allclose(radii(x, y, z, labels, k, method, scale * m), here, rtol=1e-7)


@pytest.mark.parametrize("scale", [0.01, 0.1, 10.0])
def test_the_scale_of_the_factor_changes_no_default_margin(scale: float) -> None:
    generator = stream(1, "faults")
    x = torch.rand(30, 4, generator=generator, dtype=torch.float64)
    g = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    anchor, positive, negative = x.split(10)
    here = triplet_margins(anchor, positive, negative, g)
    torch.testing.assert_close(
        triplet_margins(anchor, positive, negative, scale * g), here, rtol=1e-9, atol=0
    )
    published = triplet_margins(anchor, positive, negative, 0.01 * g, floor=1e-6)
    assert float(published.abs().mean()) < 0.5 * float(here.abs().mean())  # the fault, which the mode keeps
