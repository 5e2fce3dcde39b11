"""Lipschitz certificates: hand numbers, closed forms on linear encoders, brute force, bad input."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.certify import (
    Certificate,
    LipschitzCertifier,
    certify_lipschitz,
    certify_pixels,
    lipschitz_constant,
)
from holdfast.encoders import LipschitzEncoder, SmallCNN
from holdfast.errors import InvalidArgument
from holdfast.linear.knn import RobustKNeighborsClassifier
from holdfast.rng import stream

ONE = LipschitzCertifier(constant=1.0)
ENCODER = LipschitzEncoder(width=4, depth=1, units=8, embedding_dim=6)


def line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "numbers"), dtype=torch.float64)


def height(z: Tensor, p: Tensor, q: Tensor) -> float:
    """The distance of z to the bisector of p and q by its normal vector."""
    u = (p - q) / (p - q).norm()
    return max(0.0, float((z - (p + q) / 2) @ u))


# Recall@k


def test_recall_by_hand() -> None:
    """On a line: rows at 0 and 6 of the class, rivals at 4 and 10; the query at 1 holds until 2."""
    found = ONE.recall(line(1.0), torch.tensor([0]), line(0, 6, 4, 10), torch.tensor([0, 0, 1, 1]))
    assert found.radius.item() == pytest.approx(1.0, abs=1e-12)
    assert found.radius.item() < 1.0
    assert found.answer is not None
    assert found.answer.tolist() == [0]
    assert found.method == "lipschitz recall@1"
    assert not bool(found.exact_rows().any())
    two = ONE.recall(line(1.0), torch.tensor([0]), line(0, 6, 4, 10), torch.tensor([0, 0, 1, 1]), k=2)
    assert two.radius.item() == pytest.approx(7.0)  # of row 6: it loses its place among two at (6 + 10) / 2
    assert two.answer is not None
    assert two.answer.tolist() == [1]


def test_the_best_row_need_not_be_the_nearest() -> None:
    """Row -1 is nearest and lost at 0.1; row 1.1 stands between the query and the rival until 1.15."""
    y, gallery, labels = torch.tensor([0]), line(-1, 1.1, 1.2), torch.tensor([0, 0, 1])
    assert ONE.recall(line(0), y, gallery[[0, 2]], labels[[0, 2]]).radius.item() == pytest.approx(0.1)
    found = ONE.recall(line(0), y, gallery, labels)
    assert found.radius.item() == pytest.approx(1.15)
    assert found.answer is not None
    assert found.answer.tolist() == [1]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_recall_is_the_largest_over_rows_of_the_kth_smallest_over_rivals(k: int) -> None:
    g, gy = random(24, 3), torch.arange(24) % 4
    z, y = random(30, 3, seed=1), torch.arange(30) % 4
    places = torch.where(torch.arange(30) < 10, torch.arange(30), -1)
    found = ONE.recall(z, y, g, gy, k=k, self_index=places)
    for i in range(30):
        rows = [r for r in range(24) if r != places[i]]
        own = [r for r in rows if gy[r] == y[i]]
        other = [r for r in rows if gy[r] != y[i]]
        best = max(sorted(height(z[i], g[p], g[q]) for q in other)[k - 1] for p in own)
        assert found.radius[i].item() == pytest.approx(best, abs=1e-9)
        assert found.radius[i].item() <= best
        nearest = min(float((z[i] - g[p]).norm()) for p in own)
        rank = sum(float((z[i] - g[q]).norm()) <= nearest for q in other)
        assert bool(found.correct[i]) == (rank < k)


def test_the_bound_lies_between_half_difference_and_half_sum() -> None:
    g, z = random(2, 5), random(50, 5, seed=1)
    found = ONE.recall(z, torch.zeros(50), g, torch.tensor([0, 1]))
    p, q = (z - g[0]).norm(dim=1), (z - g[1]).norm(dim=1)
    assert bool((found.radius >= (q - p) / 2 - 1e-12).all())
    assert bool((found.radius <= (q + p) / 2).all())
    assert bool(((q - p) / 2 < found.radius - 1e-3).any())  # and it is better than the usual one


def test_radii_do_not_depend_on_chunks_order_or_place() -> None:
    g, gy, z, y = random(20, 3), torch.arange(20) % 4, random(15, 3, seed=1), torch.arange(15) % 4
    whole = ONE.recall(z, y, g, gy)
    part = LipschitzCertifier(constant=1.0, chunk=4).recall(z, y, g, gy)
    assert torch.allclose(whole.radius, part.radius, atol=1e-12)
    turn = torch.randperm(20, generator=stream(0))
    assert torch.allclose(ONE.recall(z, y, g[turn], gy[turn]).radius, whole.radius, atol=1e-12)
    far = ONE.recall(z + 1000, y, g + 1000, gy)
    assert torch.allclose(far.radius, whole.radius, atol=1e-8)
    half = LipschitzCertifier(constant=2.0).recall(z, y, g, gy)
    assert torch.allclose(half.radius, whole.radius / 2)
    less = LipschitzCertifier(constant=1.0, slack=0.1).recall(z, y, g, gy)
    assert torch.allclose(less.radius, (whole.radius - 0.1).clamp_min(0))


def test_ties_duplicates_and_lonely_classes() -> None:
    y = torch.tensor([0])
    tie = ONE.recall(line(1.0), y, line(0, 2), torch.tensor([0, 1]))
    assert (tie.radius.item(), bool(tie.correct)) == (0.0, False)
    duplicate = ONE.recall(line(1.0), y, line(1, 1), torch.tensor([0, 1]))
    assert (duplicate.radius.item(), bool(duplicate.correct)) == (0.0, False)
    points = ONE.recall(line(0.0), y, line(0, 0, 0), torch.tensor([0, 0, 1]))
    assert points.radius.item() == 0
    lonely = ONE.recall(line(1.0), y, line(1, 2), torch.tensor([0, 1]), self_index=torch.tensor([0]))
    assert (lonely.radius.item(), bool(lonely.correct)) == (0.0, False)
    unrivalled = ONE.recall(line(1.0), y, line(0, 5, 9), torch.tensor([0, 0, 1]), k=2)
    assert (unrivalled.radius.item(), bool(unrivalled.correct)) == (math.inf, True)
    huge = ONE.recall(line(1e200), y, line(0, 1e200), torch.tensor([1, 0]))
    assert huge.radius.item() == 0  # squares overflow: nothing is certified


def test_rounding_never_raises_a_radius() -> None:
    """Rows 1e-7 apart, a million away from 0: fractions say what the radius is, and it is not exceeded."""
    g = torch.tensor([[1e6, 0.0], [1e6, 1e-7]], dtype=torch.float64)
    z = torch.tensor([[1e6, -3.0]], dtype=torch.float64)
    radius = ONE.recall(z, torch.tensor([0]), g, torch.tensor([0, 1])).radius.item()
    assert 0 <= radius <= 3.0 + float(g[1, 1]) / 2
    near = ONE.recall(line(0.1), torch.tensor([0]), line(0.0, 0.3), torch.tensor([0, 1])).radius.item()
    assert 0.05 - 1e-13 < near < 0.05


# top-k sets, clusters, verification


def test_top_k_by_hand_and_by_brute_force() -> None:
    found = ONE.top_k(line(1.0), line(0, 1.5, 4, 9), k=2)
    assert found.answer is not None
    assert found.answer.tolist() == [[1, 0]]
    assert found.radius.item() == pytest.approx(1.0)  # row 0 leaves for row 4 at 2
    g, z = random(9, 3), random(12, 3, seed=1)
    for k in (1, 3, 8):
        several = ONE.top_k(z, g, k=k)
        assert several.answer is not None
        for i in range(12):
            inside = set(several.answer[i].tolist())
            assert inside == set((z[i] - g).norm(dim=1).argsort()[:k].tolist())
            smallest = min(height(z[i], g[p], g[q]) for p in inside for q in set(range(9)) - inside)
            assert several.radius[i].item() == pytest.approx(smallest, abs=1e-9)
            assert several.radius[i].item() <= smallest
    assert ONE.top_k(z, g, k=9).radius.tolist() == [math.inf] * 12
    without = ONE.top_k(g, g, k=8, self_index=torch.arange(9))
    assert without.radius.tolist() == [math.inf] * 9
    assert without.answer is not None
    assert not bool((without.answer == torch.arange(9)[:, None]).any())


def test_clusters_by_hand() -> None:
    z, centroids = line(1.0, 3.5), line(0, 4)
    found = LipschitzCertifier(constant=0.5).clusters(z, centroids, y=torch.tensor([0, 0]))
    assert found.answer is not None
    assert found.answer.tolist() == [0, 1]
    assert found.correct.tolist() == [True, False]
    assert found.radius.tolist() == pytest.approx([2.0, 0.0])
    assert ONE.clusters(z, centroids).radius.tolist() == pytest.approx([1.0, 1.5])


def test_verification_by_hand() -> None:
    z, reference = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]]), torch.zeros(3, 2)
    found = LipschitzCertifier(constant=2.0).verification(z, reference, 2.0)
    assert found.answer is not None
    assert found.answer.tolist() == [0, 1, 1]
    assert found.radius.tolist() == pytest.approx([1.5, 0.5, 0.0])
    assert found.radius[0].item() < 1.5
    labelled = ONE.verification(z, reference, 2.0, same=torch.tensor([True, True, False]))
    assert labelled.correct.tolist() == [False, True, False]


# encoders


def test_the_constant_of_encoders() -> None:
    encoder = ENCODER.build((1, 8, 8), seed=0)
    assert 1 - 1e-9 < lipschitz_constant(encoder) <= 1
    with pytest.raises(InvalidArgument, match="proven Lipschitz constant, got 'Encoder'"):
        lipschitz_constant(SmallCNN(width=4).build((1, 8, 8), seed=0))
    with pytest.raises(InvalidArgument, match="proven Lipschitz constant, got 'Linear'"):
        lipschitz_constant(nn.Linear(2, 2))
    with torch.no_grad():
        encoder.head.weight[0, 0] = torch.nan
    with pytest.raises(InvalidArgument, match="finite weights"):
        lipschitz_constant(encoder)


def test_images_are_certified_and_the_encoder_is_left_alone() -> None:
    encoder = ENCODER.build((1, 8, 8), seed=0).train()
    before = copy.deepcopy(encoder.state_dict())
    x = torch.rand(20, 1, 8, 8, generator=stream(0))
    y = torch.arange(20) % 2
    found = certify_lipschitz(encoder, x, y)
    double: Any = copy.deepcopy(encoder).double().eval()
    z = double(x.double()).detach()
    direct = ONE.recall(z, y, z, y, self_index=torch.arange(20))
    assert torch.allclose(found.radius, direct.radius, atol=1e-9)
    assert torch.equal(found.correct, direct.correct)
    assert encoder.training
    assert all(m.training for m in encoder.modules())
    assert all(p.dtype == torch.float32 and p.grad is None for p in encoder.parameters())
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    small = certify_lipschitz(encoder, x, y, batch_size=3, chunk=7)
    assert torch.allclose(small.radius, found.radius, atol=1e-12)
    own = certify_lipschitz(encoder, x, y, gallery=x, gallery_y=y, self_index=torch.arange(20))
    assert torch.equal(own.radius, found.radius)
    single = certify_lipschitz(encoder, x, y, dtype=torch.float32)
    lost = (found.radius - single.radius)[single.radius > 0]
    assert 0 < float(lost.max()) < 1e-3


def test_encoders_and_galleries_that_do_not_fit_are_told() -> None:
    encoder = ENCODER.build((1, 8, 8), seed=0)
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    for call, says in (
        (lambda: certify_lipschitz(encoder, x, y, gallery_y=y), "gallery: need a gallery beside"),
        (lambda: certify_lipschitz(encoder, x, y, gallery=x), "gallery_y"),
        (lambda: certify_lipschitz(encoder, x[:0], y[:0]), "at least one image"),
        (lambda: certify_lipschitz(encoder, x, y[:2]), "y: need one label for each of 4"),
        (lambda: certify_lipschitz(encoder, x, y, k=0), "k: need"),
        (lambda: LipschitzCertifier(constant=0.0), "constant"),
        (lambda: LipschitzCertifier(constant=math.inf), "constant"),
        (lambda: LipschitzCertifier(constant=1.0, slack=-1.0), "slack"),
        (lambda: LipschitzCertifier(constant=1.0, chunk=0), "chunk"),
        (lambda: ONE.clusters(line(math.nan), line(0, 1)), "z: need finite"),
        (lambda: ONE.clusters(line(1.0), torch.zeros(2, 2)), r"gallery_z: need embeddings \(m, 1\)"),
        (lambda: ONE.top_k(line(1.0), line(0, 1), k=3), "k: need 1 to 2"),
        (lambda: ONE.top_k(line(1.0), line(0, 1), self_index=torch.tensor([5])), "self_index"),
        (lambda: ONE.verification(line(1.0), line(0, 1), 1.0), "reference"),
        (lambda: ONE.verification(line(1.0), line(0), -1.0), "threshold"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            call()


# from embeddings to pixels


def test_a_certificate_of_embeddings_is_divided_by_the_constant() -> None:
    stand_in = Certificate(
        radius=torch.tensor([1.0, 0.0, math.inf, 0.25]),
        correct=torch.tensor([True, False, True, True]),
        exact=torch.ones(4),
        upper=torch.tensor([1.0, 0.0, math.inf, 0.3]),
        perturbation=torch.ones(4, 3),
        answer=torch.arange(4),
        alpha=0.01,
        method="quadratic programme",
    )
    pixels = certify_pixels(stand_in, 4.0, slack=0.05)
    assert pixels.radius.tolist() == pytest.approx([0.2375, 0.0, math.inf, 0.05])
    assert pixels.radius[0].item() < 0.95 / 4
    assert pixels.correct.tolist() == stand_in.correct.tolist()
    assert not bool(pixels.exact_rows().any())
    assert pixels.upper is None
    assert pixels.perturbation is None
    assert (pixels.alpha, pixels.method) == (0.01, "quadratic programme, lipschitz")
    assert certify_pixels(stand_in, 1.0, slack=0.5).radius.tolist()[3] == 0.0
    other = Certificate(radius=torch.ones(1), correct=torch.ones(1), norm=math.inf)
    with pytest.raises(InvalidArgument, match="l2 norm"):
        certify_pixels(other, 1.0)
    with pytest.raises(InvalidArgument, match="constant"):
        certify_pixels(stand_in, math.nan)


def test_it_composes_with_the_exact_certificate_of_a_k_nn_head() -> None:
    """A Mahalanobis head on embeddings: no image inside the radius changes the answer of the whole."""
    encoder: Any = ENCODER.build((1, 8, 8), seed=0).double().eval()
    x = torch.rand(60, 1, 8, 8, generator=stream(0), dtype=torch.float64)
    y = (x.mean((1, 2, 3)) > 0.5).numpy().astype(int)
    z = encoder(x).detach().numpy()
    factor = random(6, 6).numpy()
    head = RobustKNeighborsClassifier(3, metric=factor @ factor.T).fit(z[:40], y[:40])
    inside = head.certify(z[40:], y[40:])
    constant = lipschitz_constant(encoder)
    found = certify_pixels(inside, constant, slack=encoder.rounding_error())
    assert np.allclose(found.radius, inside.radius, atol=1e-9)
    assert bool((found.radius * constant <= inside.radius).all())
    rows = torch.nonzero(found.radius > 0)[:, 0]
    assert len(rows) > 5
    for seed in range(20):
        step = random(len(rows), 1, 8, 8, seed=seed)
        step *= (found.radius[rows] / step.flatten(1).norm(dim=1))[:, None, None, None]
        moved = encoder(x[40:][rows] + step).detach().numpy()
        assert (head.predict(moved) == y[40:][rows.numpy()]).all()
