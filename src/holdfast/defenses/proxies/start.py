"""A search that begins a little beside the clean input, where a divergence from it is not flat."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...errors import InvalidArgument
from ...rng import Randomness, normal
from ...search import PGD
from ...types import Encoder, Objective, Threat


@dataclass(frozen=True, kw_only=True)
class NoisyStart(PGD):
    """:class:`~holdfast.search.PGD` whose first run begins at ``x + sigma * N(0, 1)``.

    Attributes
    ----------
    sigma
        In input units, > 0; 0.001 in the released code of TRADES.

    References
    ----------
    Zhang et al., *Theoretically Principled Trade-off between Robustness and Accuracy*, ICML 2019,
    algorithm 1.
    """

    sigma: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma < math.inf:
            raise InvalidArgument("sigma", "a finite number > 0, in input units", self.sigma)

    def __call__(
        self,
        encoder: Encoder,
        x0: Tensor,
        objective: Objective,
        threat: Threat,
        generator: Randomness = None,
        *,
        start: Tensor | None = None,
    ) -> Tensor:
        """Climb as :class:`~holdfast.search.PGD`; a ``start`` that is given overrules the noise."""
        if start is None:
            start = x0 + self.sigma * normal(x0, generator)
        return super().__call__(encoder, x0, objective, threat, generator, start=start)
