"""Attack one encoder by searching on another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..rng import Randomness
from ..types import Encoder, Objective, Search, Threat


@dataclass(frozen=True)
class Transfer:
    """A search on a surrogate; the attacked encoder is never asked.

    Attributes
    ----------
    surrogate
        The encoder that is searched on, of the same inputs.
    search
        How.
    objective
        What is climbed on the surrogate; ``None`` climbs the objective of the call.

    Notes
    -----
    An objective is a function of embeddings, and embeddings belong to one space. Targets and gallery that
    were embedded by the attacked encoder mean nothing to the surrogate, not even where the widths agree: a
    shift away from ``encoder(x)`` (ES) is then a shift away from an arbitrary point, and the figure says
    nothing about transfer. Give ``objective`` the same aim in the surrogate's space, with clean queries and
    gallery embedded by the surrogate. Row i of the objective is row i of the call, so that queries in batches
    need one ``replace(transfer, objective=...)`` for each batch. ``None`` is right only where both encoders
    share one space, as a quantised copy or another checkpoint of a backward-compatible model does.

    Examples
    --------
    >>> import torch
    >>> from holdfast.search import PGD
    >>> from holdfast.threat import LinfThreat
    >>> x = torch.tensor([[0.5]])
    >>> away = lambda z: (z + 0.5).square().sum(1)  # from surrogate(x)
    >>> search = Transfer(torch.neg, PGD(steps=5, alpha=0.1), objective=away)
    >>> search(torch.round, x, lambda z: z[:, 0], LinfThreat(eps=0.25))
    tensor([[0.5000]])
    """

    surrogate: Encoder
    search: Search
    objective: Objective | None = None

    def __call__(
        self,
        encoder: Encoder,
        x0: Tensor,
        objective: Objective,
        threat: Threat,
        generator: Randomness = None,
    ) -> Tensor:
        """Return what the search finds on the surrogate.

        Parameters
        ----------
        encoder
            The attacked encoder, which is not called.
        x0, threat, generator
            As for the search.
        objective
            (r*g, e) -> (g,), climbed on the surrogate unless the field ``objective`` stands in its place.

        Returns
        -------
        Tensor
            Like ``x0``, inside the threat.
        """
        return self.search(self.surrogate, x0, self.objective or objective, threat, generator)
