"""Random search by squares: an attack that needs values alone, no gradient and no slope."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..rng import Randomness, uniform
from ..types import Encoder, Objective, Threat, rows_of
from .modes import frozen
from .moving import Moving, by_row
from .windows import L2Windows, SignWindows, Windows

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Of ten thousand queries, those after which the share of a window is halved."""


@dataclass(frozen=True, kw_only=True)
class Square:
    """Change one random window of every input at a time, and keep what does not make the value smaller.

    Equal values are accepted, so that the search wanders over the plateaus of a gain that is piecewise
    constant, such as one that reads the ranked list alone. The rows of a group move together and are judged
    by the group's value. The result is never worse than the clean input.

    Attributes
    ----------
    queries
        Passes of every input, >= 1: the clean input, the random start, then one window each.
    p
        Share of the input that the first windows cover, in (0, 1]; it falls as the queries are used up.
    stop_at
        A value that is good enough: groups that have reached it are left out of all later queries. ``None``
        never stops.

    Notes
    -----
    Images are (n, c, h, w); rows of any other shape are vectors, whose windows are ranges of indices. Under
    an l2 threat the windows move the change from one place to another; under every other threat they hold
    ``-2 * eps`` or ``2 * eps`` in each channel and ``threat.project`` cuts them, within the rectangle that
    the threat leaves free: under a patch no query is spent outside. A window that would change nothing has
    its signs turned. Which windows a row sees depends on its own random stream and not on the batch, nor on
    which groups have stopped.

    Examples
    --------
    >>> import torch
    >>> from holdfast.rng import stream
    >>> from holdfast.threat import LinfThreat
    >>> x = torch.tensor([[0.5, 0.5]])
    >>> gain = lambda z: z[:, 0] - z[:, 1]
    >>> Square(queries=50)(torch.Tensor.detach, x, gain, LinfThreat(eps=0.25), stream(0))
    tensor([[0.7500, 0.2500]])

    References
    ----------
    Andriushchenko et al., *Square Attack: a Query-Efficient Black-Box Adversarial Attack via Random Search*,
    ECCV 2020, algorithms 1 to 3; the halvings of ``p`` are those of the published code.
    """

    queries: int = 1000
    p: float = 0.8
    stop_at: float | None = None

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise InvalidArgument("queries", "an integer >= 1", self.queries)
        if not 0 < self.p <= 1:
            raise InvalidArgument("p", "a number in (0, 1]", self.p)
        if self.stop_at is not None and self.stop_at != self.stop_at:
            raise InvalidArgument("stop_at", "a number or None", self.stop_at)

    @torch.no_grad()
    def __call__(
        self,
        encoder: Encoder,
        x0: Tensor,
        objective: Objective,
        threat: Threat,
        generator: Randomness = None,
    ) -> Tensor:
        """Climb ``objective`` inside ``threat`` by queries, leaving no trace in modes.

        Parameters
        ----------
        encoder
            Inputs to embeddings; need not be differentiable.
        x0
            (r*g, *s) clean inputs; row i belongs to group ``i mod g``.
        objective
            (r*g, e) -> (g,), climbed.
        threat
            The allowed set around every row.
        generator
            For the windows; ``None`` draws them from PyTorch's global generator.

        Returns
        -------
        Tensor
            Like ``x0``, inside the threat.

        Raises
        ------
        InvalidArgument
            If the objective becomes NaN or infinite, or the groups do not divide the rows.
        """
        x0 = x0.detach()
        windows: Windows = (L2Windows if getattr(threat, "norm", None) == "l2" else SignWindows)(x0, threat)
        work = Moving(objective, len(x0))
        x = x0.clone()
        with frozen(encoder):
            best = work.whole(work(encoder(x)), 0).clone()
            for query in range(1, self.queries):
                if self.stop_at is not None:
                    work.rest(by_row(best[work.groups] < self.stop_at, x[work.rows]).flatten())
                    if not work.all and not len(work.rows):
                        break
                rows = work.rows
                part = threat if work.all else rows_of(threat, rows)
                width = windows.start_draws if query == 1 else windows.draws
                u = uniform(x0.new_empty((len(x0), width), dtype=torch.float32), generator)[rows]
                if query == 1:
                    moved = windows.start(x0[rows], part, u)
                else:
                    moved = windows.move(x[rows], x0[rows], part, u, self.share(query), rows)
                value = work(encoder(moved))
                work.whole(value, query)
                better = value >= best[work.groups]
                x[rows] = torch.where(by_row(better, moved), moved, x[rows])
                best[work.groups] = torch.where(better, value, best[work.groups])
        return x

    def share(self, query: int) -> float:
        """Return the share of the input that the window of a query covers, in (0, 1].

        Examples
        --------
        >>> search = Square(queries=1000)
        >>> search.share(1), search.share(2), search.share(999) == 0.8 / 2**9
        (0.8, 0.4, True)
        """
        return float(self.p / 2 ** sum(query * 10_000 > h * self.queries for h in HALVED))
