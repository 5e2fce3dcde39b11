"""Train on adversarial examples of encoders that stand still (the first Ensemble Adversarial Training)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...adversaries import LossClimb
from ...adversaries.logits import proxies_of
from ...encoders import load
from ...errors import InvalidArgument
from ...search import Transfer, frozen
from ...types import Context, Objective, PairwiseDistance, Step
from ..learnt import learnable_parts
from .terms import CleanLoss
from .training import ProxyTraining


def class_margin(z: Tensor, y: Tensor, distance: PairwiseDistance) -> Objective:
    """Return the gain ``d(., own class mean) - d(., nearest other class mean)``, (n, e) -> (n,).

    Parameters
    ----------
    z, y
        (n, e) clean embeddings and (n,) labels, whose class means count. In a batch of one class there is no
        other mean, and the distance to the own one is all.
    distance
        Between embeddings and means.
    """
    labels, own = torch.unique(y, return_inverse=True)
    members = nn.functional.one_hot(own, len(labels)).to(z)  # (n, c)
    means = (members / members.sum(0)).T @ z  # (c, e)

    def gain(moved: Tensor) -> Tensor:
        d = distance.matrix(moved, means)
        away = d.gather(1, own[:, None])[:, 0]
        if len(labels) == 1:
            return away
        return away - d.masked_fill(members.bool(), math.inf).amin(1)

    return gain


@dataclass(frozen=True, kw_only=True)
class StaticSources:
    """Attack each batch on one encoder, drawn among trained ones that stand still and the one in training.

    The loss is ``PAL(x') + clean * PAL(x)``.

    Attributes
    ----------
    loss
        A loss with proxies.
    search, threat
        How examples are made, and the allowed set.
    sources
        Files of trained encoders (:func:`holdfast.encoders.save`) or run folders, at least one; for
        images of the same shape, of any architecture and embedding width.
    clean
        Weight of the clean images, >= 0; 1 as in the released code, which takes the mean of both losses.
    ramp
        As in :class:`~holdfast.defenses.ProxyTraining`.

    Notes
    -----
    On a source the search climbs the distance to the mean of the image's class minus that to the nearest
    mean of another class, all embedded by the source: the means are those of the clean batch, so that the
    source needs no proxies. This gain, the proxy-anchor loss and a search of several steps where the paper
    takes one are our adaptation. The encoder in training is attacked by its own loss.

    The sources are not trained. They are part of the checkpoint, so that a run goes on with the sources it
    began with.

    References
    ----------
    Tramèr et al., *Ensemble Adversarial Training: Attacks and Defenses*, ICLR 2018, section 3.4. Not the
    method of Ke (arXiv:2501.01025), which trains all its members together:
    :class:`~holdfast.defenses.EnsembleTraining`.
    """

    loss: Any
    search: Any
    threat: Any
    sources: tuple[str, ...] = ()
    clean: float = 1.0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.sources, tuple) or not all(isinstance(path, str) for path in self.sources):
            raise InvalidArgument("sources", "a tuple of paths", self.sources)
        if not 0 <= self.clean < math.inf:
            raise InvalidArgument("clean", "a finite number >= 0", self.clean)
        self._training()

    def _training(self) -> ProxyTraining:
        return ProxyTraining(
            loss=self.loss, adversary=LossClimb(loss=self.loss), search=self.search, threat=self.threat,
            extra=(CleanLoss(weight=self.clean),) if self.clean else (), ramp=self.ramp,
        )  # fmt: skip

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return the proxies and the sources.

        Raises
        ------
        InvalidArgument
            If there are no sources, or one is for images of another shape.
        RunError, CorruptFile
            If a file is missing or holds no encoder.
        """
        if not self.sources:
            need = (
                "files of trained encoders or run folders, for example "
                '--set \'defense.sources=["runs/proxy", "runs/proxy-at"]\''
            )
            raise InvalidArgument("defense.sources", need, self.sources)
        loaded = []
        for name in self.sources:
            path = Path(name)
            source = load(path / "encoder.safetensors" if path.is_dir() else path)
            wanted = getattr(encoder, "shape", source.shape)
            if source.shape != wanted:
                raise InvalidArgument(
                    "defense.sources", f"encoders of images {wanted}", f"{name}: {source.shape}"
                )
            loaded.append(source.eval().requires_grad_(False).to(y.device))
        return nn.ModuleDict({**learnable_parts(self.loss, encoder, y), "sources": nn.ModuleList(loaded)})

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the one loss of the batch; the log's ``source`` is the drawn one, -1 the encoder itself."""
        sources = ctx.learnable["sources"]
        assert isinstance(sources, nn.ModuleList)
        drawn = int(torch.randint(len(sources) + 1, (1,), generator=ctx.generator)) - 1
        now = self._training().at(ctx.progress, ctx.signal.get("ease", 1.0))
        if drawn >= 0:
            source = sources[drawn]
            with frozen(source), torch.no_grad():
                gain = class_margin(source(ctx.x), ctx.y, ctx.distance)
            now = replace(now, search=Transfer(source, now.search, gain))
        step = now._row_step(ctx, proxies_of(ctx))
        yield Step(step.loss, {**step.logs, "source": float(drawn)})
