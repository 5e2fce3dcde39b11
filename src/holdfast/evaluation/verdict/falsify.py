"""Try to break a certificate: attack every certified query inside its own radius."""

from __future__ import annotations

from dataclasses import dataclass, replace

import scipy
import torch
from torch import Tensor

from ...attacks import RankMargin, hits
from ...certify import Certificate, SmoothedEncoder, Smoothing, smoothed_embeddings
from ...errors import InvalidArgument
from ...search import PGD, Averaged
from ...threat import L2Threat, RowBall
from ...types import Encoder, Gallery, RetrievalTask, Search
from ..embed import embed
from .examination import Examination
from .material import Attacked

SHY = 1 - 1e-6
LEVEL = 0.05
STEPS, REACH, PASSES = 40, 4.0, 2
"""Steps of the default search, the way that they can go in radii, and passes for each averaged gradient."""
COPIES = 10_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Falsified:
    """What an attack inside certified radii did.

    Attributes
    ----------
    tried
        Queries that are right and have a radius above 0.
    rows
        (broken,) the queries of the certificate that were broken.
    allowed
        How many may break: a 95 % bound of the failures that alpha allows, 0 where alpha is 0.
    """

    tried: int
    rows: Tensor
    allowed: int

    @property
    def broken(self) -> int:
        """How many queries were broken."""
        return len(self.rows)

    @property
    def holds(self) -> bool:
        """Whether no more were broken than alpha allows."""
        return self.broken <= self.allowed

    def words(self) -> str:
        """Say it in a sentence."""
        return words(self.broken, self.tried, self.allowed)


def words(broken: int, tried: int, allowed: int) -> str:
    """Say what an attack inside certified radii did."""
    return f"attacks broke {broken} of {tried} certified queries inside their radius ({allowed} allowed)"


def allowed(count: int, alpha: float) -> int:
    """Return how many of ``count`` radii may be too large, each with probability ``alpha``: a 95 % bound."""
    return int(scipy.stats.binom.ppf(1 - LEVEL, count, alpha)) if alpha > 0 and count else 0


def strike_inside(
    e: Examination,
    part: RetrievalTask,
    radius: Tensor,
    *,
    search: Search,
    bounds: tuple[float, float] | None,
    encoder: Encoder | None = None,
) -> Attacked:
    """Attack queries inside l2 balls of their own.

    Parameters
    ----------
    e
        Whose attack and streams are used.
    part
        (n) queries.
    radius
        (n,) certified radii, > 0 or infinite; the balls are a millionth smaller.
    search
        Its step length is a share of the radius.
    bounds
        Box of valid inputs, or ``None``.
    encoder
        What the search sees; by default the encoder of the task, which decides.
    """
    widest = (part.x[0].numel()) ** 0.5
    balls = RowBall(
        threat=L2Threat(eps=0.0, bounds=bounds), radii=(radius.double().clamp_max(widest) * SHY).cpu()
    )
    return e.strike(part, "certified", search=search, threat=balls, encoder=encoder)


def falsify(
    certificate: Certificate,
    task: RetrievalTask,
    encoder: Encoder | None = None,
    *,
    k: int = 1,
    search: Search | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    copies: int = COPIES,
    seed: int = 0,
) -> Falsified:
    """Attack certified queries inside their own l2 radii with the margin that decides Recall@k.

    Parameters
    ----------
    certificate
        Of Recall@k, l2; one radius for each query of the task.
    task
        The queries and their clean gallery.
    encoder
        What is certified: by default the encoder of the task. A
        :class:`~holdfast.certify.SmoothedEncoder` is attacked on its noisy means.
    k
        Places that count.
    search
        Step lengths are shares of the radius. By default 40 steps of a tenth of it, the best point kept, with
        averaged gradients for a smoothed encoder.
    bounds
        Box of valid inputs, or ``None``: certificates by smoothing hold without one.
    copies
        Fresh noisy copies of each attacked query that judge a smoothed encoder.
    seed
        Of the attack and of the noise that judges.

    Returns
    -------
    Falsified

    Raises
    ------
    InvalidArgument
        For a certificate of other queries or another norm.

    Notes
    -----
    The decision of a deterministic encoder is taken with its own embeddings and float64 distances. That of a
    smoothed one is estimated: a query whose true margin the attack brings near 0 may be counted as broken by
    chance. Ties count as broken.
    """
    if len(certificate) != len(task):
        raise InvalidArgument("certificate", f"a radius for each of {len(task)} queries", len(certificate))
    if certificate.norm != 2:
        raise InvalidArgument("certificate", "l2 radii", f"radii in the norm {certificate.norm}")
    rows = torch.nonzero(certificate.correct & (certificate.radius > 0)).squeeze(1).cpu()
    most = allowed(len(rows), certificate.alpha)
    if not len(rows):
        return Falsified(tried=0, rows=rows, allowed=most)
    seen = encoder or task.encoder
    smoothed = seen if isinstance(seen, SmoothedEncoder) else None
    decides = seen if smoothed is None else smoothed.encoder
    part = replace(task.rows(rows.to(task.z.device)), encoder=decides)
    radius = certificate.radius[rows.to(certificate.radius.device)]
    e = Examination(
        task=part, search=search or _search(smoothed is not None), threat=L2Threat(eps=1.0),
        attack=RankMargin(k=k), seed=seed,
    )  # fmt: skip
    x = strike_inside(e, part, radius, search=e.search, bounds=bounds, encoder=smoothed).x
    if smoothed is None:
        z = embed(decides, x).double()
    else:
        fresh = Smoothing(sigma=smoothed.sigma, n_certify=copies, seed=seed)
        z = smoothed_embeddings(decides, x, fresh, purpose="judge", index=part.index)
    g = part.gallery
    broken = hits(z, replace(part, z=z, gallery=Gallery(g.z.double(), g.y, g.ids)), k) == 0
    return Falsified(tried=len(rows), rows=rows[broken.cpu()], allowed=most)


def _search(smoothed: bool) -> PGD:
    plain = PGD(steps=STEPS, alpha=REACH / STEPS, keep="best")
    return replace(plain, gradient=Averaged(samples=PASSES)) if smoothed else plain
