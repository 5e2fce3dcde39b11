"""Named random streams: every random number belongs to a seed, a purpose and an index.

A stream is a :class:`torch.Generator` on the CPU whose state is a hash of its name. Nothing has to be
stored to resume a run, and the numbers that a sample receives do not depend on its neighbours in the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .errors import InvalidArgument

Name = str | int


def stream(seed: int, *name: Name) -> torch.Generator:
    """Return the generator that belongs to a seed and a name.

    Parameters
    ----------
    seed
        The run's seed, any integer >= 0.
    *name
        Purpose and indices, for example ``"sampler", epoch``.

    Examples
    --------
    >>> a, b = stream(0, "noise", 3), stream(0, "noise", 3)
    >>> bool((torch.rand(4, generator=a) == torch.rand(4, generator=b)).all())
    True
    """
    if seed < 0:
        raise InvalidArgument("seed", "an integer >= 0", seed)
    digest = hashlib.sha256(repr((int(seed), *name)).encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator


class RowStreams:
    """One generator for each row of a batch, named by the row's index in its data set.

    Parameters
    ----------
    seed, *name
        As for :func:`stream`.
    index
        (n,) int64; the samples' own numbers, so that the draws follow the sample and not the batch.
    """

    def __init__(self, seed: int, *name: Name, index: Tensor | Sequence[int]) -> None:
        rows = index.tolist() if isinstance(index, Tensor) else list(index)
        self.generators = [stream(seed, *name, int(i)) for i in rows]

    def __len__(self) -> int:
        return len(self.generators)

    def rows(self, which: Tensor) -> RowStreams:
        """Return the streams (shared, not copied) of some rows, given as (k,) numbers or an (n,) mask."""
        numbers = torch.nonzero(which).squeeze(1) if which.dtype == torch.bool else which
        part = RowStreams(0, index=[])
        part.generators = [self.generators[int(i)] for i in numbers]
        return part


Randomness = torch.Generator | RowStreams | None


def _per_row(shape: tuple[int, ...], generator: RowStreams) -> int:
    rows, streams = shape[0] if shape else 1, len(generator)
    if rows % streams if streams else rows:
        raise InvalidArgument("generator", f"streams whose number divides the {rows} rows", streams)
    return rows // max(streams, 1)


def _draw(sample: Callable[..., Tensor], like: Tensor, generator: Randomness) -> Tensor:
    shape = tuple(like.shape)
    if isinstance(generator, RowStreams):
        blocks = _per_row(shape, generator)
        rows = [sample(shape[1:], generator=g) for _ in range(blocks) for g in generator.generators]
        drawn = torch.stack(rows) if rows else torch.empty(shape)
    else:
        drawn = sample(shape, generator=generator)
    return drawn.to(device=like.device, dtype=like.dtype)


def uniform(like: Tensor, generator: Randomness) -> Tensor:
    """Draw U(0, 1) numbers shaped like ``like``; row i depends on stream ``i mod n`` alone.

    Drawn in float32 on the CPU whatever ``like`` is, so that device and dtype do not change the numbers.
    """
    return _draw(torch.rand, like, generator)


def normal(like: Tensor, generator: Randomness) -> Tensor:
    """Draw N(0, 1) numbers shaped like ``like``; see :func:`uniform`."""
    return _draw(torch.randn, like, generator)


def choose(allowed: Tensor, generator: Randomness, k: int = 1, replacement: bool = True) -> Tensor:
    """Choose ``k`` allowed columns of every row, uniformly.

    Parameters
    ----------
    allowed
        (n, m) bool. A row without any allowed column is an error: the caller decides on a fallback.
    generator
        One generator, or one for each row.
    k
        Number of columns drawn.
    replacement
        Whether a column may be drawn twice.

    Returns
    -------
    Tensor
        (n, k) int64.
    """
    counts = allowed.sum(1)  # (n,)
    if bool((counts < (1 if replacement else k)).any()):
        need = "at least one allowed column in every row" if replacement else f"at least {k} allowed columns"
        raise InvalidArgument("allowed", need, f"rows with {int(counts.min())}")
    if not replacement:  # random keys, the k largest among the allowed
        keys = uniform(allowed.float(), generator).masked_fill(~allowed, -1.0)
        return keys.topk(k, dim=1).indices
    u = uniform(allowed.new_empty((len(allowed), k), dtype=torch.float64), generator)
    nth = (u * counts[:, None]).long().clamp_(max=counts[:, None] - 1)  # (n, k): the nth allowed column
    position = allowed.cumsum(1) - 1  # (n, m): how many allowed columns stand before
    return torch.searchsorted(position.contiguous(), nth.contiguous())


@contextmanager
def seeded(seed: int, *name: Name) -> Iterator[None]:
    """Run a block under a seeded global generator and put the old global state back afterwards.

    For code that offers no generator argument, such as the initialisation of ``torch.nn`` layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed, *name).initial_seed())
        yield
