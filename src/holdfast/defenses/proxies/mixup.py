"""Mix-Up: train between images, with the mixed loss of both labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidArgument
from ...types import Context, Step
from ..learnt import learnable_parts, loss_now
from .training import check_proxies


def beta_draw(concentration: float, generator: torch.Generator | None) -> float:
    """Draw from Beta(a, a), in [0, 1], by inverting its distribution function."""
    from scipy.special import betaincinv

    u = float(torch.rand((), dtype=torch.float64, generator=generator))
    return float(betaincinv(concentration, concentration, u))


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """``lambda PAL(z, y) + (1 - lambda) PAL(z, y')`` with z of the image ``lambda x + (1 - lambda) x'``.

    x' and y' are the batch in another order; lambda ~ Beta(a, a) is drawn once for each batch. No adversary.

    Attributes
    ----------
    loss
        A loss with proxies. It compares rows with proxies alone, not with one another, which is why a row may
        count under two labels.
    concentration
        a > 0; small values leave images nearly alone. 1 is uniform, as in the released code.

    Notes
    -----
    The mixed image is embedded once and the loss, as the paper's cross-entropy, is linear in the label. The
    proxy-anchor loss in its place is our adaptation.

    References
    ----------
    Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, section 2.
    """

    loss: Any
    concentration: float = 1.0

    def __post_init__(self) -> None:
        check_proxies(self.loss)
        if not 0 < self.concentration < math.inf:
            raise InvalidArgument("concentration", "a finite number > 0", self.concentration)

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return the proxies."""
        return nn.ModuleDict(learnable_parts(self.loss, encoder, y))

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the one loss of the batch."""
        loss = loss_now(self.loss, ctx)
        share = beta_draw(self.concentration, ctx.generator)
        order = torch.randperm(len(ctx.x), generator=ctx.generator).to(ctx.x.device)
        z = ctx.encoder(share * ctx.x + (1 - share) * ctx.x[order])
        rows = share * loss(z, ctx.y, ctx.distance) + (1 - share) * loss(z, ctx.y[order], ctx.distance)
        value = rows.mean()
        ctx.signal["loss"] = float(value.detach())
        yield Step(value, {"loss": ctx.signal["loss"], "mix": share})
