"""Transfer to clustering-based inference: images made on other encoders, measured on the attacked one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import CLUSTER_ATTACKS, Outcome, RankMargin, hits, run
from ..attacks.cluster import cluster_measures
from ..errors import InvalidArgument
from ..search import Precision, frozen
from ..types import ClusterTask, Encoder, Search, Threat
from .cluster_worst import ClusterWorstCase
from .embed import embed, seen_by, under_clusters
from .suite import Entry, Suite
from .worst_case import Stage

LABEL = "A8"


@dataclass(frozen=True, kw_only=True, eq=False)
class Surrogate:
    """Another encoder that sees the same clusters.

    Attributes
    ----------
    name
        Of records and random streams.
    encoder
        Of the same images.
    centroids
        (K, e') the clusters in its space, row k the same cluster as centroid k of the task:
        :func:`~holdfast.evaluation.embed.seen_by`.
    """

    name: str
    encoder: Encoder
    centroids: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferredClusters:
    """Make images on every surrogate with its own gradient, and keep for each query what hurts most (A8).

    A1 is climbed in the space of the surrogate, among its own centroids, and away from the cluster that the
    attacked encoder gives the clean query; the attacked encoder is asked only to measure.

    Attributes
    ----------
    surrogates
        At least one, of different names.

    Notes
    -----
    Our own design (section 2 of the specification).
    """

    surrogates: tuple[Surrogate, ...]

    def __post_init__(self) -> None:
        names = [s.name for s in self.surrogates]
        if not names or len(set(names)) < len(names):
            raise InvalidArgument("surrogates", "at least one, of different names", names)

    def run(
        self,
        task: ClusterTask,
        search: Search,
        threat: Threat,
        *,
        seed: int = 0,
        label: str = LABEL,
        precision: Precision = "fp32",
    ) -> Outcome:
        """Attack every query of a task.

        Returns
        -------
        Outcome
            Measures of clusters: for each query the worst over the surrogates; and ``flip from NAME`` for
            each of them. Images and embeddings are those with the largest margin of A1 on the task.
        """
        margin = RankMargin()
        aim: Any = CLUSTER_ATTACKS["A1"]
        clean = cluster_measures(task.z, task)
        attacked: dict[str, Tensor] = {}
        x, z, best = task.x, task.z, torch.full_like(task.z[:, 0], -torch.inf)
        for s in self.surrogates:
            if len(s.centroids) != len(task.gallery.z):
                need = f"{len(task.gallery.z)} centroids for {s.name}"
                raise InvalidArgument("surrogates", need, len(s.centroids))
            seen = under_clusters(task, s.encoder, len(task), centroids=s.centroids)
            made = run(
                seen, aim, search, threat,
                seed=seed, label=f"{label} {s.name}", batch_size=len(task), precision=precision,
            ).x  # fmt: skip
            with frozen(task.encoder), torch.no_grad():
                found = task.encoder(made)
            value = margin.gain(found, None, task)
            worse = value > best
            best = torch.where(worse, value, best)
            x = torch.where(worse.reshape(-1, *[1] * (x.ndim - 1)), made, x)
            z = torch.where(worse[:, None], found, z)
            measures = cluster_measures(found, task)
            attacked[f"flip from {s.name}"] = measures["flip"]
            clean[f"flip from {s.name}"] = clean["flip"]
            for metric, values in measures.items():
                pick = torch.maximum if metric == "flip" else torch.minimum
                attacked[metric] = pick(attacked[metric], values) if metric in attacked else values
        return Outcome(x=x, z=z, clean=clean, attacked={metric: attacked[metric] for metric in clean})


def transfer_matrix(
    task: ClusterTask, search: Search, threat: Threat, *, seed: int = 0, batch_size: int = 128
) -> Tensor:
    """Return how well the members' adversarial examples transfer to each other.

    Parameters
    ----------
    task
        Of an ensemble of at least two members; its references are embedded by every member.
    search, threat, seed, batch_size
        As for :func:`holdfast.attacks.run`.

    Returns
    -------
    Tensor
        (M, M): entry (n, m) is the share of queries whose image, made on member n (A1, in its own space),
        leaves its cluster for member m, in [0, 1]; the diagonal holds the white-box shares. Of the queries
        that either member puts elsewhere when clean, none counts.

    Raises
    ------
    InvalidArgument
        If the encoder has no members.
    """
    members = members_of(task.encoder)
    if not members:
        raise InvalidArgument("task", "the task of an ensemble of at least two members", task.encoder)
    seen = [under_clusters(task, member) for member in members]
    kept = torch.stack([hits(one.z, one) > 0 for one in seen])  # (M, n)
    aim: Any = CLUSTER_ATTACKS["A1"]
    rates = torch.zeros(len(members), len(members))
    for n, own in enumerate(seen):
        label = f"transfer {n}"
        x = run(own, aim, search, threat, seed=seed, label=label, batch_size=batch_size).x
        for m, other in enumerate(seen):
            able = kept[n] & kept[m]
            gone = hits(embed(members[m], x), other) == 0
            rates[n, m] = (gone & able).sum() / able.sum().clamp_min(1)
    return rates


def with_transfer(suite: Suite, task: ClusterTask, others: Mapping[str, Encoder]) -> Suite:
    """Return a suite on clusters with A8 from other encoders: the last entry, or the last stage.

    Parameters
    ----------
    suite
        Without other encoders, or without attacks, it is returned as it is. A suite that is one staged worst
        case gets A8 as its last stage; any other an entry with the measures of its first, and the flips from
        each surrogate.
    task
        Its references are embedded by every other encoder.
    others
        By name; see :func:`other_encoders`.

    Raises
    ------
    InvalidArgument
        If the task does not know the images behind its centroids.
    """
    if not others or not suite.entries:
        return suite
    attack = TransferredClusters(
        surrogates=tuple(
            Surrogate(name=name, encoder=e, centroids=seen_by(task, e)) for name, e in others.items()
        )
    )
    first = suite.entries[0]
    if isinstance(first.attack, ClusterWorstCase):
        stages = (*first.attack.cases.stages, Stage(label=LABEL, attack=attack))
        cases = replace(first.attack.cases, stages=stages)
        return replace(suite, entries=(replace(first, attack=replace(first.attack, cases=cases)),))
    flips = {f"flip from {name}": False for name in others}
    entry = Entry(label=LABEL, attack=attack, higher_is_robust={**first.higher_is_robust, **flips})
    return replace(suite, entries=(*suite.entries, entry))


def other_encoders(
    encoder: Encoder | None, twin: Encoder | None = None, surrogates: Mapping[str, Encoder] | None = None
) -> dict[str, Encoder]:
    """Return by name the encoders that A8 transfers from.

    The undefended ``twin``, the given ``surrogates``, and of an ensemble (an encoder with ``len`` and a
    method ``member``) every member and the ensemble without each of them; of two members the latter are the
    members again and left out. Without an ``encoder`` only what was given.
    """
    found: dict[str, Encoder] = {} if twin is None else {"twin": twin}
    found |= surrogates or {}
    members = members_of(encoder)
    found |= {f"member {m + 1}": member for m, member in enumerate(members)}
    if len(members) > 2:
        whole: Any = encoder
        found |= {f"without member {m + 1}": whole.without(m) for m in range(len(members))}
    return found


def members_of(encoder: Encoder | None) -> list[Encoder]:
    """Return the members of an ensemble of at least two, in order; nothing for any other encoder."""
    whole: Any = encoder
    if not (hasattr(whole, "member") and hasattr(whole, "split")) or len(whole) < 2:
        return []
    return [whole.member(m) for m in range(len(whole))]


def digest(encoder: Encoder) -> str:
    """Return the hash of an encoder's weights; of a callable that is no module, of its name."""
    told = hashlib.sha256(type(encoder).__name__.encode())
    if isinstance(encoder, nn.Module):
        for name, values in encoder.state_dict().items():
            told.update(name.encode())
            told.update(values.detach().cpu().contiguous().numpy().tobytes())
    else:
        told.update(getattr(encoder, "__qualname__", "").encode())
    return told.hexdigest()
