"""What a diversity term of an ensemble sees of one batch, and what such a term is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ...errors import InvalidArgument
from ...losses import LearnedProxies
from ...types import Members


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleView:
    """What a diversity term may look at: one batch of n rows, M members and K classes.

    Attributes
    ----------
    encoder
        The ensemble, without any wrapper: ``encoder.member(m)`` is the encoder of one member and
        ``encoder.split(z)`` takes the joint embedding apart.
    proxies
        One for each member, each of K proxies in the width of that member; the same object M times when the
        members share them.
    x
        (n, ...) clean images in [0, 1].
    y
        (n,) labels, 0 to K - 1.
    attacked
        M tensors (n, ...): the examples that each member's own attack found.
    z
        M tensors (n, e_m): clean embeddings, with gradient.
    z_attacked
        M tensors (n, e_m): member m on its own ``attacked[m]``, with gradient.
    generator
        Stream of this step.

    Raises
    ------
    InvalidArgument
        If there is no member or no row, if shapes or numbers of members or classes differ, or if a label is
        outside.

    Notes
    -----
    Members may have embeddings of different widths e_m: what terms compare lives in the space of classes or
    in that of images.
    """

    encoder: nn.Module
    proxies: tuple[LearnedProxies, ...]
    x: Tensor
    y: Tensor
    attacked: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    z_attacked: tuple[Tensor, ...]
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        counts = [len(part) for part in (self.proxies, self.attacked, self.z, self.z_attacked)]
        if not counts[0] or counts.count(counts[0]) != 4:
            need = "one entry for each of the members, at least one member"
            raise InvalidArgument("proxies, attacked, z, z_attacked", need, counts)
        shapes = [tuple(part.proxies.shape) for part in self.proxies]
        if len({classes for classes, _ in shapes}) != 1:
            raise InvalidArgument("proxies", "the same number of classes for every member", shapes)
        n = len(self.x)
        if not n or self.y.shape != (n,):
            got = (tuple(self.x.shape), tuple(self.y.shape))
            raise InvalidArgument("x, y", "shapes (n, ...) and (n,) with n >= 1", got)
        if bool(((self.y < 0) | (self.y >= self.classes)).any()):
            got_labels = f"labels from {int(self.y.min())} to {int(self.y.max())}"
            raise InvalidArgument("y", f"labels 0 to {self.classes - 1}, as there are proxies", got_labels)
        for m, (_, width) in enumerate(shapes):
            if self.attacked[m].shape != self.x.shape:
                raise InvalidArgument(
                    f"attacked[{m}]", f"the shape of x, {tuple(self.x.shape)}", tuple(self.attacked[m].shape)
                )
            for name, z in (("z", self.z[m]), ("z_attacked", self.z_attacked[m])):
                if z.shape != (n, width):
                    need = f"shape {(n, width)}: the rows of x, the width of this member's proxies"
                    raise InvalidArgument(f"{name}[{m}]", need, tuple(z.shape))

    def __len__(self) -> int:
        """Return the number M of members."""
        return len(self.proxies)

    @property
    def classes(self) -> int:
        """Number K of classes."""
        return len(self.proxies[0].proxies)

    def member(self, m: int) -> nn.Module:
        """Return the encoder of one member, (n, ...) -> (n, e_m)."""
        return cast(Members, self.encoder).member(m)


class Diversity(Protocol):
    """A term of the training loss that is lower, the more the members differ in what they are weak to."""

    def __call__(self, view: EnsembleView) -> Tensor:
        """Return a scalar with gradient to encoders and proxies; 0 where there is one member alone."""
        ...
