"""Adversarial weight perturbation: train at the worst weights nearby."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import InvalidArgument
from ...types import Context, Encoder, Objective, Step, Threat
from ..learnt import loss_now
from ..training import AdversarialTraining


@dataclass(frozen=True, kw_only=True)
class WeightPerturbation:
    """Move the encoder's weights to raise the loss of another defense, and step on the loss found there.

    With the attacked images x' of the defense and g_l the gradient of its loss with respect to layer l,
    the loss is taken at ``w_l + gamma * |w_l| * g_l / |g_l|``, and its gradient moves w_l.

    Attributes
    ----------
    part
        Adversarial training with a loss that reads a batch: AT, or TRADES, ALP and MART with proxies.
    gamma
        Size of the move relative to the layer, >= 0; 0.005 in the paper.

    Notes
    -----
    Moved are matrices and kernels, not biases, scales of batch-norm or other vectors, as in the released
    code. The proxies are not moved (ours): clusters at test time do not use them, and it is the encoder that
    shall be flat. The images are searched once, at the unmoved weights. Nothing is written to the
    encoder: the moved weights stand in a functional call, and statistics of batch-norm see the second pass
    only. One batch costs two forward passes and one backward pass more than the defense inside.

    ``loss`` in the log is that of the moved weights, ``unmoved_loss`` that of the weights as they are.

    References
    ----------
    Wu, Xia and Wang, *Adversarial Weight Perturbation Helps Robust Generalization*, NeurIPS 2020,
    with one step of the inner maximisation.
    """

    part: AdversarialTraining
    gamma: float = 0.005

    def __post_init__(self) -> None:
        if not isinstance(self.part, AdversarialTraining) or self.part.adversary is None:
            raise InvalidArgument("part", "AdversarialTraining with an adversary", self.part)
        if self.part.miner is not None:
            raise InvalidArgument("part", "a loss that reads a batch, and no miner", self.part.miner)
        if not 0 <= self.gamma < math.inf:
            raise InvalidArgument("gamma", "a finite number >= 0", self.gamma)

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return the learnable parts of the defense inside."""
        return self.part.setup(encoder, y)

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the one loss of the batch, at the moved weights."""
        now = self.part.at(ctx.progress, ctx.signal.get("ease", 1.0))
        now = replace(now, search=_Once(now.search))
        loss = loss_now(now.loss, ctx)
        aside = {name: buffer.clone() for name, buffer in ctx.encoder.named_buffers()}
        first = now._row_step(replace(ctx, encoder=_Elsewhere(ctx.encoder, aside)), loss)
        moved = self._moved(ctx.encoder, first.loss)
        second = replace(now, monitor=None)._row_step(
            replace(ctx, encoder=_Elsewhere(ctx.encoder, moved)), loss
        )
        yield Step(second.loss, {**first.logs, **second.logs, "unmoved_loss": first.logs["loss"]})

    def _moved(self, encoder: nn.Module, loss: Tensor) -> dict[str, Tensor]:
        """Return the moved weights, whose gradient is that of the weights."""
        weights = {n: w for n, w in encoder.named_parameters() if w.ndim > 1 and w.requires_grad}
        grads: tuple[Tensor | None, ...] = torch.autograd.grad(
            loss, list(weights.values()), allow_unused=True
        )
        moved = {}
        for (name, weight), grad in zip(weights.items(), grads, strict=True):
            if grad is None:
                continue
            length = grad.norm()
            if not bool(length.isfinite()):
                raise InvalidArgument("weights", "a finite gradient", f"NaN or infinity in {name}")
            if length > 0:
                moved[name] = weight + self.gamma * weight.detach().norm() / length * grad
        return moved


class _Once:
    """A search that is made once and then remembered."""

    def __init__(self, search: Any) -> None:
        self.search = search
        self.found: Tensor | None = None

    def __call__(
        self, encoder: Encoder, x0: Tensor, objective: Objective, threat: Threat, generator: Any = None
    ) -> Tensor:
        if self.found is None:
            self.found = self.search(encoder, x0, objective, threat, generator)
        return self.found


class _Elsewhere(nn.Module):
    """A module called with other tensors in place of some of its weights and buffers."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module, self.tensors = module, dict(tensors)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = functional_call(self.module, self.tensors, (x,))
        return z
