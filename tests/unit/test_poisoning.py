"""Poisoned references: the gain by hand, the unrolled step of k-means, and what happens to clean queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks import GalleryPoisoning, Poisoning, PoisonTask, Refits, poison
from holdfast.errors import InvalidArgument
from holdfast.functional.clustering import kmeans, name_clusters, spherical_kmeans
from holdfast.functional.distance import Cosine, SquaredEuclidean
from holdfast.rng import stream
from holdfast.search import PGD
from holdfast.threat import L2Threat, LinfThreat
from holdfast.types import ClusterTask, Gallery

SEARCH = PGD(steps=15, alpha=0.02)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=stream(seed, "poison"), dtype=torch.float64)


def identity(x: Tensor) -> Tensor:
    return x


def poison_task(k: int = 4, n: int = 9, v: int = 30, e: int = 3, seed: int = 0) -> PoisonTask:
    """References and victims scattered among k centroids; the encoder is the identity."""
    mu, z, victims = rand(k, e, seed=seed), rand(n, e, seed=seed + 100), rand(v, e, seed=seed + 200)
    own, theirs = (torch.cdist(points, mu).argmin(1) for points in (z, victims))
    return PoisonTask(
        encoder=identity, x=z, y=own, z=z, gallery=Gallery(mu, torch.arange(k), torch.arange(k)),
        self_index=torch.full((n,), -1), index=torch.arange(n), distance=SquaredEuclidean(),
        cluster_of=own, truth=torch.full((n,), -1), victims=Gallery(victims, theirs, torch.arange(v)),
        shares=rand(k, seed=seed + 300),
    )  # fmt: skip


def by_hand(z: Tensor, task: PoisonTask) -> list[float]:
    out = []
    for i, k in enumerate(task.cluster_of.tolist()):
        mu = task.gallery.z.clone()
        mu[k] += task.shares[k] * (z[i] - task.z[i])
        margins = []
        for v, own in zip(task.victims.z, task.victims.y.tolist(), strict=True):
            d = (v - mu).square().sum(1).tolist()
            margins.append(d[own] - min(d[:own] + d[own + 1 :]))
        out.append(sum(margins) / len(margins))
    return out


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_gain_is_the_margin_of_the_victims_with_one_centroid_moved(k: int) -> None:
    task = poison_task(k)
    for scale in (0.0, 0.3, 2.0):
        z = task.z + scale * (rand(*task.z.shape, seed=7) - 0.5)
        assert GalleryPoisoning().gain(z, None, task).tolist() == pytest.approx(by_hand(z, task), abs=1e-12)


def test_the_gain_is_differentiable_and_each_row_has_its_own() -> None:
    task = poison_task()
    z = (task.z + 0.4 * (rand(*task.z.shape, seed=8) - 0.5)).requires_grad_()
    attack = GalleryPoisoning()
    assert torch.autograd.gradcheck(lambda z: attack.gain(z, None, task), (z,))
    (grad,) = torch.autograd.grad(attack.gain(z, None, task)[3], z)
    assert bool(grad[3].any())
    assert not bool(grad[torch.arange(9) != 3].any())
    part = task.rows(slice(2, 5))
    assert torch.allclose(attack.gain(z[2:5], None, part), attack.gain(z, None, task)[2:5])


def test_the_moved_centroid_is_one_step_of_kmeans() -> None:
    """Half of a cluster's points move by one vector: the mean moves by half of it."""
    z = rand(8, 3)
    member = torch.zeros(8, dtype=torch.int64)
    step = torch.tensor([0.5, -1.0, 0.25]).double()
    after = torch.cat([z[:4] + step, z[4:]]).mean(0)
    assert torch.allclose(z.mean(0) + 0.5 * step, after)
    task = replace(
        poison_task(2), x=z, y=member, z=z, cluster_of=member, index=torch.arange(8),
        self_index=member - 1, truth=member - 1, shares=torch.tensor([0.5, 0.5]).double(),
        gallery=Gallery(torch.stack([z.mean(0), z.mean(0) + 1]), torch.arange(2), torch.arange(2)),
    )  # fmt: skip
    moved = replace(task, gallery=task.gallery._replace(z=torch.stack([after, z.mean(0) + 1])))
    gain = GalleryPoisoning().gain(z + step, None, task)
    assert torch.allclose(gain, GalleryPoisoning().gain(z, None, moved))


