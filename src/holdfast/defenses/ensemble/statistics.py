"""What the members of an ensemble in training share: who trains on what, and whose examples fool whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ...errors import InvalidArgument

Split = Literal["fold", "class", "bootstrap", "none"]
SPLITS: tuple[Split, ...] = ("fold", "class", "bootstrap", "none")
START = 0.5
"""Transfer rates before anything was seen."""


def split_weights(
    y: Tensor, members: int, split: Split, rho: float, generator: torch.Generator | None = None
) -> Tensor:
    """Return how much every training sample counts for every member.

    Parameters
    ----------
    y
        (N,) labels.
    members
        Number M of members; one member sees all samples with weight 1.
    split
        ``"fold"``: M folds, even within every class; a member sees its own fold with weight ``rho``. The
        samples of a class with fewer than M of them weigh ``(M - 1 + rho) / M`` for all. ``"class"``: the
        same with whole classes. ``"bootstrap"``: a member's weights count how often each sample was drawn,
        N times with replacement. ``"none"``: all weights 1.
    rho
        Weight of a sample in its own fold, in [0, 1].
    generator
        Of the draws.

    Returns
    -------
    Tensor
        (M, N), >= 0.

    Examples
    --------
    >>> split_weights(torch.tensor([0, 0, 1, 1]), 2, "fold", 0.0).sum(0).tolist()  # each is left out once
    [1.0, 1.0, 1.0, 1.0]
    """
    n = len(y)
    if members == 1 or split == "none":
        return torch.ones(members, n)
    if split == "bootstrap":
        drawn = torch.randint(n, (members, n), generator=generator)
        return torch.stack([row.bincount(minlength=n) for row in drawn]).float()
    labels, inverse, counts = torch.unique(y.cpu(), return_inverse=True, return_counts=True)
    shift = torch.randint(members, (len(labels),), generator=generator)  # so that no fold is always first
    if split == "class":
        fold = torch.randperm(len(labels), generator=generator)[inverse] % members
        small = torch.zeros(n, dtype=torch.bool)
    else:
        mixed = torch.randperm(n, generator=generator)
        order = mixed[inverse[mixed].argsort(stable=True)]  # by class, at random within each
        place = torch.empty(n, dtype=torch.int64)
        place[order] = torch.arange(n) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        fold = (place + shift[inverse]) % members
        small = counts[inverse] < members
    weights = torch.where(fold == torch.arange(members)[:, None], rho, 1.0)
    return torch.where(small, (members - 1 + rho) / members, weights)


class TransferStatistics(nn.Module):
    """Moving averages of who fools whom, and the samples' weights; all of it is part of checkpoints.

    Attributes
    ----------
    transfer : Tensor
        (M, M): entry (n, m) is the share of member n's adversarial examples that member m puts to a wrong
        proxy, in [0, 1]; on the diagonal the share of its own.
    joint : Tensor
        The same for the examples made on all members together, and all of them as judges.
    weights : Tensor
        (M, N) of :func:`split_weights`.
    """

    transfer: Tensor
    joint: Tensor
    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        members = len(weights)
        self.register_buffer("transfer", torch.full((members, members), START))
        self.register_buffer("joint", torch.tensor(START))
        self.register_buffer("weights", weights)

    @torch.no_grad()
    def see(self, wrong: dict[tuple[int, int], Tensor], joint: Tensor | None, momentum: float) -> None:
        """Move the averages towards shares of one batch: ``wrong[n, m]`` (b,) bool, and ``joint`` (b,)."""
        for (n, m), values in wrong.items():
            share = values.float().mean()
            self.transfer[n, m] = momentum * self.transfer[n, m] + (1 - momentum) * share
        if joint is not None:
            self.joint.copy_(momentum * self.joint + (1 - momentum) * joint.float().mean())

    def mixture(self, temperature: float) -> Tensor:
        """Return how much member m learns from member n's examples, (m, n): rows sum to 1, diagonal 0.

        A softmax over n of ``transfer[n, m] / temperature``: what fools a member most is what it trains on.
        """
        if len(self.transfer) == 1:
            return torch.zeros_like(self.transfer)
        scores = self.transfer.T / temperature
        return scores.masked_fill(torch.eye(len(scores), device=scores.device).bool(), -torch.inf).softmax(1)

    def logs(self) -> dict[str, float]:
        """Return the averages under flat names."""
        rows = self.transfer.tolist()
        members = range(len(rows))
        found = {f"transfer.{n}.{m}": rows[n][m] for n in members for m in members}
        off = [rows[n][m] for n in members for m in members if n != m]
        found["transfer"] = sum(off) / max(len(off), 1)
        found["ensemble_error"] = float(self.joint)
        return found


def check_split(split: str, rho: float) -> None:
    """Refuse an unknown split, or a weight outside [0, 1]."""
    if split not in SPLITS:
        raise InvalidArgument("split", f"one of {', '.join(SPLITS)}", split)
    if not 0 <= rho <= 1:
        raise InvalidArgument("rho", "a number in [0, 1]", rho)


def check_weights(names: Sequence[tuple[str, float]]) -> None:
    """Refuse weights of terms that are negative or not finite."""
    for name, value in names:
        if not 0 <= value < float("inf"):
            raise InvalidArgument(name, "a finite number >= 0", value)
