"""Random shifts and mirror images of training images that are held in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgument


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Shift by whole pixels, black coming in at the border, and mirror; for training only.

    Images that stay files are cropped and mirrored when they are decoded, and are not shifted again.

    Attributes
    ----------
    shift
        Largest shift in pixels along either axis, >= 0; all shifts are equally likely.
    flip
        Probability of a left-right mirror image, in [0, 1]; 0 for digits and letters.

    Examples
    --------
    >>> Augment(shift=0, flip=1.0)(torch.tensor([[[[0.0, 1.0]]]]))
    tensor([[[[1., 0.]]]])
    """

    shift: int = 2
    flip: float = 0.0

    def __post_init__(self) -> None:
        if type(self.shift) is not int or self.shift < 0:
            raise InvalidArgument("shift", "an integer >= 0", self.shift)
        if not 0 <= self.flip <= 1:
            raise InvalidArgument("flip", "a probability in [0, 1]", self.flip)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return new images (n, c, h, w), each changed on its own."""
        n, _, h, w = x.shape
        draws = torch.rand(n, 3, generator=generator).to(x.device)
        mirrored = draws[:, 0] < self.flip
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        if not self.shift:
            return x
        at = (draws[:, 1:] * (2 * self.shift + 1)).long().clamp_max(2 * self.shift)  # (n, 2)
        wide = F.pad(x, (self.shift,) * 4)
        rows = at[:, :1] + torch.arange(h, device=x.device)  # (n, h)
        columns = at[:, 1:] + torch.arange(w, device=x.device)
        image = torch.arange(n, device=x.device)[:, None, None]
        return wide.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