# ---- the whole attack ---------------------------------------------------------------------------------


class Squash(nn.Module):
    """A random network of one layer, normalised or not."""

    def __init__(self, unit: bool = False) -> None:
        super().__init__()
        w = torch.randn(4, 10, generator=stream(5, "squash"), dtype=torch.float64)
        self.w, self.unit = nn.Parameter(w), unit

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh((x - 0.5) @ self.w.T)
        return F.normalize(z, dim=1) if self.unit else z


def toy(seed: int, unit: bool = False, named: bool = True, m: int = 120, v: int = 90) -> Any:
    """Three loose clouds of images; references (120) and victims (90) of the same clouds."""
    encoder = Squash(unit)
    heart = 0.3 + 0.4 * rand(3, 10, seed=seed)
    y = torch.arange(m + v) % 3
    x = (heart[y] + 0.22 * (rand(m + v, 10, seed=seed + 1) - 0.5)).clamp(0, 1)
    with torch.no_grad():
        z = encoder(x)
    fitted = (spherical_kmeans if unit else kmeans)(z[:m], 3, seed=seed, n_init=5)
    distance = Cosine() if unit else SquaredEuclidean()
    own = distance.matrix(z[m:], fitted.centroids).argmin(1)
    numbers = torch.arange(3)
    task = ClusterTask(
        encoder=encoder, x=x[m:], y=own, z=z[m:], gallery=Gallery(fitted.centroids, numbers, numbers),
        self_index=torch.full((v,), -1), index=torch.arange(v), distance=distance, cluster_of=own,
        truth=y[m:] if named else torch.full((v,), -1),
        names=name_clusters(y[:m], fitted.cluster_of, 3) if named else None,
        references=x[:m], member_of=fitted.cluster_of, spherical=unit,
    )  # fmt: skip
    return task, y[:m]


@pytest.mark.parametrize("unit", [False, True])
def test_poison_hurts_at_least_as_much_as_noise(unit: bool) -> None:
    flips, lost = [], 0.0
    for seed in range(4):
        task, labels = toy(seed, unit)
        found = poison(
            task, SEARCH, LinfThreat(eps=0.2), share=0.3, seed=seed, fits=(0, 1), n_init=3,
            reference_labels=labels,
        )  # fmt: skip
        clean, poisoned, control = found.clean, found.poisoned, found.control
        assert poisoned.mean_sd("flip")[0] >= control.mean_sd("flip")[0]
        assert poisoned.mean_sd("shift")[0] > control.mean_sd("shift")[0] > clean.mean_sd("shift")[0] - 1e-9
        lost += (control.mean_sd("accuracy")[0] - poisoned.mean_sd("accuracy")[0]) / 4
        assert clean.mean_sd("shift")[0] < 0.03  # the same kind of k-means as before
        assert len(found.rows) == 36
        assert bool((found.rows.diff() > 0).all())
        assert float((found.x - task.references[found.rows]).abs().max()) <= 0.2 + 1e-12
        flips.append((clean.mean_sd("flip")[0], control.mean_sd("flip")[0], poisoned.mean_sd("flip")[0]))
    clean, control, poisoned = (sum(column) / 4 for column in zip(*flips, strict=True))
    assert clean < 0.02
    assert poisoned > control + 0.03
    assert lost > 0.03  # a query that was wrong may become right, so one seed says little


@pytest.mark.parametrize(("share", "eps"), [(0.0, 0.2), (0.3, 0.0)])
def test_nothing_changes_without_share_or_radius(share: float, eps: float) -> None:
    task, _ = toy(0)
    found = poison(task, SEARCH, LinfThreat(eps=eps), share=share, fits=(0, 1), n_init=2)
    for refits in (found.poisoned, found.control):
        assert torch.equal(refits.flip, found.clean.flip)
        assert refits.accuracy is not None
        assert torch.equal(refits.accuracy, found.clean.accuracy)
        assert torch.allclose(refits.shift, found.clean.shift, atol=1e-12)
    assert len(found.rows) == round(share * 120)
    assert torch.equal(found.x, task.references[found.rows])


