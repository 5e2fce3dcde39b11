"""Would an attack without gradients find more? R16 to R19."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attacks import HardLabel, hits
from ...functional.ranking import without_self
from ...rng import Randomness, normal
from ...search import Square
from ...search.rules import unit_length
from ...types import RetrievalTask, Search
from ..cluster_worst import HardLabelQueries
from .compare import LEVEL, beats, share
from .examination import Examination
from .finding import Finding
from .material import SQUARE, Attacked
from .texts import at_most, found, percent, skipped

QUICK_PASSES = 50
BLOCK = 512
TOP = 10


def missed(e: Examination) -> Tensor:
    """Return the queries of the sample that hold, as far as the score knows: (k,) numbers."""
    return torch.nonzero(~e.scored).squeeze(1)


def random_noise(e: Examination) -> Finding:
    """R16: noise alone against the queries that the attack missed, half of it on the surface of the ball.

    At quick the number of noises is cut to about 50 passes for each query of the sample.
    """
    left = missed(e)
    if not len(left):
        return found("R16", "pass", 0.0, "the attack missed no query")
    draws = e.effort.noises
    if e.level == "quick":
        draws = min(draws, max(20, QUICK_PASSES * len(e.part) // len(left)))
    part = e.part.rows(left)
    inner, outer = e.streams("noise", part), e.streams("edge", part)
    broken = torch.zeros(len(left), dtype=torch.bool, device=e.device)
    done = 0
    while done < draws and not bool(broken.all()) and not (done and e.late()):
        able = torch.nonzero(~broken).squeeze(1)
        times = max(1, min(BLOCK // len(able), (draws - done + 1) // 2))
        block = part.rows(able.repeat(times))
        near = e.near(block)
        inside = near.noise(block.x, inner.rows(able.cpu()))
        far = near.direction(normal(block.x, outer.rows(able.cpu()))) * unit_length(near)
        hit = e.broken(inside, block) | e.broken(near.project(block.x + far, block.x), block)
        broken[able] = hit.reshape(times, -1).any(0)
        done += 2 * times
    value = e.added("noise", left, broken)
    detail = f"{done} noises broke {int(broken.sum())} of {len(left)} queries that the attack missed"
    return found("R16", at_most(value, 0.0, 0.01), value, detail)


def black_box(e: Examination) -> Finding:
    """R17: Square on the primary gain, against the queries that the attack missed."""
    return _adds(e, "R17", SQUARE, e.attack)


@dataclass(frozen=True, kw_only=True)
class ListOnly:
    """An attack that sees nothing but the classes of the first ``k`` results.

    Attributes
    ----------
    k
        Length of the list, >= 1.
    """

    k: int = TOP

    def target(self, task: RetrievalTask, generator: Randomness = None) -> None:
        """Nothing is chosen."""
        return

    def gain(self, z: Tensor, target: None, task: RetrievalTask) -> Tensor:
        """Return minus the share of the query's class in the list, early places weighing more: (n,).

        The gain is constant wherever the list is, and 0 or more where the first place is lost.
        """
        d = without_self(task.distance.matrix(z, task.gallery.z), task.self_index)
        k = min(self.k, d.shape[1])
        rows = d.topk(k, dim=1, largest=False).indices
        own = (task.gallery.y[rows] == task.y[:, None]).to(z.dtype)
        weight = 1 / torch.arange(1, k + 1, dtype=z.dtype, device=z.device)
        worth = (own * weight).sum(1) / weight.sum()
        return torch.where(hits(z, task) > 0, -1 - worth, -worth.clamp_max(0))

    def measure(self, z: Tensor, target: None, task: RetrievalTask) -> dict[str, Tensor]:
        """Return ``recall@1`` (n,)."""
        return {"recall@1": hits(z, task)}


def top_k_only(e: Examination) -> Finding:
    """R18: Square on the list alone; among clusters rays or squares on the number of the cluster alone."""
    if e.clusters is None:
        return _adds(e, "R18", "list", ListOnly())
    return _adds(e, "R18", "label", HardLabel(), HardLabelQueries(queries=e.effort.calls))


def _adds(e: Examination, name: str, label: str, attack: Any, search: Search | None = None) -> Finding:
    left = missed(e)
    if not len(left):
        return found(name, "pass", 0.0, "the attack missed no query")
    search = search or Square(queries=e.effort.calls, stop_at=0.0)
    hit = e.strike(e.part.rows(left), label, search=search, attack=attack)
    value = e.added(label, left, hit.success)
    detail = (
        f"{e.effort.calls} queries to the encoder break {int(hit.success.sum())} of {len(left)} images that "
        f"the attack missed, {percent(value)} of the sample"
    )
    return found(name, at_most(value, 0.002, 0.01), value, detail)


def transfer(e: Examination) -> Finding:
    """R19: the primary attack on other models, measured on this one.

    An ensemble's own members are among them.
    """
    models = dict(e.surrogates)
    if e.twin is not None:
        models = {"twin": e.twin, **models}
    models |= {f"member {number + 1}": member for number, member in enumerate(e.parts)}
    if not models:
        return skipped("R19", "hand in twin (the undefended one) or surrogates")
    worst, told = "pass", []
    total = torch.zeros_like(e.primary.success)
    for label, model in models.items():
        hit = transferred(e, label, model)
        success = e.broken(hit.x, e.part)
        e.found[f"transfer {label}"] = success
        total |= success
        told.append(f"{label} {percent(share(success))}")
        if beats(success, e.scored) < LEVEL:
            worst = "fail"
    value = share(total & ~e.scored)
    status = "fail" if worst == "fail" else at_most(value, 0.005, 0.01)
    detail = (
        f"white-box {percent(share(e.primary.success))}; transferred from {', '.join(told)}; they add "
        f"{percent(value)}"
    )
    return found("R19", status, value, detail)


def transferred(e: Examination, label: str, model: Any) -> Attacked:
    """Attack the sample on another model, as that model sees queries and gallery."""
    return e.strike(e.under(model, e.part), f"transfer {label}")
