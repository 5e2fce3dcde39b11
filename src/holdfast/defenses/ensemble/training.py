"""Ensemble adversarial training (EAT) for clustering-based inference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...adversaries.logits import divergence
from ...errors import InvalidArgument
from ...losses import LearnedProxies, ProxyAnchor
from ...search import PGD, frozen
from ...threat import L2Threat, LinfThreat
from ...types import Context, Members, Step
from ..ramp import check_ramp, ramped, weakened
from .diversity import ResidualDiversity
from .statistics import Split, TransferStatistics, check_split, check_weights, split_weights
from .view import Diversity, EnsembleView

GRADIENTS_EVERY = 50
"""Steps between measurements of the members' input gradients."""
CLEAN, JOINT = -1, -2
"""Names of the clean images and of the examples made on all members, beside the members' numbers."""


@dataclass(frozen=True, kw_only=True)
class EnsembleTraining:
    """Train all members of an ensemble together, each on its own, on others' and on joint adversarial images.

    With proxy-anchor loss PAL, proxies of its own and weights w_m of the samples, member m minimises

    ``clean * PAL_m(x; w_m) + own * PAL_m(x_m; w_m) + transfer * sum_{n != m} pi_{m,n} PAL_m(x_n) + joint *
    PAL_m(x_E)``,

    where x_n is made to raise PAL_n, x_E to raise the mean of all, and pi favours the members whose examples
    fool member m most (:meth:`~holdfast.defenses.ensemble.TransferStatistics.mixture`): every member is
    updated with statistics of the whole ensemble. A term that makes the members vulnerable in different
    directions is added. One set of examples serves all members, and one step updates all of them.

    Attributes
    ----------
    search, threat
        How examples are made, and the allowed set. All searches of a batch begin at one random point if
        the search has a random start.
    loss
        Constants of the proxy-anchor loss.
    split, rho
        Which samples a member sees; see :func:`~holdfast.defenses.ensemble.split_weights`. The transferred
        and joint terms see all samples with weight 1.
    clean, own, transfer, joint
        Weights of the four terms, >= 0. With ``own = transfer = joint = 0`` there is no adversary.
    diverse, diversity
        Weight and kind of the diversity term.
    distil
        Weight of ``KL(mean softmax of all members on their own examples || softmax of member m)``, which
        pulls members together; off by default.
    temperature, momentum
        Of pi, > 0, and of the moving averages behind it, in [0, 1).
    ramp
        Share of training, in [0, 1], over which the radius grows from 0.
    peers
        Draw so many others for each member and batch, by pi, instead of the mixture; ``None`` takes all.
    joint_every
        Make joint examples every so many steps; in the others their term is left out.
    shared_proxies
        All members use one set of proxies, so that their embeddings mean the same.
    pool
        ``None``: others' adversarial examples are transferred. Otherwise something like
        :class:`~holdfast.defenses.ensemble.Distilled` that makes examples on a member instead.

    Notes
    -----
    A design of Holdfast: of the paper only the abstract and the start of the introduction could be read. It
    satisfies every statement there (ensemble learning with adversarial training, diversity of the members,
    self-transferring of robustness statistics), but formulas, constants and numbers are ours. The term named
    "L" in our specification is the mean over members; here it is their sum, so that a member is updated as
    it would be alone and ``own = 1`` with all else 0 gives M independent runs exactly.

    One member is trained alone: no folds, and the weight of the transferred term goes to its own.

    References
    ----------
    Ke, *Towards Adversarially Robust Deep Metric Learning*, arXiv:2501.01025. Not the *Ensemble Adversarial
    Training* of Tramèr et al. (ICLR 2018), which is :class:`~holdfast.defenses.StaticSources`.
    """

    search: PGD
    threat: LinfThreat | L2Threat
    loss: ProxyAnchor = field(default_factory=ProxyAnchor)
    split: Split = "fold"
    rho: float = 0.0
    clean: float = 1.0
    own: float = 0.5
    transfer: float = 0.5
    joint: float = 0.5
    diverse: float = 0.5
    diversity: Diversity = field(default_factory=ResidualDiversity)
    distil: float = 0.0
    temperature: float = 0.1
    momentum: float = 0.9
    ramp: float = 0.3
    peers: int | None = None
    joint_every: int = 1
    shared_proxies: bool = False
    pool: Any = None

    def __post_init__(self) -> None:
        check_split(self.split, self.rho)
        names = ("clean", "own", "transfer", "joint", "diverse", "distil")
        check_weights([(name, getattr(self, name)) for name in names])
        if not self.clean + self.own + self.transfer + self.joint > 0:
            raise InvalidArgument("clean, own, transfer, joint", "at least one above 0", (0, 0, 0, 0))
        if not isinstance(self.loss, ProxyAnchor):
            raise InvalidArgument("loss", "a ProxyAnchor loss, whose proxies the statistics read", self.loss)
        if not 0 < self.temperature < float("inf"):
            raise InvalidArgument("temperature", "a finite number > 0", self.temperature)
        if not 0 <= self.momentum < 1:
            raise InvalidArgument("momentum", "a number in [0, 1)", self.momentum)
        check_ramp(self.ramp)
        for name in ("peers", "joint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidArgument(name, "an integer >= 1", value)

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return the proxies of every member, and the statistics.

        Raises
        ------
        InvalidArgument
            If the encoder has no members, or members of different widths shall share proxies.
        """
        if not hasattr(encoder, "widths"):
            raise InvalidArgument(
                "encoder", "an ensemble (Ensemble or Heads) for ensemble training", type(encoder).__name__
            )
        widths, classes = cast(Members, encoder).widths, int(y.max()) + 1
        if self.shared_proxies and len(set(widths)) > 1:
            raise InvalidArgument("shared_proxies", "members of one embedding width", widths)
        sets = widths[:1] if self.shared_proxies else widths
        proxies = [self.loss.setup(width, classes) for width in sets]
        weights = split_weights(y, len(widths), self.split, self.rho)
        return nn.ModuleDict(
            {"proxies": nn.ModuleList(proxies), "statistics": TransferStatistics(weights).to(y.device)}
        )

    def passes(self, members: int) -> int:
        """Return forward-and-backward passes of members for one batch with every term, per image.

        ``M T`` for the members' own attacks, as many for the joint one (every ``joint_every``-th batch), and
        ``M (M + 2)`` for the update; one member costs ``T + 2``.
        """
        steps = self.search.steps
        if members == 1:
            return steps + 2
        return 2 * members * steps + members * (members + 2)

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the one loss of the batch."""
        yield _Batch(self.at(ctx), ctx).step()

    def at(self, ctx: Context) -> EnsembleTraining:
        """Return the defense as it is at a moment: ramped and eased, and without peers if M = 1."""
        now = weakened(self, ramped(self.ramp, ctx.progress) * ctx.signal.get("ease", 1.0))
        if len(cast(Members, ctx.bare)) == 1:
            now = replace(now, own=self.own + self.transfer, transfer=0.0, joint=0.0, diverse=0.0, distil=0.0)
        return now


class _Batch:
    """One batch: its examples, the members' embeddings of them, and the loss."""

    def __init__(self, defense: EnsembleTraining, ctx: Context) -> None:
        self.d, self.ctx = defense, ctx
        self.bare = cast(Members, ctx.bare)
        self.members = range(len(self.bare))
        sets = cast(nn.ModuleList, ctx.learnable["proxies"])
        self.proxies = [cast(LearnedProxies, sets[m % len(sets)]) for m in self.members]
        self.statistics = cast(TransferStatistics, ctx.learnable["statistics"])
        start = defense.search.random_start
        self.start = defense.threat.noise(ctx.x, ctx.generator) if start else None

    def step(self) -> Step:
        d = self.d
        pi = self.statistics.mixture(d.temperature)
        peers = self._peers(pi)
        images = self._examples(peers)
        z = self._embed(images, peers)
        weights = self.statistics.weights[:, self.ctx.index.to(self.statistics.weights.device)]
        each = [self._member_loss(m, z[m], weights[m], peers[m]) for m in self.members]
        total = torch.stack(each).sum()
        logs = {f"loss.{m}": float(loss.detach()) for m, loss in enumerate(each)}
        if d.diverse:
            term = d.diversity(self._view(images, z))
            total = total + len(self.members) * d.diverse * term
            logs["diversity"] = float(term.detach())
        if d.distil:
            total = total + d.distil * self._distillation(z)
        self._remember(z)
        logs["disagreement"] = self._disagreement(z)
        logs |= {"loss": float(total.detach()) / len(self.members), **self.statistics.logs()}
        if self.ctx.progress.step % GRADIENTS_EVERY == 0:
            logs |= self._gradients()
        return Step(total, logs)

    def _peers(self, pi: Tensor) -> list[dict[int, float]]:
        """Return for each member whose examples it learns from, and with which weight."""
        if not self.d.transfer:
            return [{} for _ in self.members]
        count, others = self.d.peers, len(self.members) - 1
        if count is None or count >= others:
            return [{n: float(pi[m, n]) for n in self.members if n != m} for m in self.members]
        drawn = torch.multinomial(pi.cpu(), count, generator=self.ctx.generator).tolist()
        return [dict.fromkeys(row, 1.0 / count) for row in drawn]

    def _examples(self, peers: Sequence[dict[int, float]]) -> dict[int, Tensor]:
        """Return the images of the batch by name: clean, made on each member, made on all."""
        d, ctx = self.d, self.ctx
        images = {CLEAN: ctx.x}
        needed = d.own or d.diverse or d.distil or (d.transfer and d.pool is None)
        for n in self.members if needed else ():
            images[n] = self._search(self.bare.member(n), lambda z, n=n: self._pal(n, z).mean()[None])
        if d.joint and ctx.progress.step % d.joint_every == 0:
            images[JOINT] = self._search(self.ctx.bare, self._joint_gain)
        if d.pool is not None and d.transfer:
            sources = d.pool.sources(ctx.x, ctx.generator)  # one pairing for all, as published
            for n in sorted({n for row in peers for n in row}):
                images[self._transferred(n)] = d.pool(self.bare.member(n), ctx.x, sources=sources)
        return images

    def _search(self, encoder: nn.Module, objective: Any) -> Tensor:
        more = {} if self.start is None else {"start": self.start}
        return self.d.search(encoder, self.ctx.x, objective, self.d.threat, self.ctx.generator, **more)

    def _pal(self, m: int, z: Tensor, weights: Tensor | None = None) -> Tensor:
        value: Tensor = self.proxies[m](z, self.ctx.y, self.ctx.distance, weights)
        return value

    def _joint_gain(self, z: Tensor) -> Tensor:
        parts = [self._pal(m, part).mean() for m, part in enumerate(self.bare.split(z))]
        return torch.stack(parts).mean()[None]

    def _transferred(self, n: int) -> int:
        """Return the name of the images that others learn from for member n."""
        return n if self.d.pool is None else len(self.members) + n

    def _embed(self, images: dict[int, Tensor], peers: Sequence[dict[int, float]]) -> list[dict[int, Tensor]]:
        """Return each member's embeddings by the name of the images.

        One forward pass of the whole ensemble where every member needs all of them; else each member alone.
        """
        wanted = []
        for m in self.members:
            names = [CLEAN, m, JOINT, *(self._transferred(n) for n in peers[m])]
            wanted.append([name for name in images if name in names])
        if all(len(names) == len(images) for names in wanted):
            joint = self.ctx.encoder(torch.cat(list(images.values())))
            parts = [part.chunk(len(images)) for part in self.bare.split(joint)]
            return [dict(zip(images, part, strict=True)) for part in parts]
        found = []
        for m, names in enumerate(wanted):
            z = self.bare.member(m)(torch.cat([images[name] for name in names]))
            found.append(dict(zip(names, z.chunk(len(names)), strict=True)))
        return found

    def _member_loss(self, m: int, z: dict[int, Tensor], weights: Tensor, peers: dict[int, float]) -> Tensor:
        d = self.d
        total = self._pal(m, z[CLEAN], weights).mean() * d.clean if d.clean else z[CLEAN].sum() * 0
        if d.own:
            total = total + d.own * self._pal(m, z[m], weights).mean()
        for n, share in peers.items():
            total = total + d.transfer * share * self._pal(m, z[self._transferred(n)]).mean()
        if JOINT in z:
            total = total + d.joint * self._pal(m, z[JOINT]).mean()
        return total

    def _view(self, images: dict[int, Tensor], z: list[dict[int, Tensor]]) -> EnsembleView:
        return EnsembleView(
            encoder=self.ctx.bare,
            proxies=tuple(self.proxies),
            x=self.ctx.x,
            y=self.ctx.y,
            attacked=tuple(images[m] for m in self.members),
            z=tuple(z[m][CLEAN] for m in self.members),
            z_attacked=tuple(z[m][m] for m in self.members),
            generator=self.ctx.generator,
        )

    def _distillation(self, z: list[dict[int, Tensor]]) -> Tensor:
        logits = [self.proxies[m].logits(z[m][m]) for m in self.members]
        together = torch.stack([own.detach().softmax(1) for own in logits]).mean(0).log()
        return torch.stack([divergence(together, own).mean() for own in logits]).sum()

    def _remember(self, z: list[dict[int, Tensor]]) -> None:
        """Let the statistics see who was fooled."""
        y, wrong = self.ctx.y, dict[tuple[int, int], Tensor]()
        for m in self.members:
            for n in self.members:
                if n in z[m]:
                    wrong[n, m] = self.proxies[m].logits(z[m][n].detach()).argmax(1) != y
        joint = None
        if all(JOINT in part for part in z):
            votes = torch.stack([self.proxies[m].logits(z[m][JOINT].detach()) for m in self.members])
            joint = votes.mean(0).argmax(1) != y
        self.statistics.see(wrong, joint, self.d.momentum)

    def _disagreement(self, z: list[dict[int, Tensor]]) -> float:
        """Return the share of clean images that not all members put nearest to the same class's proxy."""
        given = torch.stack([self.proxies[m].logits(z[m][CLEAN].detach()).argmax(1) for m in self.members])
        return float((given != given[0]).any(0).float().mean())

    def _gradients(self) -> dict[str, float]:
        """Return the mean length of the members' input gradients of their own loss on clean images."""
        found = {}
        for m in self.members:
            member = self.bare.member(m)
            with frozen(member), torch.enable_grad():
                x = self.ctx.x.detach().requires_grad_(True)
                (grad,) = torch.autograd.grad(self._pal(m, member(x)).sum(), x)
            found[f"gradient.{m}"] = float(grad.flatten(1).norm(dim=1).mean())
        return found
