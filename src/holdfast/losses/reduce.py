"""Two reductions that several losses share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def over_violators(x: Tensor) -> Tensor:
    """Return ``relu(x)``, scaled so that its plain mean is the mean over the entries that are > 0.

    Parameters
    ----------
    x
        (t,) signed violations.

    Returns
    -------
    Tensor
        (t,), >= 0: ``relu(x) * t / #{x > 0}``, and all 0 where nothing is violated. The count is a constant
        for the gradient; as it depends on the batch, so do the values.

    Examples
    --------
    >>> over_violators(torch.tensor([1.0, -5.0, 3.0, 0.0])).tolist()
    [2.0, 0.0, 6.0, 0.0]
    """
    return x.relu() * (len(x) / (x > 0).sum().clamp_min(1))


def log_one_plus_sum_exp(x: Tensor, which: Tensor, dim: int) -> Tensor:
    """Return ``log(1 + sum exp(x))`` over the entries ``which`` along ``dim``, without overflow.

    Parameters
    ----------
    x, which
        Numbers, and the bool mask of those that count; of one shape.
    dim
        The dimension to sum over.

    Returns
    -------
    Tensor
        >= 0, and 0 with gradient 0 where nothing counts.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 0.0, 9.0], [1e4, 0.0, 0.0]])
    >>> which = torch.tensor([[True, True, False], [True, False, False]])
    >>> [round(v, 4) for v in log_one_plus_sum_exp(x, which, dim=1).tolist()]
    [1.0986, 10000.0]
    """
    one = x.new_zeros(()).expand_as(x.narrow(dim, 0, 1))  # exp(0) = 1
    return torch.cat([one, x.masked_fill(~which, -math.inf)], dim).logsumexp(dim)
