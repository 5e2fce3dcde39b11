"""Poison the references that clusters are fitted on, so that clean queries change cluster (G1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.clustering import assign, hungarian, kmeans, spherical_kmeans
from ..functional.ranking import chunks
from ..rng import Randomness, RowStreams, stream
from ..search import frozen
from ..types import Attack, ClusterTask, Encoder, Gallery, Images, Search, Threat
from .cluster import cluster_measures
from .run import run


@dataclass(frozen=True, kw_only=True)
class PoisonTask(ClusterTask):
    """References to be poisoned, as queries of a cluster task: ``cluster_of`` are their clusters.

    Attributes
    ----------
    victims
        Clean queries: embeddings (v, e) and the clusters (v,) that they belong to.
    shares
        (K,) share of the references of every cluster that is poisoned, in [0, 1].
    """

    victims: Gallery
    shares: Tensor


@dataclass(frozen=True, kw_only=True)
class GalleryPoisoning:
    """Move a centroid so that victims lose their cluster (G1).

    Every reference climbs as though all poisoned references of its cluster k, a share rho of it, moved
    by the same vector. After one step of k-means with the old assignments the centroid then stands at
    ``mu_k + rho (z' - z)``, and the gain is the mean over the victims of ``d(v, own centroid) - d(v,
    nearest other centroid)`` with that one centroid moved.

    Notes
    -----
    This library's own design: rows do not see each other, so that the result does not depend on the
    batch. With one cluster there is nothing to climb and the gain is -1.
    """

    def target(self, task: ClusterTask, generator: Randomness = None) -> None:
        """Nothing is chosen; :func:`poison` draws the rows."""
        return

    def gain(self, z: Tensor, target: None, task: ClusterTask) -> Tensor:
        """Return the mean margin of the victims, in units of the distance: (n,).

        Raises
        ------
        InvalidArgument
            If the task is no :class:`PoisonTask`.
        """
        if not isinstance(task, PoisonTask):
            raise InvalidArgument("task", "a PoisonTask, which knows the victims", type(task).__name__)
        if len(task.gallery.z) < 2:
            return 0 * z.sum(1) - 1
        k, shift = task.cluster_of, task.shares.to(z)[task.cluster_of][:, None] * (z - task.z)
        moved = task.distance.matrix(task.gallery.z[k] + shift, task.victims.z)  # (n, v)
        with torch.no_grad():
            d = task.distance.matrix(task.victims.z, task.gallery.z)  # (v, K)
            own = d.gather(1, task.victims.y[:, None])[:, 0]
            others = d.scatter(1, task.victims.y[:, None], torch.inf)
            near = others.topk(min(2, others.shape[1]), dim=1, largest=False)
            first, last = near.values[:, 0], near.values[:, -1]  # last is infinite where K = 2
            nearest_is_k = near.indices[None, :, 0] == k[:, None]
            still = torch.where(nearest_is_k, last, first)  # without centroid k: (n, v)
        mine = task.victims.y[None, :] == k[:, None]
        margin = torch.where(mine, moved - first, own - torch.minimum(still, moved))
        return margin.mean(1)

    def measure(self, z: Tensor, target: None, task: ClusterTask) -> dict[str, Tensor]:
        """Return :func:`cluster_measures` of the references, which may leave their own cluster."""
        return cluster_measures(z, task)


@dataclass(frozen=True, kw_only=True)
class Refits:
    """What clean victims meet when k-means is run again, by several seeds.

    Attributes
    ----------
    flip
        (f, v) 1 where a victim is in another cluster than before; new clusters are matched one-to-one to
        the old ones by the references they share.
    accuracy
        (f, v) 1 where the name of the new cluster is the victim's class; ``None`` without names.
    shift
        (f,) mean Euclidean distance between the old centroids and the new ones matched to them.
    """

    flip: Tensor
    accuracy: Tensor | None
    shift: Tensor

    def mean_sd(self, measure: str) -> tuple[float, float]:
        """Return mean and standard deviation over the seeds of k-means; the latter is 0 for one seed.

        Parameters
        ----------
        measure
            ``"flip"``, ``"accuracy"`` or ``"shift"``.
        """
        values = getattr(self, measure, None)
        if not isinstance(values, Tensor):
            raise InvalidArgument("measure", "flip, shift or, where there are names, accuracy", measure)
        per_seed = values.double().reshape(len(values), -1).mean(1)
        return float(per_seed.mean()), float(per_seed.std()) if len(per_seed) > 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class Poisoning:
    """What poisoned references did to clean queries.

    Attributes
    ----------
    rows
        (p,) numbers of the poisoned references, ascending.
    x
        (p, c, h, w) their images after the attack, inside the threat.
    clean, poisoned, control
        The victims under k-means on the clean references, with the poisoned ones, and with random noise
        of the same radius on the same rows; all by the same seeds.
    """

    rows: Tensor
    x: Tensor
    clean: Refits
    poisoned: Refits
    control: Refits


def poison(
    task: ClusterTask,
    search: Search,
    threat: Threat,
    *,
    share: float = 0.1,
    seed: int = 0,
    reference_labels: Tensor | None = None,
    fits: tuple[int, ...] = (0, 1, 2, 3, 4),
    n_init: int = 10,
    attack: Attack[ClusterTask, Any] | None = None,
    batch_size: int = 128,
) -> Poisoning:
    """Poison a share of the references, fit the clusters again and see where clean queries go.

    Parameters
    ----------
    task
        The victims and the clusters, with ``references`` and ``member_of``.
    search, threat
        How the images of references are changed, and how far.
    share
        Of the references, in [0, 1]; the rows are drawn without regard to clusters.
    seed
        Of the rows drawn, the random streams of the search and the noise of the control.
    reference_labels
        (m,) classes of the references, -1 where unknown, which name the new clusters one-to-one.
        ``None`` hands on the names of the clusters they are matched to, if the task has any.
    fits, n_init
        Seeds of k-means, at least one, and starts of each.
    attack
        ``None`` is :class:`GalleryPoisoning`.
    batch_size
        Images at a time.

    Raises
    ------
    InvalidArgument
        If the task knows no images behind its centroids, or an argument is out of range.
    """
    if task.references is None or task.member_of is None:
        raise InvalidArgument("task", "references and member_of, the images behind it", "None")
    if not 0 <= share <= 1:
        raise InvalidArgument("share", "a number in [0, 1]", share)
    if not fits:
        raise InvalidArgument("fits", "at least one seed", fits)
    if reference_labels is not None and len(reference_labels) != len(task.references):
        wanted = f"one for each of {len(task.references)} references"
        raise InvalidArgument("reference_labels", wanted, len(reference_labels))
    clean = _embed(task.encoder, task.references, batch_size)
    drawn = torch.randperm(len(clean), generator=stream(seed, "poison", "rows"))
    rows = drawn[: round(share * len(clean))].sort().values.to(clean.device)
    x = task.references[rows]

    def refits(changed: Tensor) -> Refits:
        z = clean.index_put((rows,), changed.to(clean))
        return _refits(task, z, reference_labels, fits, n_init)

    before = refits(clean[rows])
    if not len(rows):
        return Poisoning(rows=rows, x=x, clean=before, poisoned=before, control=before)
    climbed: Any = attack or GalleryPoisoning()
    outcome = run(
        _poison_task(task, clean, rows, x), climbed, search, threat,
        seed=seed, label="G1", batch_size=batch_size,
    )  # fmt: skip
    noisy = threat.noise(x, RowStreams(seed, "poison", "noise", index=rows))
    return Poisoning(
        rows=rows,
        x=outcome.x,
        clean=before,
        poisoned=refits(outcome.z),
        control=refits(_embed(task.encoder, noisy, batch_size)),
    )


def _embed(encoder: Encoder, x: Images, batch_size: int) -> Tensor:
    with frozen(encoder), torch.no_grad():
        return torch.cat([encoder(x[rows]) for rows in chunks(len(x), batch_size)])


def _poison_task(task: ClusterTask, z: Tensor, rows: Tensor, x: Tensor) -> PoisonTask:
    assert task.member_of is not None
    k, member = len(task.gallery.z), task.member_of
    sizes = member.bincount(minlength=k).clamp_min(1)
    unknown = torch.full_like(rows, -1)
    return PoisonTask(
        encoder=task.encoder, x=x, y=member[rows], z=z[rows], gallery=task.gallery, self_index=unknown,
        index=rows, distance=task.distance, cluster_of=member[rows], truth=unknown,
        spherical=task.spherical, victims=Gallery(task.z, task.cluster_of, task.index),
        shares=member[rows].bincount(minlength=k) / sizes,
    )  # fmt: skip


def _refits(
    task: ClusterTask, z: Tensor, labels: Tensor | None, fits: tuple[int, ...], n_init: int
) -> Refits:
    """Fit the references' embeddings (m, e) by every seed and assign the victims."""
    assert task.member_of is not None
    k, fit = len(task.gallery.z), spherical_kmeans if task.spherical else kmeans
    flips, rights, shifts = [], [], []
    for seed in fits:
        centroids, cluster_of = fit(z, k, seed=seed, n_init=n_init)
        old = hungarian(task.member_of, cluster_of, k)  # (K,) the old number of every new cluster
        found = assign(task.z, centroids, task.distance)
        flips.append((old[found] != task.cluster_of).to(z.dtype))
        matched = old >= 0
        shifts.append((centroids - task.gallery.z[old.clamp_min(0)]).norm(dim=1)[matched].mean())
        names = None if task.names is None else task.names.hungarian[old.clamp_min(0)].where(matched, -1)
        names = names if labels is None else hungarian(labels.to(z.device), cluster_of, k)
        if names is not None:
            rights.append(((names[found] == task.truth) & (task.truth >= 0)).to(z.dtype))
    return Refits(
        flip=torch.stack(flips),
        accuracy=torch.stack(rights) if rights else None,
        shift=torch.stack(shifts),
    )
