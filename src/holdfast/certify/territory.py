"""One class among labelled references: its own, and those of all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bisectors import Bisectors
from .references import References


@dataclass(frozen=True, kw_only=True, eq=False)
class Territory:
    """The references seen from one class.

    Attributes
    ----------
    bisectors
        All references, and the planes between them.
    own, others
        (p,) and (q,) rows of the references of the class, and of all other classes.
    """

    bisectors: Bisectors
    own: Tensor
    others: Tensor

    @classmethod
    def of(cls, bisectors: Bisectors, label: int) -> Territory:
        """Return the territory of a class."""
        mine = bisectors.references.labels == label
        return cls(
            bisectors=bisectors,
            own=torch.nonzero(mine).squeeze(1),
            others=torch.nonzero(~mine).squeeze(1),
        )

    @property
    def references(self) -> References:
        """All references."""
        return self.bisectors.references

    def walls(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return how far (n, r) coordinates may move up and down inside the box, or None."""
        box = self.references.box
        if box is None:
            return None
        at = t + self.references.centre
        return box[1] - at, at - box[0]