def test_results_belong_to_the_seed_and_not_to_the_batch() -> None:
    task, _ = toy(1)

    def found(seed: int = 0, batch_size: int = 128, threat: Any = None) -> Poisoning:
        return poison(
            task, replace(SEARCH, random_start=True), threat or LinfThreat(eps=0.1), share=0.2, seed=seed,
            fits=(3,), n_init=2, batch_size=batch_size,
        )  # fmt: skip

    first, small, other = found(), found(batch_size=5), found(seed=1)
    assert torch.equal(first.rows, small.rows)
    assert torch.allclose(first.x, small.x, rtol=0, atol=1e-9)
    for mine, theirs in ((first.poisoned, small.poisoned), (first.control, small.control)):
        assert torch.equal(mine.flip, theirs.flip)
        assert torch.allclose(mine.shift, theirs.shift, rtol=0, atol=1e-9)
    assert not torch.equal(first.rows, other.rows)
    ball = L2Threat(eps=0.3)
    assert float(ball.size(found(threat=ball).x, task.references[first.rows]).max()) <= 0.3 + 1e-12


def test_shapes_and_names() -> None:
    task, labels = toy(2)
    handed = poison(task, SEARCH, LinfThreat(eps=0.1), fits=(0, 1, 2), n_init=2)
    named = poison(task, SEARCH, LinfThreat(eps=0.1), fits=(0, 1, 2), n_init=2, reference_labels=labels)
    for found in (handed, named):
        for refits in (found.clean, found.poisoned, found.control):
            assert refits.flip.shape == refits.accuracy.shape == (3, 90)
            assert refits.shift.shape == (3,)
            assert set(refits.flip.unique().tolist()) <= {0.0, 1.0}
            kept = refits.flip == 0  # same cluster, same name
            right = (task.names.hungarian[task.cluster_of] == task.truth).expand(3, -1)
            assert torch.equal(refits.accuracy[kept] == 1, right[kept])
    assert torch.equal(handed.clean.accuracy, named.clean.accuracy)
    assert len(handed.rows) == 12
    other = poison(task, SEARCH, LinfThreat(eps=0.1), fits=(0,), n_init=2, reference_labels=(labels + 1) % 3)
    assert other.clean.mean_sd("accuracy")[0] < 0.1 < 0.9 < named.clean.mean_sd("accuracy")[0]

    unnamed, _ = toy(2, named=False)
    found = poison(unnamed, SEARCH, LinfThreat(eps=0.1), fits=(0,), n_init=2)
    assert found.poisoned.accuracy is None
    assert torch.equal(found.poisoned.flip, handed.poisoned.flip[:1])
    with pytest.raises(InvalidArgument, match="measure"):
        found.poisoned.mean_sd("accuracy")


def test_mean_and_sd_over_seeds_by_hand() -> None:
    refits = Refits(
        flip=torch.tensor([[1.0, 0.0], [1.0, 1.0]]), accuracy=None, shift=torch.tensor([2.0, 4.0])
    )
    assert refits.mean_sd("flip") == (0.75, pytest.approx(0.5 / 2**0.5))
    assert refits.mean_sd("shift") == (3.0, pytest.approx(2**0.5))
    assert replace(refits, flip=refits.flip[:1]).mean_sd("flip") == (0.5, 0.0)


def test_the_encoder_is_left_without_a_trace() -> None:
    task, _ = toy(3)
    task.encoder.train()
    state = torch.get_rng_state()
    poison(task, SEARCH, LinfThreat(eps=0.1), fits=(0,), n_init=1)
    assert task.encoder.training
    assert task.encoder.w.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input() -> None:
    task, labels = toy(0)
    for bad in ({"share": -0.1}, {"share": 1.1}, {"fits": ()}, {"reference_labels": labels[:5]}):
        with pytest.raises(InvalidArgument, match=next(iter(bad))):
            poison(task, SEARCH, LinfThreat(eps=0.1), **bad)
    for missing in ("references", "member_of"):
        with pytest.raises(InvalidArgument, match="references and member_of"):
            poison(replace(task, **{missing: None}), SEARCH, LinfThreat(eps=0.1))
