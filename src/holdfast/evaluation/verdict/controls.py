"""Encoders that are broken on purpose: what an examination must catch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidArgument
from ...rng import stream
from ...types import Encoder


class Control(nn.Module):
    """A wrapper around any encoder; the subclasses say what it breaks.

    Parameters
    ----------
    encoder
        (n, c, h, w) -> (n, e).
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder


class _NoGradient(torch.autograd.Function):
    """The identity, with gradient zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])


class GradientKiller(Control):
    """Embeddings are those of the encoder; their gradient is zero, or there is none.

    Parameters
    ----------
    detach
        Break the graph instead of passing back zeros.
    """

    def __init__(self, encoder: Encoder, *, detach: bool = False) -> None:
        super().__init__(encoder)
        self.detach = detach

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, c, h, w) images."""
        z = self.encoder(x)
        return z.detach() if self.detach else cast(Tensor, _NoGradient.apply(z))  # type: ignore[no-untyped-call]


class InputQuantiser(Control):
    """Inputs are rounded to a few levels, which has gradient zero almost everywhere (Buckman et al. 2018).

    Parameters
    ----------
    levels
        Levels in [0, 1], >= 2.
    """

    def __init__(self, encoder: Encoder, *, levels: int = 4) -> None:
        super().__init__(encoder)
        if levels < 2:
            raise InvalidArgument("levels", "an integer >= 2", levels)
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, c, h, w) images."""
        return self.encoder((x * (self.levels - 1)).round() / (self.levels - 1))


class ExtremeTemperature(Control):
    """Embeddings pass a saturated tanh, whose gradient vanishes in floating point.

    Entries of a unit embedding are small, so the factor is large.

    Parameters
    ----------
    scale
        Factor before the tanh, > 0.
    """

    def __init__(self, encoder: Encoder, *, scale: float = 1e6) -> None:
        super().__init__(encoder)
        if not scale > 0:
            raise InvalidArgument("scale", "a number > 0", scale)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, c, h, w) images."""
        return F.normalize(torch.tanh(self.scale * self.encoder(x)), dim=1)


class RandomInput(Control):
    """Inputs are resized at random and get noise before they are embedded (after Xie et al. 2018).

    Parameters
    ----------
    noise
        Standard deviation, in input units, >= 0.
    shrink
        Least share of a side that is kept by the resizing, in (0, 1].
    seed
        Of a stream that goes on from call to call.
    """

    def __init__(self, encoder: Encoder, *, noise: float = 0.1, shrink: float = 0.75, seed: int = 0) -> None:
        super().__init__(encoder)
        if not noise >= 0:
            raise InvalidArgument("noise", "a number >= 0", noise)
        if not 0 < shrink <= 1:
            raise InvalidArgument("shrink", "a share in (0, 1]", shrink)
        self.noise, self.shrink = noise, shrink
        self.generator = stream(seed, "random input")

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, c, h, w) images."""
        if x.ndim == 4:
            share = self.shrink + (1 - self.shrink) * float(torch.rand((), generator=self.generator))
            size = [max(1, round(share * side)) for side in x.shape[2:]]
            small = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            x = F.interpolate(small, size=list(x.shape[2:]), mode="bilinear", align_corners=False)
        drawn = torch.randn(x.shape, generator=self.generator).to(x)
        return self.encoder(x + self.noise * drawn)


class Collapsed(Control):
    """All embeddings lie next to one point.

    Parameters
    ----------
    keep
        Share of the encoder's own embedding that is left, >= 0.
    """

    def __init__(self, encoder: Encoder, *, keep: float = 1e-2) -> None:
        super().__init__(encoder)
        if not keep >= 0:
            raise InvalidArgument("keep", "a number >= 0", keep)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        """Embed (n, c, h, w) images."""
        z = self.keep * self.encoder(x)
        return F.normalize(z + F.one_hot(torch.tensor(0, device=z.device), z.shape[1]).to(z), dim=1)


CONTROLS: Mapping[str, Callable[[Encoder], Control]] = {
    "gradient killer": GradientKiller,
    "broken graph": lambda encoder: GradientKiller(encoder, detach=True),
    "input quantiser": InputQuantiser,
    "extreme temperature": ExtremeTemperature,
    "random input": RandomInput,
    "collapsed": Collapsed,
}
"""Broken encoders by name."""
