"""Choose among defenses by chance, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..types import Context, Defense, Step


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Each batch goes to one of several defenses, drawn with given weights.

    Attributes
    ----------
    parts
        The defenses; the published mixtures are ACT or plain training (px) and two hardness manipulations
        (hmix).
    weights
        Chance of each, relative; alike by default.
    """

    parts: tuple[Defense, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise InvalidArgument("parts", "at least one defense", self.parts)
        if self.weights and (len(self.weights) != len(self.parts) or min(self.weights) < 0):
            raise InvalidArgument("weights", f"{len(self.parts)} numbers >= 0, or none", self.weights)
        if self.weights and sum(self.weights) <= 0:
            raise InvalidArgument("weights", "at least one number > 0", self.weights)

    def setup(self, encoder: nn.Module, y: Tensor) -> nn.ModuleDict:
        """Return the learnable parts of every defense."""
        built = {str(i): part.setup(encoder, y) for i, part in enumerate(self.parts)}
        return nn.ModuleDict(built)

    def losses(self, ctx: Context) -> Iterator[Step]:
        """Yield the losses of the defense that the draw from ``ctx.generator`` chooses."""
        weights = torch.tensor(self.weights or (1.0,) * len(self.parts))
        chosen = int(torch.multinomial(weights, 1, generator=ctx.generator))
        learnable = ctx.learnable[str(chosen)] if str(chosen) in ctx.learnable else nn.ModuleDict()
        assert isinstance(learnable, nn.ModuleDict)
        yield from self.parts[chosen].losses(replace(ctx, learnable=learnable))
