"""Examples that look like one sample and are embedded like another, as in DVERGE."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ...rng import Randomness, uniform
from ...search import PGD, frozen
from ...threat import LinfThreat
from ...types import Encoder, Search, Threat


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """Images near ``x`` whose embedding under one member is near that of another sample ``x_s``.

    ``x' = argmin ||f(x') - f(x_s)||^2`` over the threat around ``x``: an image of the class of x that carries
    the features of x_s that member f is weak to. The other members are trained on (x', label of x), so that
    they do not learn the same features: a pool of examples in place of those that climb the members' losses.

    Attributes
    ----------
    search, threat
        How and how far images move.

    Notes
    -----
    Yang et al., *DVERGE: Diversifying Vulnerabilities for Enhanced Robust Generation of Ensembles*,
    NeurIPS 2020, arXiv:2009.14720. They match the features of a layer drawn at random in every step, and call
    ``x_s`` what moves; here the embedding is matched, and ``x`` moves, as everywhere in this library. That is
    our adaptation. Steps, step length and radius are those of their code, for images of 32 x 32. Theirs
    starts from trained members: a member that has learnt nothing has no features to tell.

    Examples
    --------
    >>> x = torch.tensor([[0.2, 0.5], [0.8, 0.5]])
    >>> Distilled()(torch.nn.Identity(), x)
    tensor([[0.2700, 0.5000],
            [0.7300, 0.5000]])
    """

    search: Search = field(default_factory=lambda: PGD(steps=10, alpha=0.007))
    threat: Threat = field(default_factory=lambda: LinfThreat(eps=0.07))

    def __post_init__(self) -> None:
        if not callable(self.search):
            raise InvalidArgument("search", "a search, such as PGD", self.search)
        if not hasattr(self.threat, "project"):
            raise InvalidArgument("threat", "a threat, such as LinfThreat", self.threat)

    def sources(self, x: Tensor, generator: Randomness = None) -> Tensor:
        """Draw for each of (n, ...) images another one of the batch, (n,) row numbers.

        The rows are put in a random order and each gets the next one, the last the first: every row is the
        source of exactly one, and none its own. Classes are not looked at.

        Raises
        ------
        InvalidArgument
            If there are fewer than two rows.
        """
        if len(x) < 2:
            raise InvalidArgument("x", "at least two images, one to look like and one to be near", len(x))
        order = uniform(x.new_empty((len(x), 1), dtype=torch.float64), generator)[:, 0].argsort()
        return torch.empty_like(order).index_put((order,), order.roll(-1))

    def __call__(
        self, encoder: Encoder, x: Tensor, generator: Randomness = None, *, sources: Tensor | None = None
    ) -> Tensor:
        """Return images inside the threat around ``x``, shaped like it; no trace is left on the encoder.

        Parameters
        ----------
        encoder
            One member.
        x
            (n, ...) images in [0, 1].
        generator
            For the sources, then for the search.
        sources
            (n,) rows of ``x`` to be embedded like; drawn by :meth:`sources` if not given. Draw them once and
            give them to all members to pair the same images for each.
        """
        rows = self.sources(x, generator) if sources is None else sources
        if rows.shape != x.shape[:1] or bool(((rows < 0) | (rows >= len(x))).any()):
            raise InvalidArgument("sources", f"{len(x)} row numbers of x", rows.tolist())
        with frozen(encoder), torch.no_grad():
            aim = encoder(x)[rows]
        return self.search(encoder, x, lambda z: -(z - aim).square().sum(1), self.threat, generator)
