"""Who stands first in a query's list: the nearest row of its own class, the nearest rows of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..functional.ranking import chunks, without_self
from ..types import RetrievalTask

NUMBERS = 2**22
"""Distances that :func:`hits` looks at at once: 16 MiB of them in float32."""


def clean_first(task: RetrievalTask) -> Tensor:
    """Return the gallery row that stands first for every clean query, itself left out: (n,)."""
    return without_self(task.distance.matrix(task.z, task.gallery.z), task.self_index).argmin(1)


def own_rows(task: RetrievalTask) -> Tensor:
    """Return which gallery rows share a query's class, the query itself left out by index: (n, m) bool."""
    return _listed(task.gallery.y[None, :] == task.y[:, None], task)


def other_rows(task: RetrievalTask) -> Tensor:
    """Return which gallery rows are of another class than a query: (n, m) bool."""
    return _listed(task.gallery.y[None, :] != task.y[:, None], task)


def _listed(rows: Tensor, task: RetrievalTask) -> Tensor:
    inside = torch.nonzero(task.self_index >= 0).squeeze(1)
    rows[inside, task.self_index[inside]] = False
    return rows


def nearest_allowed(d: Tensor, allowed: Tensor, k: int = 1) -> Tensor:
    """Return the k-th smallest allowed distance of every row, infinity where fewer are allowed: (n,).

    Parameters
    ----------
    d, allowed
        (n, m) distances and (n, m) bool.
    k
        Place, >= 1.
    """
    d = d.masked_fill(~allowed, torch.inf)
    if k == 1:
        return d.amin(1)
    if k > d.shape[1]:
        return d.new_full((len(d),), torch.inf)
    return d.topk(k, dim=1, largest=False).values[:, -1]


def hits(z: Tensor, task: RetrievalTask, k: int = 1) -> Tensor:
    """Return 1 where a row of the query's class stands among its first ``k``: (n,), 0 or 1.

    Parameters
    ----------
    z
        (n, e) embeddings of the queries, clean or attacked.
    task
        Queries and clean gallery. The query's own clean image is left out, by index.
    k
        Places, >= 1.

    Notes
    -----
    Ties count against the defense: the nearest own row has to be strictly nearer than the k-th nearest row of
    other classes. A query whose class has no other row is never right; one with own rows and fewer than ``k``
    rows of other classes always is.
    """
    if k < 1:
        raise InvalidArgument("k", "an integer >= 1", k)
    at_once = max(1, NUMBERS // max(1, len(task.gallery.z)))
    if len(z) > at_once:
        return torch.cat([hits(z[rows], task.rows(rows), k) for rows in chunks(len(z), at_once)])
    d = task.distance.matrix(z, task.gallery.z)  # (n, m)
    right = nearest_allowed(d, own_rows(task)) < nearest_allowed(d, other_rows(task), k)
    return right.to(z.dtype)
