"""A bounded log of past queries that notices series of near-duplicates, as black-box attacks send them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.distance import Euclidean
from ..functional.ranking import chunks, nearest
from ..types import PairwiseDistance

Client = str | int


def near_duplicate_radius(
    z_clean: Tensor, quantile: float = 0.01, distance: PairwiseDistance | None = None
) -> float:
    """Return a radius within which clean queries rarely have another one.

    Parameters
    ----------
    z_clean
        (n, e) embeddings of clean queries, each another picture.
    quantile
        Share of clean queries that may have another within the radius, in (0, 1).
    distance
        Euclidean by default.

    Returns
    -------
    float
        The ``floor((n + 1) * quantile)``-th smallest distance of a clean query to the nearest other one.

    Raises
    ------
    InvalidArgument
        If there are too few queries for the quantile, or the radius would be 0 because of exact duplicates.

    Notes
    -----
    The share holds for logs of about n queries. A log of many more holds more neighbours of everybody.
    """
    if not 0 < quantile < 1:
        raise InvalidArgument("quantile", "a share in (0, 1)", quantile)
    n = len(z_clean)
    place = math.floor((n + 1) * quantile + 1e-9)
    if place < 1 or n < 2:
        least = max(2, math.ceil(1 / quantile - 1e-9) - 1)
        need = f"at least {least} clean queries for the quantile {quantile:g}"
        raise InvalidArgument("z_clean", need, n)
    own = torch.arange(n, device=z_clean.device)
    d = nearest(z_clean, z_clean, 1, distance or Euclidean(), own)[0][:, 0]
    radius = float(d.sort().values[place - 1])
    if not (math.isfinite(radius) and radius > 0):
        raise InvalidArgument("z_clean", "distinct finite embeddings of clean queries", f"radius {radius}")
    return radius


class QueryLog:
    """A ring buffer of past query embeddings that counts near-duplicates of each new one.

    Parameters
    ----------
    radius
        Earlier queries strictly nearer than this count; see :func:`near_duplicate_radius`.
    limit
        A query with so many counted ones is flagged, >= 1.
    capacity
        Queries that are remembered, the latest; memory is ``capacity * e`` numbers and does not grow, and
        the work for each query is one distance to each of them.
    distance
        Euclidean by default.

    Notes
    -----
    A query counts those before it, also those of the same call: results do not depend on how queries are
    put into calls. Clients are stored as 64-bit hashes of their names. An attacker with many names is counted
    only where ``client`` is left out, or where the caller names what the accounts have in common.

    References
    ----------
    Chen, Carlini and Wagner, *Stateful Detection of Black-Box Adversarial Attacks*, SPAI 2020; Feng et al.,
    *Stateful Defenses for Machine Learning Models Are Not Yet Secure Against Black-box Attacks*, CCS 2023,
    break such logs by sending queries that lie further apart.

    Examples
    --------
    >>> import torch
    >>> log = QueryLog(radius=0.5, limit=2)
    >>> log.add(torch.tensor([[0.0], [0.1], [9.0], [0.2]]))
    tensor([0, 1, 0, 2])
    """

    def __init__(
        self,
        *,
        radius: float,
        limit: int = 5,
        capacity: int = 10_000,
        distance: PairwiseDistance | None = None,
    ) -> None:
        if not (math.isfinite(radius) and radius > 0):
            raise InvalidArgument("radius", "a finite number > 0", radius)
        if limit < 1:
            raise InvalidArgument("limit", "an integer >= 1", limit)
        if capacity < limit:
            raise InvalidArgument("capacity", f"an integer >= limit = {limit}", capacity)
        self.radius, self.limit, self.capacity = radius, limit, capacity
        self.distance = distance or Euclidean()
        self.seen = 0
        """Queries so far, those forgotten included."""
        self._z = torch.empty(0)
        self._client = self._number = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def fresh(self) -> QueryLog:
        """Return an empty log of the same settings."""
        return QueryLog(radius=self.radius, limit=self.limit, capacity=self.capacity, distance=self.distance)

    @torch.no_grad()
    def add(self, z: Tensor, client: Client | Sequence[Client] | None = None) -> Tensor:
        """Count near-duplicates of new queries among the remembered ones, then remember them.

        Parameters
        ----------
        z
            (n, e) embeddings, in the order in which the queries came.
        client
            Who asks: one name, or one for each row; only queries of the same name are counted. ``None``
            counts those of everybody.

        Returns
        -------
        Tensor
            (n,) int64 counts.

        Raises
        ------
        InvalidArgument
            If embeddings have another width than before or are not finite, or names do not fit the rows.
        """
        if z.ndim != 2 or (self.seen and z.shape[1] != self._z.shape[1]):
            width = self._z.shape[1] if self.seen else "e"
            raise InvalidArgument("z", f"embeddings (n, {width})", tuple(z.shape))
        if not bool(torch.isfinite(z).all()):
            raise InvalidArgument("z", "finite embeddings", "NaN or infinity")
        names = [client] * len(z) if client is None or isinstance(client, str | int) else list(client)
        if len(names) != len(z):
            raise InvalidArgument("client", f"one name, or one for each of {len(z)} rows", len(names))
        if not self.seen:
            self._z = z.new_empty(self.capacity, z.shape[1])
            self._client = torch.zeros(self.capacity, dtype=torch.int64, device=z.device)
            self._number = torch.full_like(self._client, -1)  # -1: nothing here yet
        codes = torch.tensor([_code(name) for name in names], dtype=torch.int64, device=z.device)
        size = min(self.capacity, 256)
        found = [self._add(z[r].detach(), codes[r], client is None) for r in chunks(len(z), size)]
        return torch.cat([codes.new_zeros(0), *found])

    def flags(self, counts: Tensor) -> Tensor:
        """Return whether counts from :meth:`add` reach the limit: (n,) bool."""
        return counts >= self.limit

    def _add(self, z: Tensor, codes: Tensor, everybody: bool) -> Tensor:
        """Add at most ``capacity`` rows."""
        number = self.seen + torch.arange(len(z), device=z.device)
        held = len(self)
        earlier_z = torch.cat([self._z[:held], z])
        earlier = torch.cat([self._number[:held], number])[None, :]
        remembered = (earlier < number[:, None]) & (earlier >= number[:, None] - self.capacity)
        counted = remembered & (self.distance.matrix(z, earlier_z) < self.radius)
        if not everybody:
            counted &= torch.cat([self._client[:held], codes])[None, :] == codes[:, None]
        place = number % self.capacity
        self._z[place], self._client[place], self._number[place] = z, codes, number
        self.seen += len(z)
        return counted.sum(1)


def _code(client: Client | None) -> int:
    """Return 64 bits of a hash of a name; 0 for nobody."""
    if client is None:
        return 0
    digest = hashlib.blake2b(repr(client).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
